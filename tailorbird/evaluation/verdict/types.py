"""The verdict and what it consists of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from tailorbird.evaluation.gates.base import Gate
from tailorbird.evaluation.verdict.formatting import p_text, points
from tailorbird.evaluation.verdict.protocol import check_fields
from tailorbird.evaluation.verdict.rules import OUTCOME_OF_RULE, Outcome


@dataclass(frozen=True)
class HybridVerdict:
    """The hybrid frozen on validation, judged as the candidate is."""

    routing: dict[str, Any]
    """`models.decide.Routing` as JSON."""
    share_to_candidate: float
    """Of the test rows."""
    score: float
    gain: float
    interval: tuple[float, float]
    p_value: float
    p_holm: float
    """Adjusted for candidate and hybrid."""
    reference_interval: tuple[float, float]
    proven: bool
    gates: tuple[Gate, ...]


@dataclass(frozen=True)
class Verdict:
    """An outcome with everything that led to it; gains and intervals are candidate minus the other, as shares."""

    outcome: Outcome
    rule: int
    """The row of the outcome table that decided: the first that held."""
    reasons: tuple[str, ...]
    metric: str
    """What scores, gains and intervals are of."""
    n: int
    alpha: float
    minimum_gain: float
    expected_gain: float
    regulated: bool
    confirmatory: bool
    """Whether it was the recipe's first look at these test rows."""
    incumbent_score: float
    candidate_score: float
    gain: float
    interval: tuple[float, float]
    """Two-sided at level 1 - alpha, by the metric as in `metrics.Comparison`."""
    p_value: float
    """Two-sided, by the metric as in `metrics.Comparison`."""
    p_exact: float | None
    """McNemar's exact p, two-sided, for the record: no rule reads it."""
    only_incumbent_right: int
    only_candidate_right: int
    reference_score: float | None
    """This and the next three: None of a chat task, which has no bag-of-words reference."""
    reference_gain: float | None
    reference_interval: tuple[float, float] | None
    reference_p_value: float | None
    second_metric: dict[str, Any]
    """The metric the rules do not read, for the record: `{metric, incumbent, candidate, gain, interval, p_value}`."""
    minimum_detectable_effect: float
    """True gain found with 80 % power on n rows of the observed discordance, by the plain formula."""
    power_at_expected_gain: float
    """Of the whole rule, at the expected gain and the observed discordance."""
    rows_needed: int | None
    """For 80 % power of the whole rule at the expected gain; None where no number does."""
    proven: bool
    """p < alpha, interval above 0, gain at least minimum_gain, and the interval against a reference above 0."""
    gates: tuple[Gate, ...]
    """Of the candidate: those the recipe asks for, the cost among them."""
    cost_ratio: tuple[float, float, float] | None
    """CPU-seconds a row, candidate over incumbent: estimate and 1 - alpha interval; None where it was not measured."""
    hybrid: HybridVerdict | None

    def __post_init__(self) -> None:
        if OUTCOME_OF_RULE.get(self.rule) is not self.outcome:
            raise ValueError(f"rule {self.rule} does not give {self.outcome}; allowed: {OUTCOME_OF_RULE}")
        if self.n < 1 or not self.reasons:
            raise ValueError(f"a verdict needs rows and reasons, not n = {self.n} and {self.reasons!r}")

    def sentence(self) -> str:
        """One line: outcome, gain in points, interval, p, n, rule."""
        low, high = self.interval
        return (
            f"{self.outcome}: {points(self.gain)} points "
            f"({100 * (1 - self.alpha):g} % interval {points(low)} to {points(high)}, "
            f"{p_text(self.p_value)}, n = {self.n:,}), by rule {self.rule}"
            + ("" if self.confirmatory else "; not the first look at these test rows")
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_dict` reads it back."""
        value: dict[str, Any] = _plain(asdict(self))
        value["gates"] = [gate.to_dict() for gate in self.gates]
        if self.hybrid is not None:
            value["hybrid"]["gates"] = [gate.to_dict() for gate in self.hybrid.gates]
        return value

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Reads `to_dict`'s value; ValueError for fields that are missing or unknown, or a verdict that cannot be."""
        check_fields(cls, value)
        given = _with_tuples(value, cls) | {"outcome": Outcome(value["outcome"])}
        if value["hybrid"] is not None:
            check_fields(HybridVerdict, value["hybrid"])
            given["hybrid"] = HybridVerdict(**_with_tuples(value["hybrid"], HybridVerdict))
        return cls(**given)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Outcome) else value


def _with_tuples(value: dict[str, Any], kind: type[Any]) -> dict[str, Any]:
    """The mapping with lists as tuples and gates read, for the dataclass's fields that are so."""
    given = dict(value)
    for item in fields(kind):
        if item.name == "gates":
            given["gates"] = tuple(Gate.from_dict(gate) for gate in value["gates"])
        elif isinstance(value[item.name], list):
            given[item.name] = tuple(value[item.name])
    return given
