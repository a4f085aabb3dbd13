"""The HTML report of a run, a pure function of its evidence; `sections` has the sections about the verdict."""

from dataclasses import asdict

from tailorbird.evaluation.predictions import ROW_METRICS
from tailorbird.evaluation.report import charts, html_elements, sections
from tailorbird.evaluation.report.console import ADVICE, score_cells, seed_sentence, streaming_sentence
from tailorbird.evaluation.report.documentation_duties import load_duties
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.verdict.formatting import size
from tailorbird.evaluation.verdict.types import Verdict


def to_html(evidence: Evidence) -> str:
    """Return one page that needs nothing else: readable in light and dark, on a phone, and on paper.

    Elements that contain a figure name its position in `evidence.json` in their attribute `data-from`.
    """
    verdict = evidence.verdict
    return html_elements.document(
        f"{evidence.name}: {verdict.outcome}",
        sections=[
            _head(evidence, verdict),
            sections.gain_section(evidence, verdict),
            sections.outcomes_section(verdict),
            sections.gates_section(verdict),
            sections.hybrid_section(verdict),
            _scores_section(evidence),
            sections.reliability_section(evidence),
            _curve_section(evidence),
            sections.cost_section(evidence, verdict),
            _size_section(verdict),
            _sweep_section(evidence),
            html_elements.section("Training", html_elements.facts(asdict(evidence.training), source="training")),
            _data_section(evidence),
            _provenance_section(evidence),
            _duties_section(),
        ],
    )


def _data_section(evidence: Evidence) -> str:
    sentence, data = streaming_sentence(evidence), evidence.data
    rows = (
        html_elements.fact_rows(asdict(data.report), source="data.report")
        | html_elements.fact_rows({"trained_on": data.trained_on}, source="data")
        | html_elements.fact_rows({"other_test_sets": data.other_test_sets}, source="data")
        | {
            f"{name} sha256": html_elements.figure(sha256, source=f"data.sha256.{name}")
            for name, sha256 in data.sha256.items()
        }
    )
    text = html_elements.paragraph(f"{sentence[0].upper()}{sentence[1:]}.") if sentence else ""
    return html_elements.section("Data", text, html_elements.pairs(rows))


def _head(evidence: Evidence, verdict: Verdict) -> str:
    low, high = verdict.interval
    first = "the first: confirmatory" if verdict.confirmatory else "not the first, so not confirmatory"
    sentence = verdict.sentence().removeprefix(f"{verdict.outcome}: ")
    request = {
        "requested by": html_elements.figure(evidence.requested_by, source="requested_by"),
        "valid until": html_elements.figure(evidence.expires_at, source="expires_at"),
        "access to these test rows": html_elements.figure(f"{evidence.test_access.number}", source="test_access.number")
        + f" ({first})",
    }
    return (
        f"<h1>{html_elements.text(evidence.name)}</h1>"
        + f"<p class=soft>Run {html_elements.figure(evidence.run, source='run')}, "
        + f"{html_elements.figure(evidence.created_at, source='created_at')}</p>"
        + f'<div class="verdict {html_elements.text(verdict.outcome)}">'
        + f'<strong data-from="verdict.outcome">{html_elements.text(verdict.outcome)}</strong>'
        + html_elements.paragraph(ADVICE[verdict.outcome])
        + f'<p class="sentence" title="{100 * low:.2f} to {100 * high:.2f}">{html_elements.text(sentence)}.</p>'
        + html_elements.bullets(verdict.reasons, source="verdict.reasons")
        + "</div>"
        + html_elements.pairs(request)
    )


def _scores_section(evidence: Evidence) -> str:
    rows, classes = [], []
    for index, score in enumerate(evidence.scores):
        at = f"scores.{index}"
        kind, validation, interval, test = score_cells(score)
        ends = score.interval or (score.validation, score.validation)
        plot = charts.bar(score.validation, interval=ends, label=f"{kind} {validation} ({interval})")
        limits = [
            html_elements.figure(f"{end:.3f}", source=f"{at}.interval.{i}")
            for i, end in enumerate(score.interval or ())
        ]
        rows.append(
            [
                html_elements.figure(kind, source=f"{at}.kind"),
                plot,
                f"{html_elements.figure(validation, source=f'{at}.validation')}<small>{' to '.join(limits)}</small>",
                html_elements.figure(test, source=f"{at}.test") if test else "",
            ]
        )
        classes.append("chosen" if score.role in ("incumbent", "candidate") else "")
    metric = evidence.verdict.metric
    interval = " with Wilson's interval" if metric in ROW_METRICS else ""
    return html_elements.section(
        "Scores",
        html_elements.paragraph(
            f"On validation: {sections.METRIC_NAMES[metric]}{interval}; bars run from 0 to 1. Models were chosen on "
            "validation, so the best of many looks a little better there than it is; test was read only for what the "
            "verdict compares.",
            soft=True,
        ),
        html_elements.table(["model", "plot:validation", "", "test"], rows=rows, row_classes=classes),
    )


