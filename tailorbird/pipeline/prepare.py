"""The first stage of a run: load its inputs, and register the test protocol before the first training."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from cluster.progress import ProgressReporter
from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.data.quality import RARE_ROWS, listed
from tailorbird.data.rows import DataError, Rows, Splits, contents_of
from tailorbird.data.splits import normalise
from tailorbird.evaluation.inference.row_predictions import documents
from tailorbird.evaluation.report.evidence import BaseModelRecord
from tailorbird.evaluation.report.preregistration import PROTOCOL_FILE, Preregistration, request_digest, run_name
from tailorbird.evaluation.statistics.documents import few_documents
from tailorbird.evaluation.verdict.protocol import TestProtocol, build_protocol, spent_alpha
from tailorbird.pipeline.inputs import RunInputs, load_inputs
from tailorbird.pipeline.tasks import Task, task_of
from tailorbird.registry.champion import Champion, champion_version, read_champion
from tailorbird.registry.security_log import current_user
from tailorbird.registry.test_set_ledger import next_access
from tailorbird.registry.versions import now
from tailorbird.storage import s3
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.stored_model import StoredModel

M = TypeVar("M", bound=StoredModel)


@dataclass(frozen=True)
class RunContext:
    """The inputs, the task and the registered protocol of a run, for all later stages."""

    run: str  # URI of the run
    inputs: RunInputs
    task: Task
    protocol: TestProtocol
    champion: str | None  # URI of the champion at the time when the protocol was registered
    accepted_loss: float  # losses accepted for lower cost since the last proven champion
    requested_by: str

    def reporting_to(self, progress: ProgressReporter) -> "RunContext":
        """Return the context with a reporter for its Ray tasks, that of an event queue."""
        inputs = replace(self.inputs, progress=progress)
        return replace(self, inputs=inputs, task=task_of(inputs))

    @property
    def recipe(self) -> Recipe:
        return self.inputs.recipe

    @property
    def splits(self) -> Splits:
        """Rows in memory."""
        return self.inputs.splits


def prepare(recipe: Recipe, *, progress: ProgressReporter) -> RunContext:
    """Read and check the data, stage the base model and the code, and register the test protocol."""
    progress.stage("data: reading and checking the rows")
    inputs = load_inputs(recipe, progress=progress)
    _require_no_test_row(recipe.serving.examples, test=inputs.splits.test)
    progress.note(model_note(recipe.base_model, inputs.base_model, field="base_model"))
    if recipe.evaluation.retrieval_encoder is not None and inputs.encoder is not None:
        progress.note(model_note(recipe.evaluation.retrieval_encoder, inputs.encoder, field="retrieval_encoder"))
    task = task_of(inputs)
    champion = _read_champion(recipe, classes=task.classes)
    _report_data(inputs, task, progress=progress)
    _report_access(inputs, progress=progress)
    hashes, code = inputs.hashes, inputs.code.sha256
    protocol = build_protocol(
        recipe.evaluation,
        serving=recipe.serving,
        test_sha256=hashes["test"],
        num_test_rows=len(inputs.splits.test),
        suites=inputs.suite_hashes,
    )
    request = request_digest(
        recipe, code=code, data=hashes, base_model=inputs.base_model, retrieval_encoder=inputs.encoder
    )
    uri = _run_uri(recipe.task_uri, request, champion=champion)
    preregistration = Preregistration(
        protocol=protocol,
        request_sha256=request,
        recipe=recipe,
        code=code,
        data=hashes,
        base_model=inputs.base_model,
        retrieval_encoder=inputs.encoder,
        champion=champion.uri if champion else None,
        accepted_loss=champion.accepted_loss if champion else 0.0,
        requested_by=current_user(),
        requested_at=now(),
    )
    registered = write_once(f"{uri}/{PROTOCOL_FILE}", preregistration)
    return RunContext(
        uri,
        inputs,
        task,
        protocol=registered.protocol,
        champion=registered.champion,
        accepted_loss=registered.accepted_loss,
        requested_by=registered.requested_by,
    )


def model_note(uri: str, model: BaseModelRecord, *, field: str) -> str:
    """Return a line with the version of the model in a field of the recipe, and how to pin it if it is not pinned."""
    name = field.replace("_", " ")
    if uri.rstrip("/") == model.source:
        return f"{name}: {model.source}"
    staged = f"{name}: {uri} is {model.source}, as first staged in this registry"
    return f"{staged}; to use the same version with other registries, set {field} to this URI"


def write_once(uri: str, value: M) -> M:
    """Write the value unless the object exists, and return the stored value (the first writer's)."""
    if not storage.exists(uri):
        with suppress(s3.PreconditionFailed):  # another process that runs the same recipe wrote it first
            storage.write_if_match(uri, value.model_dump_json(indent=2).encode(), etag=None)
    return type(value).model_validate_json(storage.read_bytes(uri))


def _require_no_test_row(examples: Sequence[str], *, test: Rows) -> None:
    """Raise DataError if an example, which clients and model cards show, is the query of a test row."""
    queries = set(map(normalise, test.queries))
    if shown := [example for example in examples if normalise(example) in queries]:
        raise DataError(f"serving.examples has a text of the test rows: {shown[0]!r}; choose another example")


def _report_data(inputs: RunInputs, task: Task, *, progress: ProgressReporter) -> None:
    report = inputs.data.report
    sizes = {name: len(rows) for name, rows in inputs.splits.items()} | {"train": inputs.data.num_train}
    counts = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    progress.note(f"{counts} rows, {report.num_classes} {task.label_noun}")
    if report.test_answers_in_train is not None:
        near, compared = report.near_duplicates_of_test, report.near_duplicates_compared
        progress.note(
            f"{report.test_answers_in_train:,} of {report.num_test:,} test answers are also answers in train; {near:,} "
            f"of {compared:,} test rows have a near-duplicate in train"
        )
    if inputs.data.shards is not None:
        sample = len(inputs.splits.train)
        progress.note(f"training rows are streamed; baselines and some checks use a random sample of {sample:,} rows")
    if report.rare_classes:
        rare = listed(report.rare_classes)
        progress.note(f"classes with fewer than {RARE_ROWS} training rows, which a model hardly learns: {rare}")
    if report.empty_texts:
        progress.note(f"rows with an empty text, which all get the same answer: {report.empty_texts:,}")
    if (few := _few_documents(inputs.splits.test)) is not None:
        progress.note(few)
    for leak in report.leaks[:1]:
        progress.note(f"{leak}; the verdict will be INSUFFICIENT_EVIDENCE (rule 2). Split the rows again")


def _few_documents(test: Rows) -> str | None:
    """Return a sentence if the test rows come from too few documents for an interval."""
    clusters = documents(test)
    if clusters is None:
        return None
    reason = few_documents(len(set(clusters)), num_rows=len(test))
    return reason and f"{reason}, or the verdict will be INSUFFICIENT_EVIDENCE (rule 8)"


def _report_access(inputs: RunInputs, *, progress: ProgressReporter) -> None:
    """Report a lower alpha of the test before the training, because a user may prefer to collect fresh rows."""
    number, num_seen = next_access(inputs.recipe.task_uri, contents=contents_of(inputs.splits.test))
    if number > 1:
        alpha = inputs.recipe.evaluation.alpha
        spent = spent_alpha(alpha, access_number=number)
        progress.note(
            f"{num_seen:,} distinct test rows were used in earlier tests; a new test on these rows has an alpha of "
            f"{spent:.2g} instead of {alpha:g}"
        )


def _read_champion(recipe: Recipe, *, classes: tuple[str, ...]) -> Champion | None:
    """Return the champion; raise ValueError if it cannot be compared with a model of the training rows.

    Raises RegistryError if the champion's version is missing or was changed.
    """
    entry = read_champion(recipe.task_uri)
    if entry is None:
        return None
    champion, advice = entry[0], "or give the recipe another name, which is a task without a champion"
    version = champion_version(champion)
    if version.task != recipe.task:
        raise ValueError(
            f"the champion {champion.uri} is for the task {version.task}, but the recipe has the task {recipe.task}; "
            f"use the champion's task, {advice}"
        )
    if version.classes != classes:
        ours, theirs = set(classes), set(version.classes)
        only = {"only the champion has": theirs - ours, "only the training rows have": ours - theirs}
        details = "; ".join(f"{owner} {listed(names)}" for owner, names in only.items() if names)
        raise ValueError(
            f"the champion {champion.uri} and the training rows have different classes ({details}), so their scores "
            f"cannot be compared; use the champion's classes, {advice}"
        )
    return champion


def _run_uri(task_uri: str, request: str, *, champion: Champion | None) -> str:
    """Return the run's URI, which contains a hash of the request digest and the champion.

    If the request is that of the champion's own run, return the URI of that run, so its stored result is reused.
    """
    if champion is not None and champion.run and storage.exists(f"{champion.run}/{PROTOCOL_FILE}"):
        stored = Preregistration.model_validate_json(storage.read_bytes(f"{champion.run}/{PROTOCOL_FILE}"))
        if stored.request_sha256 == request:
            return champion.run
    return TaskPaths(task_uri).run(run_name(request, champion=champion.uri if champion else None))
