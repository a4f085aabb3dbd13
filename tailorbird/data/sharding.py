"""Beside data.read, for training rows that memory does not hold: Ray Data checks and encodes them once, into shards."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from tailorbird import storage
from tailorbird.config.data import DataConfig
from tailorbird.data.loader import columns_of, read_later, read_splits, rows_of
from tailorbird.data.parquet import open_parquet, parquet_files
from tailorbird.data.quality import DataReport, clean, leaks_of, rare_classes, take_training_rows
from tailorbird.data.rows import DataError, Rows, Splits, digest_of, fingerprint, joined, rows_sha256
from tailorbird.data.shards import Shards, ShardWriter
from tailorbird.data.splits import normalise
from tailorbird.data.tokenize import labels_of, load_tokenizer
from tailorbird.data.tokenized import Encoding
from tailorbird.storage import s3
from tailorbird.storage.node_cache import local_copy
from tailorbird.storage.stage_cache import once

SHARD_ROWS = 1 << 17
BATCH_ROWS = 1 << 13
"""Rows that a task has in hand at once."""
SEED = 0
LATER = ("test", "validation")
"""Where a training text may not stand; a copy in both counts for the first."""


@dataclass(frozen=True)
class Gathered:
    """A recipe's rows, checked, where a run starts from."""

    splits: Splits
    """Where training rows are streamed, train is a random part of about `data.stream_above_rows`, with every class."""
    report: DataReport
    hashes: dict[str, str]
    """sha256 of each split; of train over all of its rows."""
    shards: Shards | None = None
    """The training rows, where they are streamed."""
    held_sha256: str | None = None
    """Of the training rows in memory, where they are a part."""

    @property
    def num_train(self) -> int:
        """Rows that are trained on."""
        return len(self.splits.train if self.shards is None else self.shards)


@dataclass(frozen=True)
class Piece:
    """Some row groups of a Parquet file, of which one task makes one file of shards."""

    number: int
    uri: str
    groups: tuple[int, ...]
    first: int
    """Position of the first row among all training rows."""
    start: int
    """The same in its file."""
    num_rows: int


@dataclass(frozen=True)
class Job:
    """What every task needs besides its piece."""

    config: DataConfig
    encoding: Encoding
    base_model: str
    uri: str
    share: float
    """Of the rows, those that the driver keeps."""
    texts: dict[str, frozenset[str]]
    """Normalised texts of validation and of test."""
    keys: frozenset[str]
    """Values of `split_by` in either."""


def held(config: DataConfig, *, chat: bool, seed: int) -> Gathered | None:
    """A recipe's rows, read and checked; None where there are more training rows than memory is to hold.

    Raises DataError as `read_splits`, `clean` and `take_training_rows`.
    """
    if sum(piece.num_rows for piece in _pieces(config)) > config.stream_above_rows:
        return None
    splits, report = clean(read_splits(config, chat=chat))
    splits = take_training_rows(splits, size=config.max_train_rows, seed=seed)
    return Gathered(splits, report, fingerprint(splits))


