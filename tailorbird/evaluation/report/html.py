"""The HTML report of a run, a pure function of its evidence; `sections` has the sections about the verdict."""

from dataclasses import asdict

from tailorbird.evaluation.predictions import ROW_METRICS
from tailorbird.evaluation.report import charts, sections
from tailorbird.evaluation.report import html_elements as html
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
    return html.document(
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
            html.section("Training", html.facts(asdict(evidence.training), source="training")),
            _data_section(evidence),
            _provenance_section(evidence),
            _duties_section(),
        ],
    )


def _data_section(evidence: Evidence) -> str:
    sentence, data = streaming_sentence(evidence), evidence.data
    rows = (
        html.fact_rows(asdict(data.report), source="data.report")
        | html.fact_rows({"trained_on": data.trained_on}, source="data")
        | html.fact_rows({"other_test_sets": data.other_test_sets}, source="data")
        | {f"{name} sha256": html.figure(sha256, source=f"data.sha256.{name}") for name, sha256 in data.sha256.items()}
    )
    text = html.paragraph(f"{sentence[0].upper()}{sentence[1:]}.") if sentence else ""
    return html.section("Data", text, html.pairs(rows))


def _head(evidence: Evidence, verdict: Verdict) -> str:
    low, high = verdict.interval
    first = "the first: confirmatory" if verdict.confirmatory else "not the first, so not confirmatory"
    sentence = verdict.sentence().removeprefix(f"{verdict.outcome}: ")
    request = {
        "requested by": html.figure(evidence.requested_by, source="requested_by"),
        "valid until": html.figure(evidence.expires_at, source="expires_at"),
        "access to these test rows": html.figure(f"{evidence.test_access.number}", source="test_access.number")
        + f" ({first})",
    }
    return (
        f"<h1>{html.text(evidence.name)}</h1>"
        + f"<p class=soft>Run {html.figure(evidence.run, source='run')}, "
        + f"{html.figure(evidence.created_at, source='created_at')}</p>"
        + f'<div class="verdict {html.text(verdict.outcome)}">'
        + f'<strong data-from="verdict.outcome">{html.text(verdict.outcome)}</strong>'
        + html.paragraph(ADVICE[verdict.outcome])
        + f'<p class="sentence" title="{100 * low:.2f} to {100 * high:.2f}">{html.text(sentence)}.</p>'
        + html.bullets(verdict.reasons, source="verdict.reasons")
        + "</div>"
        + html.pairs(request)
    )


def _scores_section(evidence: Evidence) -> str:
    rows, classes = [], []
    for index, score in enumerate(evidence.scores):
        at = f"scores.{index}"
        kind, validation, interval, test = score_cells(score)
        ends = score.interval or (score.validation, score.validation)
        plot = charts.bar(score.validation, interval=ends, label=f"{kind} {validation} ({interval})")
        limits = [html.figure(f"{end:.3f}", source=f"{at}.interval.{i}") for i, end in enumerate(score.interval or ())]
        rows.append(
            [
                html.figure(kind, source=f"{at}.kind"),
                plot,
                f"{html.figure(validation, source=f'{at}.validation')}<small>{' to '.join(limits)}</small>",
                html.figure(test, source=f"{at}.test") if test else "",
            ]
        )
        classes.append("chosen" if score.role in ("incumbent", "candidate") else "")
    metric = evidence.verdict.metric
    interval = " with Wilson's interval" if metric in ROW_METRICS else ""
    return html.section(
        "Scores",
        html.paragraph(
            f"On validation: {sections.METRIC_NAMES[metric]}{interval}; bars run from 0 to 1. Models were chosen on "
            "validation, so the best of many looks a little better there than it is; test was read only for what the "
            "verdict compares.",
            soft=True,
        ),
        html.table(["model", "plot:validation", "", "test"], rows=rows, row_classes=classes),
    )


