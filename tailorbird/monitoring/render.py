"""Render reports as a self-contained HTML page, `monitoring.html`, and as gauges in the Prometheus
text format."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Template

from tailorbird.evaluation.report.figures import TONES
from tailorbird.monitoring.recommendation import Recommendation
from tailorbird.monitoring.report import Report
from tailorbird.pages.charts import Chart, sparkline
from tailorbird.pages.environment import environment

MAX_REPORTS = 60
SOURCES = {
    "audit": "audit (random sample)",
    "feedback": "feedback",
    "audit_scores": "scores by people in audits (random sample)",
    "feedback_scores": "scores by people in feedback",
}
ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})  # of a Prometheus label value

GAUGES = {
    "tailorbird_watch_reevaluation_wanted": (
        "",
        "1 if a re-evaluation is recommended, otherwise 0.",
    ),
    "tailorbird_watch_drift": ("statistic", "Value of a drift statistic in the latest window."),
    "tailorbird_watch_drift_threshold": (
        "statistic",
        "Value above which the statistic raises an alarm, without drift on one day a year.",
    ),
    "tailorbird_watch_labelled_answers": ("by", "Answers whose correct label is known."),
    "tailorbird_watch_accuracy": (
        "by",
        "Share of labelled answers that are correct; for chat, the mean score.",
    ),
    "tailorbird_watch_groups_failed": ("", "Groups for which the audit proves a loss."),
    "tailorbird_watch_answers": ("", "Answers of the champion in the latest window."),
}
"""The label, in addition to `model`, and the description of each gauge.

The label `by` is `feedback` or `audit` or, for scores that people gave, `feedback_scores` or
`audit_scores`.
"""


def render_page(name: str, reports: Sequence[Report], *, recommendation: Recommendation) -> str:
    """Render the latest reports, the newest first, and the recommendation; all values are
    escaped."""
    latest = [report for report in reports if report.rows][-MAX_REPORTS:]
    return _page().render(
        name=name,
        reports=reports[-MAX_REPORTS:],
        latest=latest,
        newest=latest[-1] if latest else None,
        recommendation=recommendation,
        challenger=recommendation.challenger,
    )


def drift_chart(reports: Sequence[Report], name: str) -> Chart:
    """Return the values of a drift statistic over the reports, with a line at the latest
    threshold."""
    limit = 0.0
    values: list[float | None] = []
    for report in reports:
        values.append(None)
        for statistic in report.drift:
            if statistic.name == name:
                values[-1] = statistic.value
                limit = statistic.threshold
    return sparkline(values, limit=limit, label=f"values of {len(values)} reports")


@cache
def _page() -> Template:
    templates = environment(Path(__file__).parent / "templates")
    templates.globals |= {"tones": TONES, "sources": SOURCES, "drift_chart": drift_chart}
    templates.filters["signed"] = lambda share: f"{100 * share:+.1f}"
    return templates.get_template("monitoring.html")


def render_metrics(name: str, reports: Sequence[Report], *, recommendation: Recommendation) -> str:
    """Render the latest window in Prometheus' text format, for the text-file collector of a node
    exporter."""
    answered = [report for report in reports if report.feedback.answers]
    samples = {"tailorbird_watch_reevaluation_wanted": {"": float(recommendation.reevaluate)}}
    if answered:
        samples |= _samples(answered[-1])
    lines = []
    for metric, values in samples.items():
        label, description = GAUGES[metric]
        if values:
            lines += [f"# HELP {metric} {description}", f"# TYPE {metric} gauge"]
        for label_value, value in values.items():
            labels = f'model="{name.translate(ESCAPES)}"'
            if label:
                labels += f',{label}="{label_value}"'
            lines.append(f"{metric}{{{labels}}} {value:g}")
    return "\n".join(lines) + "\n"


def _samples(report: Report) -> dict[str, dict[str, float]]:
    """Return the values of each gauge by the value of its label."""
    labelled = {}
    accuracies = {}
    for kind, quality in report.qualities.items():
        labelled[kind] = float(quality.labelled)
        if quality.accuracy is not None:
            accuracies[kind] = quality.accuracy
    failed = [bound for bound in report.groups.bounds if bound.state == "fails"]
    return {
        "tailorbird_watch_drift": {drift.name: drift.value for drift in report.drift},
        "tailorbird_watch_drift_threshold": {drift.name: drift.threshold for drift in report.drift},
        "tailorbird_watch_labelled_answers": labelled,
        "tailorbird_watch_accuracy": accuracies,
        "tailorbird_watch_groups_failed": {"": float(len(failed))},
        "tailorbird_watch_answers": {"": float(report.feedback.answers)},
    }