def streamed(
    config: DataConfig, encoding: Encoding, *, base_model: str, task_uri: str, inputs: dict[str, Any]
) -> Gathered:
    """A recipe's rows, checked, where `held` gives none: training rows are encoded once, into shards.

    A stage under `task_uri` that hangs on `inputs` and the files as they lie there. Memory is bounded: a task has a few
    thousand rows in hand, this process those that it keeps. Rows whose text stands in validation or test are dropped,
    as `checks.clean` does. Raises DataError as that, and where the recipe names no validation or test.
    """
    _refuse(config)
    pieces = list(_pieces(config))
    validation, test = read_later(config, chat=encoding.chat)
    later = {"validation": validation, "test": test}

    def compute(uri: str) -> dict[str, Any]:
        job = Job(
            config=config,
            encoding=encoding,
            base_model=base_model,
            uri=uri,
            share=config.stream_above_rows / sum(piece.num_rows for piece in pieces),
            texts={name: frozenset(map(normalise, rows.texts)) for name, rows in later.items()},
            keys=frozenset(key for rows in later.values() for key in rows.split_keys or ()),
        )
        return {"uri": uri, "told": _run(pieces, job)}

    asked = {
        "data": config.model_dump(mode="json"),
        "encoding": asdict(encoding),
        "files": [storage.state(uri) for uri in dict.fromkeys(piece.uri for piece in pieces)],
        "later": {name: rows_sha256(rows) for name, rows in later.items()},
    }
    found = once(task_uri, "shards", inputs=inputs | asked, compute=compute)
    uri, told = found["uri"], found["told"]
    sizes = tuple(part["num_rows"] for part in told)
    if not sum(sizes):
        raise DataError("train has no rows after exact copies of rows in later splits were dropped; give more data")
    splits, report = clean(Splits(train=_held(uri, num_files=len(told)), validation=validation, test=test))
    labels = _sum(part["labels"] for part in told)
    shards = Shards(uri, sizes, () if encoding.chat else labels_of(list(labels)))
    keys = {name: set(rows.split_keys or ()) for name, rows in splits.items()}
    keys["train"] = {key for part in told for key in part["shared_keys"]}
    copies = _sum(part["copies"] for part in told)
    num_empty = sum(not normalise(text) for rows in later.values() for text in rows.texts)
    whole = replace(
        report,
        num_train=sum(sizes),
        num_in_memory=len(splits.train),
        num_classes=report.num_classes if encoding.chat else len(labels),
        train_copies_of_test=copies["test"],
        train_copies_of_validation=copies["validation"],
        empty_texts=num_empty + sum(part["num_empty"] for part in told),
        rare_classes=() if encoding.chat else rare_classes(labels),
        leaks=leaks_of(keys, {name: set(map(normalise, rows.texts)) for name, rows in splits.items()}),
    )
    hashes = fingerprint(splits) | {"train": digest_of(part["sha256"] for part in told)}
    return Gathered(splits, whole, hashes, shards, held_sha256=rows_sha256(splits.train))


def _refuse(config: DataConfig) -> None:
    told = f"train has more than data.stream_above_rows {config.stream_above_rows:,} rows and is streamed: "
    raised = ", or raise stream_above_rows if every worker's memory holds them all"
    if config.validation is None or config.test is None:
        raise DataError(f"{told}name data.validation and data.test too{raised}")
    if config.max_train_rows is not None:
        raise DataError(f"{told}leave out data.max_train_rows{raised}")


def _row_groups(config: DataConfig) -> Iterator[tuple[str, int]]:
    """URI of the file and rows of each row group of the training rows, in order."""
    for uri in config.train_uris:
        for file in parquet_files(uri):
            with open_parquet(file, columns=(), in_parts=True) as parquet:
                for group in range(parquet.num_row_groups):
                    yield file, parquet.metadata.row_group(group).num_rows


def _pieces(config: DataConfig) -> Iterator[Piece]:
    """Row groups one after the other until they make a shard; a row group is never cut."""
    number = first = 0
    for file, groups in groupby(_row_groups(config), key=lambda group: group[0]):
        held: list[int] = []
        start = size = 0
        for group, (_, num_rows) in enumerate(groups):
            held.append(group)
            size += num_rows
            if size >= SHARD_ROWS:
                yield Piece(number, file, tuple(held), first, start, size)
                number, first, start, held, size = number + 1, first + size, start + size, [], 0
        if held:
            yield Piece(number, file, tuple(held), first, start, size)
            number, first = number + 1, first + size


def _run(pieces: Sequence[Piece], job: Job) -> list[dict[str, Any]]:
    """What the tasks tell of the pieces, in their order; the first that is refused ends it."""
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"piece": json.dumps(asdict(piece))} for piece in pieces]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(_task, fn_kwargs={"job": ray.put(job)})
    told = []
    for row in dataset.iter_rows():
        told.append(json.loads(row["told"]))
        if "refused" in told[-1]:
            raise DataError(told[-1]["refused"])
    return sorted(told, key=lambda part: int(part["piece"]))


