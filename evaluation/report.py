"""What people read of a run: a page, a model card and terminal lines, each a pure function of its evidence.

The evidence is plain JSON (`evidence.json`), with these keys:

- `name`, `run`, `created_at`: the recipe's name, the run's hash, an ISO 8601 time.
- `recipe`: the recipe as JSON. `question`: `Question.to_dict()`. `verdict`: `Verdict.to_dict()`.
- `data`: the data report as a mapping of names to numbers, texts or lists.
- `ladder`: a row a model, `{kind, validation, interval, test, role}`; `validation` is the accuracy there and `interval`
  its Wilson interval [low, high]; `test` an accuracy or None; `role` is `incumbent`, `candidate`, `reference` or None.
- `sweep`: a row a trial, `{trial, kind, config, epochs, validation, seconds, status}`; what is not known is None.
- `seeds`: a row a seed, `{seed, validation}`.
- `training`: `{samples_per_second, padding_share, seconds, zero_stage, num_workers}`, and more if there is more.
- `versions`: `{"incumbent": {kind, uri, digest}, "candidate": {kind, uri, digest}}`.
- `code`: `{sha256, uri}`.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from evaluation import page
from evaluation.reasons import p_text, points, size
from evaluation.verdict import Outcome, Verdict

Evidence = Mapping[str, Any]

ADVICE = {
    Outcome.FINE_TUNE: "Replace the incumbent by the fine-tuned candidate.",
    Outcome.STAY: "Keep the incumbent; the fine-tuned candidate does not deserve to replace it.",
    Outcome.INSUFFICIENT_EVIDENCE: "Keep the incumbent for now; this test cannot tell.",
}


def to_html(evidence: Evidence) -> str:
    """One page that needs nothing else: readable in light and dark, on a phone, and on paper."""
    verdict = Verdict.from_dict(evidence["verdict"])
    return page.document(
        f"{evidence['name']}: {verdict.outcome}",
        sections=[
            _head(evidence, verdict),
            _gain_section(verdict),
            _ladder_section(evidence),
            _sweep_section(evidence),
            page.section("Training", page.facts(evidence["training"])),
            page.section("Data", page.facts(evidence["data"])),
            _provenance_section(evidence),
        ],
    )


def to_model_card(evidence: Evidence, *, role: str = "candidate") -> str:
    """The card of the candidate's or the incumbent's version: Hub metadata as YAML front matter, then text.

    No licence is named: the evidence does not know it. URIs of stores are named as they are, hf:// ones as Hub ids.
    """
    if role not in ("candidate", "incumbent"):
        raise ValueError(f"role is {role!r}; allowed: candidate, incumbent")
    verdict, recipe = Verdict.from_dict(evidence["verdict"]), evidence["recipe"]
    accuracy = verdict.candidate_accuracy if role == "candidate" else verdict.incumbent_accuracy
    version, dataset = evidence["versions"][role], _hub_id(recipe["data"]["train"])
    measured = {
        "task": {"type": "text-classification"},
        "dataset": {"type": dataset, "name": evidence["name"], "split": "test"},
        "metrics": [{"type": "accuracy", "value": round(accuracy, 6), "name": f"accuracy, {verdict.n} test rows"}],
    }
    front = {
        "base_model": _hub_id(recipe["base_model"]),
        "datasets": [dataset],
        "pipeline_tag": "text-classification",
        "library_name": "tailorbird",
        "tags": ["tailorbird", version["kind"]],
        "model-index": [{"name": f"{evidence['name']} {version['kind']}", "results": [measured]}],
    }
    heading = f"{evidence['name']}: {version['kind']} ({role})"
    body = [
        f"# {heading}",
        f"A text classifier for the task `{evidence['name']}`, made from `{recipe['base_model']}`: mean-pooled encoder "
        f"and linear head, kind `{version['kind']}`. It is the {role} of run `{evidence['run']}`.",
        "## How good it is",
        f"Accuracy {accuracy:.3f} on {verdict.n:,} test rows, on which nothing was chosen.",
        "## Fine-tuned against incumbent",
        verdict.sentence() + ".",
        "\n".join(f"- {reason}" for reason in verdict.reasons),
        "| model | validation | interval | test |\n|---|---|---|---|\n"
        + "\n".join("| " + " | ".join(_ladder_cells(row)) + " |" for row in evidence["ladder"]),
        _seed_sentence(evidence),
        "## Limits",
        "Measured on rows like the test rows; on other text, language or time it is not known how good it is. The "
        "confidence is a softmax probability and is not calibrated.",
        "## Where it comes from",
        f"- version `{version['uri']}`, digest `{version['digest']}`\n- code sha256 `{evidence['code']['sha256']}`\n"
        f"- test rows sha256 `{evidence['question']['test_sha256']}`\n- made {evidence['created_at']}",
    ]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n" + "\n\n".join(body) + "\n"


def verdict_lines(evidence: Evidence) -> list[str]:
    """For the terminal: the verdict, its reasons, the ladder, and what the test could have seen."""
    verdict = Verdict.from_dict(evidence["verdict"])
    rows = [("model", "validation", "interval", "test"), *(_ladder_cells(row) for row in evidence["ladder"])]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    ladder = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [
        verdict.sentence(),
        *(f"  because {reason}" for reason in verdict.reasons),
        f"  {_power_sentence(verdict)}",
        f"  {_seed_sentence(evidence)}",
        "",
        *ladder,
    ]


def _head(evidence: Evidence, verdict: Verdict) -> str:
    return (
        f"<h1>{page.text(evidence['name'])}</h1>"
        + page.paragraph(f"Run {evidence['run']}, {evidence['created_at']}", soft=True)
        + f'<div class="verdict {page.text(verdict.outcome)}"><strong>{page.text(verdict.outcome)}</strong>'
        + page.paragraph(ADVICE[verdict.outcome])
        + page.paragraph(verdict.sentence().removeprefix(f"{verdict.outcome}: ") + ".")
        + page.bullets(verdict.reasons)
        + "</div>"
    )


def _gain_section(verdict: Verdict) -> str:
    counts = {
        "both right or both wrong": verdict.n - verdict.only_candidate_right - verdict.only_incumbent_right,
        "only the candidate right": verdict.only_candidate_right,
        "only the incumbent right": verdict.only_incumbent_right,
    }
    low, high = verdict.reference_interval
    figures = {
        "candidate's accuracy": f"{verdict.candidate_accuracy:.4f}",
        "incumbent's accuracy": f"{verdict.incumbent_accuracy:.4f}",
        "bag-of-words reference": f"{verdict.reference_accuracy:.4f}; the candidate's gain on it "
        f"{points(verdict.reference_gain)} ({points(low)} to {points(high)}, {p_text(verdict.reference_p_value)})",
        "McNemar's test": f"mid-{p_text(verdict.p_value)}, exact {p_text(verdict.p_exact)}, alpha = {verdict.alpha:g}",
        "power": _power_sentence(verdict),
    }
    return page.section(
        "Candidate against incumbent",
        page.paragraph(f"The same {verdict.n:,} test rows.", soft=True),
        page.gain_plot(verdict.gain, interval=verdict.interval, minimum=verdict.minimum_gain),
        page.facts(counts | figures),
    )


def _ladder_section(evidence: Evidence) -> str:
    rows, classes = [], []
    for row in evidence["ladder"]:
        kind, validation, interval, test = _ladder_cells(row)
        plot = page.bar(row["validation"], interval=tuple(row["interval"]), label=f"{kind} {validation} ({interval})")
        rows.append(
            [page.text(kind), plot, f"{page.text(validation)}<small>{page.text(interval)}</small>", page.text(test)]
        )
        classes.append("chosen" if row.get("role") in ("incumbent", "candidate") else "")
    return page.section(
        "The ladder",
        page.paragraph(
            "Accuracy on validation, with Wilson's interval; bars run from 0 to 1. Models were chosen on "
            "validation, so the best of many looks a little better there than it is; test was read only for what the "
            "verdict compares.",
            soft=True,
        ),
        page.table(["model", "plot:validation", "", "test"], rows=rows, row_classes=classes),
    )


def _sweep_section(evidence: Evidence) -> str:
    keys = ("trial", "kind", "config", "epochs", "validation", "seconds", "status")
    rows = [[_known(row.get(key)) for key in keys] for row in evidence["sweep"]]
    seeds = [[page.text(row["seed"]), page.text(f"{row['validation']:.4f}")] for row in evidence["seeds"]]
    return page.section(
        "Sweep and seeds",
        page.paragraph(f"{len(rows)} rows tried, chosen on validation.", soft=True),
        page.table(keys, rows=rows),
        page.paragraph(_seed_sentence(evidence)),
        page.table(["seed", "validation"], rows=seeds),
    )


def _provenance_section(evidence: Evidence) -> str:
    versions = [
        [page.text(role), *(page.text(version[key]) for key in ("kind", "uri", "digest"))]
        for role, version in evidence["versions"].items()
    ]
    return page.section(
        "Where it comes from",
        page.table(["version", "kind", "uri", "digest"], rows=versions),
        page.facts(
            {"code sha256": evidence["code"]["sha256"], "test rows sha256": evidence["question"]["test_sha256"]}
        ),
        page.folded("The question, as it was asked before training", value=evidence["question"]),
        page.folded("The recipe", value=evidence["recipe"]),
    )


def _ladder_cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    low, high = row["interval"]
    role, test = row.get("role"), row.get("test")
    name = f"{row['kind']} ({role})" if role else str(row["kind"])
    return name, f"{row['validation']:.3f}", f"{low:.3f} to {high:.3f}", "" if test is None else f"{test:.3f}"


def _power_sentence(verdict: Verdict) -> str:
    needed = "no number of rows" if verdict.rows_needed is None else f"{verdict.rows_needed:,} rows"
    return (
        f"power {verdict.power_at_expected_gain:.0%} at an expected gain of {size(verdict.expected_gain)}; "
        f"{needed} would give 80%; smallest gain this test finds with 80% power: "
        f"{100 * verdict.minimum_detectable_effect:.2f} points"
    )


def _seed_sentence(evidence: Evidence) -> str:
    values = [row["validation"] for row in evidence["seeds"]]
    if len(values) < 3:
        return f"seeds: {len(values)}, spread not assessed (that takes 3)"
    return f"seeds: {len(values)}, validation accuracy {min(values):.3f} to {max(values):.3f}"


def _known(value: Any) -> str:
    return "" if value in (None, {}) else page.text(page.plain(value))


def _hub_id(uri: str) -> str:
    return uri.removeprefix("hf://")
