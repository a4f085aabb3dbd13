"""Score Parquet files on the cluster with a version, in parts that are each written once."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from cluster.progress import counter
from cluster.resources import gpu_visibility
from serving.batch_jobs.locations import normalized_locations
from serving.batch_jobs.schema import (
    BatchError,
    BatchSpec,
    InputFile,
    OutputClaim,
    OutputManifest,
    Part,
    PartResult,
)
from serving.batch_jobs.scorers import SCORERS
from serving.batch_jobs.worker import PartScorer, columns_of
from serving.http.schemas import BASELINE, CHAMPION
from tailorbird import storage
from tailorbird.config.serving import ANSWER_TIMEOUT_S, ServingConfig
from tailorbird.data.parquet import open_parquet, parquet_files
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.registry.versions import calls_endpoint
from tailorbird.storage import s3
from tailorbird.storage.paths import TaskPaths

if TYPE_CHECKING:
    from tailorbird.registry.versions import ModelVersion

# maximum uncompressed size of a part's columns; parts with long rows have fewer rows
PART_BYTES = 64 << 20
ENDPOINT_PART_ROWS = 1 << 8  # about a minute of requests, after which the progress is reported
# first and last file of an output
CLAIM = "batch.json"
MANIFEST = "manifest.json"
RESTARTS = 3


@dataclass(frozen=True)
class ScoringResult:
    """The result of `score_batch`."""

    manifest: str  # URI of the output's manifest
    num_rows: int
    num_parts: int
    num_new: int  # rows that this call scored; the other rows were already stored
    num_unanswered: int
    """Rows that the endpoint refused, or for which it named no class."""

    def line(self) -> str:
        """Return a one-line summary."""
        return (
            f"{self.num_rows:,} rows in {self.num_parts} parts, {self.num_new:,} of them scored by "
            f"this call; {self.num_unanswered:,} rows have no answer (null)"
        )


def resolve_version(task_uri: str, model: str) -> "ModelVersion":
    """Return the version for `champion`, `baseline`, a version's name or its URI.

    Raises RegistryError if it does not exist.
    """
    from tailorbird.registry.champion import champion_version, read_champion
    from tailorbird.registry.versions import RegistryError, read_pinned, read_version

    if model not in (CHAMPION, BASELINE):
        return read_version(model if "://" in model else TaskPaths(task_uri).version(model))
    stored = read_champion(task_uri)
    if stored is None:
        raise RegistryError(
            f"{task_uri} has no champion; run `tailorbird promote RECIPE`, or name a version"
        )
    champion = stored[0]
    if model == CHAMPION:
        return champion_version(champion)
    if champion.baseline is None:
        raise RegistryError(f"champion {champion.uri} has no baseline; name a version")
    return read_pinned(champion.baseline)


def new_batch(
    version: "ModelVersion",
    *,
    input: str,
    output: str,
    column: str | None = None,
    id_column: str | None = None,
) -> BatchSpec:
    """Return the specification of a batch, with normalized URIs; `column` defaults to the task's
    default.

    Raises BatchError for invalid URIs.
    """
    input, output = normalized_locations(input=input, output=output)
    return BatchSpec(
        input=input,
        output=output,
        version_uri=version.uri,
        digest=version.digest,
        column=column or SCORERS[version.task].default_column,
        id_column=id_column,
    )


def check_batch(batch: BatchSpec, *, version: "ModelVersion") -> None:
    """Check that a batch can be scored, without reading rows.

    Raises DataError for an input without files, and BatchError if the first file lacks a column or
    the output folder contains other files.
    """
    first = parquet_files(batch.input)[0]
    with open_parquet(first, columns=(), in_parts=True) as file:
        _require_columns(file, first, columns_of(batch, version))
    claim = _read_claim(batch)
    if claim is None and storage.exists(batch.output):
        raise BatchError(f"{batch.output} is not empty and contains no batch; give an empty folder")
    if claim is not None:
        _require_equal(batch.output, claim.batch, batch)


def score_batch(
    batch: BatchSpec,
    config: ServingConfig,
    *,
    version: "ModelVersion",
    limits: RequestLimits | None = None,
) -> ScoringResult:
    """Score the input on the connected Ray cluster: one output row per input row, with the code of
    the service.

    After an interruption, a new call scores only the missing parts. The manifest is written last. A
    worker keeps one part in memory. Raises BatchError for rows that cannot be scored, for an output
    folder with other files, and for an input that changed during the batch. Also raises DataError
    and StorageError. `limits` are those of requests to an endpoint, by default the service's;
    BatchError is raised too if it cannot answer or if the limit of its spend is reached.
    """
    check_batch(batch, version=version)
    inputs = tuple(_inputs(batch, columns=columns_of(batch, version)))
    part_rows = SCORERS[version.task].part_rows
    if calls_endpoint(version):
        part_rows = min(part_rows, ENDPOINT_PART_ROWS)
    parts = list(parts_of(inputs, size=part_rows))
    if not parts:
        raise BatchError(f"{batch.input} has no rows; give files with at least one row")
    claim = OutputClaim(batch=batch, inputs=inputs, part_rows=part_rows)
    _claim(claim)
    total = sum(part.num_rows for part in parts)
    uri = f"{batch.output}/{MANIFEST}"
    scored = ScoringResult(
        manifest=uri, num_rows=total, num_parts=len(parts), num_new=0, num_unanswered=0
    )
    if storage.exists(uri):
        return replace(scored, num_unanswered=storage.read_json(uri)["num_unanswered"])
    results: list[PartResult] = []
    count = counter(total)
    with closing(_score_parts(parts, batch, config, version=version, limits=limits)) as running:
        for result in running:
            if result.error is not None:
                raise _error(result, batch=batch)
            results.append(result)
            count(result.num_rows)
    # each part has the rows of its `PartSource`
    assert sum(result.num_rows for result in results) == total
    num_unanswered = sum(result.num_unanswered for result in results)
    manifest = OutputManifest(
        **dict(claim),
        model=version.name,
        version=version.version,
        num_rows=total,
        num_parts=len(parts),
        num_unanswered=num_unanswered,
    )
    storage.write_json(uri, manifest.model_dump(mode="json"))
    num_new = sum(result.num_rows for result in results if result.is_new)
    return replace(scored, num_new=num_new, num_unanswered=num_unanswered)


def request_limits(config: ServingConfig) -> RequestLimits:
    """Return the service's limits. The spend of a batch has the limit of the version, if it has
    one."""
    return RequestLimits(timeout_s=ANSWER_TIMEOUT_S, max_concurrency=config.endpoint_concurrency)


def _error(result: PartResult, *, batch: BatchSpec) -> Exception:
    """Return the error that ends a batch because of a part."""
    assert result.error is not None
    if result.cause is None:
        return BatchError(result.error)
    if result.cause == s3.StorageError.__name__:
        return s3.StorageError(result.error)
    return BatchError(
        f"{result.error}. Complete parts and the answers of the other ones are stored in "
        f"{batch.output}; repeat the request to resume the batch"
    )


def parts_of(inputs: Sequence[InputFile], *, size: int) -> Iterator[Part]:
    """Yield the rows of each file in parts of at most `size` rows. The same files give the same
    parts.

    Files with long rows have smaller parts, of about `PART_BYTES`.
    """
    number = first = 0
    for file in inputs:
        max_rows = max(1, min(size, file.num_rows * PART_BYTES // max(1, file.read_bytes)))
        for start in range(0, file.num_rows, max_rows):
            num_rows = min(max_rows, file.num_rows - start)
            yield Part(
                number=number,
                uri=file.uri,
                start=start,
                first=first,
                num_rows=num_rows,
                etag=file.etag,
            )
            number = number + 1
            first = first + num_rows


def _inputs(batch: BatchSpec, *, columns: list[str]) -> Iterator[InputFile]:
    """Yield the input's files. The id column must have the same type in all files, so that the
    output is one table."""
    id_type = None
    files = parquet_files(batch.input)
    for uri, entry in zip(files, storage.file_entries(files), strict=True):
        if entry is None:
            raise BatchError(f"{uri} does not exist; it was deleted during the batch")
        with open_parquet(uri, columns=(), in_parts=True) as file:
            _require_columns(file, uri, columns)
            if batch.id_column is not None:
                file_type = file.schema_arrow.field(batch.id_column).type
                id_type = id_type or file_type
                if file_type != id_type:
                    raise BatchError(
                        f"{uri}: column {batch.id_column!r} has type {file_type}, but {id_type} in "
                        "other files; use one type in all files"
                    )
            metadata = file.metadata
            yield InputFile(
                uri=uri,
                etag=entry.tag,
                size_bytes=entry.size_bytes,
                num_rows=metadata.num_rows,
                read_bytes=_read_bytes(metadata, columns),
            )


def _read_bytes(metadata: Any, columns: Sequence[str]) -> int:
    """Return the uncompressed size of the columns, including nested columns, in all row groups."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    size = 0
    for group in groups:
        for index in range(group.num_columns):
            chunk = group.column(index)
            if chunk.path_in_schema.split(".")[0] in columns:
                size += chunk.total_uncompressed_size
    return size