def _task(row: dict[str, Any], job: Any) -> dict[str, str]:
    """One piece in a task of Ray Data; what is wrong with data or store is told: raised, it would be a traceback."""
    given = json.loads(row["piece"])
    piece = Piece(**given | {"groups": tuple(given["groups"])})
    try:
        return {"told": json.dumps(write_piece(piece, *_loaded(job)))}
    except (DataError, s3.StorageError) as error:
        return {"told": json.dumps({"piece": piece.number, "refused": str(error)})}


@lru_cache(maxsize=1)
def _loaded(job: Any) -> tuple[Job, Any]:
    """The job and its tokenizer, once a process."""
    import ray

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one core
    found: Job = ray.get(job)
    return found, load_tokenizer(local_copy(found.base_model))


def write_piece(piece: Piece, job: Job, tokenizer: Any) -> dict[str, Any]:
    """Writes a piece's file of shards, unless a run before has; returns what the driver needs to know, as JSON."""
    done = _held_uri(job.uri, piece.number)
    if storage.exists(done):
        return dict(storage.read_json(done)["told"])
    chance = np.random.default_rng((SEED, piece.number))
    labels: Counter[str] = Counter()
    copies: Counter[str] = Counter()
    shared_keys: set[str] = set()
    digests: list[str] = []
    drawn: list[dict[str, Any]] = []
    firsts: dict[str, dict[str, Any]] = {}
    num_empty = 0
    with ShardWriter(job.uri, piece.number) as shard:
        for rows in _batches(piece, job):
            texts = [normalise(text) for text in rows.texts]
            num_empty += sum(not text for text in texts)
            where = [next((name for name in LATER if text in job.texts[name]), None) for text in texts]
            copies.update(name for name in where if name)
            clear = rows.take([row for row, name in enumerate(where) if name is None])
            tokens, said = job.encoding.tokens(clear, tokenizer=tokenizer)
            shard.add(clear, tokens=tokens, said=said)
            digests.append(rows_sha256(clear))
            shared_keys |= job.keys.intersection(clear.split_keys or ())
            if not job.encoding.chat:
                new = [row for row, label in enumerate(clear.labels) if label not in labels and label not in firsts]
                for row in reversed(new):
                    firsts[clear.labels[row]] = asdict(clear.take([row]))
                labels.update(clear.labels)
            drawn.append(asdict(clear.take(np.flatnonzero(chance.random(len(clear)) < job.share))))
    told = {
        "piece": piece.number,
        "num_rows": shard.num_rows,
        "num_empty": num_empty,
        "copies": copies,
        "shared_keys": sorted(shared_keys),
        "labels": labels,
        "sha256": digest_of(digests),
    }
    storage.write_json(done, {"told": told, "drawn": drawn, "firsts": firsts}, patient=True)  # last: the piece is whole
    return told


def _batches(piece: Piece, job: Job) -> Iterator[Rows]:
    config, chat = job.config, job.encoding.chat
    columns = columns_of(config, chat=chat)
    done = 0
    with open_parquet(piece.uri, columns=columns, in_parts=True) as parquet:
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=list(piece.groups), columns=columns):
            table = pa.Table.from_batches([batch])
            rows = rows_of(
                table,
                config=config,
                chat=chat,
                uri=piece.uri,
                first=piece.start + done,  # what is wrong is told by its place in the file
            )
            ids = range(piece.first + done, piece.first + done + len(rows))
            yield replace(rows, row_ids=tuple(map(str, ids)))
            done += len(rows)


def _held_uri(uri: str, number: int) -> str:
    return f"{uri}/{number:06d}.json"


def _held(uri: str, *, num_files: int) -> Rows:
    """The rows that stay in memory: those drawn, and the first of each class that no drawn row has."""
    found = [storage.read_json(_held_uri(uri, number)) for number in range(num_files)]
    kept = [Rows.from_dict(value) for part in found for value in part["drawn"]]
    seen = {label for rows in kept for label in rows.labels}
    for part in found:
        for label, value in part["firsts"].items():
            if label not in seen:
                seen.add(label)
                kept.append(Rows.from_dict(value))
    return joined(kept)


def _sum(counts: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return total
