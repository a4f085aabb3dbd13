"""Render the HTML report of a run from its evidence; `sections` has the sections about the verdict."""

from importlib.resources import files

import yaml
from pydantic import BaseModel

from tailorbird.evaluation.predictions import ROW_METRICS
from tailorbird.evaluation.report import charts, costs, sections
from tailorbird.evaluation.report import html_elements as html
from tailorbird.evaluation.report.console import mix_sentence, score_cells, seed_sentence, streaming_sentence
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.report.html_elements import Figures
from tailorbird.evaluation.report.outlook import outlook_sentence
from tailorbird.evaluation.verdict.formatting import METRIC_NAMES, size

ENDPOINT_FIELDS = {"URL": "url", "model": "model", "model as reported": "reported_model"}


class Duty(BaseModel):
    """A documentation duty, its requirement, and the fields of `evidence.json` that support it."""

    duty: str
    requires: str
    fields: tuple[str, ...]


class DutyTable(BaseModel):
    """The content of `documentation_duties.yaml`."""

    duties: tuple[Duty, ...]
    caveat: str


def to_html(evidence: Evidence) -> str:
    """Return a self-contained page for light and dark mode, phones and print.

    The attribute `data-from` of an element is the path of its value in `evidence.json`.
    """
    figures = Figures(evidence)
    return html.document(
        f"{evidence.name}: {evidence.verdict.outcome}",
        sections=[
            _head(evidence, figures),
            sections.gain_section(evidence, figures),
            sections.outcomes_section(evidence.verdict, figures),
            sections.gates_section(evidence.verdict, figures),
            sections.hybrid_section(evidence.verdict, figures),
            sections.contenders_section(evidence.verdict, figures),
            _scores_section(evidence, figures),
            sections.reliability_section(evidence, figures),
            _curve_section(evidence, figures),
            costs.cost_section(evidence, figures),
            _size_section(evidence, figures),
            _sweep_section(evidence, figures),
            html.section("Training", html.pairs(figures.facts("training"))),
            _data_section(evidence, figures),
            _provenance_section(evidence, figures),
            _duties_section(),
        ],
    )


def _head(evidence: Evidence, figures: Figures) -> str:
    verdict = evidence.verdict
    low, high = verdict.shown.interval
    numbers = verdict.numbers().removeprefix(f"{verdict.outcome}: ")
    request = {
        "requested by": figures("requested_by"),
        "valid until": figures("expires_at"),
        "access to these test rows": (
            f"{figures('test_access.number')} ({figures('test_access.num_seen', ',')} of "
            f"{figures('test_access.num_rows', ',')} different rows in earlier accesses; "
            f"alpha {figures('verdict.alpha', '.2g')})"
        ),
    }
    return (
        f"<h1>{html.text(evidence.name)}</h1>"
        f"<p class=soft>Run {figures('run')}, {figures('created_at')}</p>"
        f'<div class="verdict {html.text(verdict.outcome)}">'
        f'<strong data-from="verdict.outcome">{html.text(verdict.outcome)}</strong>'
        f"{html.paragraph(verdict.sentence())}"
        f"{html.paragraph(sentence) if (sentence := outlook_sentence(evidence)) else ''}"
        f'<p class="sentence" title="{100 * low:.2f} to {100 * high:.2f}">{html.text(numbers)}.</p>'
        f"{html.list_items(figures.items('verdict.reasons'))}</div>{html.pairs(request)}"
    )


def _scores_section(evidence: Evidence, figures: Figures) -> str:
    rows, classes = [], []
    for index, score in enumerate(evidence.scores):
        at = f"scores.{index}"
        kind, validation, interval, test = score_cells(score)
        ends = score.interval or (score.validation, score.validation)
        plot = charts.bar(score.validation, interval=ends, label=f"{kind} {validation} ({interval})")
        limits = " to ".join(figures.items(f"{at}.interval", ".3f")) if score.interval else ""
        measured = figures(f"{at}.validation", ".3f") + f"<small>{limits}</small>"
        name = figures(f"{at}.kind") + (f" ({score.role})" if score.role else "")
        rows.append([name, plot, measured, figures(f"{at}.test", ".3f") if test else ""])
        classes.append("chosen" if score.role else "")
    metric = evidence.verdict.metric
    interval = " with Wilson's interval" if metric in ROW_METRICS else ""
    return html.section(
        "Scores",
        html.paragraph(
            f"Validation: {METRIC_NAMES[metric]}{interval}. Bars range from 0 to 1. Models were selected on "
            "validation, so the validation score of the best model is slightly optimistic. Only the models in the "
            "verdict have test scores.",
            soft=True,
        ),
        html.table(["model", "plot:validation", "", "test"], rows=rows, row_classes=classes),
    )


def _curve_section(evidence: Evidence, figures: Figures) -> str:
    """Return the learning curve; empty if the recipe does not request it."""
    curve = evidence.curve
    if curve is None:
        return ""
    rows = [
        list(row) for row in zip(figures.items("curve.sizes", ","), figures.items("curve.scores", ".4f"), strict=True)
    ]
    limits = " to ".join(figures.items("curve.interval", ".4f"))
    double = 2 * curve.sizes[-1]
    rows.append([f"{double:,}<small>predicted</small>", figures("curve.at_double", ".4f") + f"<small>{limits}</small>"])
    points = [*zip(curve.sizes, curve.scores, strict=True), (double, curve.at_double)]
    return html.section(
        "Learning curve",
        f"<p>{figures('curve.sentence')}.</p>",
        charts.curve(points, axes=("training rows", "validation")),
        html.paragraph("The last point is a prediction. The other points are measured.", soft=True),
        html.table(["training rows", "validation score"], rows=rows),
    )


