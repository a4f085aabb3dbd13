"""The first chart of the report and of the console: the scores of the contenders, and their costs a
year."""

from collections.abc import Sequence
from dataclasses import dataclass

from tailorbird.evaluation.gates.prices import ContenderCost
from tailorbird.evaluation.report.costs import UNKNOWN
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.verdict.formatting import money, score_text
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.pages.charts import Axis, Chart, Dot, Mark, Text, around, band, interval_marks

ROW_HEIGHT = 62.0  # pixels of a contender
# percent of the width, in a chart of scores and costs
SCORES_END = 62.0
COSTS_START = 70.0


@dataclass(frozen=True)
class Contender:
    """A model of the first chart: its score, the interval of its gain over the incumbent, and its
    cost."""

    role: str
    kind: str
    selected: bool
    score: float
    score_at: str  # path of the score in evidence.json
    gain: float
    interval: tuple[float, float] | None  # of the gain; None for the incumbent
    gain_at: str | None  # path of the object with the gain; None for the incumbent
    cost: float | None  # a year, in the recipe's currency
    cost_interval: tuple[float, float] | None
    cost_at: str | None  # path of `cost`, or of why it is not known; None without prices

    @property
    def tone(self) -> str:
        """The CSS class of its marks."""
        if self.selected:
            return "chosen"
        if self.role in ("incumbent", "candidate"):
            return self.role
        return "other"

    @property
    def label(self) -> str:
        if self.selected:
            return f"{self.role} (selected)"
        return self.role

    @property
    def cost_text(self) -> str:
        if self.cost is None:
            return UNKNOWN
        return money(self.cost)


def contenders_of(evidence: Evidence) -> list[Contender]:
    """Return all compared models with the gain over the incumbent, and their costs if known."""
    verdict = evidence.verdict
    costs = list(verdict.costs)
    contenders = []
    for number, model in enumerate(verdict.models):
        gain = 0.0
        interval = None
        gain_at = None
        position = verdict.position(model.role, "incumbent")
        if position is not None:
            gain = verdict.relations[position].gain
            interval = verdict.relations[position].interval
            gain_at = f"verdict.relations.{position}"

        cost = ContenderCost(model.role)
        cost_at = None
        for position, priced in enumerate(costs):
            if priced.role == model.role:
                cost = priced
                field = "total" if cost.missing == () else "missing.0"
                cost_at = f"verdict.costs.{position}.{field}"

        contender = Contender(
            role=model.role,
            kind=model.kind,
            selected=model.role == verdict.selected,
            score=model.score,
            score_at=f"verdict.models.{number}.scores.{verdict.metric}",
            gain=gain,
            interval=interval,
            gain_at=gain_at,
            cost=cost.total,
            cost_interval=cost.interval,
            cost_at=cost_at,
        )
        contenders.append(contender)
    return contenders


def has_costs(models: Sequence[Contender]) -> bool:
    """Return True if the cost of a model is known."""
    return any(model.cost is not None for model in models)


def contenders(evidence: Evidence) -> Chart:
    """Return the scores with their intervals, one row for each contender, and their costs a year if
    one is known.

    Models on replicas of the same size often cost the same, so a point for each model by cost and
    score would draw them over each other. The band is from the incumbent's score to the score with
    the minimum gain.
    """
    verdict = evidence.verdict
    models = contenders_of(evidence)
    costs = _cost_axis(models) if has_costs(models) else None
    height = ROW_HEIGHT * len(models)
    scores = _score_axis(models, verdict, length=100.0 if costs is None else SCORES_END)
    base = verdict.incumbent.score

    marks = band(base, base + verdict.minimum_gain, axis=scores, height=height)
    marks += scores.across(height, grid=True)
    if costs is not None:
        marks += costs.across(height, grid=True)
    descriptions = []
    for index, model in enumerate(models):
        y = ROW_HEIGHT * (index + 1) - 16
        score = score_text(verdict.metric, model.score)
        description = f"{model.label} {score}"
        kind = f"label {model.tone}"
        marks.append(Text(0, y - 30, model.label, kind=kind))
        marks.append(Text(scores.end, y - 14, score, kind=kind, anchor="end"))
        marks += _estimate(model, model.score, _ends(model, base), axis=scores, y=y)
        if costs is not None:
            description += f", yearly cost {model.cost_text}"
            marks.append(Text(costs.start, y - 14, model.cost_text, kind=kind))
            if model.cost is not None:
                marks += _estimate(model, model.cost, model.cost_interval, axis=costs, y=y)
        descriptions.append(description)
    label = f"Contenders: {'; '.join(descriptions)}. The table has the intervals."
    return Chart(tuple(marks), height, label, kind="plot rows")


def _ends(model: Contender, incumbent: float) -> tuple[float, float] | None:
    """Return the ends of the interval of the score."""
    if model.interval is None:
        return None
    low, high = model.interval
    return incumbent + low, incumbent + high


def _score_axis(models: Sequence[Contender], verdict: Verdict, *, length: float) -> Axis:
    base = verdict.incumbent.score
    values = [base + verdict.minimum_gain]
    for model in models:
        values += [model.score, *(_ends(model, base) or ())]
    return around(
        values,
        length=length,
        name="score",
        form=lambda score: score_text(verdict.metric, score, form=".4g"),
    )


def _cost_axis(models: Sequence[Contender]) -> Axis:
    """Return an axis of the costs a year, from 0."""
    largest = max(model.cost_interval[1] for model in models if model.cost_interval is not None)
    return Axis(
        low=0.0,
        high=1.1 * largest or 1.0,
        length=100 - COSTS_START,
        start=COSTS_START,
        name="cost a year",
        form="{:,.10g}".format,
        num_ticks=2,
    )


def _estimate(
    model: Contender, value: float, ends: tuple[float, float] | None, *, axis: Axis, y: float
) -> list[Mark]:
    """Return a dot at a value with its interval."""
    marks: list[Mark] = []
    if ends is not None:
        marks += interval_marks(ends, axis=axis, y=y, tone=model.tone)
    radius = 7 if model.selected else 5.5
    marks.append(Dot(axis.at(value), y, radius, kind=f"dot {model.tone}", title=model.label))
    return marks