def _curve_section(evidence: Evidence) -> str:
    """Return the learning curve; empty if the recipe does not ask for it."""
    curve = evidence.curve
    if curve is None:
        return ""
    measured = list(zip(curve.sizes, curve.scores, strict=True))
    rows = [
        [
            html.figure(f"{size:,}", source=f"curve.sizes.{index}"),
            html.figure(f"{score:.4f}", source=f"curve.scores.{index}"),
        ]
        for index, (size, score) in enumerate(measured)
    ]
    low, high = (
        html.figure(f"{end:.4f}", source=f"curve.interval.{index}") for index, end in enumerate(curve.interval)
    )
    double = html.figure(f"{curve.at_double:.4f}", source="curve.at_double") + f"<small>{low} to {high}</small>"
    rows.append([f"{2 * curve.sizes[-1]:,}<small>predicted</small>", double])
    return html.section(
        "Learning curve",
        f"<p>{html.figure(curve.sentence, source='curve.sentence')}.</p>",
        charts.curve([*measured, (2 * curve.sizes[-1], curve.at_double)], axes=("training rows", "validation")),
        html.paragraph("The last point is predicted, the others were measured.", soft=True),
        html.table(["training rows", "validation score"], rows=rows),
    )


def _size_section(verdict: Verdict) -> str:
    needed = "no number" if verdict.rows_needed is None else f"{verdict.rows_needed:,}"
    rows = {
        "rows": html.figure(f"{verdict.n:,}", source="verdict.n"),
        f"power at an expected gain of {size(verdict.expected_gain)}": html.figure(
            f"{verdict.power_at_expected_gain:.0%}", source="verdict.power_at_expected_gain"
        ),
        "rows that would give 80 %": html.figure(needed, source="verdict.rows_needed"),
        "smallest gain found with 80 % power, points": html.figure(
            f"{100 * verdict.minimum_detectable_effect:.2f}", source="verdict.minimum_detectable_effect"
        ),
    }
    return html.section("Was the test big enough", html.pairs(rows))


def _sweep_section(evidence: Evidence) -> str:
    columns = ("trial", "kind", "config", "epochs", "validation", "seconds", "status")
    rows = [
        [_cell(getattr(trial, column), source=f"sweep.{index}.{column}") for column in columns]
        for index, trial in enumerate(evidence.sweep)
    ]
    ended, averaged = evidence.sweep_ended, evidence.averaged
    seeds = [
        [html.text(seed.seed), html.figure(f"{seed.validation:.4f}", source=f"seeds.{index}.validation")]
        for index, seed in enumerate(evidence.seeds)
    ]
    if averaged is not None:
        mean = html.figure(f"{averaged.validation:.4f}", source="averaged.validation")
        seeds.append(["mean of the weights", mean])
    return html.section(
        "Sweep and seeds",
        html.paragraph(f"{len(rows)} rows tried, chosen on validation.", soft=True),
        f"<p>The sweep ended itself: {html.figure(ended, source='sweep_ended')}.</p>" if ended else "",
        html.table(columns, rows=rows),
        html.paragraph(seed_sentence(evidence)),
        html.table(["seed", "validation"], rows=seeds),
    )


def _provenance_section(evidence: Evidence) -> str:
    versions = [
        [
            html.text(role),
            html.figure(version.kind, source=f"versions.{role}.kind"),
            html.figure(version.uri, source=f"versions.{role}.uri"),
            html.figure(version.digest, source=f"versions.{role}.digest"),
        ]
        for role, version in evidence.versions.items()
    ]
    return html.section(
        "Provenance",
        html.table(["version", "kind", "uri", "digest"], rows=versions),
        html.pairs(
            {
                "code sha256": html.figure(evidence.code.sha256, source="code.sha256"),
                "test rows sha256": html.figure(evidence.protocol.test_sha256, source="protocol.test_sha256"),
            }
        ),
        html.paragraph("`tailorbird verify` with the run's or the version's URI recomputes the verdict.", soft=True),
        html.folded("The protocol, as it was registered before training", value=evidence.protocol),
        html.folded("The recipe", value=evidence.recipe),
    )


def _duties_section() -> str:
    table = load_duties()
    rows = [
        [html.text(duty.duty), html.text(duty.requires), html.text(", ".join(duty.fields))] for duty in table.duties
    ]
    return html.section(
        "What this documents",
        html.paragraph(table.caveat, soft=True),
        html.table(["duty", "requires", "fields of evidence.json"], rows=rows),
    )


def _cell(value: object, *, source: str) -> str:
    return "" if value in (None, {}) else html.figure(html.plain(value), source=source)
