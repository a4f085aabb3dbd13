"""Charts of the report and the console, except the first; the pages print the plotted numbers next
to each chart."""

from collections.abc import Mapping, Sequence

from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.gates.base import Bound, Gate
from tailorbird.evaluation.report.evidence import (
    BASELINE,
    Confusion,
    CurveRecord,
    ReliabilityBin,
    TrialRecord,
)
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.pages.charts import (
    Axis,
    Box,
    Chart,
    Dot,
    Line,
    Mark,
    PlotMark,
    Text,
    around,
    band,
    interval_marks,
    joined,
    parts_bar,
    plot,
)
from tailorbird.registry.run_progress import ContenderProgress

OUTCOME_CLASSES = ("right", "won", "lost", "wrong")
MAX_NAMED = 8  # trials whose names the chart of the sweep has room for


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
    marks.append(Dot(axis.at(value), 20, 4.5, "dot chosen"))
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
    kinds = [f"part {name}" for name in OUTCOME_CLASSES]
    return parts_bar(
        [(name, number, kind) for (name, number), kind in zip(counts.items(), kinds, strict=True)]
    )


def confusion(row: Confusion, most: int) -> Chart:
    """Return two bars from the middle: fixed errors to the left, made errors to the right, up to
    `most` rows each."""
    axis = Axis(-most, most)
    marks = (
        Box(
            axis.at(-row.fixed),
            4,
            50 - axis.at(-row.fixed),
            12,
            "part won",
            f"fixed: {row.fixed:,}",
        ),
        Box(50, 4, axis.at(row.made) - 50, 12, "part lost", f"made: {row.made:,}"),
        Line(50, 0, 50, 20),
    )
    return Chart(marks, 20, f"fixed {row.fixed:,}, made {row.made:,}")


def factor_of(gate: Gate) -> float:
    """Return the factor from the bounds of a gate to the unit that pages show: points or the
    recipe's currency."""
    if gate.name == "cost":
        return 1.0
    return 100.0


def axis_of(gate: Gate) -> Axis:
    """Return an axis for all bounds of a gate, in points or in the recipe's currency."""
    ends = [end for bound in gate.bounds for end in (*bound.interval, bound.limit, 0.0)]
    return around(ends, form=lambda value: f"{factor_of(gate) * value:,.4g}", num_ticks=3)


def bound(bound: Bound, axis: Axis, tone: str, factor: float) -> Chart:
    """Return the interval of a bound, with dashed lines at 0 and at its limit; its text has values
    times `factor`."""
    guides = [Line(axis.at(at), 0, axis.at(at), 26, "guide") for at in (0.0, bound.limit)]
    ends = interval_marks(bound.interval, axis=axis, y=13, tone=tone)
    low, high = bound.interval
    label = (
        f"{factor * bound.estimate:.2f}, interval {factor * low:.2f} to {factor * high:.2f}, "
        f"limit {factor * bound.limit:.2f}"
    )
    return Chart((*guides, *ends, Dot(axis.at(bound.estimate), 13, 4.5, f"dot {tone}")), 26, label)


def sweep(trials: Sequence[TrialRecord]) -> Chart:
    """Return the validation score of each trial and baseline in the order of the sweep, without
    trials that failed."""
    trials = [trial for trial in trials if trial.epochs or trial.status == BASELINE]
    tuned = [trial for trial in trials if trial.status != BASELINE]
    best = max(tuned, key=lambda trial: trial.validation, default=None)
    named = trials if len(trials) <= MAX_NAMED else []
    names = {number + 1.0: trial.name for number, trial in enumerate(named)}
    dots = []
    for number, trial in enumerate(trials, start=1):
        kind = "other" if trial.status == BASELINE else "candidate"
        radius = 4.5
        if trial is best:
            kind = "chosen"
            radius = 6
        title = f"{trial.name}: {trial.validation:.4f} ({trial.status})"
        dots.append(Dot(number, trial.validation, radius, f"dot {kind}", title))
    x = Axis(
        0.0,
        len(trials) + 1.0,
        name="trial",
        form=lambda value: names.get(value, ""),
        num_ticks=len(names) + 1,
    )
    y = around([trial.validation for trial in trials], length=180.0, name="validation score")
    return plot(
        dots, x=x, y=y, label="validation score of each trial; see the table", kind="plot short"
    )


