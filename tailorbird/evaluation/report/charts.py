"""Charts of the report and the console, except the first; the pages print the plotted numbers next
to each chart."""

from collections.abc import Mapping, Sequence

from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.gates.base import Bound, Gate
from tailorbird.evaluation.report.evidence import (
    BASELINE,
    CurveRecord,
    ReliabilityBin,
    TrialRecord,
)
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.pages.charts import (
    Axis,
    Chart,
    Dot,
    Line,
    PlotMark,
    Text,
    around,
    band,
    course,
    horizontal,
    interval_marks,
    joined,
    parts_bar,
    plot,
    vertical,
)
from tailorbird.registry.run_progress import ContenderProgress

OUTCOME_CLASSES = ("right", "won", "lost", "wrong")


def signed_points(share: float) -> str:
    """Return a value of an axis in points."""
    if share:
        return f"{100 * share:+.4g}"
    return "0"


def whole(value: float) -> str:
    """Return a value of an axis that shows positive whole numbers only."""
    if value == int(value) and value:
        return f"{value:g}"
    return ""


def gain(value: float, interval: tuple[float, float], minimum: float) -> Chart:
    """Return the gain and its interval, with a line at 0 and a band up to the minimum gain."""
    low, high = interval
    axis = around((low, high, 0.0, minimum), form=signed_points, num_ticks=5)
    marks = band(0.0, minimum, axis=axis, height=40) + axis.across(40)
    marks += interval_marks(interval, axis=axis, y=20, tone="chosen")
    marks.append(Dot(axis.at(value), 20, radius=4.5, kind="dot chosen"))
    label = f"gain {100 * value:+.2f} points, interval {100 * low:+.2f} to {100 * high:+.2f}"
    return Chart(tuple(marks), 62, label)


def outcome_counts(verdict: Verdict) -> dict[str, int]:
    """Return the number of test rows by which of the two models is right, in the order of
    `OUTCOME_CLASSES`.

    A model is right if its output equals the label, for any metric; pages add
    `formatting.outcome_basis`.
    """
    accuracy = next(
        score for metric, score in verdict.incumbent.scores.items() if METRICS[metric].is_share
    )
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
    """Return a bar of the test rows, divided by which of the two models is right; `counts` are in
    this order."""
    parts = []
    for (name, number), kind in zip(counts.items(), OUTCOME_CLASSES, strict=True):
        parts.append((name, number, f"part {kind}"))
    return parts_bar(parts)


def factor_of(gate: Gate) -> float:
    """Return the factor from the bounds of a gate to the unit that pages show: points or the
    recipe's currency."""
    if gate.name == "cost":
        return 1.0
    return 100.0


def axis_of(gate: Gate) -> Axis:
    """Return an axis for all bounds of a gate, in points or in the recipe's currency."""
    values = [0.0]
    for bound in gate.bounds:
        values += [*bound.interval, bound.limit]
    return around(values, form=lambda value: f"{factor_of(gate) * value:,.4g}", num_ticks=3)


def bound(bound: Bound, axis: Axis, tone: str, factor: float) -> Chart:
    """Return the interval of a bound, with dashed lines at 0 and at its limit; its text has values
    times `factor`."""
    guides = [vertical(axis.at(value), 0, 26, kind="guide") for value in (0.0, bound.limit)]
    whisker = interval_marks(bound.interval, axis=axis, y=13, tone=tone)
    dot = Dot(axis.at(bound.estimate), 13, radius=4.5, kind=f"dot {tone}")
    low, high = bound.interval
    label = (
        f"{factor * bound.estimate:.2f}, interval {factor * low:.2f} to {factor * high:.2f}, "
        f"limit {factor * bound.limit:.2f}"
    )
    return Chart((*guides, *whisker, dot), 26, label)


def contenders_of(trials: Sequence[TrialRecord]) -> list[ContenderProgress]:
    """Return the trials and baselines as in the progress of a run."""
    contenders = []
    for trial in trials:
        contender = ContenderProgress(
            name=trial.name,
            score=trial.validation,
            status=trial.status,
            curve=tuple(enumerate(trial.scores, start=1)),
        )
        contenders.append(contender)
    return contenders


