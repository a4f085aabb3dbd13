"""Charts of the console; the pages print the plotted numbers next to each chart."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from tailorbird.evaluation.statistics.paired import wilson_interval
from tailorbird.monitoring.quality import Quality
from tailorbird.monitoring.report import Report
from tailorbird.pages.charts import Box, Chart, Dot, Line, Mark, Scale, Text, around, axes, path, share_bar, sparkline
from tailorbird.registry.run_progress import ContenderProgress
from tailorbird.registry.watch_record import ChallengerRecord

TRAFFIC_HEIGHT = 48.0
MIN_COLUMNS = 14  # columns that a chart of traffic has room for


def day_names(days: Sequence[str]) -> Callable[[float], str]:
    """Return the form of an axis on which the days (`YYYY-MM-DD`) are at 0, 1, 2, ..."""
    return lambda x: days[int(x)][5:] if x == int(x) and 0 <= x < len(days) else ""


def power_of_ten(exponent: float) -> str:
    """Return ten to the power of the exponent, also if it is beyond the range of a float."""
    return f"{10**exponent:.3g}" if abs(exponent) < 300 else f"1e{exponent:+.0f}"


def learning_curves(contenders: Sequence[ContenderProgress]) -> Chart | None:
    """Return the validation score of each training by epoch; None without any. The best training is emphasized."""
    trained = [each for each in contenders if each.curve]
    if not trained:
        return None
    height, best = 220.0, max(trained, key=lambda each: each.curve[-1][1])
    scores = [score for each in trained for _, score in each.curve]
    epochs = [epoch for each in trained for epoch, _ in each.curve]
    across, up = Scale(0.0, 1.06 * max(epochs)), around(scores, length=height)
    names = ("epoch", "validation score")
    forms = (lambda x: f"{x:g}" if x == int(x) else "", lambda y: f"{y:.4g}")
    marks = axes(across, up, names=names, forms=forms, ticks=(min(6, max(epochs)), 4))
    for each in sorted(trained, key=lambda each: each is best):  # the best one is drawn last
        points = [(across.at(epoch), up.down(score), 0) for epoch, score in each.curve]
        kind = "chosen" if each is best else "other"
        marks += path(points, kind=f"path {kind}")
        title = f"{each.name}: {each.curve[-1][1]:.4f} after epoch {each.curve[-1][0]}"
        marks += [Dot(x, y, 3.5, f"dot {kind}", title=title) for x, y, _ in points]
    x, y = across.at(best.curve[-1][0]), up.down(best.curve[-1][1])
    marks.append(Text(x, y - 10, best.name, "label chosen", "end" if x > 40 else "start"))
    return Chart(tuple(marks), height, f"learning curves of {len(trained)} trainings; see the table", "plot medium")


def score_interval(score: float | None, num_rows: int | None) -> tuple[float, float] | None:
    """Return Wilson's 95% interval of a share of correct rows; None if the score or the number is None."""
    return None if score is None or not num_rows else wilson_interval(round(score * num_rows), n=num_rows)


def score_bar(contender: ContenderProgress, *, num_rows: int | None, best: bool) -> Chart | None:
    """Return the validation score of a contender as a bar from 0 to 1 with its interval; None without a score."""
    if contender.score is None:
        return None
    interval = score_interval(contender.score, num_rows)
    label = f"{contender.score:.3f}" + ("" if interval is None else " ({:.3f} to {:.3f})".format(*interval))
    return share_bar(contender.score, interval=interval, label=label, chosen=best)


def done_bar(done: int, total: int) -> Chart:
    """Return the share that is done as a bar."""
    share = round(100 * done / max(total, 1), 2)
    return Chart((Box(0, 4, 100, 10, "track"), Box(0, 4, share, 10, "bar chosen")), 18, f"{done:,} of {total:,}")


def traffic(reports: Sequence[Report]) -> Chart:
    """Return the rows of each report as columns, from 0."""
    most = max((report.rows for report in reports), default=0)
    up, width = Scale(0.0, most or 1.0, TRAFFIC_HEIGHT), 100 / max(len(reports), MIN_COLUMNS)
    marks: list[Mark] = [
        Box(
            round(index * width + 0.1 * width, 2),
            up.down(report.rows),
            round(0.8 * width, 2),
            up.at(report.rows),
            title=f"{report.day}: {report.rows:,} rows",
        )
        for index, report in enumerate(reports)
    ]
    marks.append(Line(0, TRAFFIC_HEIGHT, 100, TRAFFIC_HEIGHT, "axis"))
    return Chart(tuple(marks), TRAFFIC_HEIGHT + 1, f"rows of {len(reports)} reports, at most {most:,}")


def drift(reports: Sequence[Report], name: str) -> Chart:
    """Return the values of a drift statistic over the reports, with a line at the latest threshold."""
    by_day = [{statistic.name: statistic for statistic in report.drift} for report in reports]
    limit = next(day[name].threshold for day in reversed(by_day) if name in day)
    values = [day[name].value if name in day else None for day in by_day]
    return sparkline(values, limit=limit, label=f"values of {len(values)} reports")


def quality(reports: Sequence[Report], source: Literal["audit", "audit_scores"], name: str) -> Chart | None:
    """Return the accuracy or mean score on audited answers with its interval, by report; None without labels."""
    qualities: list[tuple[int, Quality]] = [(index, getattr(report, source)) for index, report in enumerate(reports)]
    audited = [(index, audit) for index, audit in qualities if audit.labelled]
    if not audited:
        return None
    height = 160.0
    across = Scale(-0.5, len(reports) - 0.5)
    up = around([end for _, audit in audited for end in audit.interval], length=height)
    days = [report.day for report in reports]
    marks = axes(
        across,
        up,
        names=("day", name),
        forms=(day_names(days), lambda y: f"{100 * y:.4g}%"),
        ticks=(min(5, len(days)), 4),
    )
    for index, audit in audited:
        x, (low, high) = across.at(index), (up.down(end) for end in audit.interval)
        marks += [Line(x, low, x, high, "whisker"), Dot(x, up.down(audit.accuracy or 0.0), 4, "dot chosen")]
    return Chart(tuple(marks), height, f"{name} on audited answers by report; see the table", "plot medium")


def evidence_course(challenger: ChallengerRecord) -> Chart | None:
    """Return the evidence that the challenger is better and that it is worse, in powers of ten, by day.

    Dashed lines are at the evidence that proves each of them. Return None without a day.
    """
    days = challenger.days
    if not days:
        return None
    limits = [-math.log10(alpha) for alpha in (challenger.alpha, challenger.alpha_worse)]
    better = [day.log_e_better / math.log(10) for day in days]
    worse = [day.log_e_worse / math.log(10) for day in days]
    height = 180.0
    up = around([*better, *worse, *limits, 0.0], length=height)
    across = Scale(-0.5, len(days) - 0.5)
    marks = axes(
        across,
        up,
        names=("day", "e-value"),
        forms=(day_names([day.day for day in days]), power_of_ten),
        ticks=(min(5, len(days)), 4),
    )
    marks += [Line(0, up.down(limit), 100, up.down(limit), "guide") for limit in sorted(set(limits))]
    for values, kind in ((worse, "incumbent"), (better, "chosen")):
        points = [(across.at(index), up.down(value), 0) for index, value in enumerate(values)]
        marks += path(points, kind=f"path {kind}")
        marks += [Dot(x, y, 3.5, f"dot {kind}") for x, y, _ in points]
    return Chart(tuple(marks), height, "evidence by day; see the table", "plot medium")
