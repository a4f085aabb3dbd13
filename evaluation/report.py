"""What people read of a run: a page and terminal lines, each a pure function of its evidence.

The evidence is plain JSON (`evidence.json`), with these keys:

- `name`, `run`, `created_at`: the recipe's name, the run's URI, an ISO 8601 time.
- `asked_by`, `expires_at`: who asked, and the ISO 8601 time after which the verdict may promote nothing.
- `recipe`: the recipe as JSON. `question`: `Question.to_dict()`. `verdict`: `Verdict.to_dict()`.
- `look`: which look of this recipe at these test rows it was; `ledger`: its entry there.
  `routing`: the hybrid as frozen, or None.
- `data`: the data report as a mapping of names to numbers, texts or lists.
- `ladder`: a row a model, `{kind, validation, interval, test, role}`; `validation` is the metric there and `interval`,
  of an accuracy, its Wilson interval [low, high]; `test` a score or None; `role` is `incumbent`, `candidate`,
  `reference` or None.
- `sweep`: a row a trial, `{trial, kind, config, epochs, validation, seconds, status}`; what is not known is None.
- `sweep_ended`: why the sweep ended before its last trial, or None.
- `seeds`: a row a seed, `{seed, validation}`; `averaged`: of the mean of their weights `{validation, chosen}`, whether
  it is the candidate, or None where it was not in the running. `curve`: the learning curve, or None.
- `training`: `{samples_per_second, padding_share, seconds, zero_stage, num_workers}`, and more if there is more.
- `measured`: `{cpu: {incumbent: [...], candidate: [...]} or None, training_cpu_s}`.
- `reliability`: by role a row a bin, `{confidence, accuracy, n}`; empty of a chat task.
- `measures`: of a chat task `{log_likelihood: {candidate, incumbent}}`, means over the test rows; else empty.
- `versions`: by role (`incumbent`, `candidate`, with a hybrid also `hybrid`) `{kind, uri, digest}`; of one that was not
  registered also its `files`.
- `champion`: URI of the version that served, or None. `code`: `{sha256, uri}`. `base_model`: `{uri, files}`.
"""

from collections.abc import Mapping
from typing import Any

from evaluation import findings, page, plots
from evaluation.mapping import CAVEAT, DUTIES
from evaluation.predictions import ROW_METRICS
from evaluation.reasons import size
from evaluation.verdict import Outcome, Verdict

Evidence = Mapping[str, Any]

ADVICE = {
    Outcome.FINE_TUNE: "Replace the incumbent by the fine-tuned candidate.",
    Outcome.STAY: "Keep the incumbent; the fine-tuned candidate does not deserve to replace it.",
    Outcome.HYBRID: "Let both serve: the candidate where the routing names it, the incumbent everywhere else.",
    Outcome.INSUFFICIENT_EVIDENCE: "Keep the incumbent for now; this test cannot tell.",
}


def to_html(evidence: Evidence) -> str:
    """One page that needs nothing else: readable in light and dark, on a phone, and on paper.

    Elements that show a figure name its place in `evidence.json` in their attribute `data-from`.
    """
    verdict = Verdict.from_dict(evidence["verdict"])
    return page.document(
        f"{evidence['name']}: {verdict.outcome}",
        sections=[
            _head(evidence, verdict),
            findings.gain_section(evidence, verdict),
            findings.outcomes_section(verdict),
            findings.gates_section(verdict),
            findings.hybrid_section(verdict),
            _ladder_section(evidence),
            findings.reliability_section(evidence),
            _curve_section(evidence),
            findings.cost_section(evidence, verdict),
            _size_section(verdict),
            _sweep_section(evidence),
            page.section("Training", page.facts(evidence["training"], source="training")),
            _data_section(evidence),
            _provenance_section(evidence),
            _duties_section(),
        ],
    )


def verdict_lines(evidence: Evidence) -> list[str]:
    """For the terminal: the verdict, its reasons, its gates, the ladder, and what the test could have seen."""
    verdict = Verdict.from_dict(evidence["verdict"])
    rows = [("model", "validation", "interval", "test"), *(ladder_cells(row) for row in evidence["ladder"])]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    ladder = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    gates = ", ".join(f"{gate.name} {gate.state}" for gate in verdict.gates)
    return [
        verdict.sentence(),
        *(f"  - {reason}" for reason in verdict.reasons),
        *([f"  gates: {gates}"] if gates else []),
        f"  {power_sentence(verdict)}",
        f"  {seed_sentence(evidence)}",
        *([f"  {part}"] if (part := part_sentence(evidence)) else []),
        "",
        *ladder,
    ]


