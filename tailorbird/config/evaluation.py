"""Section `evaluation` of a recipe."""

import re
from collections.abc import Iterable
from typing import Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from tailorbird.config.answers import AnswersConfig
from tailorbird.config.base import ConfigSection
from tailorbird.config.contender import ContenderConfig
from tailorbird.config.endpoint import EndpointConfig
from tailorbird.config.metrics import METRICS, MetricName
from tailorbird.config.model_uri import ModelUri
from tailorbird.config.suites import SuiteConfig

EXAMPLES = {
    "json_fields": "{}",
    "regex": "{pattern: '#### (.*)'}",
    "numeric": "{}",
    "choice": "{options: ['yes', 'no']}",
}
"""Smallest sections of `answers` by metric."""


CASCADE = "cascade"
"""Value of `hybrid` that is not a column."""
RETRIEVED_EXAMPLES = (1, 2, 4, 8)
"""Numbers of examples in the prompt that the baseline `retrieved` tries; the best on validation is
used."""
RETRIEVED_TOKENS = 2048
"""Maximum number of tokens of a prompt with retrieved examples. For an endpoint, 4 bytes count as a
token."""


REGULATED_ECE = 0.05
"""`gates.calibration.max_ece` of a regulated recipe that sets none."""


class GateConfig(ConfigSection):
    """The limit of a gate. A limit that the recipe writes also decides which models are
    opponents."""

    @property
    def is_written(self) -> bool:
        """True if the recipe writes a limit."""
        return any(value is not None for _, value in self)


class CalibrationGateConfig(GateConfig):
    max_increase: float | None = Field(default=None, gt=0, lt=1)
    """Maximum increase over the incumbent's expected calibration error (ECE), as a share. Both are
    measured after temperature scaling, except that of an endpoint. By default, 0.03 (three
    points)."""
    max_ece: float | None = Field(default=None, gt=0, lt=1)
    """Maximum ECE of every model, the incumbent included, in place of `max_increase`. By default
    none, or 0.05 if the recipe is `regulated`."""

    @property
    def margin(self) -> float:
        """`max_increase`, or its default."""
        return 0.03 if self.max_increase is None else self.max_increase


class SubgroupGateConfig(GateConfig):
    max_loss: float | None = Field(default=None, gt=0, lt=1)
    """Maximum decrease of the metric in a group, as a share. By default, 0.03 (three points)."""

    @property
    def margin(self) -> float:
        """`max_loss`, or its default."""
        return 0.03 if self.max_loss is None else self.max_loss


class CounterfactualGateConfig(GateConfig):
    max_increase: float | None = Field(default=None, ge=0, lt=1)
    """Maximum increase over the incumbent in the share of texts whose prediction changes when a
    name, sex or age is swapped. By default, 0.03 (three points)."""

    @property
    def margin(self) -> float:
        """`max_increase`, or its default."""
        return 0.03 if self.max_increase is None else self.max_increase


class RobustnessGateConfig(GateConfig):
    max_extra_drop: float | None = Field(default=None, ge=0, lt=1)
    """Maximum amount by which the candidate's metric may fall more than the incumbent's under
    typing errors and changes of case and white space, as a share. By default, 0.02 (two points)."""

    @property
    def margin(self) -> float:
        """`max_extra_drop`, or its default."""
        return 0.02 if self.max_extra_drop is None else self.max_extra_drop


