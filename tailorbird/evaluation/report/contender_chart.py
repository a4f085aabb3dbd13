"""The first chart of the report and of the console: the scores of the contenders, and their costs a year."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.report.costs import UNKNOWN
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.verdict.formatting import money
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.pages.charts import Box, Chart, Dot, Line, Mark, Scale, Text, around, interval_marks

ROW_HEIGHT, PRICED_ROW_HEIGHT = 46.0, 62.0  # pixels of a contender in a chart of scores, and of scores and costs
SAME_COST = 0.04  # share of the lowest cost by which another one may exceed it in a chart without costs
SCORES_END, COSTS_START = 62.0, 70.0  # percent of the width, in a chart of scores and costs


@dataclass(frozen=True)
class Contender:
    """A model of the first chart: its score, the interval of its gain over the incumbent, and its cost."""

    role: str
    kind: str
    score: float
    score_at: str  # path of the score in evidence.json
    gain: float = 0.0
    interval: tuple[float, float] | None = None  # of the gain; None for the incumbent
    gain_at: str | None = None  # path of the object with the gain and its interval; None for the incumbent
    selected: bool = False
    cost: float | None = None  # a year, in the recipe's currency
    cost_interval: tuple[float, float] | None = None
    cost_at: str | None = None  # path of `cost`, or of why it is not known

    @property
    def tone(self) -> str:
        """The CSS class of its marks."""
        return "chosen" if self.selected else self.role if self.role in ("incumbent", "candidate") else "other"

    @property
    def label(self) -> str:
        return f"{self.role} (selected)" if self.selected else self.role

    @property
    def cost_text(self) -> str:
        return UNKNOWN if self.cost is None else money(self.cost)


def contenders_of(evidence: Evidence) -> tuple[Contender, ...]:
    """Return all compared models with the gain over the incumbent, and their costs if known."""
    verdict = evidence.verdict
    models = []
    for number, model in enumerate(verdict.models):
        contender = Contender(model.role, model.kind, model.score, f"verdict.models.{number}.scores.{verdict.metric}")
        position = verdict.position(model.role, "incumbent")
        if position is not None:
            relation = verdict.relations[position]
            contender = replace(
                contender, gain=relation.gain, interval=relation.interval, gain_at=f"verdict.relations.{position}"
            )
        models.append(_with_cost(contender, evidence))
    return tuple(models)


def _with_cost(model: Contender, evidence: Evidence) -> Contender:
    """Return the contender with its cost a year, if it is known, and whether the verdict selects it."""
    selected = replace(model, selected=model.role == evidence.verdict.selected)
    for number, cost in enumerate(evidence.verdict.costs):
        if cost.role == model.role:
            known = "missing.0" if cost.total is None else "total"
            cost_at = f"verdict.costs.{number}.{known}"
            return replace(selected, cost=cost.total, cost_interval=cost.interval, cost_at=cost_at)
    return selected


def contenders(evidence: Evidence) -> Chart:
    """Return the scores with their intervals, one row for each contender, and their costs a year if these differ.

    Models on replicas of the same size often cost the same, so a point for each model by cost and score would draw
    them over each other. The band is from the incumbent's score to the score with the minimum gain.
    """
    models, verdict = contenders_of(evidence), evidence.verdict
    return _scores_and_costs(models, verdict) if costs_differ(models) else _scores(models, verdict)


def costs_differ(models: Sequence[Contender]) -> bool:
    """Return True if costs are known and are not all about the same."""
    return any(model.cost is not None for model in models) and _same_cost(models) is None


def cost_note(models: Sequence[Contender]) -> str:
    """Return a sentence on the costs that the chart does not show because they are the same; empty otherwise."""
    same = _same_cost(models)
    if same is None:
        return ""
    known = " with a known cost" if any(model.cost is None for model in models) else ""
    return f"All contenders{known} cost about {money(same)} a year."


def _same_cost(models: Sequence[Contender]) -> float | None:
    """Return the mean of two or more known costs of which the highest exceeds the lowest by at most `SAME_COST`."""
    costs = [model.cost for model in models if model.cost is not None]
    is_same = len(costs) > 1 and max(costs) <= (1 + SAME_COST) * min(costs)
    return fmean(costs) if is_same else None


def _ends(model: Contender, incumbent: float) -> tuple[float, float]:
    low, high = model.interval or (model.gain, model.gain)
    return incumbent + low, incumbent + high


def _span(models: Sequence[Contender], verdict: Verdict, *, length: float) -> Scale:
    base = verdict.incumbent.score
    values = [end for model in models for end in (*_ends(model, base), model.score)]
    return around([*values, base, base + verdict.minimum_gain], length=length)


def _form(verdict: Verdict) -> tuple[str, float, str]:
    """Return the format of a score, its factor, and the unit."""
    return (".1f", 100.0, "%") if METRICS[verdict.metric].is_percentage else (".3f", 1.0, "")


def _score_text(verdict: Verdict, score: float) -> str:
    form, factor, unit = _form(verdict)
    return f"{format(factor * score, form)}{unit}"


def _tick_text(verdict: Verdict, value: float) -> str:
    return f"{100 * value:.4g}%" if METRICS[verdict.metric].is_percentage else f"{value:.4g}"


def _score_axis(scale: Scale, verdict: Verdict, *, height: float) -> list[Mark]:
    """Return the band of the minimum gain, a dashed line at the incumbent's score, and the axis of the scores."""
    base = verdict.incumbent.score
    left, right = scale.at(base), scale.at(base + verdict.minimum_gain)
    marks: list[Mark] = [Box(left, 0, round(right - left, 2), height, "band")]
    for value in scale.ticks(about=4):
        x = scale.at(value)
        marks += [Line(x, 0, x, height, "grid"), Text(x, height + 18, _tick_text(verdict, value), anchor="middle")]
    return [*marks, Line(left, 0, left, height, "guide"), Line(0, height, scale.length, height, "axis")]


