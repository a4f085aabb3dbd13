"""Render reports as a self-contained HTML page, `monitoring.html`, and as gauges in the Prometheus text format."""

from collections.abc import Sequence

from tailorbird.evaluation.gates.base import Gate
from tailorbird.evaluation.report.html_elements import bullets, document, paragraph, section, table, text
from tailorbird.monitoring.quality import Quality
from tailorbird.monitoring.recommendation import Recommendation
from tailorbird.monitoring.report import Report
from tailorbird.monitoring.sequential_test import ChallengerDecision

MAX_REPORTS = 60
WIDTH, HEIGHT = 300, 40
ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})  # escapes in a Prometheus label value

GAUGES = {
    "tailorbird_watch_reevaluation_wanted": ("", "1 if a re-evaluation is recommended, otherwise 0."),
    "tailorbird_watch_drift": ("statistic", "Value of a drift statistic in the latest window."),
    "tailorbird_watch_drift_threshold": (
        "statistic",
        "Value above which the statistic raises an alarm; monitoring.false_alarms_per_year sets it.",
    ),
    "tailorbird_watch_labelled_answers": ("by", "Answers whose correct label is known."),
    "tailorbird_watch_accuracy": ("by", "Share of labelled answers that are correct."),
    "tailorbird_watch_groups_failed": ("", "Groups for which the audit proves a loss."),
    "tailorbird_watch_answers": ("", "Answers of the champion in the latest window."),
}
"""The label, in addition to `model`, and the description of each gauge; the label `by` is `feedback` or `audit`."""


def render_page(name: str, reports: Sequence[Report], *, recommendation: Recommendation) -> str:
    """Render the latest reports, the newest first, and the recommendation; all values are escaped."""
    latest = [report for report in reports if report.rows][-MAX_REPORTS:]
    sections = [f"<h1>{text(name)}: the champion in service</h1>", _recommendation(recommendation)]
    if latest:
        newest = latest[-1]
        days = f"{newest.day}" if newest.days == 1 else f"{newest.days} days up to {newest.day}"
        version = paragraph(f"{newest.version}; {newest.rows:,} rows", soft=True)
        sections += [
            section(f"Drift, {days}", version, _drift(latest)),
            section("Accuracy", *_quality(newest)),
            _gate("Groups", newest.groups),
            _gate("Groups by feedback (not used for decisions)", newest.groups_by_feedback),
            _gate("Swapped names, sexes and ages", newest.counterfactual) if newest.counterfactual else "",
            _challenger(recommendation.challenger) if recommendation.challenger else "",
            section("Notes", bullets(newest.notes)) if newest.notes else "",
        ]
    sections.append(section("Days", _days(reports[-MAX_REPORTS:])))
    return document(f"{name}: monitoring", sections=sections)


def render_metrics(name: str, reports: Sequence[Report], *, recommendation: Recommendation) -> str:
    """Render the latest window in Prometheus' text format, for the text-file collector of a node exporter."""
    answered = [report for report in reports if report.feedback.answers]
    samples = {"tailorbird_watch_reevaluation_wanted": [("", float(recommendation.reevaluate))]}
    samples |= _samples(answered[-1]) if answered else {}
    lines = []
    for metric, values in samples.items():
        label, description = GAUGES[metric]
        lines += [f"# HELP {metric} {description}", f"# TYPE {metric} gauge"] if values else []
        for label_value, value in values:
            labels = {"model": name} | ({label: label_value} if label else {})
            pairs = [f'{key}="{text.translate(ESCAPES)}"' for key, text in labels.items()]
            lines.append(f"{metric}{{{','.join(pairs)}}} {value:g}")
    return "\n".join(lines) + "\n"


def _samples(report: Report) -> dict[str, list[tuple[str, float]]]:
    """Return the values of each gauge with the value of its label."""
    kinds = {"feedback": report.feedback, "audit": report.audit}
    accuracies = [(kind, quality.accuracy) for kind, quality in kinds.items() if quality.accuracy is not None]
    failed = sum(bound.state == "fails" for bound in report.groups.bounds)
    return {
        "tailorbird_watch_drift": [(drift.name, drift.value) for drift in report.drift],
        "tailorbird_watch_drift_threshold": [(drift.name, drift.threshold) for drift in report.drift],
        "tailorbird_watch_labelled_answers": [(kind, float(quality.labelled)) for kind, quality in kinds.items()],
        "tailorbird_watch_accuracy": accuracies,
        "tailorbird_watch_groups_failed": [("", float(failed))],
        "tailorbird_watch_answers": [("", float(report.feedback.answers))],
    }


