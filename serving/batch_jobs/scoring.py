"""From Parquet to Parquet: each row of the input goes through a version on the cluster, in parts written once."""

import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from serving.batch_jobs.worker import Batch, Part, PartScorer, columns_of, part_row
from serving.http.schemas import CHAMPION, PRETRAINED
from tailorbird import storage
from tailorbird.config.data import DataConfig
from tailorbird.config.serving import ServingConfig
from tailorbird.data.parquet import open_parquet, parquet_files
from tailorbird.storage import s3

if TYPE_CHECKING:
    from tailorbird.registry.versions import ModelVersion

PART_ROWS = {"classification": 1 << 12, "chat": 1 << 8}
"""Rows that a worker has in hand at once, and what a kill may cost it; seconds to a minute of work."""
PART_BYTES = 64 << 20
"""Of the columns that are read, as Parquet counts them uncompressed: long rows go into smaller parts."""
CLAIM, MANIFEST = "batch.json", "manifest.json"
"""What an output was begun for, and, written last, what it holds."""
PROGRESS_INTERVAL_S = 15.0
RESTARTS = 3

ProgressCallback = Callable[[int, int], None]
"""Hears rows done, and rows in all, after each part."""


class BatchError(ValueError):
    """A batch that cannot be done as it is asked for; the message says what to do."""


@dataclass(frozen=True)
class InputFile:
    """A file of the input, as it was when the batch began."""

    uri: str
    etag: str
    size_bytes: int
    num_rows: int
    read_bytes: int
    """Of the columns that are read, uncompressed."""


@dataclass(frozen=True)
class ScoringResult:
    """What `score_batch` did."""

    manifest: str
    """URI of the output's manifest."""
    num_rows: int
    num_parts: int
    num_new: int
    """Rows that this call scored; the others were there."""
    busy_s: float
    """From the first part's begin to the last one's end, on the workers: without the start of them and of the model."""

    def line(self) -> str:
        """For people."""
        rate = f", {self.num_new / self.busy_s:,.0f} rows/s once the workers ran" if self.busy_s else ""
        before = self.num_rows - self.num_new
        kept = f" ({before:,} of them were there)" if before else ""
        return f"{self.num_rows:,} rows in, {self.num_rows:,} rows out{kept}, {self.num_parts} parts{rate}"


def resolve_version(task_uri: str, model: str) -> "ModelVersion":
    """The version that `champion`, `pretrained`, a name or a URI stands for; RegistryError where there is none."""
    from tailorbird.registry.champion import champion_version, read_champion
    from tailorbird.registry.versions import RegistryError, read_version

    if model not in (CHAMPION, PRETRAINED):
        return read_version(model if "://" in model else f"{task_uri}/versions/{model}")
    found = read_champion(task_uri)
    if found is None:
        raise RegistryError(f"{task_uri} has no champion; `tailorbird promote RECIPE` makes one, or name a version")
    champion = found[0]
    if model == CHAMPION:
        return champion_version(champion)
    if champion.pretrained is None:
        raise RegistryError(f"{champion.uri} was compared with no pretrained model; name a version")
    return read_version(champion.pretrained.uri)


def new_batch(
    version: "ModelVersion", *, input: str, output: str, column: str | None = None, id_column: str | None = None
) -> Batch:
    """The batch, its URIs in one spelling; `column` has the default of the version's task. Raises BatchError."""
    uris = {"input": input.rstrip("/"), "output": output.rstrip("/")}
    for name, uri in uris.items():
        parts = uri.removeprefix("s3://").split("/")
        if not uri.startswith("s3://") or len(parts) < 2 or not all(parts) or {".", ".."} & set(parts):
            raise BatchError(f"{name} is {uri!r}; give s3://bucket/prefix, with no empty part and no `..`")
    if is_under(uris["input"], uris["output"]) or is_under(uris["output"], uris["input"]):
        raise BatchError(f"{uris['input']} and {uris['output']} lie in each other; give the output a place of its own")
    default = DataConfig.model_fields["text" if version.prompting is None else "prompt"].default
    return Batch(**uris, version_uri=version.uri, digest=version.digest, column=column or default, id_column=id_column)


