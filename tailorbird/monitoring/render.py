"""Reports as one self-contained page for people, `monitoring.html`, and as gauges for Prometheus."""

from collections.abc import Sequence

from tailorbird.evaluation.gates.base import Gate
from tailorbird.evaluation.report.html_elements import bullets, document, paragraph, section, table, text
from tailorbird.monitoring.quality import Quality
from tailorbird.monitoring.recommendation import Advice, added
from tailorbird.monitoring.report import Report, TrialPairs

SHOWN = 60
WIDTH, HEIGHT = 300, 40


def page(name: str, reports: Sequence[Report], *, advice: Advice) -> str:
    """The latest reports, the newest first, and what they call for; everything in them is escaped."""
    latest = [report for report in reports if report.rows][-SHOWN:]
    sections = [f"<h1>{text(name)}: how the champion does</h1>", _advice(advice)]
    if latest:
        now = latest[-1]
        of = f"{now.day}" if now.days == 1 else f"{now.days} days up to {now.day}"
        sections += [
            section(f"Drift, {of}", paragraph(f"{now.version}; {now.rows:,} rows", soft=True), _signs(latest)),
            section("How often it is right", *_quality(now)),
            _gate("Groups", now.groups),
            _gate("Groups by feedback, which nothing acts on", now.groups_by_feedback)
            if now.groups_by_feedback
            else "",
            _gate("Names, sexes and ages swapped", now.counterfactual) if now.counterfactual else "",
            _gate("Groups of the trial's pairs", now.trial.reading) if now.trial else "",
            _told(now.trial, latest) if now.trial else "",
            section("What could not be looked at, and what is odd", bullets(now.notes)) if now.notes else "",
        ]
    sections.append(section("Days", _days(reports[-SHOWN:])))
    return document(f"{name}: monitoring", sections=sections)


def gauges(name: str, reports: Sequence[Report], *, advice: Advice) -> str:
    """The latest window in Prometheus' text format, for a node exporter's folder of text files."""
    found: list[tuple[str, str, dict[str, str], float]] = [
        ("reevaluation_wanted", "Whether the verdict should be made again.", {}, float(advice.reevaluate))
    ]
    seen = [report for report in reports if report.feedback.answers]
    if seen:
        now, kinds = seen[-1], {"feedback": seen[-1].feedback, "audit": seen[-1].audit}
        limit, labelled = "What a clean window hardly exceeds.", "Answers whose label is known."
        right = "Share of labelled answers that were right."
        failed = [bound.state == "fails" for bound in now.groups.bounds]
        found += [("drift", "A statistic of drift.", {"sign": sign.name}, sign.value) for sign in now.signs]
        found += [("drift_threshold", limit, {"sign": sign.name}, sign.threshold) for sign in now.signs]
        found += [("labelled_answers", labelled, {"by": kind}, float(told.labelled)) for kind, told in kinds.items()]
        found += [
            ("accuracy", right, {"by": kind}, told.accuracy)
            for kind, told in kinds.items()
            if told.accuracy is not None
        ]
        found.append(
            ("groups_failed", "Groups that audits prove to be served worse than before.", {}, float(sum(failed)))
        )
        found.append(("answers", "The champion's answers in the window.", {}, float(now.feedback.answers)))
    lines, told_of = [], set()
    for metric, what, labels, value in found:
        full = f"tailorbird_watch_{metric}"
        if full not in told_of:
            told_of.add(full)
            lines += [f"# HELP {full} {what}", f"# TYPE {full} gauge"]
        given = ",".join(f'{key}="{_escaped(one)}"' for key, one in ({"model": name} | labels).items())
        lines.append(f"{full}{{{given}}} {value:g}")
    return "\n".join(lines) + "\n"


def _advice(advice: Advice) -> str:
    tone, said = ("INSUFFICIENT_EVIDENCE", "Make the verdict again") if advice.reevaluate else ("FINE_TUNE", "Go on")
    trial = paragraph(f"On trial: {advice.trial.decision}. {advice.trial.reason}") if advice.trial else ""
    return f'<div class="verdict {tone}"><strong>{said}</strong>{bullets(advice.reasons)}{trial}</div>'


