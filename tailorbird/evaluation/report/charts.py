"""Charts of the report and the console, except the first; the pages print the plotted numbers next
to each chart."""

from collections.abc import Sequence

from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.gates.base import Bound, Gate
from tailorbird.evaluation.report.evidence import (
    BASELINE,
    TrialRecord,
)
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.pages.charts import (
    Axis,
    Chart,
    Dot,
    PlotMark,
    Text,
    around,
    band,
    course,
    horizontal,
    interval_marks,
    plot,
    vertical,
)
from tailorbird.registry.run_progress import ContenderProgress


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
    """Return the number of test rows by which of the two models is right.

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
