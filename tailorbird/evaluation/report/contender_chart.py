"""The first chart of the report and of the console: the scores of the contenders."""

from collections.abc import Sequence
from dataclasses import dataclass

from tailorbird.evaluation.gates.prices import ContenderCost
from tailorbird.evaluation.report.costs import UNKNOWN
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.verdict.formatting import money, score_text
from tailorbird.evaluation.verdict.parts import TestedModel
from tailorbird.evaluation.verdict.relation import Relation
from tailorbird.pages.charts import Chart, Dot, Mark, Text, around, band, interval_marks

ROW_HEIGHT = 46.0  # pixels of a contender


@dataclass(frozen=True)
class Contender:
    """A compared model. `..._at` are paths in evidence.json."""

    model: TestedModel
    is_selected: bool
    score_at: str
    relation: Relation | None  # to the incumbent; None for the incumbent
    relation_at: str
    cost: ContenderCost | None  # None without prices
    cost_at: str  # of the cost a year, or of why it is not known

    @property
    def tone(self) -> str:
        """The CSS class of its marks."""
        if self.is_selected:
            return "chosen"
        if self.model.role in ("incumbent", "candidate"):
            return self.model.role
        return "other"

    @property
    def label(self) -> str:
        if self.is_selected:
            return f"{self.model.role} (selected)"
        return self.model.role

    @property
    def cost_text(self) -> str:
        if self.cost is None or self.cost.total is None:
            return UNKNOWN
        return money(self.cost.total)


def contenders_of(evidence: Evidence) -> list[Contender]:
    """Return all compared models with the relation to the incumbent, and their costs if known."""
    verdict = evidence.verdict
    positions = {cost.role: position for position, cost in enumerate(verdict.costs)}
    contenders = []
    for number, model in enumerate(verdict.models):
        relation = None
        relation_position = verdict.position(model.role, "incumbent")
        if relation_position is not None:
            relation = verdict.relations[relation_position]

        cost = None
        cost_field = "total"
        if model.role in positions:
            cost = verdict.costs[positions[model.role]]
            if cost.total is None:
                cost_field = "missing.0"

        contender = Contender(
            model=model,
            is_selected=model.role == verdict.selected,
            score_at=f"verdict.models.{number}.scores.{verdict.metric}",
            relation=relation,
            relation_at=f"verdict.relations.{relation_position}",
            cost=cost,
            cost_at=f"verdict.costs.{positions.get(model.role)}.{cost_field}",
        )
        contenders.append(contender)
    return contenders


def has_costs(contenders: Sequence[Contender]) -> bool:
    """Return True if the cost of a model is known."""
    return any(contender.cost_text != UNKNOWN for contender in contenders)


def contenders(evidence: Evidence) -> Chart:
    """Return the scores, one row for each contender, with the interval of the gain over the
    incumbent.

    The band is from the incumbent's score to the score with the minimum gain.
    """
    verdict = evidence.verdict
    incumbent = verdict.incumbent.score
    rows = contenders_of(evidence)
    values = [incumbent + verdict.minimum_gain]
    for row in rows:
        values.append(row.model.score)
        if row.relation is not None:
            values += [incumbent + end for end in row.relation.interval]
    axis = around(
        values,
        name="score",
        form=lambda score: score_text(verdict.metric, score, form=".4g"),
    )

    height = ROW_HEIGHT * len(rows)
    marks: list[Mark] = band(incumbent, incumbent + verdict.minimum_gain, axis=axis, height=height)
    marks += axis.across(height)
    descriptions = []
    for number, row in enumerate(rows, start=1):
        y = ROW_HEIGHT * number - 16
        score = score_text(verdict.metric, row.model.score)
        descriptions.append(f"{row.label} {score}")
        kind = f"label {row.tone}"
        marks.append(Text(0, y - 14, row.label, kind=kind))
        marks.append(Text(axis.length, y - 14, score, kind=kind, anchor="end"))
        if row.relation is not None:
            low, high = row.relation.interval
            ends = (incumbent + low, incumbent + high)
            marks += interval_marks(ends, axis=axis, y=y, tone=row.tone)
        radius = 7 if row.is_selected else 5.5
        dot = Dot(axis.at(row.model.score), y, radius, kind=f"dot {row.tone}", title=row.label)
        marks.append(dot)
    label = f"Contenders: {', '.join(descriptions)}. The table has the intervals."
    return Chart(tuple(marks), height, label, kind="plot rows")
