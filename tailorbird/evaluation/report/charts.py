"""Charts of the report, except the first; the report prints the plotted numbers next to each chart."""

from collections.abc import Mapping, Sequence

from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.gates.base import Bound, Gate
from tailorbird.evaluation.report.evidence import (
    BASELINE,
    Confusion,
    CurveRecord,
    ModelScore,
    ReliabilityBin,
    TrialRecord,
)
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.pages.charts import (
    Box,
    Chart,
    Dot,
    Line,
    Mark,
    Scale,
    Text,
    around,
    axes,
    axis_strip,
    interval_marks,
    interval_strip,
    parts_bar,
    path,
    share_bar,
    ticks_strip,
)

OUTCOME_CLASSES = ("right", "won", "lost", "wrong")


def gain(value: float, interval: tuple[float, float], minimum: float) -> Chart:
    """Return the gain and its interval, with a line at 0 and a band up to the minimum gain."""
    low, high = interval
    scale = around((low, high, 0.0, minimum))
    left, right = scale.at(0.0), scale.at(minimum)
    marks: list[Mark] = [Box(left, 0, round(right - left, 2), 40, "band"), Line(left, 0, left, 40, "guide")]
    for tick in scale.ticks(about=5):
        marks += [Text(scale.at(tick), 56, f"{100 * tick:+.4g}" if tick else "0", anchor="middle")]
    marks += [Line(0, 40, 100, 40, "axis"), *interval_marks(low, value, high, scale=scale, y=20, kind="chosen")]
    label = f"gain {100 * value:+.2f} points, interval {100 * low:+.2f} to {100 * high:+.2f}"
    return Chart(tuple(marks), 62, label)


def outcome_counts(verdict: Verdict) -> dict[str, int]:
    """Return the number of test rows by which of the two models is right, in the order of `OUTCOME_CLASSES`.

    A model is right if its output equals the label, for any metric; pages add `formatting.outcome_basis`.
    """
    accuracy = next(score for metric, score in verdict.incumbent.scores.items() if METRICS[metric].is_share)
    relation = verdict.relation("candidate", "incumbent")
    won = relation.only_first_right
    lost = relation.only_second_right
    both = round(accuracy * verdict.n) - lost
    return {
        "both right": both,
        "only the candidate right": won,
        "only the incumbent right": lost,
        "both wrong": verdict.n - both - won - lost,
    }


def outcomes(counts: Mapping[str, int]) -> Chart:
    """Return a bar of the test rows, divided by which of the two models is right; `counts` are in this order."""
    kinds = [f"part {name}" for name in OUTCOME_CLASSES]
    return parts_bar([(name, number, kind) for (name, number), kind in zip(counts.items(), kinds, strict=True)])


def confusion(row: Confusion, most: int) -> Chart:
    """Return two bars from the middle: fixed errors to the left, made errors to the right, up to `most` rows each."""
    scale = Scale(0.0, most, 50.0)
    fixed, made = scale.at(row.fixed), scale.at(row.made)
    marks = (
        Box(50.0 - fixed, 4, fixed, 12, "part won", f"fixed: {row.fixed:,}"),
        Box(50.0, 4, made, 12, "part lost", f"made: {row.made:,}"),
        Line(50, 0, 50, 20, "axis"),
    )
    return Chart(marks, 20, f"fixed {row.fixed:,}, made {row.made:,}")


def scale_of(gate: Gate) -> Scale:
    """Return an axis for all bounds of a gate."""
    return around([end for bound in gate.bounds for end in (*bound.interval, bound.limit, 0.0)])


def bound(bound: Bound, scale: Scale, tone: str, factor: float) -> Chart:
    """Return the interval of a bound, with dashed lines at 0 and at its limit; its text has values times `factor`."""
    estimate, low, high, limit = (factor * end for end in (bound.estimate, *bound.interval, bound.limit))
    label = f"{estimate:.2f}, interval {low:.2f} to {high:.2f}, limit {limit:.2f}"
    guides = (0.0, bound.limit)
    return interval_strip(bound.estimate, interval=bound.interval, guides=guides, scale=scale, label=label, kind=tone)


def axis(scale: Scale, gate: Gate) -> Chart:
    """Return the axis of the bounds of a gate, in points or in the recipe's currency."""
    return axis_strip(scale, form=lambda value: f"{factor_of(gate) * value:,.4g}")


def factor_of(gate: Gate) -> float:
    """Return the factor from the bounds of a gate to the unit that the report shows: points or the currency."""
    return 1.0 if gate.name == "cost" else 100.0


def score(score: ModelScore) -> Chart:
    """Return the validation score of a model with its interval."""
    label = f"{score.kind} {score.validation:.3f}"
    if score.interval is not None:
        label += " ({:.3f} to {:.3f})".format(*score.interval)
    return share_bar(score.validation, interval=score.interval, label=label, chosen=bool(score.role))


MAX_NAMED = 8  # trials whose names the chart of the sweep has room for