def is_under(uri: str, prefix: str) -> bool:
    """Whether a URI is a prefix or lies under it."""
    return uri == prefix or uri.startswith(f"{prefix}/")


def check_batch(batch: Batch, *, version: "ModelVersion") -> None:
    """A quick look at what can be wrong before any work.

    Raises DataError for an input without files, BatchError for one without the columns, and where the output holds
    something else.
    """
    first = parquet_files(batch.input)[0]
    with open_parquet(first, columns=(), in_parts=True) as file:
        _require_columns(file, first, columns_of(batch, version))
    asked = _read_claim(batch)
    if asked is None and storage.exists(batch.output):
        raise BatchError(f"{batch.output} is not empty and holds no batch; give an empty folder")
    if asked is not None:
        _refuse_other(batch, asked["batch"], asdict(batch))


def score_batch(
    batch: Batch, config: ServingConfig, *, version: "ModelVersion", told: ProgressCallback
) -> ScoringResult:
    """Scores the input on the connected Ray: one row out for each row in, by the same pass that serving answers with.

    Begun again after it was interrupted, it does the parts that are missing; the manifest is written last. Memory is
    bounded: a worker holds one part. Raises BatchError for rows that are none, an output that holds something else and
    an input that changed meanwhile; DataError, StorageError; what `told` raises ends it.
    """
    task = "classification" if version.prompting is None else "chat"
    check_batch(batch, version=version)
    inputs = list(_inputs(batch, columns=columns_of(batch, version)))
    parts = list(parts_of(inputs, size=PART_ROWS[task]))
    if not parts:
        raise BatchError(f"{batch.input} has no rows; give files with at least one")
    _claim(batch, {"batch": asdict(batch), "inputs": [asdict(one) for one in inputs], "part_rows": PART_ROWS[task]})
    total = sum(part.num_rows for part in parts)
    manifest = f"{batch.output}/{MANIFEST}"
    if storage.exists(manifest):
        told(total, total)
        return ScoringResult(manifest, total, len(parts), 0, 0.0)
    done: dict[int, dict[str, Any]] = {}
    num_done = 0
    with closing(_score_parts(parts, batch, config)) as running:
        for one in running:
            if "refused" in one:
                raise (s3.StorageError if one["by_store"] else BatchError)(one["refused"])
            done[one["part"]] = one
            num_done += one["num_rows"]
            told(num_done, total)
    _check_counts(parts, done, output=batch.output)
    if _input_states(inputs) != [(one.etag, one.size_bytes) for one in inputs]:
        raise BatchError(f"{batch.input} was changed while it was read; score it again to another output")
    new = [one for one in done.values() if "began" in one]
    storage.write_json(
        manifest,
        {
            "batch": asdict(batch),
            "model": version.name,
            "version": version.version,
            "inputs": [asdict(one) for one in inputs],
            "num_rows": total,
            "num_parts": len(parts),
        },
    )
    busy_s = max(one["ended"] for one in new) - min(one["began"] for one in new) if new else 0.0
    return ScoringResult(manifest, total, len(parts), sum(one["num_rows"] for one in new), busy_s)


def progress_notes(show: Callable[[dict[str, Any]], None]) -> ProgressCallback:
    """Tells a display now and then."""
    said = time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > PROGRESS_INTERVAL_S:
            said = time.monotonic()
            show({"event": "note", "text": f"{done:,} of {total:,} rows"})

    return told


