"""The Ray Data worker of a batch, which scores one part at a time and writes its answers to a
Parquet file."""

import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from serving.batch_jobs.schema import BatchSpec, Part, PartResult, PartSource
from serving.batch_jobs.scorers import SCORERS, input_rows
from serving.engines.vllm_engine import EngineNotInstalled
from serving.offline import OfflineModel, load_offline
from serving.version_checks import require_digest
from tailorbird import storage
from tailorbird.config.serving import ServingConfig
from tailorbird.data.parquet import open_parquet
from tailorbird.data.rows import DataError
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.models.endpoint.errors import EndpointError
from tailorbird.registry.versions import read_version
from tailorbird.storage import s3

if TYPE_CHECKING:
    from tailorbird.registry.versions import ModelVersion

SLICE_ROWS = 1024  # rows of a part that are in memory at the same time
SOURCE_KEY = b"tailorbird"  # key of the `PartSource` in a part's Parquet metadata
ANSWERS = ("label", "answer")  # output columns, which are null in rows without an answer
UNANSWERED_KEY = b"tailorbird_unanswered"  # key of the number of rows without an answer


def columns_of(batch: BatchSpec, version: "ModelVersion") -> list[str]:
    """Return the columns to read, without duplicates. A hybrid that routes by group also reads the
    group column."""
    names = (batch.column, batch.id_column, version.hybrid and version.hybrid.routing.column)
    return list(dict.fromkeys(name for name in names if name))


class PartScorer:
    """The class of Ray Data's actors. It loads the version at the first part that is not stored.

    `limits` are those of the requests to an endpoint, if the version has one. After an error of the
    endpoint, no further request is sent.
    """

    def __init__(self, batch: BatchSpec, config: ServingConfig, limits: RequestLimits) -> None:
        self._batch = batch
        self._config = config
        self._limits = limits
        self._failed: EndpointError | None = None
        self._model: OfflineModel | None = None

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """Score the `Part` in `row["part"]` and return its `PartResult` in `result`, both as JSON.

        Errors of data, storage and endpoints are returned in the result, because raised errors
        reach the driver as a traceback.
        """
        part = Part.model_validate_json(row["part"])
        try:
            result = self._score(part)
        except (DataError, s3.StorageError, EndpointError) as error:
            cause = None
            if isinstance(error, EndpointError):
                self._failed = error
                cause = type(error).__name__
            elif storage.comes_from_storage(error):
                cause = s3.StorageError.__name__
            result = PartResult(part=part.number, error=str(error), cause=cause)
        return {"result": result.model_dump_json()}

    def _score(self, part: Part) -> PartResult:
        batch = self._batch
        uri = part.output_uri(self._batch.output)
        part_source = PartSource(
            part=part, digest=batch.digest, column=batch.column, id_column=batch.id_column
        )
        source = part_source.model_dump_json().encode()
        if storage.exists(uri):
            with open_parquet(uri, columns=(), in_parts=True) as file:
                if (file.schema_arrow.metadata or {}).get(SOURCE_KEY) != source:
                    raise DataError(
                        f"{uri} has answers to other rows or of another version; delete it and "
                        "repeat the request"
                    )
                num_unanswered = int(file.schema_arrow.metadata.get(UNANSWERED_KEY, b"0"))
                return PartResult(
                    part=part.number, num_rows=file.metadata.num_rows, num_unanswered=num_unanswered
                )
        if self._failed is not None:
            raise self._failed
        if self._model is None:
            self._model = _load(batch, config=self._config, limits=self._limits)
        table = score_part(part, batch, model=self._model)
        entry = storage.file_entry(part.uri)
        if entry is None or entry.tag != part.etag:
            raise DataError(
                f"{part.uri} changed during the batch; score it again to another output"
            )
        num_unanswered = sum(
            table.column(name).null_count for name in ANSWERS if name in table.column_names
        )
        sink = io.BytesIO()
        pq.write_table(
            table.replace_schema_metadata(
                {SOURCE_KEY: source, UNANSWERED_KEY: str(num_unanswered).encode()}
            ),
            sink,
        )
        storage.write_bytes(uri, sink.getvalue(), retry_policy=s3.PERSISTENT)
        return PartResult(
            part=part.number,
            num_rows=table.num_rows,
            is_new=True,
            num_unanswered=num_unanswered,
        )


def _load(batch: BatchSpec, *, config: ServingConfig, limits: RequestLimits) -> OfflineModel:
    import torch

    torch.set_num_threads(config.cpus_per_replica)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each core is used by a worker
    try:
        version = read_version(batch.version_uri)
        require_digest(version, digest=batch.digest)
        if config.engine == "vllm" and version.hybrid is not None:
            raise DataError(
                f"{batch.version_uri} is a hybrid, which batches answer with engine: transformers "
                "only"
            )
        return load_offline(
            version,
            batch_size=config.batch_size(version.task),
            limits=limits,
            answers_uri=batch.output,
            vllm=config if config.engine == "vllm" else None,
        )
    except s3.StorageError:
        raise
    except (ValueError, EngineNotInstalled) as error:
        # from the models or the registry, for a damaged version
        raise DataError(str(error)) from None


def score_part(part: Part, batch: BatchSpec, *, model: OfflineModel) -> pa.Table:
    """Return the part's rows with their answers, in order; raise DataError for a row that cannot be
    answered."""
    tables: list[pa.Table] = []
    for table in _slices(part, columns=columns_of(batch, model.version)):
        done = sum(scored.num_rows for scored in tables)
        update = {"start": part.start + done, "first": part.first + done}
        scored_part = part.model_copy(update=update | {"num_rows": table.num_rows})
        tables.append(_score_slice(table, scored_part, batch=batch, model=model))
    return pa.concat_tables(tables, promote_options="default")  # groups of a slice can all be null


def _score_slice(table: pa.Table, part: Part, *, batch: BatchSpec, model: OfflineModel) -> pa.Table:
    version = model.version
    columns = {"row": pa.array(range(part.first, part.first + part.num_rows), pa.int64())}
    if batch.id_column is not None:
        columns["id"] = table.column(batch.id_column)
    group_column = version.hybrid.routing.column if version.hybrid else None
    rows = input_rows(table, part, column=batch.column, group_column=group_column)
    answers = model.answer(rows)
    columns |= SCORERS[version.task].columns(answers, version)
    if group_column is not None:
        columns["group"] = pa.array([row.group for row in rows])
    if version.hybrid is not None:
        columns["answered_by"] = pa.array([answer.answered_by for answer in answers], pa.string())
    columns["version"] = pa.array([version.version] * part.num_rows)
    return pa.table(columns)


def _slices(part: Part, *, columns: list[str]) -> Iterator[pa.Table]:
    """Yield the part's rows in tables of at most `SLICE_ROWS`.

    A dictionary stores a text once for many rows, so a small file can have rows that do not fit
    into memory. Other rows of the same row groups are not kept in memory.
    """
    with open_parquet(part.uri, columns=columns, in_parts=True) as file:
        groups = []
        skip = part.start
        group_start = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if group_start + size <= part.start:
                skip = part.start - group_start - size
            elif group_start < part.start + part.num_rows:
                groups.append(group)
            group_start += size
        missing = part.num_rows
        for batch in file.iter_batches(batch_size=SLICE_ROWS, row_groups=groups, columns=columns):
            rows = batch.slice(skip, missing)
            skip = max(0, skip - batch.num_rows)
            missing -= rows.num_rows
            if rows.num_rows:
                yield pa.Table.from_batches([rows])
            if not missing:
                return
    raise DataError(f"{part.uri} changed during the batch; score it again to another output")