class GatesConfig(ConfigSection):
    """Conditions that a model must meet to be selected, in addition to the gain. `null` turns off a
    gate. A model that fails a gate is still an opponent of the others, unless the recipe writes the
    limit of this gate, or is `regulated`."""

    calibration: CalibrationGateConfig | None = CalibrationGateConfig()
    """(classification only) The candidate's confidence matches its accuracy as the incumbent's
    does."""
    groups: SubgroupGateConfig | None = SubgroupGateConfig()
    """The candidate loses no more than `max_loss` in any group of `data.groups`."""
    counterfactual: CounterfactualGateConfig | None = CounterfactualGateConfig()
    """(classification only) The candidate's predictions do not depend on a person's name, sex or
    age more than the incumbent's."""
    robustness: RobustnessGateConfig | None = RobustnessGateConfig()
    """(classification only) The candidate is as robust to typing errors, case and white space as
    the incumbent."""
    suites: dict[str, SuiteConfig] | None = None
    """(chat only) Up to ten regression suites by name, for example `general: {uri:
    builtin://general}`. The candidate's mean score on each suite is at most `max_loss` below the
    incumbent's."""

    @property
    def changed_sets(self) -> tuple[str, ...]:
        """Names of the sets of changed test rows that the gates need."""
        needed = {"counterfactual": self.counterfactual, "noise": self.robustness}
        return tuple(name for name, gate in needed.items() if gate is not None)

    @field_validator("suites")
    @classmethod
    def _are_named(cls, suites: dict[str, SuiteConfig] | None) -> dict[str, SuiteConfig] | None:
        if suites is not None and not 1 <= len(suites) <= 10:
            raise ValueError(
                f"{len(suites)} suites are given; give 1 to 10 suites by name, or null for none"
            )
        require_names(suites or (), what="suite")
        return suites


def require_names(names: Iterable[str], *, what: str) -> None:
    """Raise ValueError if a name cannot be part of the name of a table of predictions."""
    for name in names:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
            raise ValueError(
                f"{name!r} is not a name of a {what}; use up to 31 lower-case letters, digits and "
                "hyphens"
            )


class CostConfig(ConfigSection):
    """Prices in one currency. A price that is not set is not known: the cost of a model that uses
    it is then *not assessable*, and never 0."""

    model_config = ConfigDict(allow_inf_nan=False)

    value_of_correct: float = Field(gt=0)
    """Value of one more correct answer, in any currency."""
    requests_per_month: float = Field(gt=0)
    """Number of texts or conversations answered per month."""
    price_per_cpu_hour: float | None = Field(default=None, ge=0)
    """Price of one CPU core per hour, in the same currency, for training and serving. 0 if the
    price of a GPU-hour includes the CPU cores."""
    price_per_gpu_hour: float | None = Field(default=None, gt=0)
    """Price of one GPU per hour, in the same currency, for training and serving."""

    @model_validator(mode="after")
    def _something_has_a_price(self) -> Self:
        if self.price_per_cpu_hour == 0 and self.price_per_gpu_hour is None:
            raise ValueError(
                "price_per_cpu_hour is 0 and price_per_gpu_hour is not set, so nothing has a "
                "price; set one of them"
            )
        return self


