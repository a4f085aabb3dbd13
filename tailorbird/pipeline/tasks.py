"""Classification and chat tasks. The other modules of the pipeline do not depend on the kind of
task."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from tailorbird.config.training import TrainingConfig
from tailorbird.data.copies import documents
from tailorbird.data.rows import Rows
from tailorbird.data.sharding.shards import Shards
from tailorbird.data.tokenize import labels_of
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.baselines.chat import fit_prompt_baselines, store_prompt_baselines
from tailorbird.evaluation.baselines.classification import fit_baselines, store_baselines
from tailorbird.evaluation.inference.predict import DecisionFit, fit_decision
from tailorbird.pipeline.artifacts import make_loadable
from tailorbird.pipeline.inputs import RunInputs
from tailorbird.registry.kinds import Kind
from tailorbird.registry.versions import (
    Dtype,
    Prompting,
    VersionConfig,
)
from training.chat_task import ChatTrainingTask
from training.classification_task import ClassificationTrainingTask
from training.task import TrainingTask, check_trainable


@dataclass(frozen=True)
class ClassificationTask:
    """Text classification: its baselines, training task, artifact config and calibration."""

    inputs: RunInputs
    label_noun: ClassVar[str] = "classes"  # noun for the distinct labels in messages
    num_cost_rows: ClassVar[int] = 256  # test rows on which the cost of all models is measured
    num_cost_rows_gpu: ClassVar[int] = 2048  # a GPU answers 256 rows too fast for a precise time

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Labels that a model can predict; empty for a chat task."""
        return labels_of(self.inputs.splits.train.labels)

    @cached_property
    def class_counts(self) -> tuple[int, ...]:
        """Training rows of each class; of the sample in memory if the training rows are
        streamed."""
        counts = Counter(self.inputs.splits.train.labels)
        return tuple(counts[label] for label in self.classes)

    @cached_property
    def documents(self) -> tuple[str, ...] | None:
        """Document of each validation row; None if each row is a document."""
        return documents(self.inputs.splits.validation)

    @property
    def training_inputs(self) -> dict[str, object]:
        """Inputs of a training stage in addition to the rows and the training config."""
        return _training_inputs(self.inputs)

    def version_config(self, kind: Kind, *, dtype: Dtype) -> VersionConfig:
        """Return the config of an artifact of this run, with the default pooling."""
        return self.inputs.version_config(kind, dtype=dtype, classes=self.classes)

    def make_loadable(self, uri: str, *, trained: TrainingConfig, dtype: Dtype) -> None:
        """Write the config of a folder of trained weights, unless it has one."""
        pooling = self.inputs.pooling.trained(trained.pooling)
        config = self.version_config(trained.method, dtype=dtype).model_copy(
            update={"pooling": pooling}
        )
        make_loadable(uri, config)

    def fit_baselines(self) -> tuple[Baseline, ...]:
        """Return the stored baselines; a cached stage."""
        recipe = self.inputs.recipe
        splits = self.inputs.splits
        config = recipe.evaluation
        seed = recipe.training.seed

        def compute(uri: str) -> tuple[Baseline, ...]:
            results = self.inputs.remote(fit_baselines)(
                self.inputs.base_model.uri,
                train=splits.train,
                validation=splits.validation,
                descriptions=recipe.data.label_descriptions,
                max_length=recipe.data.max_length,
                config=config,
                seed=seed,
            )
            return store_baselines(
                uri, results, config=self.version_config("zero_shot", dtype=results.dtype)
            )

        named = {
            "label_descriptions": recipe.data.label_descriptions,
            "max_length": recipe.data.max_length,
            "metric": config.metric,
        }
        inputs = self.inputs.stage_inputs(fit_baselines, seed=seed, **named)
        return self.inputs.cached(
            "baselines", output=tuple[Baseline, ...], inputs=inputs, compute=compute
        )

    def training_task(self) -> TrainingTask:
        """Return the training task with all training rows."""
        recipe = self.inputs.recipe
        return ClassificationTrainingTask(
            base_model=self.inputs.base_model.uri,
            train=_training_rows(self.inputs),
            validation=self.inputs.splits.validation,
            classes=self.classes,
            class_counts=self.class_counts,
            documents=self.documents,
            max_length=recipe.data.max_length,
            metric=recipe.evaluation.metric,
            pooling=self.inputs.pooling,
        )

    def require_trainable(self) -> None:
        """Do nothing. Every encoder and every labelled text can be trained on."""

    def fit_decision(self, uri: str) -> DecisionFit | None:
        """Return the temperature and the offsets of the artifact at `uri`, fitted on validation; a
        cached stage."""
        metric = self.inputs.recipe.evaluation.metric

        def compute(_: str) -> DecisionFit:
            return self.inputs.remote(fit_decision)(
                uri, rows=self.inputs.splits.validation, metric=metric
            )

        inputs = self.inputs.stage_inputs(fit_decision, model=uri, metric=metric)
        return self.inputs.cached("decision", output=DecisionFit, inputs=inputs, compute=compute)


