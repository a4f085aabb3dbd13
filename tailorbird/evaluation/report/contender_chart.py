"""The first chart of the report and of the console: the contenders, score against cost a month."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tailorbird.evaluation.report.costs import UNKNOWN
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.verdict.contender_costs import money
from tailorbird.evaluation.verdict.formatting import PERCENTAGES
from tailorbird.evaluation.verdict.parts import FamilyVerdict
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.pages.charts import Box, Chart, Dot, Line, Mark, Scale, Text, around, axes, interval_marks

LABEL_HEIGHT = 16  # pixels between the labels of two contenders
ROW_HEIGHT = 46  # pixels of a contender in a chart without costs
SAME_COST = 4.0  # percent of the width below which two contenders are drawn next to each other
PRICED = 80.0  # percent of the width for the known costs, if others are not known


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
    cost: float | None = None  # a month, in the recipe's currency
    cost_interval: tuple[float, float] | None = None
    cost_at: str | None = None  # path of the total from which `cost` is computed, or of why it is not known

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
    """Return the incumbent, the candidate, the hybrid and the further contenders, with their costs if known."""
    verdict, hybrid = evidence.verdict, evidence.verdict.hybrid
    models = [
        Contender("incumbent", verdict.incumbent_kind, verdict.incumbent_score, score_at="verdict.incumbent_score"),
        Contender(
            "candidate",
            verdict.candidate_kind,
            verdict.candidate_score,
            gain=verdict.gain,
            interval=verdict.interval,
            score_at="verdict.candidate_score",
            gain_at="verdict",
        ),
    ]
    others: list[tuple[str, str, str, FamilyVerdict]]
    others = [("verdict.hybrid", "hybrid", "hybrid", hybrid)] if hybrid is not None else []
    others += [
        (f"verdict.contenders.{index}", each.role, each.kind, each) for index, each in enumerate(verdict.contenders)
    ]
    models += [
        Contender(role, kind, each.score, gain=each.gain, interval=each.interval, score_at=f"{at}.score", gain_at=at)
        for at, role, kind, each in others
    ]
    return tuple(_with_cost(model, evidence) for model in models)


def _with_cost(model: Contender, evidence: Evidence) -> Contender:
    """Return the contender with its cost a month, if it is known, and whether the verdict selects it."""
    selected = replace(model, selected=model.role == evidence.verdict.winner)
    costs, terms = evidence.verdict.costs, evidence.protocol.cost
    number = next((number for number, cost in enumerate(costs) if cost.role == model.role), None)
    if number is None or terms is None:
        return selected
    cost = costs[number]
    if cost.total is None or cost.interval is None:
        return replace(selected, cost_at=f"verdict.costs.{number}.missing.0")
    months, (low, high) = terms.horizon_months, cost.interval
    return replace(
        selected,
        cost=cost.total / months,
        cost_interval=(low / months, high / months),
        cost_at=f"verdict.costs.{number}.total",
    )


def contenders(evidence: Evidence) -> Chart:
    """Return the contenders with their intervals: score against cost a month, or scores alone if no cost is known.

    The band is from the incumbent's score to the score with the minimum gain.
    """
    models, verdict = contenders_of(evidence), evidence.verdict
    if any(model.cost is not None for model in models):
        return _score_against_cost(models, verdict)
    return _scores(models, verdict)


def _ends(model: Contender, incumbent: float) -> tuple[float, float]:
    low, high = model.interval or (model.gain, model.gain)
    return incumbent + low, incumbent + high


def _span(models: Sequence[Contender], verdict: Verdict, *, length: float) -> Scale:
    base = verdict.incumbent_score
    values = [end for model in models for end in (*_ends(model, base), model.score)]
    return around([*values, base, base + verdict.minimum_gain], length=length)


def _form(verdict: Verdict) -> tuple[str, float, str]:
    """Return the format of a score, its factor, and the unit."""
    return (".1f", 100.0, "%") if verdict.metric in PERCENTAGES else (".3f", 1.0, "")


def _score_text(verdict: Verdict, score: float) -> str:
    form, factor, unit = _form(verdict)
    return f"{format(factor * score, form)}{unit}"


def _tick_text(verdict: Verdict, value: float) -> str:
    return f"{100 * value:.4g}%" if verdict.metric in PERCENTAGES else f"{value:.4g}"


def _score_against_cost(models: Sequence[Contender], verdict: Verdict) -> Chart:
    """Return the chart with the models whose cost is not known in a strip at its right edge."""
    height, base = 300.0, verdict.incumbent_score
    up = _span(models, verdict, length=height)
    largest = 1.1 * max((model.cost_interval or (0.0, model.cost or 0.0))[1] for model in models)
    some_unknown = any(model.cost is None for model in models)
    across = Scale(0.0, largest or 1.0, PRICED if some_unknown else 100.0)
    top, bottom = up.down(base + verdict.minimum_gain), up.down(base)
    marks: list[Mark] = [Box(0, top, 100, round(bottom - top, 2), "band")]
    marks += axes(
        across, up, names=("cost a month", "score"), forms=(lambda x: f"{x:,g}", lambda y: _tick_text(verdict, y))
    )
    marks += [Line(0, bottom, 100, bottom, "guide")]
    if some_unknown:
        marks += [Line(PRICED, 0, PRICED, height, "guide"), Text(100, -12, f"cost {UNKNOWN}", "name", "end")]
    positions = [(PRICED + 100) / 2 if model.cost is None else across.at(model.cost) for model in models]
    shifts, heights = _shifts(positions), _label_heights([up.down(model.score) for model in models], height)
    for model, x, shift, label_y in zip(models, positions, shifts, heights, strict=True):
        y = up.down(model.score)
        low, high = (up.down(end) for end in _ends(model, base))
        marks += [Line(x, low, x, high, f"whisker {model.tone}", shift)]
        if model.cost_interval is not None:
            left, right = (across.at(end) for end in model.cost_interval)
            marks += [Line(left, y, right, y, f"whisker {model.tone}", shift)]
        marks.append(_dot(x, y, model, shift=shift))
        anchor, away = ("end", -12.0) if x > 55 else ("start", 12.0)
        marks += [Text(x, label_y + 4, model.label, f"label {model.tone}", anchor, shift + away)]
    return Chart(tuple(marks), height, _described(models, verdict), "plot")


def _dot(x: float, y: float, model: Contender, *, shift: float = 0.0) -> Dot:
    cost = "" if model.cost_at is None else f", {_cost(model)}"
    return Dot(x, y, 7 if model.selected else 5.5, f"dot {model.tone}", shift, f"{model.role}{cost}")


def _cost(model: Contender) -> str:
    return f"cost {UNKNOWN}" if model.cost is None else f"{model.cost_text} a month"


def _shifts(positions: Sequence[float]) -> list[float]:
    """Return pixels by which to move each contender, so that those of nearly the same cost are next to each other."""
    shifts: list[float] = []
    for index, position in enumerate(positions):
        same = [other for other in range(len(positions)) if abs(positions[other] - position) < SAME_COST]
        shifts.append(18.0 * (same.index(index) - (len(same) - 1) / 2))
    return shifts


def _label_heights(heights: Sequence[float], limit: float) -> list[float]:
    """Return the heights of the labels, moved apart to at least `LABEL_HEIGHT`, within 0 to `limit`."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    moved, last = list(heights), -LABEL_HEIGHT / 2
    for index in order:
        moved[index] = last = max(moved[index], last + LABEL_HEIGHT)
    excess = max(0.0, last - limit)
    return [height - excess for height in moved]