def learning_curves(contenders: Sequence[ContenderProgress]) -> Chart | None:
    """Return the validation score of each training by epoch; None without any. The best training is
    emphasized.

    The dashed line is the best baseline.
    """
    trained = [contender for contender in contenders if contender.curve]
    if not trained:
        return None
    best = max(trained, key=lambda contender: contender.score or 0.0)
    trained.remove(best)
    trained.append(best)  # is drawn over the others

    last_epoch = 0
    scores = []
    marks: list[PlotMark] = []
    for contender in trained:
        tone = "chosen" if contender is best else "incumbent"
        by_epoch = [score for _, score in contender.curve]
        text = ", ".join(f"{score:.4f}" for score in by_epoch)
        title = f"{contender.name}: {text} ({contender.status})"
        marks += course(contender.curve, tone=tone, title=title)
        scores += by_epoch
        last_epoch = max(last_epoch, contender.curve[-1][0])
    epoch, score = best.curve[-1]
    marks.append(Text(epoch, score, best.name, kind="label chosen", anchor="end", rise=10))

    x = Axis(0.0, last_epoch + 0.5, name="epoch", form=whole, num_ticks=min(last_epoch + 1, 8))
    baselines = [contender for contender in contenders if contender.status in ("", BASELINE)]
    target = max((baseline.score or 0.0 for baseline in baselines), default=0.0)
    if target:
        scores.append(target)
        marks.insert(0, horizontal(target, x.low, x.high, kind="guide"))
    y = around(scores, length=220.0, name="validation score")
    label = f"learning curves of {len(trained)} trainings; see the table"
    return plot(marks, x=x, y=y, label=label)


def reliability(bins: Mapping[str, Sequence[ReliabilityBin]]) -> Chart:
    """Return a reliability diagram: accuracy against mean confidence per bin, one line per model.

    `bins` are by role. The candidate is drawn over the incumbent. The area of a dot grows with the
    rows of the bin.
    """
    marks: list[PlotMark] = [Line(x1=0, y1=0, x2=1, y2=1, kind="guide")]
    for role, rows in sorted(bins.items(), key=lambda item: item[0] == "candidate"):
        tone = "chosen" if role == "candidate" else "incumbent"
        most = max((row.n for row in rows), default=1)
        dots = []
        for row in rows:
            radius = round(2.5 + 4 * (row.n / most) ** 0.5, 1)
            dots.append(Dot(row.confidence, row.accuracy, radius, kind=f"dot {tone}"))
        marks += [*joined(dots, kind=f"path {tone}"), *dots]
    x = Axis(0.0, 1.0, name="confidence", num_ticks=5)
    y = Axis(0.0, 1.0, 260.0, name="accuracy", num_ticks=5)
    label = "accuracy against confidence; see the table of bins"
    return plot(marks, x=x, y=y, label=label, kind="plot square")


def curve(record: CurveRecord) -> Chart:
    """Return the measured scores by training rows, and the prediction for twice the rows with its
    interval."""
    double = 2 * record.sizes[-1]
    dots = []
    for rows, score in zip(record.sizes, record.scores, strict=True):
        dots.append(Dot(rows, score, radius=4.5, kind="dot chosen"))
    predicted = Dot(double, record.at_double, radius=5, kind="dot incumbent")
    low, high = record.interval
    marks: list[PlotMark] = [
        *joined(dots),
        *joined([dots[-1], predicted], kind="path predicted"),
        vertical(double, low, high, kind="whisker"),
        *dots,
        predicted,
    ]
    x = Axis(0.0, 1.05 * double, name="training rows", form="{:,.0f}".format)
    y = around([*record.scores, record.at_double, low, high], length=220.0, name="validation score")
    return plot(marks, x=x, y=y, label="validation score against training rows; see the table")
