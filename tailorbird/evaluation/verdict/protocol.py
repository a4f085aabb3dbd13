"""What a run asks, fixed before anything is trained: metric, smallest gain, level, gates, prices and the test rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from pydantic import BaseModel

from tailorbird.config.base import digest
from tailorbird.config.evaluation import TASK_METRICS, CostConfig, EvaluationConfig, GatesConfig, HybridConfig

METRICS = tuple(metric for metrics in TASK_METRICS.values() for metric in metrics)
NO_GATES = GatesConfig(calibration=None, groups=None, counterfactual=None, robustness=None)


@dataclass(frozen=True)
class TestProtocol:
    """What is asked, fixed before anything is trained."""

    metric: str
    """One of `recipes.schema.TASK_METRICS`."""
    minimum_gain: float
    """The smallest gain worth a change of model, as a share (0.01 is one point)."""
    expected_gain: float
    """The gain on which power and rows needed are computed."""
    alpha: float
    """Two-sided level of the test and of the interval."""
    test_sha256: str
    """Hash of the test rows."""
    num_test_rows: int
    """Number of test rows."""
    regulated: bool = False
    """Whether a gate that cannot be assessed stops a change of model."""
    gates: GatesConfig = field(default=NO_GATES)
    """What a better model must not break."""
    cost: CostConfig | None = None
    """Prices, if the gain must pay for itself."""
    hybrid: HybridConfig | None = None
    """Whether, and how, both models may serve."""
    valid_days: int = 365
    """Days after the look at the test rows after which the verdict may no longer promote a model."""

    def __post_init__(self) -> None:
        bounds = {
            "metric": (self.metric in METRICS, ", ".join(METRICS)),
            "minimum_gain": (0 <= self.minimum_gain < 1, "0 <= minimum_gain < 1"),
            "expected_gain": (0 <= self.expected_gain < 1, "0 <= expected_gain < 1"),
            "alpha": (0 < self.alpha < 0.5, "0 < alpha < 0.5"),
            "num_test_rows": (self.num_test_rows >= 1, "at least 1"),
        }
        for name, (holds, allowed) in bounds.items():
            if not holds:
                raise ValueError(f"question: {name} is {getattr(self, name)!r}; allowed: {allowed}")

    @property
    def has_reference(self) -> bool:
        """Whether a bag of words must be beaten too: it classifies, and cannot answer in words."""
        return self.metric in TASK_METRICS["classification"]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        value = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in ("gates", "cost", "hybrid"):
            value[name] = value[name].model_dump(mode="json") if value[name] is not None else None
        return value

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Reads `to_dict`'s value; ValueError for fields that are missing or unknown."""
        check_fields(cls, value)
        sections: dict[str, type[BaseModel]] = {"gates": GatesConfig, "cost": CostConfig, "hybrid": HybridConfig}
        read = {name: kind.model_validate(value[name]) for name, kind in sections.items() if value[name] is not None}
        return cls(**value | read)


def build_protocol(config: EvaluationConfig, *, test_sha256: str, num_test_rows: int) -> TestProtocol:
    """A recipe's question about these test rows; expected_gain defaults to twice minimum_gain."""
    expected = config.expected_gain
    return TestProtocol(
        metric=config.metric,
        minimum_gain=config.minimum_gain,
        expected_gain=min(2 * config.minimum_gain, 0.99) if expected is None else expected,
        alpha=config.alpha,
        test_sha256=test_sha256,
        num_test_rows=num_test_rows,
        regulated=config.regulated,
        gates=config.gates,
        cost=config.cost,
        hybrid=config.hybrid,
        valid_days=config.valid_days,
    )


def evaluated_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe, as JSON, without what no run is named by: it may go on under another way of serving or watching."""
    return {name: config for name, config in recipe.items() if name not in ("serving", "monitoring")}


def request_digest(asked: Mapping[str, Any]) -> str:
    """What a run asks, as one hash: recipe, code, data and base model of what question.json holds."""
    named = {name: asked[name] for name in ("code", "data", "base_model")}
    return digest({"recipe": evaluated_recipe(asked["recipe"]), **named})


def run_name(asked: str, *, champion: str | None) -> str:
    """A run's name: by the hash of what is asked, and the URI of the champion that it is asked against, if any."""
    return digest({"asked": asked} if champion is None else {"asked": asked, "champion": champion})[:16]


def check_fields(kind: type[Any], value: dict[str, Any]) -> None:
    """ValueError where a mapping does not have just the fields of a dataclass, or a number in it is not finite."""
    names = {item.name for item in fields(kind)}
    if set(value) != names:
        raise ValueError(
            f"not a {kind.__name__}: missing {sorted(names - set(value))}, unknown {sorted(set(value) - names)}"
        )
    numbers = [item for item in value.values() if isinstance(item, float)]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"not a {kind.__name__}: a number in it is not finite")
