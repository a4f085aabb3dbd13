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
- `reliability_bins`: by role a row a bin, `{confidence, accuracy, n}`; empty of a chat task.
- `mean_measures`: of a chat task `{log_likelihood: {candidate, incumbent}}`, means over the test rows; else empty.
- `versions`: by role (`incumbent`, `candidate`, with a hybrid also `hybrid`) `{kind, uri, digest}`; of one that was not
  registered also its `render_files`.
- `champion`: URI of the version that served, or None. `code`: `{sha256, uri}`. `base_model`: `{uri, files}`.
"""

from typing import Any

from tailorbird.evaluation.predictions import ROW_METRICS
from tailorbird.evaluation.report import charts, html_elements, sections
from tailorbird.evaluation.report.console import ADVICE, Evidence, score_cells, seed_sentence, streaming_sentence
from tailorbird.evaluation.report.documentation_duties import CAVEAT, DUTIES
from tailorbird.evaluation.verdict.formatting import size
from tailorbird.evaluation.verdict.types import Verdict


def to_html(evidence: Evidence) -> str:
    """One page that needs nothing else: readable in light and dark, on a phone, and on paper.

    Elements that show a figure name its place in `evidence.json` in their attribute `data-from`.
    """
    verdict = Verdict.from_dict(evidence["verdict"])
    return html_elements.document(
        f"{evidence['name']}: {verdict.outcome}",
        sections=[
            _head(evidence, verdict),
            sections.gain_section(evidence, verdict),
            sections.outcomes_section(verdict),
            sections.gates_section(verdict),
            sections.hybrid_section(verdict),
            _ladder_section(evidence),
            sections.reliability_section(evidence),
            _curve_section(evidence),
            sections.cost_section(evidence, verdict),
            _size_section(verdict),
            _sweep_section(evidence),
            html_elements.section("Training", html_elements.facts(evidence["training"], source="training")),
            _data_section(evidence),
            _provenance_section(evidence),
            _duties_section(),
        ],
    )


def _data_section(evidence: Evidence) -> str:
    part = streaming_sentence(evidence)
    told = html_elements.paragraph(f"{part[0].upper()}{part[1:]}.") if part else ""
    return html_elements.section("Data", told, html_elements.facts(evidence["data"], source="data"))


def _head(evidence: Evidence, verdict: Verdict) -> str:
    low, high = verdict.interval
    first = "the first: confirmatory" if verdict.confirmatory else "not the first, so not confirmatory"
    sentence = verdict.sentence().removeprefix(f"{verdict.outcome}: ")
    asked = {
        "asked by": html_elements.figure(evidence["asked_by"], source="asked_by"),
        "valid until": html_elements.figure(evidence["expires_at"], source="expires_at"),
        "look at these test rows": html_elements.figure(f"{evidence['look']}", source="look") + f" ({first})",
    }
    return (
        f"<h1>{html_elements.text(evidence['name'])}</h1>"
        + f"<p class=soft>Run {html_elements.figure(evidence['run'], source='run')}, "
        + f"{html_elements.figure(evidence['created_at'], source='created_at')}</p>"
        + f'<div class="verdict {html_elements.text(verdict.outcome)}">'
        + f'<strong data-from="verdict.outcome">{html_elements.text(verdict.outcome)}</strong>'
        + html_elements.paragraph(ADVICE[verdict.outcome])
        + f'<p class="sentence" title="{100 * low:.2f} to {100 * high:.2f}">{html_elements.text(sentence)}.</p>'
        + html_elements.bullets(verdict.reasons, source="verdict.reasons")
        + "</div>"
        + html_elements.pairs(asked)
    )


def _ladder_section(evidence: Evidence) -> str:
    rows, classes = [], []
    for place, row in enumerate(evidence["ladder"]):
        at = f"ladder.{place}"
        kind, validation, interval, test = score_cells(row)
        ends = row["interval"] or (row["validation"], row["validation"])
        plot = charts.bar(row["validation"], interval=tuple(ends), label=f"{kind} {validation} ({interval})")
        told = [
            html_elements.figure(f"{end:.3f}", source=f"{at}.interval.{i}")
            for i, end in enumerate(row["interval"] or ())
        ]
        rows.append(
            [
                html_elements.figure(kind, source=f"{at}.kind"),
                plot,
                f"{html_elements.figure(validation, source=f'{at}.validation')}<small>{' to '.join(told)}</small>",
                html_elements.figure(test, source=f"{at}.test") if test else "",
            ]
        )
        classes.append("chosen" if row.get("role") in ("incumbent", "candidate") else "")
    metric = evidence["verdict"]["metric"]
    interval = " with Wilson's interval" if metric in ROW_METRICS else ""
    return html_elements.section(
        "The ladder",
        html_elements.paragraph(
            f"On validation: {sections.METRIC_NAMES[metric]}{interval}; bars run from 0 to 1. Models were chosen on "
            "validation, so the best of many looks a little better there than it is; test was read only for what the "
            "verdict compares.",
            soft=True,
        ),
        html_elements.table(["model", "plot:validation", "", "test"], rows=rows, row_classes=classes),
    )


def _curve_section(evidence: Evidence) -> str:
    """What more data would give; empty where the recipe did not ask."""
    curve = evidence["curve"]
    if curve is None:
        return ""
    measured = list(zip(curve["sizes"], curve["scores"], strict=True))
    rows = [
        [
            html_elements.figure(f"{size:,}", source=f"curve.sizes.{place}"),
            html_elements.figure(f"{score:.4f}", source=f"curve.scores.{place}"),
        ]
        for place, (size, score) in enumerate(measured)
    ]
    low, high = (
        html_elements.figure(f"{end:.4f}", source=f"curve.interval.{place}")
        for place, end in enumerate(curve["interval"])
    )
    double = (
        html_elements.figure(f"{curve['at_double']:.4f}", source="curve.at_double") + f"<small>{low} to {high}</small>"
    )
    rows.append([f"{2 * curve['sizes'][-1]:,}<small>predicted</small>", double])
    return html_elements.section(
        "Learning curve",
        f"<p>{html_elements.figure(curve['sentence'], source='curve.sentence')}.</p>",
        charts.curve([*measured, (2 * curve["sizes"][-1], curve["at_double"])], axes=("training rows", "validation")),
        html_elements.paragraph("The last point is predicted, the others were measured.", soft=True),
        html_elements.table(["training rows", "validation score"], rows=rows),
    )


def _size_section(verdict: Verdict) -> str:
    needed = "no number" if verdict.rows_needed is None else f"{verdict.rows_needed:,}"
    rows = {
        "rows": html_elements.figure(f"{verdict.n:,}", source="verdict.n"),
        f"power at an expected gain of {size(verdict.expected_gain)}": html_elements.figure(
            f"{verdict.power_at_expected_gain:.0%}", source="verdict.power_at_expected_gain"
        ),
        "rows that would give 80 %": html_elements.figure(needed, source="verdict.rows_needed"),
        "smallest gain found with 80 % power, points": html_elements.figure(
            f"{100 * verdict.minimum_detectable_effect:.2f}", source="verdict.minimum_detectable_effect"
        ),
    }
    return html_elements.section("Was the test big enough", html_elements.pairs(rows))


def _sweep_section(evidence: Evidence) -> str:
    keys = ("trial", "kind", "config", "epochs", "validation", "seconds", "status")
    rows = [
        [_known(row.get(key), source=f"sweep.{place}.{key}") for key in keys]
        for place, row in enumerate(evidence["sweep"])
    ]
    ended = evidence["sweep_ended"]
    seeds = [
        [
            html_elements.text(row["seed"]),
            html_elements.figure(f"{row['validation']:.4f}", source=f"seeds.{place}.validation"),
        ]
        for place, row in enumerate(evidence["seeds"])
    ]
    if evidence["averaged"] is not None:
        mean = html_elements.figure(f"{evidence['averaged']['validation']:.4f}", source="averaged.validation")
        seeds.append(["mean of the weights", mean])
    return html_elements.section(
        "Sweep and seeds",
        html_elements.paragraph(f"{len(rows)} rows tried, chosen on validation.", soft=True),
        f"<p>The sweep ended itself: {html_elements.figure(ended, source='sweep_ended')}.</p>" if ended else "",
        html_elements.table(keys, rows=rows),
        html_elements.paragraph(seed_sentence(evidence)),
        html_elements.table(["seed", "validation"], rows=seeds),
    )


def _provenance_section(evidence: Evidence) -> str:
    versions = [
        [
            html_elements.text(role),
            *(html_elements.figure(version[key], source=f"versions.{role}.{key}") for key in ("kind", "uri", "digest")),
        ]
        for role, version in evidence["versions"].items()
    ]
    return html_elements.section(
        "Where it comes from",
        html_elements.table(["version", "kind", "uri", "digest"], rows=versions),
        html_elements.pairs(
            {
                "code sha256": html_elements.figure(evidence["code"]["sha256"], source="code.sha256"),
                "test rows sha256": html_elements.figure(
                    evidence["question"]["test_sha256"], source="question.test_sha256"
                ),
            }
        ),
        html_elements.paragraph(
            "`tailorbird verify` with the run's or the version's URI recomputes the verdict.", soft=True
        ),
        html_elements.folded("The question, as it was asked before training", value=evidence["question"]),
        html_elements.folded("The recipe", value=evidence["recipe"]),
    )


def _duties_section() -> str:
    rows = [
        [html_elements.text(duty), html_elements.text(asked), html_elements.text(", ".join(fields))]
        for duty, asked, fields in DUTIES
    ]
    return html_elements.section(
        "What this documents",
        html_elements.paragraph(CAVEAT, soft=True),
        html_elements.table(["duty", "asks for", "fields of evidence.json"], rows=rows),
    )


def _known(value: Any, *, source: str) -> str:
    return "" if value in (None, {}) else html_elements.figure(html_elements.plain(value), source=source)
