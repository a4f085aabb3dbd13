"""The first stage of a run: load its inputs, and register the test protocol before the first
training."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cluster.progress import ProgressReporter
from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.data.fingerprints import fingerprints, user_texts
from tailorbird.data.quality import require_no_test_row
from tailorbird.data.rows import Splits
from tailorbird.evaluation.report.console import data_lines, earlier_tests_line
from tailorbird.evaluation.report.preregistration import (
    PROTOCOL_FILE,
    Preregistration,
    run_uri,
    with_digest,
)
from tailorbird.evaluation.trained_rows import require_enough_rows, trained_rows
from tailorbird.evaluation.verdict.protocol import TestProtocol, build_protocol
from tailorbird.pipeline.contenders import require_classes, require_same_classes, require_task
from tailorbird.pipeline.imported import import_models
from tailorbird.pipeline.inputs import RunInputs, load_inputs
from tailorbird.pipeline.tasks import Task, task_of
from tailorbird.registry.caller import current_user
from tailorbird.registry.champion import Champion, champion_version, read_champion
from tailorbird.registry.test_set_ledger import next_access
from tailorbird.registry.versions import ModelVersion, now, read_version


@dataclass(frozen=True)
class RunContext:
    """The inputs, the task and the preregistration of a run: all that the later stages need."""

    run: str  # URI of the run
    inputs: RunInputs
    task: Task
    registered: Preregistration
    events: Any = None  # queue for the events of trainings

    def reporting_to(self, progress: ProgressReporter, *, events: Any) -> "RunContext":
        """Return the context with an event queue, and with its reporter for stages and Ray
        tasks."""
        inputs = replace(self.inputs, progress=progress)
        return replace(self, inputs=inputs, task=task_of(inputs), events=events)

    def with_base(self, name: str) -> "RunContext":
        """Return the context of stages that use the base model with this name."""
        inputs = self.inputs.with_base(name)
        return replace(self, inputs=inputs, task=task_of(inputs))

    @property
    def progress(self) -> ProgressReporter:
        return self.inputs.progress

    @property
    def recipe(self) -> Recipe:
        return self.inputs.recipe

    @property
    def splits(self) -> Splits:
        """Rows in memory."""
        return self.inputs.splits

    @property
    def protocol(self) -> TestProtocol:
        return self.registered.protocol

    @cached_property
    def champion(self) -> ModelVersion | None:
        """The version that was the champion when the protocol was registered. Raises
        RegistryError."""
        if self.registered.champion is None:
            return None
        return read_version(self.registered.champion)


def prepare(recipe: Recipe, *, progress: ProgressReporter) -> RunContext:
    """Read and check the data, stage the base model and the code, and register the test protocol.

    Raises ValueError if the champion and the contenders were trained on so many test rows that too
    few others remain.
    """
    progress.stage("data: reading and checking the rows")
    inputs = load_inputs(recipe, progress=progress)
    require_no_test_row(recipe.serving.examples, test=inputs.splits.test)
    for base, given in zip(inputs.bases, recipe.base_models, strict=True):
        progress.note(base.record.note(given, field="base_model"))
    if recipe.evaluation.retrieval_encoder is not None and inputs.encoder is not None:
        progress.note(
            inputs.encoder.note(recipe.evaluation.retrieval_encoder, field="retrieval_encoder")
        )
    task = task_of(inputs)
    champion = _read_champion(recipe, classes=task.classes)
    require_same_classes(inputs.contenders, classes=task.classes)
    inputs = replace(inputs, contenders={**inputs.contenders, **import_models(inputs, task)})
    task = task_of(inputs)
    for line in data_lines(
        inputs.data, num_tuning=inputs.num_tuning_rows, label_noun=task.label_noun
    ):
        progress.note(line)
    use = next_access(recipe.task_uri, rows=fingerprints(user_texts(inputs.splits.test)))
    # Report a lower alpha before the training, because a user may prefer to collect fresh rows.
    if use.num_seen:
        progress.note(earlier_tests_line(use, alpha=recipe.evaluation.alpha))
    versions = dict(inputs.contenders)
    champion_uri = None
    anchor_uri = None
    if champion is not None:
        champion_uri = champion.uri
        if champion.anchor is not None:
            anchor_uri = champion.anchor.uri
        versions = {"incumbent": champion_version(champion), **versions}
    trained = trained_rows(inputs.splits.test, versions)
    require_enough_rows(trained, num_test=len(inputs.splits.test), config=recipe.evaluation)
    protocol = build_protocol(
        recipe.evaluation,
        serving=recipe.serving,
        test_sha256=inputs.hashes["test"],
        num_test_rows=len(inputs.splits.test),
        suites=inputs.suite_hashes,
    )
    preregistration = with_digest(
        Preregistration(
            protocol=protocol,
            recipe=recipe,
            code=inputs.code.sha256,
            data=inputs.hashes,
            base_models=tuple(base.record for base in inputs.bases),
            retrieval_encoder=inputs.encoder,
            champion=champion_uri,
            anchor=anchor_uri,
            trained_rows=trained,
            requested_by=current_user(),
            requested_at=now(),
        )
    )
    uri = run_uri(recipe.task_uri, preregistration.request_sha256, champion=champion)
    registered = storage.write_once(f"{uri}/{PROTOCOL_FILE}", preregistration)
    for sentence in registered.trained_rows.sentences(protocol.num_test_rows):
        progress.note(sentence)
    return RunContext(run=uri, inputs=inputs, task=task, registered=registered)


def _read_champion(recipe: Recipe, *, classes: tuple[str, ...]) -> Champion | None:
    """Return the champion; raise ValueError if it cannot be compared with a model of the training
    rows.

    Raises RegistryError if the champion's version is missing or was changed.
    """
    entry = read_champion(recipe.task_uri)
    if entry is None:
        return None
    champion = entry[0]
    version = champion_version(champion)
    try:
        require_task(version, recipe=recipe)
        require_classes(version, classes=classes)
    except ValueError as error:
        raise ValueError(
            f"the champion {error}, or give the recipe another name, which is a task without a "
            "champion"
        ) from None
    return champion
