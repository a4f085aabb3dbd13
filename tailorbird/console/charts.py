"""Charts of the console; the pages print the plotted numbers next to each chart."""

from collections.abc import Sequence
from typing import Literal

from tailorbird.evaluation.statistics.paired import wilson_interval
from tailorbird.monitoring.report import Report
from tailorbird.pages.charts import (
    Axis,
    Chart,
    Dot,
    PlotMark,
    around,
    horizontal,
    plot,
    vertical,
)
from tailorbird.registry.watch_record import ChallengerRecord


def day_axis(days: Sequence[str]) -> Axis:
    """Return an axis on which the days (`YYYY-MM-DD`) are at 0, 1, 2, ..."""

    def form(x: float) -> str:
        if x == int(x) and 0 <= x < len(days):
            return days[int(x)][5:]
        return ""

    return Axis(-0.5, len(days) - 0.5, name="day", form=form, num_ticks=min(5, len(days)))


def score_interval(score: float | None, num_rows: int | None) -> tuple[float, float] | None:
    """Return Wilson's 95% interval of a share of correct rows; None if the score or the number is
    None."""
    if score is None or not num_rows:
        return None
    return wilson_interval(round(score * num_rows), n=num_rows)


def quality(
    reports: Sequence[Report], source: Literal["audit", "audit_scores"], name: str
) -> Chart | None:
    """Return the accuracy or mean score on audited answers with its interval, by report; None
    without labels."""
    marks: list[PlotMark] = []
    ends: list[float] = []
    for index, report in enumerate(reports):
        audit = report.qualities.get(source)
        if audit is not None and audit.accuracy is not None:
            low, high = audit.interval
            ends += audit.interval
            marks.append(vertical(index, low, high, kind="whisker"))
            marks.append(Dot(index, audit.accuracy, kind="dot chosen"))
    if not marks:
        return None
    y = around(ends, length=160.0, name=name, form=lambda share: f"{100 * share:.4g}%")
    x = day_axis([report.day for report in reports])
    return plot(marks, x=x, y=y, label=f"{name} on audited answers by report; see the table")


def gain_course(challenger: ChallengerRecord) -> Chart | None:
    """Return the challenger's gain with its interval by day, and a dashed line at 0; None without a
    day."""
    days = challenger.days
    if not days:
        return None
    x = day_axis([day.day for day in days])
    marks: list[PlotMark] = [horizontal(0.0, x.low, x.high, kind="guide")]
    ends = [0.0]
    for index, day in enumerate(days):
        low, high = day.interval
        ends += day.interval
        marks.append(vertical(index, low, high, kind="whisker"))
        marks.append(Dot(index, day.gain, kind="dot chosen"))
    y = around(ends, length=180.0, name="gain, points", form=lambda gain: f"{100 * gain:+.3g}")
    return plot(marks, x=x, y=y, label="gain by day; see the table")
