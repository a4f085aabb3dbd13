"""Charts of the report and the console, except the first; the pages print the plotted numbers next
to each chart."""

from collections.abc import Sequence

from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.gates.base import Gate
from tailorbird.evaluation.report.evidence import BASELINE, TrialRecord
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.pages.charts import (
    Axis,
    Chart,
    PlotMark,
    Text,
    around,
    course,
    horizontal,
    plot,
)
from tailorbird.registry.run_progress import ContenderProgress


def whole(value: float) -> str:
    """Return a value of an axis that shows positive whole numbers only."""
    if value == int(value) and value:
        return f"{value:g}"
    return ""


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