def _recommendation(recommendation: Recommendation) -> str:
    title, tone = (
        ("Re-evaluation recommended", "INSUFFICIENT_EVIDENCE")
        if recommendation.reevaluate
        else ("No re-evaluation recommended", "FINE_TUNE")
    )
    decision = recommendation.challenger
    challenger = paragraph(f"Challenger: {decision.decision}. {decision.reason}") if decision else ""
    reasons = bullets(recommendation.reasons)
    return f'<div class="verdict {tone}"><strong>{title}</strong>{reasons}{challenger}</div>'


def _drift(reports: Sequence[Report]) -> str:
    rows = []
    for statistic in reports[-1].drift:
        values_by_day = [{past.name: past.value for past in report.drift} for report in reports]
        history = [values.get(statistic.name) for values in values_by_day]
        state = '<span class="fails">alarm</span>' if statistic.alarm else '<span class="passes">no alarm</span>'
        values = (f"{statistic.value:.3f}", f"{statistic.threshold:.3f}", f"{statistic.n:,}")
        rows.append((text(statistic.description), *values, state, _sparkline(history, limit=statistic.threshold)))
    head = ("statistic", "value", "threshold", "rows", "", "plot:days")
    return table(head, rows=rows) if rows else paragraph("No drift statistic could be computed.")


def _sparkline(values: Sequence[float | None], *, limit: float) -> str:
    """Plot the values by day as a line, and the threshold as a dashed line."""
    known = [(index, value) for index, value in enumerate(values) if value is not None]
    top = max([limit, *(value for _, value in known)]) * 1.1 or 1.0
    step = WIDTH / max(1, len(values) - 1)
    points = " ".join(f"{index * step:.1f},{HEIGHT * (1 - value / top):.1f}" for index, value in known)
    at = f"{HEIGHT * (1 - limit / top):.1f}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="values of {len(values)} days">'
        f'<line class="guide" x1="0" x2="{WIDTH}" y1="{at}" y2="{at}"/>'
        f'<polyline class="path chosen" points="{points}"/></svg>'
    )


def _quality(report: Report) -> tuple[str, str]:
    kinds = {"audit (random sample)": report.audit, "feedback": report.feedback}
    rows = [(text(name), *_accuracy(quality)) for name, quality in kinds.items()]
    accuracies = table(("labels", "accuracy", "interval", "labelled", "share of answers"), rows=rows)
    estimate = report.feedback.estimate
    if estimate is None:
        return accuracies, ""
    note = "It estimates the accuracy if the confidences are calibrated, and is not used for decisions"
    return accuracies, paragraph(f"Mean confidence: {100 * estimate:.1f}%. {note}.", soft=True)


def _accuracy(quality: Quality) -> tuple[str, str, str, str]:
    if quality.accuracy is None:
        return "unknown", "", "0", "0%"
    low, high = quality.interval
    right, interval = f"{100 * quality.accuracy:.1f}%", f"{100 * low:.1f} to {100 * high:.1f}"
    return right, interval, f"{quality.labelled:,}", f"{100 * quality.coverage:.2g}%"


def _challenger(decision: ChallengerDecision) -> str:
    """Render the comparison with the challenger, overall and by group."""
    rows = []
    for name, units in {"overall": decision.overall, **decision.groups}.items():
        mean = f"{100 * units.mean:+.1f}" if len(units) else ""
        counts = (units.num_subjects, len(units) - units.num_subjects, units.num_answers)
        rows.append((text(name), mean, *(f"{count:,}" for count in counts)))
    note = "Each subject, and each request without a subject, counts once, with its mean over its labelled answers."
    head = ("", "points", "subjects", "requests without subject", "labelled answers")
    return section("Challenger against champion (audit)", table(head, rows=rows), paragraph(note, soft=True))


def _gate(title: str, gate: Gate) -> str:
    rows = []
    for bound in gate.bounds:
        low, high = bound.interval
        points, interval = f"{100 * bound.estimate:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}"
        rows.append((text(bound.what), points, interval, f"{bound.n:,}", text(bound.state)))
    bounds = table(("", "points", "interval", "rows", ""), rows=rows) if rows else ""
    return section(f"{title}: {gate.state}", bounds, paragraph(gate.note, soft=True) if gate.note else "")


def _days(reports: Sequence[Report]) -> str:
    rows = []
    for report in reversed(reports):
        labelled = report.feedback.labelled + report.audit.labelled
        alarms = "<br>".join(text(alarm) for alarm in report.alarms) or "no alarm"
        rows.append((text(report.day), f"{report.rows:,}", f"{labelled:,}", alarms))
    return table(("day", "rows", "labelled", "alarms"), rows=rows)