def _require_columns(file: Any, uri: str, columns: Sequence[str]) -> None:
    names = file.schema_arrow.names
    for column in columns:
        if column not in names:
            raise BatchError(
                f"{uri} has no column {column!r}, only {', '.join(names)}; set the batch's "
                "columns, or add the column"
            )


def _read_claim(batch: BatchSpec) -> OutputClaim | None:
    uri = f"{batch.output}/{CLAIM}"
    stored = storage.read_versioned(uri)
    try:
        if stored is None:
            return None
        return OutputClaim.model_validate_json(stored[0])
    except ValidationError as error:
        raise BatchError(
            f"{uri} is not a valid batch of this version ({error}); give an empty folder"
        ) from None


def _claim(claim: OutputClaim) -> None:
    """Write the output folder's first file, or check that the stored one is equal."""
    stored = _read_claim(claim.batch)
    if stored is None:
        content = claim.model_dump_json(indent=1).encode()
        storage.write_if_match(f"{claim.batch.output}/{CLAIM}", content, etag=None)
    else:
        _require_equal(claim.batch.output, stored, claim)


def _require_equal(output: str, stored: BaseModel, requested: BaseModel) -> None:
    fields = type(requested).model_fields
    differing = sorted(name for name in fields if getattr(stored, name) != getattr(requested, name))
    if differing:
        raise BatchError(
            f"{output} contains a batch with another {' and '.join(differing)}; give an empty "
            "folder, or repeat the previous request to resume it"
        )