def _scores(models: Sequence[Contender], verdict: Verdict) -> Chart:
    base, height = verdict.incumbent_score, float(ROW_HEIGHT * len(models))
    scale = _span(models, verdict, length=100.0)
    left, right = scale.at(base), scale.at(base + verdict.minimum_gain)
    marks: list[Mark] = [Box(left, 0, round(right - left, 2), height, "band")]
    for value in scale.ticks(about=4):
        x = scale.at(value)
        marks += [Line(x, 0, x, height, "grid"), Text(x, height + 18, _tick_text(verdict, value), anchor="middle")]
    marks += [Line(left, 0, left, height, "guide"), Line(0, height, 100, height, "axis")]
    for index, model in enumerate(models):
        y, (low, high) = ROW_HEIGHT * index + 30.0, _ends(model, base)
        marks.append(Text(0, y - 14, model.label, f"label {model.tone}"))
        marks.append(Text(100, y - 14, _score_text(verdict, model.score), f"label {model.tone}", "end"))
        if model.interval is not None:
            marks += interval_marks(low, model.score, high, scale=scale, y=y, kind=model.tone)[:3]
        marks.append(_dot(scale.at(model.score), y, model))
    return Chart(tuple(marks), height, _described(models, verdict), "plot rows")


def _described(models: Sequence[Contender], verdict: Verdict) -> str:
    parts = []
    for model in models:
        cost = "" if model.cost_at is None else f" at {_cost(model)}"
        parts.append(f"{model.label} {_score_text(verdict, model.score)}{cost}")
    return "Contenders: " + ", ".join(parts) + ". The table has the intervals."
