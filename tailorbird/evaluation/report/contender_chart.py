"""The first chart of the report and of the console: the scores of the contenders, and their costs a
year."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from tailorbird.evaluation.report.costs import UNKNOWN
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.verdict.formatting import money, score_text
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.pages.charts import Axis, Chart, Dot, Mark, Text, around, band, interval_marks

# pixels of a contender in a chart of scores, and of scores and costs
ROW_HEIGHT = 46.0
PRICED_ROW_HEIGHT = 62.0
SAME_COST = (
    0.04  # share of the lowest cost by which another one may exceed it in a chart without costs
)
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
    gain: float = 0.0
    interval: tuple[float, float] | None = None  # of the gain; None for the incumbent
    gain_at: str | None = (
        None  # path of the object with the gain and its interval; None for the incumbent
    )
    cost: float | None = None  # a year, in the recipe's currency
    cost_interval: tuple[float, float] | None = None
    cost_at: str | None = None  # path of `cost`, or of why it is not known

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

    @property
    def yearly(self) -> str:
        """The cost in the tooltip and the description; empty without prices."""
        if self.cost_at is None:
            return ""
        if self.cost is None:
            return f"cost {UNKNOWN}"
        return f"{self.cost_text} a year"


def contenders_of(evidence: Evidence) -> tuple[Contender, ...]:
    """Return all compared models with the gain over the incumbent, and their costs if known."""
    return tuple(_contender(evidence, number) for number in range(len(evidence.verdict.models)))


def _contender(evidence: Evidence, number: int) -> Contender:
    verdict = evidence.verdict
    model = verdict.models[number]
    score_at = f"verdict.models.{number}.scores.{verdict.metric}"
    contender = Contender(
        model.role, model.kind, model.role == verdict.selected, model.score, score_at
    )
    position = verdict.position(model.role, "incumbent")
    if position is not None:
        relation = verdict.relations[position]
        gain_at = f"verdict.relations.{position}"
        contender = replace(
            contender, gain=relation.gain, interval=relation.interval, gain_at=gain_at
        )
    for position, cost in enumerate(verdict.costs):
        if cost.role == model.role:
            cost_at = f"verdict.costs.{position}.{'missing.0' if cost.total is None else 'total'}"
            return replace(contender, cost=cost.total, cost_interval=cost.interval, cost_at=cost_at)
    return contender


def costs_differ(models: Sequence[Contender]) -> bool:
    """Return True if costs are known and are not all about the same."""
    return any(model.cost is not None for model in models) and _same_cost(models) is None


def cost_note(models: Sequence[Contender]) -> str:
    """Return a sentence on the costs that the chart does not show because they are the same; empty
    otherwise."""
    same = _same_cost(models)
    if same is None:
        return ""
    if any(model.cost is None for model in models):
        known = " with a known cost"
    else:
        known = ""
    return f"All contenders{known} cost about {money(same)} a year."


def _same_cost(models: Sequence[Contender]) -> float | None:
    """Return the mean of two or more known costs of which the highest exceeds the lowest by at most
    `SAME_COST`."""
    costs = [model.cost for model in models if model.cost is not None]
    is_same = len(costs) > 1 and max(costs) <= (1 + SAME_COST) * min(costs)
    if is_same:
        return fmean(costs)
    return None


def contenders(evidence: Evidence) -> Chart:
    """Return the scores with their intervals, one row for each contender, and their costs a year if
    these differ.

    Models on replicas of the same size often cost the same, so a point for each model by cost and
    score would draw them over each other. The band is from the incumbent's score to the score with
    the minimum gain.
    """
    verdict = evidence.verdict
    models = contenders_of(evidence)
    costs = _cost_axis(models) if costs_differ(models) else None
    row = ROW_HEIGHT if costs is None else PRICED_ROW_HEIGHT
    height = row * len(models)
    scores = _score_axis(models, verdict, length=100.0 if costs is None else SCORES_END)
    base = verdict.incumbent.score
    marks = band(base, base + verdict.minimum_gain, axis=scores, height=height) + scores.across(
        height, grid=True
    )
    marks += costs.across(height, grid=True) if costs else []
    parts = []
    for index, model in enumerate(models):
        y = row * (index + 1) - 16
        score = score_text(verdict.metric, model.score)
        marks.append(Text(0, y - row + 32, model.label, f"label {model.tone}"))
        marks.append(Text(scores.end, y - 14, score, f"label {model.tone}", "end"))
        marks += _estimate(model, model.score, _ends(model, base), axis=scores, y=y)
        if costs is not None:
            marks.append(Text(costs.start, y - 14, model.cost_text, f"label {model.tone}"))
            marks += _estimate(model, model.cost, model.cost_interval, axis=costs, y=y)
        parts.append(f"{model.label} {score}{f' at {model.yearly}' if model.yearly else ''}")
    label = f"Contenders: {', '.join(parts)}. The table has the intervals."
    return Chart(tuple(marks), height, label, "plot rows")


def _ends(model: Contender, incumbent: float) -> tuple[float, float] | None:
    """Return the ends of the interval of the score."""
    if model.interval is None:
        return None
    low, high = model.interval
    return incumbent + low, incumbent + high


def _score_axis(models: Sequence[Contender], verdict: Verdict, *, length: float) -> Axis:
    base = verdict.incumbent.score
    ends = [end for model in models for end in _ends(model, base) or ()]
    scores = [model.score for model in models]
    return around(
        [*ends, *scores, base + verdict.minimum_gain],
        length=length,
        name="score",
        form=lambda score: score_text(verdict.metric, score, form=".4g"),
    )


def _cost_axis(models: Sequence[Contender]) -> Axis:
    """Return an axis of the costs a year, from 0."""
    largest = max(end for model in models for end in model.cost_interval or (0.0,))
    high = 1.1 * largest or 1.0
    return Axis(
        0.0,
        high,
        100 - COSTS_START,
        COSTS_START,
        "cost a year",
        form="{:,.10g}".format,
        num_ticks=2,
    )


def _estimate(
    model: Contender, value: float | None, ends: tuple[float, float] | None, *, axis: Axis, y: float
) -> list[Mark]:
    """Return a dot at a value with its interval; nothing if the value is not known."""
    if value is None:
        return []
    marks: list[Mark] = []
    if ends is not None:
        marks += interval_marks(ends, axis=axis, y=y, tone=model.tone)
    title = f"{model.role}, {model.yearly}" if model.yearly else model.role
    return [
        *marks,
        Dot(axis.at(value), y, 7 if model.selected else 5.5, f"dot {model.tone}", title),
    ]