def _score_parts(
    parts: Sequence[Part],
    batch: BatchSpec,
    config: ServingConfig,
    *,
    version: "ModelVersion",
    limits: RequestLimits | None,
) -> Generator[PartResult, None, None]:
    """Yield the result of each part, in the order of completion.

    If an endpoint answers, there is one worker, so that `limits` hold for the whole batch.
    """
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()
    gpus = 0 if version.endpoint else config.gpus_per_replica
    room = int(resources.get("CPU", 1)) // config.cpus_per_replica
    if gpus:
        room = min(room, int(resources.get("GPU", 0) / gpus))
    if calls_endpoint(version):
        workers = 1
    else:
        # The autoscaler may start these replicas during the batch.
        further_replicas = config.max_replicas - config.min_replicas
        workers = max(1, min(len(parts), room - further_replicas))
    # The batch starts with one worker, so it does not wait for cores that replicas use.
    pool = ray.data.ActorPoolStrategy(
        min_size=1, max_size=workers, initial_size=workers, max_tasks_in_flight_per_actor=2
    )
    rows = [{"part": part.model_dump_json()} for part in parts]
    dataset = ray.data.from_items(rows, override_num_blocks=len(parts)).map(
        PartScorer,
        fn_constructor_args=(batch, config, limits or request_limits(config)),
        compute=pool,
        num_cpus=config.cpus_per_replica,
        num_gpus=gpus,
        runtime_env={"env_vars": gpu_visibility(gpus)},
        # By default, restarts are unlimited, so a row that kills its worker would be repeated
        # forever.
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
    )
    for row in dataset.iter_rows():
        yield PartResult.model_validate_json(row["result"])