def ladder_cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """A row of the ladder as texts: name, validation, interval, test."""
    interval = "" if row["interval"] is None else "{:.3f} to {:.3f}".format(*row["interval"])
    role, test = row.get("role"), row.get("test")
    name = f"{row['kind']} ({role})" if role else str(row["kind"])
    return name, f"{row['validation']:.3f}", interval, "" if test is None else f"{test:.3f}"


def power_sentence(verdict: Verdict) -> str:
    """What this test could have seen."""
    needed = "no number of rows" if verdict.rows_needed is None else f"{verdict.rows_needed:,} rows"
    return (
        f"power {verdict.power_at_expected_gain:.0%} against the incumbent at an expected gain of "
        f"{size(verdict.expected_gain)}; {needed} would give 80%; smallest gain this test finds with 80% power: "
        f"{100 * verdict.minimum_detectable_effect:.2f} points"
    )


def seed_sentence(evidence: Evidence) -> str:
    """The spread over seeds, or that it was not assessed; and how the mean of their weights did."""
    values, averaged = [row["validation"] for row in evidence["seeds"]], evidence["averaged"]
    told = f"seeds: {len(values)}, spread not assessed (that takes 3)"
    if len(values) >= 3:
        told = f"seeds: {len(values)}, on validation {min(values):.3f} to {max(values):.3f}"
    if averaged is None:
        return told
    chosen = ", the candidate" if averaged["chosen"] else ""
    return f"{told}; the mean of their weights {averaged['validation']:.3f}{chosen}"


def part_sentence(evidence: Evidence) -> str | None:
    """That some models saw a part of the training rows only, where these were streamed."""
    held, num_rows = evidence["data"]["num_in_memory"], evidence["data"]["num_train"]
    if held is None:
        return None
    return (
        f"training rows were streamed: the candidate learned from all {num_rows:,}, the pretrained rungs and the "
        f"reference from a random {held:,} of them, among which conflicts and near-duplicates were looked for"
    )


def _data_section(evidence: Evidence) -> str:
    part = part_sentence(evidence)
    told = page.paragraph(f"{part[0].upper()}{part[1:]}.") if part else ""
    return page.section("Data", told, page.facts(evidence["data"], source="data"))


def _head(evidence: Evidence, verdict: Verdict) -> str:
    low, high = verdict.interval
    first = "the first: confirmatory" if verdict.confirmatory else "not the first, so not confirmatory"
    sentence = verdict.sentence().removeprefix(f"{verdict.outcome}: ")
    asked = {
        "asked by": page.figure(evidence["asked_by"], source="asked_by"),
        "valid until": page.figure(evidence["expires_at"], source="expires_at"),
        "look at these test rows": page.figure(f"{evidence['look']}", source="look") + f" ({first})",
    }
    return (
        f"<h1>{page.text(evidence['name'])}</h1>"
        + f"<p class=soft>Run {page.figure(evidence['run'], source='run')}, "
        + f"{page.figure(evidence['created_at'], source='created_at')}</p>"
        + f'<div class="verdict {page.text(verdict.outcome)}">'
        + f'<strong data-from="verdict.outcome">{page.text(verdict.outcome)}</strong>'
        + page.paragraph(ADVICE[verdict.outcome])
        + f'<p class="sentence" title="{100 * low:.2f} to {100 * high:.2f}">{page.text(sentence)}.</p>'
        + page.bullets(verdict.reasons, source="verdict.reasons")
        + "</div>"
        + page.pairs(asked)
    )


def _ladder_section(evidence: Evidence) -> str:
    rows, classes = [], []
    for place, row in enumerate(evidence["ladder"]):
        at = f"ladder.{place}"
        kind, validation, interval, test = ladder_cells(row)
        ends = row["interval"] or (row["validation"], row["validation"])
        plot = plots.bar(row["validation"], interval=tuple(ends), label=f"{kind} {validation} ({interval})")
        told = [page.figure(f"{end:.3f}", source=f"{at}.interval.{i}") for i, end in enumerate(row["interval"] or ())]
        rows.append(
            [
                page.figure(kind, source=f"{at}.kind"),
                plot,
                f"{page.figure(validation, source=f'{at}.validation')}<small>{' to '.join(told)}</small>",
                page.figure(test, source=f"{at}.test") if test else "",
            ]
        )
        classes.append("chosen" if row.get("role") in ("incumbent", "candidate") else "")
    metric = evidence["verdict"]["metric"]
    interval = " with Wilson's interval" if metric in ROW_METRICS else ""
    return page.section(
        "The ladder",
        page.paragraph(
            f"On validation: {findings.METRIC_NAMES[metric]}{interval}; bars run from 0 to 1. Models were chosen on "
            "validation, so the best of many looks a little better there than it is; test was read only for what the "
            "verdict compares.",
            soft=True,
        ),
        page.table(["model", "plot:validation", "", "test"], rows=rows, row_classes=classes),
    )


