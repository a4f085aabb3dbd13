"""Section `evaluation` of a recipe."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tailorbird.config.base import ConfigSection


class CalibrationGateConfig(ConfigSection):
    max_ece: float = Field(default=0.05, gt=0, lt=1)
    """Largest expected calibration error of the candidate, after its temperature."""
    max_increase: float = Field(default=0.02, ge=0, lt=1)
    """How much larger than the incumbent's it may be."""


class SubgroupGateConfig(ConfigSection):
    max_loss: float = Field(default=0.03, gt=0, lt=1)
    """A group may lose less than this share of accuracy."""
    min_rows: int = Field(default=100, ge=1)
    """Rows from which a group's point estimate alone can fail the gate."""


class CounterfactualGateConfig(ConfigSection):
    max_increase: float = Field(default=0.01, ge=0, lt=1)
    """How much more often than the incumbent's the candidate's answer may turn with a name, sex or age."""


class RobustnessGateConfig(ConfigSection):
    max_extra_drop: float = Field(default=0.02, ge=0, lt=1)
    """How much more accuracy than the incumbent the candidate may lose to typing errors, case and white space."""


class GatesConfig(ConfigSection):
    """What a better model must not break; `null` does not ask for a gate."""

    calibration: CalibrationGateConfig | None = CalibrationGateConfig()
    """Confidence says how often the answer is right."""
    groups: SubgroupGateConfig | None = SubgroupGateConfig()
    """No group of `data.groups` is served worse."""
    counterfactual: CounterfactualGateConfig | None = CounterfactualGateConfig()
    """Answers do not turn with a person's name, sex or age."""
    robustness: RobustnessGateConfig | None = RobustnessGateConfig()
    """Answers survive typing errors, case and white space."""


class CostConfig(ConfigSection):
    value_of_correct: float = Field(gt=0)
    """What one more correct answer is worth, in the recipe's currency."""
    requests_per_month: float = Field(gt=0)
    """Rows answered in a month."""
    horizon_months: float = Field(default=12, gt=0)
    """Months over which the training must pay."""
    price_per_cpu_hour: float = Field(gt=0)
    """Price of an hour of one CPU core, of training and of serving."""


class HybridConfig(ConfigSection):
    by: Literal["group", "confidence"]
    """Who answers a row is told by its group, or by the incumbent's confidence."""
    column: str | None = None
    """The column of `data.groups` that routes, for `by: group`."""

    @model_validator(mode="after")
    def _column_for_groups(self) -> Self:
        if (self.by == "group") != (self.column is not None):
            raise ValueError("`column` names the routing group column of `by: group`, and is left out for `confidence`")
        return self


class EvaluationConfig(ConfigSection):
    metric: Literal["accuracy", "macro_f1", "exact_match", "token_f1", "rouge_l"] = "accuracy"
    """What the verdict compares: for classification `accuracy` or `macro_f1`, for chat `exact_match`, `token_f1` or
    `rouge_l`."""
    minimum_gain: float = Field(default=0.01, ge=0, lt=1)
    """The smallest gain worth a change of model, as a share (0.01 is one point)."""
    expected_gain: float | None = Field(default=None, gt=0, lt=1)
    """The gain hoped for, on which power and rows needed are computed; twice `minimum_gain` if left out."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Two-sided level of the test and of the interval."""
    regulated: bool = False
    """Whether a gate that cannot be assessed stops a change of model (and says how many rows it would take)."""
    gates: GatesConfig = GatesConfig()
    """What a better model must not break."""
    cost: CostConfig | None = None
    """Prices, if the gain must pay for itself."""
    hybrid: HybridConfig | None = None
    """Whether, and how, both models may serve where only groups or cost speak against the candidate."""
    centroid_shots: int = Field(default=10, ge=1)
    """Training examples a class, k, of the centroid baseline."""
    prompt_shots: int = Field(default=4, ge=1)
    """For `task: chat`, training examples in the few-shot baseline's prompt."""
    prompt_draws: int = Field(default=3, ge=1)
    """For `task: chat`, random sets of examples that are tried on validation for it."""
    valid_days: int = Field(default=365, ge=1)
    """Days after the look at the test rows after which the verdict may no longer promote a model."""

    @model_validator(mode="after")
    def _hopes_for_a_gain(self) -> Self:
        if self.minimum_gain == 0 and self.expected_gain is None:
            raise ValueError("minimum_gain is 0, of which twice is no gain to hope for: give expected_gain too")
        return self
