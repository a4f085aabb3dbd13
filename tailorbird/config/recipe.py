"""The recipe: one frozen section per package, validated once when it is loaded."""

from typing import Any, Self

from pydantic import Field, ValidationError, field_serializer, field_validator, model_validator

from tailorbird.config.base import STORES, ConfigSection, with_scheme
from tailorbird.config.data import DataConfig
from tailorbird.config.evaluation import CASCADE, EvaluationConfig
from tailorbird.config.formats.response_format import ChoiceFormat
from tailorbird.config.metrics import METRICS
from tailorbird.config.model_uri import ModelUri, parse_model_uri
from tailorbird.config.monitoring import MonitoringConfig
from tailorbird.config.prompt import PromptConfig, require_placeholders
from tailorbird.config.serving import ServingConfig
from tailorbird.config.task_rules import TASKS, TaskName
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import TuningConfig


class Recipe(ConfigSection):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """Name of the task: lower-case letters, digits and hyphens. Models, runs and the champion are
    stored under `<registry>/<name>/`."""
    task: TaskName = "classification"
    """Kind of task. `classification` predicts a label for a text, `chat` generates an answer to a
    conversation."""
    base_model: ModelUri | tuple[ModelUri, ...]
    """URI of the pretrained model: `pypi://package@version#sha256=...`, `hf://owner/name@revision`,
    `s3://...` or `file://...`; or a list of them, of which validation selects. Without a version,
    the newest is pinned."""
    data: DataConfig
    """Location and columns of the rows."""
    training: TrainingConfig = TrainingConfig()
    """Configuration of fine-tuning."""
    tuning: TuningConfig = TuningConfig()
    """Configuration of the sweep."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Requirements of the verdict."""
    license: str | None = None
    """License of the fine-tuned models: an SPDX identifier in lower case, for example `apache-2.0`.
    It is written to their model cards."""
    registry: str
    """URI under which models, runs and evidence are stored: `s3://`, or `file://` to use one
    machine without S3."""
    serving: ServingConfig = ServingConfig()
    """Configuration of the service."""
    monitoring: MonitoringConfig = MonitoringConfig()
    """Configuration of monitoring."""

    @field_validator("registry")
    @classmethod
    def _registry_on_a_store(cls, uri: str) -> str:
        return with_scheme(uri, STORES).rstrip("/")

    @field_validator("base_model", mode="plain")
    @classmethod
    def _one_or_several_uris(cls, given: Any) -> ModelUri | tuple[ModelUri, ...]:
        if not isinstance(given, list | tuple):
            return _model_uri(given)
        uris = tuple(map(_model_uri, given))
        if not uris or len(set(uris)) < len(uris):
            raise ValueError("the list is empty or names a model twice; list each model once")
        return uris

    @field_serializer("base_model")
    def _as_written(self, given: ModelUri | tuple[ModelUri, ...]) -> str | list[str]:
        if isinstance(given, ModelUri):
            return str(given)
        return list(map(str, given))

    @model_validator(mode="before")
    @classmethod
    def _turn_off_gates_of_other_tasks(cls, content: Any) -> Any:
        """Turn off the gates that do not apply to the task."""
        try:
            evaluation = content.get("evaluation", {})
            gates_off = dict.fromkeys(TASKS[content.get("task", "classification")].gates_off)
            gates = gates_off | evaluation.get("gates", {})
            return content | {"evaluation": evaluation | {"gates": gates}}
        except (AttributeError, KeyError, TypeError):
            return content  # the validators of the fields report the error

    @model_validator(mode="after")
    def _fields_fit_the_task(self) -> Self:
        rules = TASKS[self.task]
        allowed = [name for name, metric in METRICS.items() if metric.task == self.task]
        if self.evaluation.metric not in allowed:
            raise ValueError(
                f"evaluation.metric {self.evaluation.metric!r} is not available for {self.task} "
                f"tasks; allowed: {', '.join(allowed)}"
            )
        for path, value in rules.fixed.items():
            if self._value_at(path) not in (value, None):
                raise ValueError(f"{path} is not available for {self.task} tasks; remove it")
        return self

    def _value_at(self, path: str) -> Any:
        value: Any = self
        for name in path.split("."):
            value = getattr(value, name, None)
        return value

    @model_validator(mode="after")
    def _prompt_of_a_text(self) -> Self:
        if not TASKS[self.task].has_classes:
            return self
        prompts: dict[str, DataConfig | PromptConfig] = {"data": self.data}
        for name, contender in self.evaluation.contenders.items():
            prompts[f"evaluation.contenders.{name}.prompt"] = contender.prompt
        for section, prompt in prompts.items():
            require_placeholders(system=prompt.system, template=prompt.template, section=section)
        return self

    @model_validator(mode="after")
    def _hybrid_column_is_a_group(self) -> Self:
        hybrid = self.evaluation.hybrid
        if hybrid in (None, CASCADE):
            return self
        columns = self.data.groups if TASKS[self.task].has_classes else ()
        if hybrid not in columns:
            raise ValueError(
                f"evaluation.hybrid {hybrid!r} is neither `cascade` nor, for classification, a "
                f"column of data.groups {columns}"
            )
        return self

    @model_validator(mode="after")
    def _endpoint_has_the_format(self) -> Self:
        if self.evaluation.endpoints and isinstance(self.data.response_format, ChoiceFormat):
            raise ValueError(
                "data.response_format has the type `choice`, which an endpoint in "
                "evaluation.contenders cannot have; use `json_schema` with an `enum`"
            )
        return self

    @model_validator(mode="after")
    def _a_micro_batch_holds_the_longest_row(self) -> Self:
        tokens = self.training.batch_tokens
        if tokens is not None and tokens < self.data.max_length:
            raise ValueError(
                f"training.batch_tokens {tokens} must be at least data.max_length "
                f"{self.data.max_length}, because a micro-batch must hold the longest row; raise "
                "batch_tokens or lower max_length"
            )
        return self

    @model_validator(mode="after")
    def _groups_to_assess(self) -> Self:
        if (
            self.evaluation.regulated
            and self.evaluation.gates.groups is not None
            and not self.data.groups
        ):
            raise ValueError(
                "evaluation.regulated requires every gate to pass, but gates.groups never passes "
                "because data.groups is empty; name columns there, or set evaluation.gates.groups "
                "to null if the rows have no group columns"
            )
        return self

    @model_validator(mode="after")
    def _something_has_a_price(self) -> Self:
        cost = self.evaluation.cost
        counts = {
            "serving.gpus_per_replica": self.serving.gpus_per_replica,
            "training.gpus_per_worker": self.training.gpus_per_worker,
        }
        without = [f"{name} is 0" for name, count in counts.items() if not count]
        if cost is not None and cost.price_per_cpu_hour == 0 and without:
            raise ValueError(
                "evaluation.cost.price_per_cpu_hour is 0, which means that the price of a "
                f"GPU-hour includes the CPU cores, but {' and '.join(without)}; set the price of a "
                "CPU-hour"
            )
        return self

    @model_validator(mode="after")
    def _space_fits_training(self) -> Self:
        """Check every value of the search space."""
        for name, distribution in self.tuning.space.items():
            if distribution.choice is None and not isinstance(getattr(self.training, name), float):
                raise ValueError(
                    f"tuning.space.{name}: {name} does not accept fractions; list its values as "
                    "`choice`"
                )
            for value in distribution.choice or distribution.log_uniform or ():
                try:
                    TrainingConfig.model_validate(self.training.model_dump() | {name: value})
                except ValidationError as error:
                    message = error.errors()[0]["msg"].removeprefix("Value error, ")
                    raise ValueError(
                        f"tuning.space: {name} {value!r} is not allowed: {message}"
                    ) from None
        return self

    @property
    def input_column(self) -> str:
        """Column with the model's input: a text, a prompt or a conversation."""
        columns: list[str | None] = [
            getattr(self.data, field) for field in TASKS[self.task].input_fields
        ]
        return next(column for column in columns if column is not None)

    @property
    def base_models(self) -> tuple[ModelUri, ...]:
        """URIs of all base models."""
        if isinstance(self.base_model, tuple):
            return self.base_model
        return (self.base_model,)

    @property
    def task_uri(self) -> str:
        """URI of the task in the registry, `<registry>/<name>`."""
        return f"{self.registry}/{self.name}"


def _model_uri(given: Any) -> ModelUri:
    if isinstance(given, ModelUri):
        return given
    if not isinstance(given, str):
        raise ValueError("it is no text; give the URI of a model, or a list of URIs")
    return parse_model_uri(given)