def _curve_section(evidence: Evidence) -> str:
    """What more data would give; empty where the recipe did not ask."""
    curve = evidence["curve"]
    if curve is None:
        return ""
    measured = list(zip(curve["sizes"], curve["scores"], strict=True))
    rows = [
        [
            page.figure(f"{size:,}", source=f"curve.sizes.{place}"),
            page.figure(f"{score:.4f}", source=f"curve.scores.{place}"),
        ]
        for place, (size, score) in enumerate(measured)
    ]
    low, high = (
        page.figure(f"{end:.4f}", source=f"curve.interval.{place}") for place, end in enumerate(curve["interval"])
    )
    double = page.figure(f"{curve['at_double']:.4f}", source="curve.at_double") + f"<small>{low} to {high}</small>"
    rows.append([f"{2 * curve['sizes'][-1]:,}<small>predicted</small>", double])
    return page.section(
        "Learning curve",
        f"<p>{page.figure(curve['sentence'], source='curve.sentence')}.</p>",
        plots.curve([*measured, (2 * curve["sizes"][-1], curve["at_double"])], axes=("training rows", "validation")),
        page.paragraph("The last point is predicted, the others were measured.", soft=True),
        page.table(["training rows", "validation score"], rows=rows),
    )


def _size_section(verdict: Verdict) -> str:
    needed = "no number" if verdict.rows_needed is None else f"{verdict.rows_needed:,}"
    rows = {
        "rows": page.figure(f"{verdict.n:,}", source="verdict.n"),
        f"power at an expected gain of {size(verdict.expected_gain)}": page.figure(
            f"{verdict.power_at_expected_gain:.0%}", source="verdict.power_at_expected_gain"
        ),
        "rows that would give 80 %": page.figure(needed, source="verdict.rows_needed"),
        "smallest gain found with 80 % power, points": page.figure(
            f"{100 * verdict.minimum_detectable_effect:.2f}", source="verdict.minimum_detectable_effect"
        ),
    }
    return page.section("Was the test big enough", page.pairs(rows))


def _sweep_section(evidence: Evidence) -> str:
    keys = ("trial", "kind", "config", "epochs", "validation", "seconds", "status")
    rows = [
        [_known(row.get(key), source=f"sweep.{place}.{key}") for key in keys]
        for place, row in enumerate(evidence["sweep"])
    ]
    ended = evidence["sweep_ended"]
    seeds = [
        [page.text(row["seed"]), page.figure(f"{row['validation']:.4f}", source=f"seeds.{place}.validation")]
        for place, row in enumerate(evidence["seeds"])
    ]
    if evidence["averaged"] is not None:
        mean = page.figure(f"{evidence['averaged']['validation']:.4f}", source="averaged.validation")
        seeds.append(["mean of the weights", mean])
    return page.section(
        "Sweep and seeds",
        page.paragraph(f"{len(rows)} rows tried, chosen on validation.", soft=True),
        f"<p>The sweep ended itself: {page.figure(ended, source='sweep_ended')}.</p>" if ended else "",
        page.table(keys, rows=rows),
        page.paragraph(seed_sentence(evidence)),
        page.table(["seed", "validation"], rows=seeds),
    )


def _provenance_section(evidence: Evidence) -> str:
    versions = [
        [
            page.text(role),
            *(page.figure(version[key], source=f"versions.{role}.{key}") for key in ("kind", "uri", "digest")),
        ]
        for role, version in evidence["versions"].items()
    ]
    return page.section(
        "Where it comes from",
        page.table(["version", "kind", "uri", "digest"], rows=versions),
        page.pairs(
            {
                "code sha256": page.figure(evidence["code"]["sha256"], source="code.sha256"),
                "test rows sha256": page.figure(evidence["question"]["test_sha256"], source="question.test_sha256"),
            }
        ),
        page.paragraph("`tailorbird verify` with the run's or the version's URI recomputes the verdict.", soft=True),
        page.folded("The question, as it was asked before training", value=evidence["question"]),
        page.folded("The recipe", value=evidence["recipe"]),
    )


def _duties_section() -> str:
    rows = [[page.text(duty), page.text(asked), page.text(", ".join(fields))] for duty, asked, fields in DUTIES]
    return page.section(
        "What this documents",
        page.paragraph(CAVEAT, soft=True),
        page.table(["duty", "asks for", "fields of evidence.json"], rows=rows),
    )


def _known(value: Any, *, source: str) -> str:
    return "" if value in (None, {}) else page.figure(page.plain(value), source=source)
