"""Section `evaluation` of a recipe."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tailorbird.config.base import ConfigSection


class CalibrationGateConfig(ConfigSection):
    max_ece: float = Field(default=0.05, gt=0, lt=1)
    """Maximum expected calibration error of the candidate, after temperature scaling."""
    max_increase: float = Field(default=0.02, ge=0, lt=1)
    """Maximum increase over the incumbent's."""


class SubgroupGateConfig(ConfigSection):
    max_loss: float = Field(default=0.03, gt=0, lt=1)
    """Maximum loss of accuracy of a group, as a share."""
    min_rows: int = Field(default=100, ge=1)
    """Rows from which a group's point estimate alone can fail the gate."""


class CounterfactualGateConfig(ConfigSection):
    max_increase: float = Field(default=0.01, ge=0, lt=1)
    """Maximum increase over the incumbent in predictions that change when a name, sex or age is swapped."""


class RobustnessGateConfig(ConfigSection):
    max_extra_drop: float = Field(default=0.02, ge=0, lt=1)
    """Maximum accuracy that the candidate may lose to typing errors, case and white space more than the incumbent."""


class GatesConfig(ConfigSection):
    """Conditions that the candidate must meet besides the gain; `null` turns one off."""

    calibration: CalibrationGateConfig | None = CalibrationGateConfig()
    """Confidence matches accuracy."""
    groups: SubgroupGateConfig | None = SubgroupGateConfig()
    """No group of `data.groups` loses accuracy."""
    counterfactual: CounterfactualGateConfig | None = CounterfactualGateConfig()
    """Predictions do not change with a person's name, sex or age."""
    robustness: RobustnessGateConfig | None = RobustnessGateConfig()
    """Predictions are robust to typing errors, case and white space."""


class CostConfig(ConfigSection):
    value_of_correct: float = Field(gt=0)
    """Value of one more correct answer, in any currency."""
    requests_per_month: float = Field(gt=0)
    """Rows answered per month."""
    horizon_months: float = Field(default=12, gt=0)
    """Months over which the training must pay for itself."""
    price_per_cpu_hour: float = Field(gt=0)
    """Price of one CPU core for an hour, in training and in serving."""


class HybridConfig(ConfigSection):
    by: Literal["group", "confidence"]
    """Route a row by its group, or by the incumbent's confidence."""
    column: str | None = None
    """The column of `data.groups` that routes, for `by: group`."""

    @model_validator(mode="after")
    def _column_for_groups(self) -> Self:
        if (self.by == "group") != (self.column is not None):
            raise ValueError("`column` names the routing group column of `by: group`, and is left out for `confidence`")
        return self


class EvaluationConfig(ConfigSection):
    metric: Literal["accuracy", "macro_f1", "exact_match", "token_f1", "rouge_l"] = "accuracy"
    """Metric of the verdict: for classification `accuracy` or `macro_f1`, for chat `exact_match`, `token_f1` or
    `rouge_l`."""
    minimum_gain: float = Field(default=0.01, ge=0, lt=1)
    """Smallest gain worth a change of model, as a share (0.01 is one point)."""
    expected_gain: float | None = Field(default=None, gt=0, lt=1)
    """Gain for which power and rows needed are computed; by default twice `minimum_gain`."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Two-sided level of the test and of the interval."""
    regulated: bool = False
    """Refuse a change of model if a gate cannot be assessed (and report how many rows it would take)."""
    gates: GatesConfig = GatesConfig()
    """Conditions besides the gain."""
    cost: CostConfig | None = None
    """Prices, if the gain must pay for itself."""
    hybrid: HybridConfig | None = None
    """How to serve both models, if only groups or cost speak against the candidate."""
    centroid_shots: int = Field(default=10, ge=1)
    """Training examples per class of the centroid baseline."""
    prompt_shots: int = Field(default=4, ge=1)
    """For `task: chat`, training examples in the few-shot baseline's prompt."""
    prompt_draws: int = Field(default=3, ge=1)
    """For `task: chat`, random sets of examples tried on validation for that prompt."""
    valid_days: int = Field(default=365, ge=1)
    """Days after which the verdict may no longer promote a model, from its access to the test rows."""

    @model_validator(mode="after")
    def _hopes_for_a_gain(self) -> Self:
        if self.minimum_gain == 0 and self.expected_gain is None:
            raise ValueError("minimum_gain is 0, of which twice is no gain to hope for: give expected_gain too")
        return self