def _rows_or_none(rows: int | None) -> str:
    return "no number is enough" if rows is None else f"{rows:,}"


def _size_section(evidence: Evidence, figures: Figures) -> str:
    verdict = evidence.verdict
    rows = {
        "test rows": figures("verdict.n", ","),
        f"FINE_TUNE at a true gain of {size(verdict.expected_gain)}, gates included": figures(
            "verdict.power_at_expected_gain", ".0%"
        ),
        "otherwise most often": figures("verdict.power_limited_by"),
        "test rows needed for 80%": figures("verdict.rows_needed", _rows_or_none),
        f"test rows to show in 80% of tests that a true gain of {size(verdict.minimum_gain)} is above 0": figures(
            "verdict.rows_needed_for_minimum_gain", _rows_or_none
        ),
        "smallest gain that the comparison alone detects with 80% power, points": figures(
            "verdict.minimum_detectable_effect", lambda share: f"{100 * share:.2f}"
        ),
    }
    if verdict.hybrid_power is not None:
        rows["HYBRID if both parts are equally good"] = figures("verdict.hybrid_power", ".0%")
    return html.section("Power of the test", html.pairs(rows))


def _sweep_section(evidence: Evidence, figures: Figures) -> str:
    columns = ("trial", "kind", "config", "epochs", "validation", "seconds", "status")
    rows = [
        [
            "" if getattr(trial, column) in (None, {}) else figures(f"sweep.{index}.{column}", html.plain)
            for column in columns
        ]
        for index, trial in enumerate(evidence.sweep)
    ]
    seeds = [
        [html.text(seed.seed), figures(f"seeds.{index}.validation", ".4f")] for index, seed in enumerate(evidence.seeds)
    ]
    if evidence.averaged is not None:
        seeds.append(["averaged weights", figures("averaged.validation", ".4f")])
    return html.section(
        "Sweep and seeds",
        html.paragraph(f"{len(rows)} trials and baselines. The best trial on validation was selected.", soft=True),
        f"<p>The sweep ended early: {figures('sweep_ended')}.</p>" if evidence.sweep_ended else "",
        html.table(columns, rows=rows),
        html.paragraph(seed_sentence(evidence)),
        html.table(["seed", "validation"], rows=seeds),
        html.paragraph(mix_sentence(evidence.mix)) if evidence.mix else "",
    )


def _data_section(evidence: Evidence, figures: Figures) -> str:
    sentence = streaming_sentence(evidence)
    rows = figures.facts("data.report")
    rows.pop("near_duplicate_test_rows", None)  # a list of row ids, whose number is in near_duplicates_of_test
    if evidence.distinct is not None:
        metric, at = METRIC_NAMES[evidence.verdict.metric], "distinct.scores"
        scores = ", ".join(f"{role} " + figures(f"{at}.{role}", ".4f") for role in evidence.distinct.scores)
        number = figures("distinct.n", ",")
        rows[f"{metric} without near-duplicates of train (does not affect the verdict)"] = f"{scores}; {number} rows"
    rows["trained_on"] = figures("data.trained_on", html.plain)
    rows |= {f"{name} sha256": sha256 for name, sha256 in figures.facts("data.sha256").items()}
    text = html.paragraph(f"{sentence[0].upper()}{sentence[1:]}.") if sentence else ""
    if evidence.data.differences:
        text += html.paragraph("Validation and test differ by more than chance:")
        text += html.list_items(figures.items("data.differences"))
    return html.section("Data", text, html.pairs(rows))


def _provenance_section(evidence: Evidence, figures: Figures) -> str:
    versions = [
        [html.text(role), *(figures(f"versions.{role}.{field}") for field in ("kind", "uri", "digest"))]
        for role in evidence.versions
    ]
    facts = {"code sha256": figures("code.sha256"), "test rows sha256": figures("protocol.test_sha256")}
    if evidence.endpoint is not None:
        facts |= {f"endpoint {name}": figures(f"endpoint.{field}") for name, field in ENDPOINT_FIELDS.items()}
    return html.section(
        "Provenance",
        html.table(["version", "kind", "uri", "digest"], rows=versions),
        html.pairs(facts),
        html.paragraph(
            "`tailorbird verify URI` recomputes the verdict, where URI is the URI of the run or the version.", soft=True
        ),
        html.folded("Test protocol, registered before training", value=evidence.protocol),
        html.folded("Recipe", value=evidence.recipe),
    )


def load_duties() -> DutyTable:
    """Return the content of `documentation_duties.yaml`."""
    text = (files(__package__) / "documentation_duties.yaml").read_text("utf-8")
    return DutyTable.model_validate(yaml.safe_load(text))


def _duties_section() -> str:
    table = load_duties()
    rows = [[html.text(cell) for cell in (row.duty, row.requires, ", ".join(row.fields))] for row in table.duties]
    return html.section(
        "Documentation duties",
        html.paragraph(table.caveat, soft=True),
        html.table(["duty", "requires", "fields of evidence.json"], rows=rows),
    )