def contenders_of(trials: Sequence[TrialRecord]) -> list[ContenderProgress]:
    """Return the trials and baselines as in the progress of a run."""
    return [
        ContenderProgress(
            name=trial.name,
            score=trial.validation,
            status=trial.status,
            curve=tuple(enumerate(trial.scores, start=1)),
        )
        for trial in trials
    ]


def learning_curves(contenders: Sequence[ContenderProgress]) -> Chart | None:
    """Return the validation score of each training by epoch; None without any. The best training is
    emphasized.

    The dashed line is the best baseline.
    """
    trained = [each for each in contenders if each.curve]
    if not trained:
        return None
    best = max(trained, key=lambda each: each.score or 0.0)
    epochs = max(each.curve[-1][0] for each in trained)
    scores = [score for each in trained for _, score in each.curve]
    baselines = [
        each.score
        for each in contenders
        if each.status in ("", BASELINE) and each.score is not None
    ]
    target = [max(baselines)] if baselines else []
    x = Axis(0.0, epochs + 0.5, name="epoch", form=whole, num_ticks=min(epochs + 1, 8))
    y = around([*scores, *target], length=220.0, name="validation score")
    marks: list[PlotMark] = [Line(x.low, score, x.high, score, "guide") for score in target]
    for each in sorted(
        trained, key=lambda each: each is best
    ):  # the best one last, over the others
        tone = "chosen" if each is best else "incumbent"
        title = (
            f"{each.name}: {', '.join(f'{score:.4f}' for _, score in each.curve)} ({each.status})"
        )
        dots = [Dot(epoch, score, 4.0, f"dot {tone}", title) for epoch, score in each.curve]
        marks += [*joined(dots, kind=f"path {tone}"), *dots]
    epoch, score = best.curve[-1]
    marks.append(Text(epoch, score, best.name, "label chosen", "end", rise=10))
    return plot(
        marks, x=x, y=y, label=f"learning curves of {len(trained)} trainings; see the table"
    )


def reliability(bins: Mapping[str, Sequence[ReliabilityBin]]) -> Chart:
    """Return a reliability diagram: accuracy against mean confidence per bin, one line per model.

    `bins` are by role. The candidate is drawn over the incumbent. The area of a dot grows with the
    rows of the bin.
    """
    marks: list[PlotMark] = [Line(0, 0, 1, 1, "guide")]
    for role, rows in sorted(bins.items(), key=lambda item: item[0] == "candidate"):
        tone = "chosen" if role == "candidate" else "incumbent"
        most = max((row.n for row in rows), default=1)
        radii = [round(2.5 + 4 * (row.n / most) ** 0.5, 1) for row in rows]
        dots = [
            Dot(row.confidence, row.accuracy, radius, f"dot {tone}")
            for row, radius in zip(rows, radii, strict=True)
        ]
        marks += [*joined(dots, kind=f"path {tone}"), *dots]
    x = Axis(0.0, 1.0, name="confidence", num_ticks=5)
    y = Axis(0.0, 1.0, 260.0, name="accuracy", num_ticks=5)
    return plot(
        marks,
        x=x,
        y=y,
        label="accuracy against confidence; see the table of bins",
        kind="plot square",
    )


def curve(record: CurveRecord) -> Chart:
    """Return the measured scores by training rows, and the prediction for twice the rows with its
    interval."""
    double = 2 * record.sizes[-1]
    dots = [
        Dot(rows, score, 4.5, "dot chosen")
        for rows, score in zip(record.sizes, record.scores, strict=True)
    ]
    predicted = Dot(double, record.at_double, 5, "dot incumbent")
    low, high = record.interval
    marks: list[PlotMark] = [
        *joined(dots),
        *joined([dots[-1], predicted], kind="path predicted"),
        Line(double, low, double, high, "whisker"),
        *dots,
        predicted,
    ]
    x = Axis(0.0, 1.05 * double, name="training rows", form="{:,.0f}".format)
    y = around([*record.scores, record.at_double, low, high], length=220.0, name="validation score")
    return plot(marks, x=x, y=y, label="validation score against training rows; see the table")


def rounds(values: Sequence[float], largest: float, chosen: bool) -> Chart:
    """Return one dot per measured round on an axis from 0 to `largest`."""
    axis = Axis(0.0, largest)
    kind = "dot chosen" if chosen else "dot other"
    marks: list[Mark] = [
        Line(0, 10, 100, 10),
        *(Dot(axis.at(value), 10, 4, kind) for value in values),
    ]
    return Chart(tuple(marks), 20, ", ".join(f"{value:.4g}" for value in values))