class EvaluationConfig(ConfigSection):
    metric: MetricName = "accuracy"
    """Metric of the verdict: `accuracy` or `macro_f1` for classification; `exact_match`,
    `token_f1`, `rouge_l` or a metric of `answers` for chat. Prefer `macro_f1` if the classes differ
    greatly in size."""
    answers: AnswersConfig | None = None
    """(chat only) How structured answers are compared: by fields of JSON, a group of a regular
    expression, numbers or choices."""
    minimum_gain: float = Field(default=0.01, ge=0, lt=1)
    """Smallest gain that is worth a change of model, as a share (0.01 is one point). A smaller gain
    does not lead to `FINE_TUNE`."""
    expected_gain: float | None = Field(default=None, gt=0, lt=1)
    """Gain for which the report states the power of the test and the number of rows needed. By
    default, twice `minimum_gain`."""
    non_inferiority_margin: float | None = Field(default=None, ge=0, lt=1)
    """Largest loss, as a share, at which a hybrid or a model that costs less may replace another
    one, by the whole interval. By default, `minimum_gain`."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Two-sided significance level of the test; confidence intervals have the level `1 - alpha`.
    Lower it to accept fewer false gains, which requires more test rows."""
    regulated: bool = False
    """Require every gate to pass: a gate that cannot be assessed prevents a change of model, and
    the report states the number of rows that it needs. A model that fails a gate is no opponent,
    and the ECE of every model is limited to 0.05."""
    gates: GatesConfig = GatesConfig()
    """Conditions that the candidate must meet in addition to the gain."""
    cost: CostConfig | None = None
    """Prices for the cost gate, which requires that the gain pays for training and serving. By
    default, there is no cost gate."""
    hybrid: str | None = Field(default=None, min_length=1)
    """Routing rule of a hybrid of two models, fixed on validation. `cascade`: one answers where it
    is confident; a column of `data.groups` (classification only): the candidate answers some
    values."""
    prompt_shots: int = Field(default=4, ge=1)
    """(chat and endpoints) Number of training rows that the few-shot baseline puts into its
    prompt."""
    prompt_draws: int = Field(default=3, ge=1)
    """(chat and endpoints) Number of random sets of examples for the few-shot prompt; the best set
    on validation is used."""
    retrieval_encoder: ModelUri | None = None
    """(chat only) URI of a pretrained text encoder, as `base_model`. Training rows are then
    compared by embeddings and n-grams, weighted on validation; by default, by n-grams only."""
    contenders: dict[str, ContenderConfig] = Field(default_factory=dict)
    """Models that exist already and are compared as they are, by name, for example `hosted:
    {endpoint: {...}}`. They can block a fine-tuned model and replace the incumbent."""

    @field_validator("contenders")
    @classmethod
    def _contenders_are_named(
        cls, contenders: dict[str, ContenderConfig]
    ) -> dict[str, ContenderConfig]:
        require_names(contenders, what="contender")
        names: dict[tuple[str, str], str] = {}
        for name, contender in contenders.items():
            if contender.endpoint is not None:
                key = (contender.endpoint.url, contender.endpoint.model)
                if key in names:
                    raise ValueError(
                        f"{names[key]} and {name} are the same model at the same URL; remove one"
                    )
                names[key] = name
        return contenders

    @model_validator(mode="after")
    def _margin_is_at_most_the_gain(self) -> Self:
        margin = self.non_inferiority_margin
        if margin is not None and margin > self.minimum_gain:
            raise ValueError(
                f"non_inferiority_margin {margin:g} is above minimum_gain {self.minimum_gain:g}, "
                "so two models could each deserve to replace the other; lower the margin, or "
                "raise minimum_gain"
            )
        return self

    @model_validator(mode="after")
    def _metric_is_configured(self) -> Self:
        if METRICS[self.metric].is_configured and getattr(self.answers, self.metric, None) is None:
            raise ValueError(
                f"metric {self.metric!r} requires the section answers.{self.metric}; set it, for "
                f"example `answers: {{{self.metric}: {EXAMPLES[self.metric]}}}`"
            )
        return self

    @model_validator(mode="after")
    def _expects_a_gain(self) -> Self:
        if self.minimum_gain == 0 and self.expected_gain is None:
            raise ValueError("minimum_gain 0 gives no default for expected_gain; set expected_gain")
        return self

    @property
    def limits(self) -> GatesConfig:
        """The gates, with the limit of the ECE that a regulated recipe has."""
        calibration = self.gates.calibration
        if not self.regulated or calibration is None or calibration.max_ece is not None:
            return self.gates
        limited = calibration.model_copy(update={"max_ece": REGULATED_ECE})
        return self.gates.model_copy(update={"calibration": limited})

    @property
    def required_gates(self) -> tuple[str, ...]:
        """Names of the gates whose limits the recipe writes; all gates if it is regulated."""
        required = []
        for name, gate in self.gates:
            is_written = isinstance(gate, GateConfig) and gate.is_written
            if gate is not None and (self.regulated or name == "suites" or is_written):
                required.append(name)
        if self.cost is not None:
            required.append("cost")
        return tuple(required)

    @property
    def endpoints(self) -> dict[str, EndpointConfig]:
        """The endpoints among the contenders, by name."""
        contenders = self.contenders.items()
        return {name: each.endpoint for name, each in contenders if each.endpoint is not None}

    @property
    def requests_per_row(self) -> int:
        """Number of requests to an endpoint for each validation row: one for each setting of its
        baselines."""
        return 1 + self.prompt_draws + len(RETRIEVED_EXAMPLES)