def _scores(models: Sequence[Contender], verdict: Verdict) -> Chart:
    height, scale = ROW_HEIGHT * len(models), _span(models, verdict, length=100.0)
    marks = _score_axis(scale, verdict, height=height)
    for index, model in enumerate(models):
        y = ROW_HEIGHT * index + 30
        marks.append(Text(0, y - 14, model.label, f"label {model.tone}"))
        marks.append(Text(100, y - 14, _score_text(verdict, model.score), f"label {model.tone}", "end"))
        marks += _score_marks(model, verdict, scale=scale, y=y)
    return Chart(tuple(marks), height, _described(models, verdict), "plot rows")


def _scores_and_costs(models: Sequence[Contender], verdict: Verdict) -> Chart:
    """Return the chart with the scores at the left and the costs a year, from 0, at the right."""
    height, scale = PRICED_ROW_HEIGHT * len(models), _span(models, verdict, length=SCORES_END)
    largest = max(end for model in models for end in model.cost_interval or (0.0,))
    costs = Scale(0.0, 1.1 * largest or 1.0, 100 - COSTS_START, COSTS_START)
    marks = _score_axis(scale, verdict, height=height)
    for value in costs.ticks(about=2):
        x = costs.at(value)
        marks += [Line(x, 0, x, height, "grid"), Text(x, height + 18, f"{value:,.10g}", anchor="middle")]
    marks += [Line(COSTS_START, height, 100, height, "axis")]
    marks += [Text(0, height + 36, "score", "name"), Text(100, height + 36, "cost a year", "name", "end")]
    for index, model in enumerate(models):
        y, tone = PRICED_ROW_HEIGHT * index + 46, f"label {model.tone}"
        marks += [Text(0, y - 30, model.label, tone), Text(0, y - 13, _score_text(verdict, model.score), tone)]
        marks += _score_marks(model, verdict, scale=scale, y=y)
        marks.append(Text(COSTS_START, y - 13, model.cost_text, tone))
        if model.cost is not None:
            low, high = model.cost_interval or (model.cost, model.cost)
            marks += interval_marks(low, model.cost, high, scale=costs, y=y, kind=model.tone)[:3]
            marks.append(_dot(costs.at(model.cost), y, model))
    return Chart(tuple(marks), height, _described(models, verdict), "plot rows priced")


def _score_marks(model: Contender, verdict: Verdict, *, scale: Scale, y: float) -> list[Mark]:
    """Return the interval of the score, and its dot."""
    low, high = _ends(model, verdict.incumbent.score)
    marks: list[Mark] = []
    if model.interval is not None:
        marks += interval_marks(low, model.score, high, scale=scale, y=y, kind=model.tone)[:3]
    return [*marks, _dot(scale.at(model.score), y, model)]


def _dot(x: float, y: float, model: Contender) -> Dot:
    cost = "" if model.cost_at is None else f", {_cost(model)}"
    return Dot(x, y, 7 if model.selected else 5.5, f"dot {model.tone}", title=f"{model.role}{cost}")


def _cost(model: Contender) -> str:
    return f"cost {UNKNOWN}" if model.cost is None else f"{model.cost_text} a year"


def _described(models: Sequence[Contender], verdict: Verdict) -> str:
    parts = []
    for model in models:
        cost = "" if model.cost_at is None else f" at {_cost(model)}"
        parts.append(f"{model.label} {_score_text(verdict, model.score)}{cost}")
    return "Contenders: " + ", ".join(parts) + ". The table has the intervals."