def sweep(trials: Sequence[TrialRecord]) -> Chart:
    """Return the validation score of each trial and baseline in the order of the sweep, without trials that failed."""
    trials, height = [trial for trial in trials if trial.epochs or trial.status == BASELINE], 180.0
    up = around([trial.validation for trial in trials], length=height)
    across = Scale(0.0, len(trials) + 1.0)
    tuned = [trial for trial in trials if trial.status != BASELINE]
    best = max(tuned, key=lambda trial: trial.validation, default=None)
    shown = {index + 1.0: trial.name for index, trial in enumerate(trials)} if len(trials) <= MAX_NAMED else {}
    forms = (lambda x: shown.get(x, ""), lambda y: f"{y:.4g}")
    marks = axes(across, up, names=("trial", "validation score"), forms=forms, ticks=(len(shown) + 1, 4))
    for index, trial in enumerate(trials):
        kind = "chosen" if trial is best else "other" if trial.status == BASELINE else "candidate"
        where, title = across.at(index + 1.0), f"{trial.name}: {trial.validation:.4f} ({trial.status})"
        marks.append(Dot(where, up.down(trial.validation), 6 if trial is best else 4.5, f"dot {kind}", title=title))
    return Chart(tuple(marks), height, "validation score of each trial; see the table", "plot short")


def epochs(trials: Sequence[TrialRecord]) -> Chart | None:
    """Return the learning curve of each trial: its validation score after each epoch; None without trials.

    The dashed line is the best baseline.
    """
    tuned = [trial for trial in trials if trial.scores]
    if not tuned:
        return None
    baselines = [trial.validation for trial in trials if trial.status == BASELINE]
    target = [max(baselines)] if baselines else []
    most, height = max(len(trial.scores) for trial in tuned), 220.0
    best = max(tuned, key=lambda trial: trial.validation)
    up = around([*(score for trial in tuned for score in trial.scores), *target], length=height)
    across = Scale(0.0, most + 0.5)
    forms = (lambda x: f"{x:g}" if x == int(x) and x else "", lambda y: f"{y:.4g}")
    marks = axes(across, up, names=("epoch", "validation score"), forms=forms, ticks=(min(most + 1, 8), 4))
    marks += [Line(0, up.down(score), 100, up.down(score), "guide") for score in target]
    for trial in sorted(tuned, key=lambda trial: trial is best):  # the best one last, over the others
        tone = "chosen" if trial is best else "incumbent"
        points = [(across.at(epoch + 1.0), up.down(score), 0) for epoch, score in enumerate(trial.scores)]
        marks += path(points, kind=f"path {tone}")
        title = f"{trial.name}: {', '.join(f'{score:.4f}' for score in trial.scores)} ({trial.status})"
        marks += [Dot(x, y, 4.0, f"dot {tone}", title=title) for x, y, _ in points]
    return Chart(tuple(marks), height, "validation score of each trial by epoch; see the table", "plot medium")


def reliability(bins: Mapping[str, Sequence[ReliabilityBin]]) -> Chart:
    """Return a reliability diagram: accuracy against mean confidence per bin, one line per model.

    `bins` are by role. The candidate is drawn over the incumbent. The area of a dot grows with the rows of the bin.
    """
    height = 260.0
    across, up = Scale(0.0, 1.0), Scale(0.0, 1.0, height)
    forms = (lambda x: f"{x:g}", lambda y: f"{y:g}")
    marks = axes(across, up, names=("confidence", "accuracy"), forms=forms, ticks=(5, 5))
    marks.append(Line(0, height, 100, 0, "guide"))
    for role, rows in sorted(bins.items(), key=lambda item: item[0] == "candidate"):
        most = max((row.n for row in rows), default=1)
        points = [(across.at(row.confidence), up.down(row.accuracy), row.n / most) for row in rows]
        tone = "chosen" if role == "candidate" else "incumbent"
        marks += path(points, kind=f"path {tone}")
        marks += [Dot(x, y, round(2.5 + 4 * weight**0.5, 1), f"dot {tone}") for x, y, weight in points]
    return Chart(tuple(marks), height, "accuracy against confidence; see the table of bins", "plot square")


def curve(record: CurveRecord) -> Chart:
    """Return the measured scores by training rows, and the prediction for twice the rows with its interval."""
    height, double = 220.0, 2 * record.sizes[-1]
    across = Scale(0.0, 1.05 * double)
    up = around([*record.scores, record.at_double, *record.interval], length=height)
    forms = (lambda x: f"{x:,.0f}", lambda y: f"{y:.3g}")
    marks = axes(across, up, names=("training rows", "validation score"), forms=forms)
    points = [(across.at(rows), up.down(value), 0) for rows, value in zip(record.sizes, record.scores, strict=True)]
    x, y = across.at(double), up.down(record.at_double)
    low, high = (up.down(end) for end in record.interval)
    marks += [*path(points), *path([points[-1], (x, y, 0)], kind="path predicted"), Line(x, low, x, high, "whisker")]
    marks += [Dot(each[0], each[1], 4.5, "dot chosen") for each in points]
    marks.append(Dot(x, y, 5, "dot incumbent"))
    return Chart(tuple(marks), height, "validation score against training rows; see the table", "plot medium")


def rounds(values: Sequence[float], largest: float, chosen: bool) -> Chart:
    """Return one dot per measured round on an axis from 0 to `largest`."""
    label = ", ".join(f"{value:.4g}" for value in values)
    return ticks_strip(values, largest=largest, label=label, kind="chosen" if chosen else "other")
