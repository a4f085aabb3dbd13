"""Tasks on the cluster. Each checks and tokenizes several row groups and writes them as one file of
shards."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, count
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from tailorbird import storage
from tailorbird.config.data import DataConfig
from tailorbird.data.fingerprints import (
    Hashes,
    fingerprints,
    save_fingerprints,
    trained_fingerprints,
)
from tailorbird.data.parquet import open_parquet, parquet_files
from tailorbird.data.quality import EvaluatedRows, drop_copies, num_blank
from tailorbird.data.rows import Rows, concat_rows, digest_of, rows_sha256
from tailorbird.data.sharding.shards import fingerprints_uri, write_shard_file
from tailorbird.data.task_data import DataTask
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.storage import s3
from tailorbird.storage.node_cache import local_copy
from tailorbird.storage.stored_model import StoredModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARD_ROWS = 1 << 17
BATCH_ROWS = 1 << 13  # rows in memory of a task
SEED = 0


@dataclass(frozen=True)
class ShardSpec:
    """Row groups of a Parquet file that a task writes as one file of shards."""

    number: int
    uri: str
    row_groups: tuple[int, ...]
    first: int  # position of the first row among all training rows
    first_in_file: int
    num_rows: int


@dataclass(frozen=True)
class ShardingJob:
    """Inputs that all tasks share."""

    config: DataConfig
    task: DataTask
    base_model: str
    uri: str
    sample_share: float  # share of the training rows that the driver keeps in memory
    evaluated: EvaluatedRows
    evaluation_keys: frozenset[str]  # values of `split_by` in validation or test


class ShardReport(BaseModel, frozen=True):
    """Figures of a file of shards that the driver needs."""

    number: int
    num_rows: int
    num_empty: int
    copies: dict[str, int]
    """The counts of `drop_copies`."""
    shared_keys: tuple[str, ...]
    """Values of `split_by` that are also in an evaluation split."""
    labels: dict[str, int]
    """(classification only) Rows of each label."""
    sha256: str


class ShardRecord(StoredModel):
    """JSON file next to a file of shards, written last, with the report and the rows for the
    driver's memory."""

    report: ShardReport
    sample: tuple[Rows, ...]
    first_rows: dict[str, Rows]
    """(classification only) The first row of each label."""


def shard_specs(config: DataConfig) -> Iterator[ShardSpec]:
    """Group row groups into shards of about `SHARD_ROWS` rows. Row groups are not split."""
    numbers = count()
    first = 0
    for uri in chain.from_iterable(map(parquet_files, config.train_uris)):
        first_in_file = 0
        for row_groups, num_rows in _parts_of_file(uri):
            yield ShardSpec(
                number=next(numbers),
                uri=uri,
                row_groups=row_groups,
                first=first,
                first_in_file=first_in_file,
                num_rows=num_rows,
            )
            first += num_rows
            first_in_file += num_rows


def _parts_of_file(uri: str) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield the row groups of each part of a file, and their number of rows."""
    with open_parquet(uri, columns=(), in_parts=True) as parquet:
        num_groups = parquet.num_row_groups
        sizes = [parquet.metadata.row_group(index).num_rows for index in range(num_groups)]
    row_groups: list[int] = []
    num_rows = 0
    for index, size in enumerate(sizes):
        row_groups.append(index)
        num_rows += size
        if num_rows >= SHARD_ROWS or index + 1 == num_groups:
            yield tuple(row_groups), num_rows
            row_groups = []
            num_rows = 0


def write_shard_of(spec: ShardSpec, *, job: ShardingJob) -> ShardReport:
    """Write a file of shards in a task; see `write_shard`."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one core
    return write_shard(spec, job, _tokenizer(job.base_model))


@lru_cache(maxsize=1)
def _tokenizer(base_model: str) -> "PreTrainedTokenizerBase":
    return load_tokenizer(local_copy(base_model))


def write_shard(
    spec: ShardSpec, job: ShardingJob, tokenizer: "PreTrainedTokenizerBase"
) -> ShardReport:
    """Write a file of shards, the fingerprints of its rows and its record, unless an earlier run
    has written them."""
    record_uri = _record_uri(job.uri, spec.number)
    if storage.exists(record_uri):
        return ShardRecord.model_validate(storage.read_json(record_uri)).report
    generator = np.random.default_rng((SEED, spec.number))
    num_empty = 0
    copies = Counter[str]()
    labels = Counter[str]()
    shared_keys: set[str] = set()
    digests: list[str] = []
    hashes: list[Hashes] = [fingerprints(())]  # the row groups can have no rows
    sample: list[Rows] = []
    first_rows: dict[str, Rows] = {}
    with write_shard_file(job.uri, spec.number) as shard:
        for batch in _batches(spec, job):
            num_empty += num_blank(batch.texts)
            rows, dropped = drop_copies(batch, evaluated=job.evaluated)
            copies += dropped
            shard.add(
                rows.row_ids,
                job.task.encode(rows, tokenizer=tokenizer, max_length=job.config.max_length),
            )
            digests.append(rows_sha256(rows))
            hashes.append(trained_fingerprints(rows))
            shared_keys |= job.evaluation_keys.intersection(rows.split_keys or ())
            labels.update(rows.class_labels)
            for row, label in enumerate(rows.class_labels):
                if label not in first_rows:
                    first_rows[label] = rows.take([row])
            sample.append(rows.take(np.flatnonzero(generator.random(len(rows)) < job.sample_share)))
    save_fingerprints(fingerprints_uri(job.uri, spec.number), np.concatenate(hashes))
    report = ShardReport(
        number=spec.number,
        num_rows=shard.num_rows,
        num_empty=num_empty,
        copies=copies,
        shared_keys=tuple(sorted(shared_keys)),
        labels=labels,
        sha256=digest_of(digests),
    )
    record = ShardRecord(report=report, sample=tuple(sample), first_rows=first_rows)
    storage.write_json(record_uri, record.model_dump(mode="json"), retry_policy=s3.PERSISTENT)
    return report


def _batches(spec: ShardSpec, job: ShardingJob) -> Iterator[Rows]:
    columns = job.task.columns(job.config)
    num_read = 0
    with open_parquet(spec.uri, columns=columns, in_parts=True) as parquet:
        for batch in parquet.iter_batches(
            batch_size=BATCH_ROWS, row_groups=list(spec.row_groups), columns=columns
        ):
            table = pa.Table.from_batches([batch])
            # An error names the position in the file; row ids are positions among all training
            # rows.
            rows = job.task.rows(
                table, config=job.config, uri=spec.uri, first=spec.first_in_file + num_read
            )
            ids = range(spec.first + num_read, spec.first + num_read + len(rows))
            yield replace(rows, row_ids=tuple(map(str, ids)))
            num_read += len(rows)


def _record_uri(uri: str, number: int) -> str:
    return f"{uri}/{number:06d}.json"


def read_sample(uri: str, *, num_files: int) -> Rows:
    """Read the rows for the driver's memory: the sample, and the first row of each class that is
    not in the sample."""
    parts: list[Rows] = []
    first_rows: dict[str, Rows] = {}
    for number in range(num_files):
        record = ShardRecord.model_validate(storage.read_json(_record_uri(uri, number)))
        parts += record.sample
        first_rows = record.first_rows | first_rows
    sample = concat_rows(parts)
    known = set(sample.class_labels)
    return concat_rows([sample, *(first_rows[label] for label in first_rows if label not in known)])