def parts_of(inputs: Sequence[InputFile], *, size: int) -> Iterator[Part]:
    """The rows of each file in parts of `size`, its last one smaller; the same files give the same parts.

    Of a file with long rows, of as many as have `PART_BYTES` on average.
    """
    number = first = 0
    for file in inputs:
        most = max(1, min(size, file.num_rows * PART_BYTES // max(1, file.read_bytes)))
        for start in range(0, file.num_rows, most):
            num_rows = min(most, file.num_rows - start)
            yield Part(number, file.uri, start, first, num_rows, file.etag)
            number, first = number + 1, first + num_rows


def _inputs(batch: Batch, *, columns: list[str]) -> Iterator[InputFile]:
    """Each file as it lies there; ids of all files must be of one type, so that the output is one table."""
    kind = None
    files = parquet_files(batch.input)
    for uri, (etag, size_bytes) in zip(files, storage.heads(files), strict=True):
        with open_parquet(uri, columns=(), in_parts=True) as file:
            _require_columns(file, uri, columns)
            if batch.id_column is not None:
                found = file.schema_arrow.field(batch.id_column).type
                kind = kind or found
                if found != kind:
                    raise BatchError(
                        f"{uri}: column {batch.id_column!r} is {found}, in other files {kind}; write them alike"
                    )
            yield InputFile(uri, etag, size_bytes, file.metadata.num_rows, _read_bytes(file.metadata, columns))


def _read_bytes(metadata: Any, columns: Sequence[str]) -> int:
    """Of the columns, nested ones too, in all row groups."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(place) for group in groups for place in range(group.num_columns)]
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)


def _require_columns(file: Any, uri: str, columns: Sequence[str]) -> None:
    names = file.schema_arrow.names
    for column in columns:
        if column not in names:
            raise BatchError(
                f"{uri} has no column {column!r}; it has {', '.join(names)}: name the batch's columns, or write it"
            )


def _input_states(inputs: Sequence[InputFile]) -> list[tuple[str, int]]:
    return storage.heads([one.uri for one in inputs])


def _read_claim(batch: Batch) -> dict[str, Any] | None:
    found = storage.read_versioned(f"{batch.output}/{CLAIM}")
    return None if found is None else dict(json.loads(found[0]))


def _claim(batch: Batch, asked: dict[str, Any]) -> None:
    """Writes what the output is for, first of all; where that is there, it must be the same."""
    found = _read_claim(batch)
    if found is None:
        content = json.dumps(asked, indent=1, sort_keys=True).encode()
        storage.write_if_match(f"{batch.output}/{CLAIM}", content, etag=None)
        return
    _refuse_other(batch, found, asked)


def _refuse_other(batch: Batch, found: dict[str, Any], asked: dict[str, Any]) -> None:
    other = sorted(name for name in asked if found.get(name) != asked[name])
    if other:
        raise BatchError(
            f"{batch.output} holds a batch with another {' and '.join(other)}; give an empty folder, or ask for the "
            "same as before to go on with it"
        )


def _score_parts(parts: Sequence[Part], batch: Batch, config: ServingConfig) -> Generator[dict[str, Any], None, None]:
    """What the workers tell of each part, as it comes."""
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    cores = int(ray.cluster_resources().get("CPU", 1)) // config.cpus_per_replica
    workers = max(1, min(len(parts), cores, config.max_batch_workers or cores))
    # From one on: what serves on the same cores is not waited for.
    pool = ray.data.ActorPoolStrategy(
        min_size=1, max_size=workers, initial_size=workers, max_tasks_in_flight_per_actor=2
    )
    dataset = ray.data.from_items([part_row(part) for part in parts], override_num_blocks=len(parts)).map(
        PartScorer,
        fn_constructor_args=(asdict(batch), config.model_dump()),
        compute=pool,
        num_cpus=config.cpus_per_replica,
        num_gpus=config.gpus_per_replica,
        max_restarts=RESTARTS,  # Ray Data's own is without end: a row that kills its worker would
        max_task_retries=RESTARTS,
    )
    for row in dataset.iter_rows():
        yield json.loads(row["told"])


def _check_counts(parts: Sequence[Part], done: dict[int, dict[str, Any]], *, output: str) -> None:
    """Each part was told of, and has as many rows as were to go into it."""
    for part in parts:
        found = done[part.number]["num_rows"] if part.number in done else 0
        if found != part.num_rows:
            raise BatchError(
                f"{output}: part {part.number} has {found} rows, not {part.num_rows}; delete its file and ask again"
            )