def _curve_section(evidence: Evidence) -> str:
    """Return the learning curve; empty if the recipe does not ask for it."""
    curve = evidence.curve
    if curve is None:
        return ""
    measured = list(zip(curve.sizes, curve.scores, strict=True))
    rows = [
        [
            html_elements.figure(f"{size:,}", source=f"curve.sizes.{index}"),
            html_elements.figure(f"{score:.4f}", source=f"curve.scores.{index}"),
        ]
        for index, (size, score) in enumerate(measured)
    ]
    low, high = (
        html_elements.figure(f"{end:.4f}", source=f"curve.interval.{index}") for index, end in enumerate(curve.interval)
    )
    double = (
        html_elements.figure(f"{curve.at_double:.4f}", source="curve.at_double") + f"<small>{low} to {high}</small>"
    )
    rows.append([f"{2 * curve.sizes[-1]:,}<small>predicted</small>", double])
    return html_elements.section(
        "Learning curve",
        f"<p>{html_elements.figure(curve.sentence, source='curve.sentence')}.</p>",
        charts.curve([*measured, (2 * curve.sizes[-1], curve.at_double)], axes=("training rows", "validation")),
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
    columns = ("trial", "kind", "config", "epochs", "validation", "seconds", "status")
    rows = [
        [_cell(getattr(trial, column), source=f"sweep.{index}.{column}") for column in columns]
        for index, trial in enumerate(evidence.sweep)
    ]
    ended, averaged = evidence.sweep_ended, evidence.averaged
    seeds = [
        [
            html_elements.text(seed.seed),
            html_elements.figure(f"{seed.validation:.4f}", source=f"seeds.{index}.validation"),
        ]
        for index, seed in enumerate(evidence.seeds)
    ]
    if averaged is not None:
        mean = html_elements.figure(f"{averaged.validation:.4f}", source="averaged.validation")
        seeds.append(["mean of the weights", mean])
    return html_elements.section(
        "Sweep and seeds",
        html_elements.paragraph(f"{len(rows)} rows tried, chosen on validation.", soft=True),
        f"<p>The sweep ended itself: {html_elements.figure(ended, source='sweep_ended')}.</p>" if ended else "",
        html_elements.table(columns, rows=rows),
        html_elements.paragraph(seed_sentence(evidence)),
        html_elements.table(["seed", "validation"], rows=seeds),
    )


def _provenance_section(evidence: Evidence) -> str:
    versions = [
        [
            html_elements.text(role),
            html_elements.figure(version.kind, source=f"versions.{role}.kind"),
            html_elements.figure(version.uri, source=f"versions.{role}.uri"),
            html_elements.figure(version.digest, source=f"versions.{role}.digest"),
        ]
        for role, version in evidence.versions.items()
    ]
    return html_elements.section(
        "Provenance",
        html_elements.table(["version", "kind", "uri", "digest"], rows=versions),
        html_elements.pairs(
            {
                "code sha256": html_elements.figure(evidence.code.sha256, source="code.sha256"),
                "test rows sha256": html_elements.figure(evidence.protocol.test_sha256, source="protocol.test_sha256"),
            }
        ),
        html_elements.paragraph(
            "`tailorbird verify` with the run's or the version's URI recomputes the verdict.", soft=True
        ),
        html_elements.folded("The protocol, as it was registered before training", value=evidence.protocol),
        html_elements.folded("The recipe", value=evidence.recipe),
    )


def _duties_section() -> str:
    table = load_duties()
    rows = [
        [html_elements.text(duty.duty), html_elements.text(duty.requires), html_elements.text(", ".join(duty.fields))]
        for duty in table.duties
    ]
    return html_elements.section(
        "What this documents",
        html_elements.paragraph(table.caveat, soft=True),
        html_elements.table(["duty", "requires", "fields of evidence.json"], rows=rows),
    )


def _cell(value: object, *, source: str) -> str:
    return "" if value in (None, {}) else html_elements.figure(html_elements.plain(value), source=source)
