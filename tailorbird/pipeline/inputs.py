"""The inputs of a run: the recipe's rows, base model and code, checked and staged on S3."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import ParamSpec, TypeVar

from cluster.code_snapshot import CodeVersion, ship_code
from cluster.progress import SILENT, ProgressReporter
from cluster.remote import map_remote, run_remote
from cluster.resources import evaluation_resources, worker_resources
from tailorbird import PROJECT_ROOT
from tailorbird.config.base import digest
from tailorbird.config.data import MAX_ROWS_IN_MEMORY
from tailorbird.config.model_uri import ModelUri
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TASKS
from tailorbird.data.parquet import has_integers
from tailorbird.data.quality import take_training_rows
from tailorbird.data.rows import DataError, Rows, Splits, rows_sha256
from tailorbird.data.sharding.loading import LoadedDataset, load_in_memory, load_sharded
from tailorbird.data.suites.load import trained_suites
from tailorbird.data.task_data import ClassificationData, recipe_task
from tailorbird.evaluation.verdict.inputs import SUITE_PREFIX
from tailorbird.models.base_model import BaseModelRecord, stage_base_model
from tailorbird.models.metadata import (
    read_tokenizer,
    require_encoder,
    require_length,
    require_template,
)
from tailorbird.models.pooling.declared import read_pooling
from tailorbird.models.pretrained import dtype_name
from tailorbird.pipeline.contender_models import stage_models
from tailorbird.pipeline.contenders import read_contenders
from tailorbird.registry.kinds import Kind
from tailorbird.registry.pooling import MEAN, Pooling
from tailorbird.registry.versions import (
    Dtype,
    ModelVersion,
    PinnedEncoder,
    Prompting,
    VersionConfig,
    now,
)
from tailorbird.storage.code_files import code_sha256, source_files
from tailorbird.storage.stage_cache import cached_stage

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class StagedBase:
    """A staged base model, with the pooling that it declares if it is that of a classifier."""

    record: BaseModelRecord
    pooling: Pooling = MEAN


@dataclass(frozen=True)
class RunInputs:
    """A recipe with its data, base models and code, as staged on S3.

    Stages use one of the base models, `base`; see `with_base`.
    """

    recipe: Recipe
    data: LoadedDataset
    bases: tuple[StagedBase, ...]  # in the order of the recipe
    base: StagedBase
    code: CodeVersion
    encoder: BaseModelRecord | None = None  # encoder of `evaluation.retrieval_encoder`
    progress: ProgressReporter = SILENT  # reporter for Ray tasks; see `cluster.remote.run_remote`
    integer_labels: bool = False  # the label column of a classification task holds integers
    contenders: Mapping[str, ModelVersion] = field(default_factory=dict)  # see `read_contenders`
    imported: Mapping[str, BaseModelRecord] = field(default_factory=dict)  # see `stage_models`

    @property
    def base_model(self) -> BaseModelRecord:
        return self.base.record

    @property
    def pooling(self) -> Pooling:
        return self.base.pooling

    def with_base(self, name: str) -> "RunInputs":
        """Return the inputs of stages that use the base model with this `BaseModelRecord.name`."""
        return replace(self, base=next(base for base in self.bases if base.record.name == name))

    @property
    def splits(self) -> Splits:
        """Rows in memory; `train` is a sample if the training rows are sharded."""
        return self.data.splits

    @cached_property
    def tuning_rows(self) -> Rows:
        """Training rows in memory for fine-tuning: at most `data.max_train_rows`."""
        return take_training_rows(
            self.splits.train, size=self.recipe.data.max_train_rows, seed=self.recipe.training.seed
        )

    @property
    def num_tuning_rows(self) -> int:
        """Number of training rows for fine-tuning, those in shards included."""
        if self.data.shards is None:
            return len(self.tuning_rows)
        return len(self.data.shards)

    @property
    def retrieved_rows(self) -> Rows:
        """Training rows that chat baselines can retrieve: all of them, unless an encoder has to
        embed them."""
        if self.encoder is None:
            return self.splits.train
        return self.tuning_rows

    @property
    def suite_hashes(self) -> dict[str, str]:
        """The sha256 of each suite by name."""
        return {name: rows_sha256(rows) for name, rows in self.data.suites.items()}

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of each split, and of each suite with the prefix of its tables."""
        return self.data.hashes | {
            f"{SUITE_PREFIX}{name}": value for name, value in self.suite_hashes.items()
        }

    @property
    def pinned_encoder(self) -> PinnedEncoder | None:
        """The encoder for retrieval, or None if the recipe names none.

        Its dtype is that of this process. The baselines replace it by that of the worker that fits
        them.
        """
        if self.encoder is None:
            return None
        return PinnedEncoder(
            uri=self.encoder.uri, sha256=digest(dict(self.encoder.files)), dtype=dtype_name()
        )

    def stage_inputs(
        self, *functions: Callable[..., object], **inputs: object
    ) -> dict[str, object]:
        """Return the inputs of a stage's fingerprint: the code of `functions`, base model, data and
        `inputs`."""
        rows = {name: self.data.hashes[name] for name in ("train", "validation")}
        if self.data.sample_sha256 is not None:  # the baselines are fitted on the sample
            rows["train_in_memory"] = self.data.sample_sha256
        if (answers := self.recipe.evaluation.answers) is not None:
            inputs = {"answers": answers.model_dump(mode="json"), **inputs}
        return {
            "code": code_sha256(source_files(*functions)),
            "base_model": asdict(self.base_model),
            "data": rows,
            **inputs,
        }

    def cached(
        self,
        name: str,
        *,
        output: type[R],
        inputs: Mapping[str, object],
        compute: Callable[[str], R],
        resumes: bool = False,
    ) -> R:
        """Return the output of a stage of this task; see `cached_stage`."""
        task_uri = self.recipe.task_uri
        return cached_stage(
            task_uri, name, output=output, inputs=inputs, compute=compute, resumes=resumes
        )

    def remote(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return a function that runs as a Ray task with a training worker's resources. A call
        waits for its result."""
        return run_remote(
            function, resources=worker_resources(self.recipe.training), progress=self.progress
        )

    def remote_model(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return a function that runs like `remote`, or on all GPUs of a replica that has
        several."""
        if self.recipe.serving.gpus_per_replica > 1:
            return self.remote_evaluation(function)
        return self.remote(function)

    def remote_evaluation(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return a function that runs like `remote`, on as many GPUs as the evaluation needs."""
        resources = evaluation_resources(self.recipe.training, self.recipe.serving)
        return run_remote(function, resources=resources, progress=self.progress)

    def version_config(
        self,
        kind: Kind,
        *,
        dtype: Dtype,
        classes: tuple[str, ...] = (),
        prompting: Prompting | None = None,
    ) -> VersionConfig:
        """Return the config of an artifact of this run, with temperature 1.

        `dtype` is the precision of the worker that fitted or trained the artifact, which can have
        other hardware than this process.
        """
        return VersionConfig(
            kind=kind,
            classes=classes,
            integer_labels=self.integer_labels,
            base_model=self.base_model.uri,
            max_length=self.recipe.data.max_length,
            dtype=dtype,
            code=self.code.uri,
            recipe_hash=digest(self.recipe),
            created_at=now(),
            prompting=prompting,
        )


def load_inputs(recipe: Recipe, *, progress: ProgressReporter = SILENT) -> RunInputs:
    """Read and check the recipe's rows, and stage the base models, the encoder for retrieval and
    the code."""
    # Check the rows first, so that an error in them is reported before a base model is downloaded.
    data = load_in_memory(recipe)
    contenders = read_contenders(recipe)
    if data is None:
        require_one_base(recipe)
    bases = tuple(_stage_base(uri, recipe, progress=progress) for uri in recipe.base_models)
    base = bases[0]
    imported = {name: staged.record for name, staged in stage_models(recipe).items()}
    models = [base.record.uri for base in bases]
    models += [record.uri for record in imported.values()]
    encoder = _stage_encoder(recipe)
    progress.activity("copying the code to the registry")
    code = ship_code(recipe.task_uri, PROJECT_ROOT)
    if data is None:
        progress.activity("tokenizing the training rows into shards")
        task = recipe_task(recipe)
        if isinstance(task, ClassificationData):
            task = replace(task, prompt=base.pooling.prompt)
        inputs = {
            "code": code_sha256(source_files(load_sharded)),
            "base_model": asdict(base.record),
        }
        data = load_sharded(
            recipe, task, base_model=base.record.uri, inputs=inputs, map_tasks=map_remote
        )
    config = recipe.data
    return RunInputs(
        recipe=recipe,
        data=_with_trained_suites(data, recipe, base_model=base.record.uri),
        bases=bases,
        base=base,
        code=code,
        encoder=encoder,
        integer_labels=TASKS[recipe.task].has_classes
        and has_integers(config.train_uris, column=config.label),
        contenders=contenders,
        imported=imported,
    )


def _stage_base(uri: ModelUri, recipe: Recipe, *, progress: ProgressReporter) -> StagedBase:
    """Stage a base model of the recipe; raise an error if rows of `data.max_length` do not fit
    it."""
    progress.activity(f"reading the base model {uri}, which is copied to the registry on first use")
    staged = stage_base_model(uri, registry=recipe.registry)
    task = recipe_task(recipe)
    require_length(staged.uri, max_length=recipe.data.max_length, task=task)
    require_template(staged.uri, task=task)
    return StagedBase(staged.record, task_pooling(recipe, staged.uri))


def require_one_base(recipe: Recipe) -> None:
    """Raise DataError if the recipe has several base models, each of which would need shards of its
    tokens."""
    if len(recipe.base_models) > 1:
        raise DataError(
            f"base_model lists several models, but train has more than {MAX_ROWS_IN_MEMORY:,} rows "
            "and is streamed as tokens of one; name one base model, or fewer files in data.train"
        )


def inspect_rows(recipe: Recipe) -> LoadedDataset | None:
    """Return the rows of a run without a write to the task's folder; None if they are streamed."""
    data = load_in_memory(recipe)
    if data is None:
        require_one_base(recipe)
        return None
    staged = stage_base_model(recipe.base_models[0], registry=recipe.registry)
    return _with_trained_suites(data, recipe, base_model=staged.uri)


def _with_trained_suites(data: LoadedDataset, recipe: Recipe, *, base_model: str) -> LoadedDataset:
    """Return the dataset with `trained_suites`, by the tokenizer of the staged base model."""
    suites = trained_suites(recipe, data.suites, read_tokenizer=partial(read_tokenizer, base_model))
    return replace(data, suites=suites)


def task_pooling(recipe: Recipe, base_model: str) -> Pooling:
    """Return the pooling that the base model of a classifier declares. Raises PoolingError."""
    if TASKS[recipe.task].has_classes:
        return read_pooling(base_model, purpose="classification")
    return MEAN


def _stage_encoder(recipe: Recipe) -> BaseModelRecord | None:
    """Stage the encoder for retrieval, if the recipe names one; raise MetadataError if it is no
    text encoder."""
    if recipe.evaluation.retrieval_encoder is None:
        return None
    staged = stage_base_model(recipe.evaluation.retrieval_encoder, registry=recipe.registry)
    require_encoder(staged.uri)
    return staged.record