def _signs(reports: Sequence[Report]) -> str:
    rows = []
    for sign in reports[-1].signs:
        course = [next((one.value for one in report.signs if one.name == sign.name), None) for report in reports]
        state = '<span class="fails">alarm</span>' if sign.alarm else '<span class="passes">usual</span>'
        figures = (f"{sign.value:.3f}", f"{sign.threshold:.3f}", f"{sign.n:,}")
        rows.append((text(sign.what), *figures, state, _course(course, limit=sign.threshold)))
    head = ("statistic", "window", "clean windows up to", "rows", "", "plot:days")
    return table(head, rows=rows) if rows else paragraph("No drift could be looked for.")


def _course(values: Sequence[float | None], *, limit: float) -> str:
    """The days' values as a line, the threshold dashed."""
    known = [value for value in values if value is not None]
    top = max([*known, limit]) * 1.1 or 1.0
    step = WIDTH / max(1, len(values) - 1)
    points = " ".join(
        f"{place * step:.1f},{HEIGHT * (1 - value / top):.1f}"
        for place, value in enumerate(values)
        if value is not None
    )
    at = f"{HEIGHT * (1 - limit / top):.1f}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="course over {len(values)} days">'
        f'<line class="guide" x1="0" x2="{WIDTH}" y1="{at}" y2="{at}"/>'
        f'<polyline class="path chosen" points="{points}"/></svg>'
    )


def _quality(now: Report) -> tuple[str, str]:
    kinds = {"texts drawn by lot (audit)": now.audit, "texts that feedback was given on": now.feedback}
    rows = [(text(name), *_accuracy(told)) for name, told in kinds.items()]
    shown = table(("labels", "right", "interval", "labelled", "of the answers"), rows=rows)
    estimate = now.feedback.estimate
    if estimate is None:
        return shown, ""
    told = f"{100 * estimate:.1f} % of the answers would be right if their confidences were true"
    return shown, paragraph(f"Without labels: {told}. An estimate, which nothing acts on.", soft=True)


def _accuracy(told: Quality) -> tuple[str, str, str, str]:
    if told.accuracy is None:
        return "unknown", "", "0", "0 %"
    low, high = told.interval
    right, interval = f"{100 * told.accuracy:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}"
    return right, interval, f"{told.labelled:,}", f"{100 * told.coverage:.2g} %"


def _told(trial: TrialPairs, reports: Sequence[Report]) -> str:
    """What feedback says of the version on trial, on all days that are shown."""
    ours = [one.trial for one in reports if one.trial and one.trial.digest == trial.digest]
    told = added([one.by_feedback for one in ours if one.by_feedback])
    said = f"Of {told.discordant:,} pairs that differ the trial alone is right in {told.only_trial_right:,}."
    return section("The trial by feedback, which nothing acts on", paragraph(said, soft=True)) if told.num_pairs else ""


def _gate(title: str, gate: Gate) -> str:
    rows = [
        (
            text(bound.what),
            f"{100 * bound.estimate:+.1f}",
            f"{100 * bound.interval[0]:+.1f} to {100 * bound.interval[1]:+.1f}",
            f"{bound.n:,}",
            text(bound.state),
        )
        for bound in gate.bounds
    ]
    shown = table(("", "points", "interval", "rows", ""), rows=rows) if rows else ""
    return section(f"{title}: {gate.state}", shown, paragraph(gate.note, soft=True) if gate.note else "")


def _days(reports: Sequence[Report]) -> str:
    rows = [
        (
            text(report.day),
            f"{report.rows:,}",
            f"{report.feedback.labelled + report.audit.labelled:,}",
            "<br>".join(text(alarm) for alarm in report.alarms) or "nothing unusual",
        )
        for report in reversed(reports)
    ]
    return table(("day", "rows", "labelled", "alarms"), rows=rows)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