@dataclass(frozen=True)
class ChatTask:
    """Answers to conversations: its baselines, training task and artifact config."""

    inputs: RunInputs
    label_noun: ClassVar[str] = "different answers"
    num_cost_rows: ClassVar[int] = 8  # an answer takes a hundred times as long as a label
    num_cost_rows_gpu: ClassVar[int] = 64  # as a replica answers at the same time by default
    classes: ClassVar[tuple[str, ...]] = ()

    @property
    def prompting(self) -> Prompting:
        """Prompting without examples."""
        config = self.inputs.recipe.data
        return Prompting(
            system=config.system,
            max_new_tokens=config.max_new_tokens,
            response_format=config.response_format,
        )

    @property
    def training_inputs(self) -> dict[str, object]:
        prompting = self.prompting.model_dump(mode="json")
        return _training_inputs(self.inputs) | {"prompting": prompting}

    def version_config(self, kind: Kind, *, dtype: Dtype) -> VersionConfig:
        return self.inputs.version_config(kind, dtype=dtype, prompting=self.prompting)

    def make_loadable(self, uri: str, *, trained: TrainingConfig, dtype: Dtype) -> None:
        """Write the config of a folder of trained weights."""
        make_loadable(uri, self.version_config(trained.method, dtype=dtype))

    def fit_baselines(self) -> tuple[Baseline, ...]:
        splits = self.inputs.splits
        config = self.inputs.recipe.evaluation
        seed = self.inputs.recipe.training.seed

        def compute(uri: str) -> tuple[Baseline, ...]:
            baselines = self.inputs.remote_model(fit_prompt_baselines)(
                self.inputs.base_model.uri,
                train=self.inputs.retrieved_rows,
                validation=splits.validation,
                prompting=self.prompting,
                config=config,
                seed=seed,
                encoder=self.inputs.pinned_encoder,
            )
            stored = self.version_config("zero_shot", dtype=baselines.dtype)
            return store_prompt_baselines(uri, baselines, config=stored)

        named: dict[str, object] = {
            "shots": config.prompt_shots,
            "draws": config.prompt_draws,
            "metric": config.metric,
        }
        encoder = self.inputs.pinned_encoder
        if encoder is not None:
            named["encoder"] = encoder.model_dump(mode="json", exclude={"dtype"})
            named["max_train_rows"] = self.inputs.recipe.data.max_train_rows
        prompting = self.prompting.model_dump(mode="json")
        inputs = self.inputs.stage_inputs(
            fit_prompt_baselines, prompting=prompting, seed=seed, **named
        )
        return self.inputs.cached(
            "baselines", output=tuple[Baseline, ...], inputs=inputs, compute=compute
        )

    def training_task(self) -> TrainingTask:
        recipe = self.inputs.recipe
        return ChatTrainingTask(
            base_model=self.inputs.base_model.uri,
            train=_training_rows(self.inputs),
            validation=self.inputs.splits.validation,
            prompting=self.prompting,
            max_length=recipe.data.max_length,
            metric=recipe.evaluation.metric,
        )

    def require_trainable(self) -> None:
        """Raise ModelError or DataError if the base model or a row cannot be trained on; a cached
        stage.

        The check runs before the baselines, because they take minutes, and outside the training
        workers, because a failure would restart the worker group.
        """
        dropout = self.inputs.recipe.training.attention_dropout

        def compute(_: str) -> bool:
            task = self.training_task()
            self.inputs.remote(check_trainable)(task, attention_dropout=dropout)
            return True

        inputs = self.inputs.stage_inputs(
            ChatTrainingTask, **self.training_inputs, attention_dropout=dropout
        )
        self.inputs.cached("trainable", output=bool, inputs=inputs, compute=compute)

    def fit_decision(self, uri: str) -> DecisionFit | None:  # noqa: ARG002
        """Return None. Generated answers are not calibrated."""
        return None


Task = ClassificationTask | ChatTask


def task_of(inputs: RunInputs) -> Task:
    """Return the task of a recipe's inputs."""
    tasks: dict[str, type[Task]] = {"classification": ClassificationTask, "chat": ChatTask}
    return tasks[inputs.recipe.task](inputs)


def _training_inputs(inputs: RunInputs) -> dict[str, object]:
    data = inputs.recipe.data
    return {
        "max_length": data.max_length,
        "metric": inputs.recipe.evaluation.metric,
        "max_train_rows": data.max_train_rows,
    }


def _training_rows(inputs: RunInputs) -> Rows | Shards:
    return inputs.tuning_rows if inputs.data.shards is None else inputs.data.shards
