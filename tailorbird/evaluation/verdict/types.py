"""The verdict: the two answers, the compared models and their relations."""

from tailorbird.evaluation.gates.base import Gate
from tailorbird.evaluation.gates.prices import ContenderCost, CostUnit
from tailorbird.evaluation.statistics.headroom import Headroom
from tailorbird.evaluation.verdict.decide import CANDIDATE, HYBRID, INCUMBENT, Outcome
from tailorbird.evaluation.verdict.parts import Power, TestedHybrid, TestedModel, VerdictPart
from tailorbird.evaluation.verdict.relation import CHEAPER_RATIO, Relation


class Verdict(VerdictPart):
    """An outcome and the selected model, with the evidence for both. Gains and levels are
    shares."""

    outcome: Outcome
    """Whether a fine-tuned model deserves to serve."""
    selected: str
    """Role of the model that serves."""
    sentences: tuple[str, ...]
    """The verdict as a chain of at most eight sentences with their figures; the last says what
    would change it."""
    metric: str
    n: int
    """Compared test rows."""
    num_units: int
    """Independent units: rows, or documents and groups of near copies."""
    alpha: float
    """Two-sided level of this look at the test rows."""
    minimum_gain: float
    non_inferiority_margin: float
    expected_gain: float
    models: tuple[TestedModel, ...]
    """The incumbent, the candidate if a model was trained, the hybrid if there is one, then the
    other models, best on validation first."""
    relations: tuple[Relation, ...]
    """Every pair of models that was compared."""
    blocked_by: tuple[str, ...]
    """Roles of the models without fine-tuning that the candidate does not dominate."""
    stopped_by: tuple[str, ...]
    """Gates that stop the candidate although it dominates every opponent, which is then the reason
    for STAY or INSUFFICIENT_EVIDENCE."""
    replaces_for_cost: bool
    """True if the selected model replaces the incumbent for its lower cost, without being proven
    better."""
    power: Power | None
    """None without a candidate."""
    headroom: Headroom | None
    """What was left to gain over the incumbent, by the validation rows, if therefore no model was
    trained."""
    hybrid: TestedHybrid | None
    costs: tuple[ContenderCost, ...]
    """Cost of each model; empty without prices."""
    cost_unit: CostUnit | None
    """What all cost ratios compare: the price at the recipe's volume if it has prices, else
    GPU-seconds per row if replicas have GPUs, else CPU-seconds; None if not measured."""
    num_trained_rows: int
    """Test rows that left the comparison because a compared model was trained on them."""

    def model(self, role: str) -> TestedModel:
        """Return the model in a role; raise KeyError if it was not compared."""
        return {model.role: model for model in self.models}[role]

    def has(self, role: str) -> bool:
        """Return True if a model in this role was compared."""
        return any(model.role == role for model in self.models)

    def position(self, first: str, second: str) -> int | None:
        """Return the position in `relations` of two models, or None if the second was not compared
        with the first."""
        pairs = [(relation.first, relation.second) for relation in self.relations]
        if (first, second) in pairs:
            return pairs.index((first, second))
        return None

    def relation(self, first: str, second: str) -> Relation:
        """Return the first model compared with the second; raise KeyError if they were not
        compared."""
        position = self.position(first, second)
        if position is None:
            raise KeyError(f"{first} was not compared with {second}")
        return self.relations[position]

    @property
    def incumbent(self) -> TestedModel:
        return self.model(INCUMBENT)

    @property
    def candidate(self) -> TestedModel | None:
        """The fine-tuned model; None if no model was trained."""
        if self.has(CANDIDATE):
            return self.model(CANDIDATE)
        return None

    @property
    def gates(self) -> tuple[Gate, ...]:
        """Gates of the candidate; empty if there is none."""
        if self.candidate is None:
            return ()
        return self.candidate.gates

    @property
    def required(self) -> tuple[Relation, ...]:
        """The comparisons that decide the outcome: of the candidate, or the hybrid, with all that
        it must dominate.

        Without a candidate, they are those of the models that could replace the incumbent with it.
        """
        if self.candidate is None:
            replacing = {model.role for model in self.models if model.may_replace and model.passes}
            return tuple(
                each
                for each in self.relations
                if each.first in replacing and each.second == INCUMBENT
            )
        first = CANDIDATE
        if self.outcome is Outcome.HYBRID:
            first = HYBRID
        must_dominate = {INCUMBENT}
        for model in self.models:
            is_candidate = model.role == CANDIDATE and first == HYBRID
            if model.is_opponent and (is_candidate or not model.is_fine_tuned):
                must_dominate.add(model.role)
        return tuple(
            each for each in self.relations if each.first == first and each.second in must_dominate
        )

    @property
    def closest(self) -> Relation | None:
        """The comparison that decides: the lowest gain of those in `required` that are out of
        reach.

        If none is, it is the lowest gain of those that do not dominate or, if all do, of all.
        Without a candidate, it is that of the selected model or else the highest one; None if no
        model could replace the incumbent.
        """
        if self.candidate is None:
            selected = [relation for relation in self.required if relation.first == self.selected]
            return max(
                selected or self.required,
                key=lambda relation: relation.gain,
                default=None,
            )
        failing = [relation for relation in self.required if not relation.dominates]
        ruled_out = [relation for relation in failing if relation.is_out_of_reach]
        return min(ruled_out or failing or self.required, key=lambda relation: relation.gain)

    @property
    def described(self) -> str | None:
        """Role of the model whose cost is compared with the incumbent's: the selected one, or else
        the candidate."""
        if self.selected != INCUMBENT:
            return self.selected
        if self.candidate is None:
            return None
        return CANDIDATE

    @property
    def cheaper(self) -> Relation | None:
        """The model that costs least of those that are non-inferior to the selected one and cost
        less, if any.

        With prices, the cost of the model in the role `described` needs no second mention.
        """
        described = self.described if self.cost_unit == "price" else None
        ratios = {
            relation.cost_ratio[0]: relation
            for relation in self.relations
            if relation.second == self.selected
            and relation.first != described
            and relation.is_non_inferior
            and relation.cost_ratio is not None
            and relation.cost_ratio[2] < CHEAPER_RATIO
            and self.model(relation.first).passes
        }
        if ratios:
            return ratios[min(ratios)]
        return None

    def sentence(self) -> str:
        """Return the model to use and why, without further figures: the first of `sentences`."""
        return self.sentences[0]

    def numbers(self) -> str:
        """Return one line: outcome, closest comparison, interval, n."""
        closest = self.closest
        if closest is None:
            return f"{self.outcome}: no other model could replace the incumbent (n = {self.n:,})"
        return (
            f"{self.outcome}: {closest.first} minus {closest.second} "
            f"{closest.gain_text(f'n = {self.n:,}')}"
        )
