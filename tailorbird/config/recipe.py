"""What a recipe may say: one frozen section a package, validated once, before anything else happens."""

from itertools import product
from typing import Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from tailorbird.config.base import MODEL_STORES, ConfigSection, with_scheme
from tailorbird.config.data import DataConfig
from tailorbird.config.evaluation import CLASSIFICATION_GATES, TASK_METRICS, EvaluationConfig
from tailorbird.config.monitoring import MonitoringConfig
from tailorbird.config.serving import ServingConfig
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import TuningConfig


class Recipe(ConfigSection):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """Name of the task; its models, runs and champion lie under `<registry>/<name>/`."""
    task: Literal["classification", "chat"] = "classification"
    """Kind of task: a label for a text, or an answer in words to a conversation."""
    base_model: str
    """URI of the pretrained model: `pypi://package`, `hf://owner/name`, `s3://` or `file://`."""
    data: DataConfig
    """Where the rows are."""
    training: TrainingConfig = TrainingConfig()
    """How a model is fine-tuned."""
    tuning: TuningConfig = TuningConfig()
    """Which configurations are tried."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What the verdict asks."""
    license: str | None = None
    """Licence of the models made, for their cards, by its SPDX id in lower case (`apache-2.0`)."""
    registry: str
    """URI under which models and evidence are kept, `s3://`."""
    serving: ServingConfig = ServingConfig()
    """How the champion is served."""
    monitoring: MonitoringConfig = MonitoringConfig()
    """How the champion is watched while it serves."""

    @field_validator("base_model")
    @classmethod
    def _known_model_store(cls, uri: str) -> str:
        return with_scheme(uri, MODEL_STORES)

    @field_validator("registry")
    @classmethod
    def _registry_on_s3(cls, uri: str) -> str:
        return with_scheme(uri, ("s3://",)).rstrip("/")

    @model_validator(mode="before")
    @classmethod
    def _asks_of_chat_what_chat_has(cls, given: Any) -> Any:
        """Gates that read classes and their probabilities are asked for by default of classification alone."""
        if not isinstance(given, dict) or given.get("task") != "chat":
            return given
        evaluation = given.get("evaluation", {})
        if not isinstance(evaluation, dict) or not isinstance(evaluation.get("gates", {}), dict):
            return given
        gates = dict.fromkeys(CLASSIFICATION_GATES) | evaluation.get("gates", {})
        return given | {"evaluation": evaluation | {"gates": gates}}

    @model_validator(mode="after")
    def _sections_fit_the_task(self) -> Self:
        allowed = TASK_METRICS[self.task]
        if self.evaluation.metric not in allowed:
            raise ValueError(
                f"evaluation.metric {self.evaluation.metric!r} is none of a {self.task} task's: {', '.join(allowed)}"
            )
        if self.task == "classification" and self.serving.engine != "transformers":
            raise ValueError("serving.engine is for a chat task; leave it out")
        if self.task == "chat":
            refused = {
                f"evaluation.gates.{name}": getattr(self.evaluation.gates, name) for name in CLASSIFICATION_GATES
            }
            refused |= {
                "evaluation.hybrid": self.evaluation.hybrid,
                "serving.challenger.shadow": self.serving.challenger and self.serving.challenger.shadow,
            }
            for name, value in refused.items():
                if value is not None:
                    raise ValueError(f"{name} is for classification; leave it out of a chat task's recipe")
        return self

    @model_validator(mode="after")
    def _hybrid_column_is_a_group(self) -> Self:
        hybrid = self.evaluation.hybrid
        if hybrid and hybrid.column is not None and hybrid.column not in self.data.groups:
            raise ValueError(f"evaluation.hybrid.column {hybrid.column!r} is none of data.groups {self.data.groups}")
        return self

    @model_validator(mode="after")
    def _groups_to_assess(self) -> Self:
        if self.evaluation.regulated and self.evaluation.gates.groups is not None and not self.data.groups:
            raise ValueError(
                "evaluation.regulated asks for gates.groups, but data.groups names none, so nothing could ever pass: "
                "name columns there, or set evaluation.gates.groups to null if the rows name no groups"
            )
        return self

    @model_validator(mode="after")
    def _space_fits_training(self) -> Self:
        """Every value, and of the fields that bear on each other all that may meet in a trial."""
        values = {}
        for name, distribution in self.tuning.space.items():
            if distribution.choice is None and not isinstance(getattr(self.training, name), float):
                raise ValueError(f"tuning.space.{name}: {name} is no fraction; give its values as `choice`")
            values[name] = distribution.choice or distribution.uniform or distribution.log_uniform or ()
        bound = [name for name in ("batch_size", "gradient_accumulation_steps") if name in values]
        tried = [{name: value} for name in values if name not in bound for value in values[name]]
        tried += [dict(zip(bound, some, strict=True)) for some in product(*(values[name] for name in bound))]
        for given in tried:
            try:
                TrainingConfig.model_validate(self.training.model_dump() | given)
            except ValidationError as error:
                told = error.errors()[0]["msg"].removeprefix("Value error, ")
                which = " with ".join(f"{name} {value!r}" for name, value in given.items())
                raise ValueError(f"tuning.space: {which} is not allowed: {told}") from None
        return self

    @property
    def asked_column(self) -> str:
        """The column of the rows that a model is asked by."""
        chat = self.data.messages or self.data.prompt
        return self.data.text if self.task == "classification" else chat

    @property
    def task_uri(self) -> str:
        """URI under which everything of this task lies."""
        return f"{self.registry}/{self.name}"
