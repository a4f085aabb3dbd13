"""The state of an engine in a checkpoint, for any number of ranks.

Each rank writes its part of the weights and moments as a safetensors file, and a record of where
the values of each parameter are in it. A resumed rank computes from all records which values it
needs, and reads these byte ranges into the tensors of its engine. Nothing is written to a disk.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tailorbird.storage import open_file
from training.engine.deepspeed_private import (
    MOMENTS,
    STEP,
    WEIGHTS,
    counters,
    load_counters,
    optimizer_tensors,
    pieces_of_ranks,
)
from training.engine.partitions import Copy, Piece, copies
from training.engine.tensor_file import VALUE_BYTES, save_tensors
from training.errors import UnusableCheckpoint
from training.ranks import raise_on_all_ranks

NUM_THREADS = 8  # that read at the same time; each holds the bytes of a read twice
CHUNK = 16 << 20  # maximum bytes of a read, which is a request to S3
BUFFER = 1 << 20
"""Minimum bytes of a read. To read and discard them takes about as long as another request to
S3."""
Tensors = Sequence[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class RankRecord:
    """The part of the state that a rank has written."""

    pieces: tuple[Piece, ...]
    positions: dict[str, int]
    """First byte in the file of each tensor, by the index of the flat tensor and the name."""
    steps: float  # of torch's optimizer
    counters: dict[str, int]
    schedule: dict[str, Any]


@dataclass(frozen=True)
class FileRange:
    """Consecutive fp32 values in the file of a rank, and where this rank needs them."""

    rank: int
    """The rank that wrote the file."""
    start: int
    """Position of the first byte in the file."""
    target: torch.Tensor
    """As many values of this rank's state, which the values in the file replace."""


def file_name(rank: int) -> str:
    return f"state-{rank}.safetensors"


def save_state(engine: Any, folder: Path) -> RankRecord:
    """Write this rank's part of the state to a file, and return its record. Every rank must call
    it.

    At stage 0, where all ranks have the same values, rank 0 writes them.
    """
    rank = dist.get_rank()
    pieces: list[Piece] = []
    with optimizer_tensors(engine) as tensors:
        steps = float(tensors[0][STEP])
        if engine.zero_optimization_stage() == 0 and rank > 0:
            tensors = []
        else:
            pieces = pieces_of_ranks(engine, tensors)[rank]
        named = {}
        for index, flat in enumerate(tensors):
            for name in (WEIGHTS, *MOMENTS):
                named[f"{index}.{name}"] = flat[name].detach()
        positions = save_tensors(
            ((name, value.cpu()) for name, value in named.items()),
            folder / file_name(rank),
            shapes={name: tuple(value.shape) for name, value in named.items()},
        )
    return RankRecord(
        pieces=tuple(pieces),
        positions=positions,
        steps=steps,
        counters=counters(engine),
        schedule=engine.lr_scheduler.state_dict(),
    )


def load_state(engine: Any, *, uri: str, records: Sequence[RankRecord]) -> None:
    """Load the state under `uri`, which as many ranks as there are records wrote, into a new
    engine.

    Every rank must call it. Raises UnusableCheckpoint on every rank.
    """
    with optimizer_tensors(engine, replace=True) as tensors:
        pieces = pieces_of_ranks(engine, tensors)[dist.get_rank()]
        raise_on_all_ranks(
            lambda: _read(tensors, pieces=pieces, uri=uri, records=records), UnusableCheckpoint
        )
    load_counters(engine, records[0].counters, schedule=records[0].schedule)


def _read(
    tensors: Tensors, *, pieces: Sequence[Piece], uri: str, records: Sequence[RankRecord]
) -> None:
    """Read the values of `pieces` into the tensors. Raises UnusableCheckpoint."""
    try:
        needed = copies(pieces, saved=[record.pieces for record in records])
        ranges = list(_file_ranges(tensors, copied=needed, records=records))
    except (LookupError, ValueError) as error:
        raise UnusableCheckpoint(f"checkpoint {uri} does not fit the model: {error}") from error
    ranges.sort(key=lambda each: (each.rank, each.start))
    size = ceil(len(ranges) / NUM_THREADS) or 1
    shares = [ranges[first : first + size] for first in range(0, len(ranges), size)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(partial(_read_ranges, uri=uri), shares))
    for flat in tensors:
        flat[STEP].fill_(records[0].steps)


def _file_ranges(
    tensors: Tensors, *, copied: Iterable[Copy], records: Sequence[RankRecord]
) -> Iterator[FileRange]:
    """Yield the ranges of at most `CHUNK` bytes from which the values must be read."""
    for copy in copied:
        for name in (WEIGHTS, *MOMENTS):
            target = tensors[copy.target][name].detach().view(-1)
            values = target.narrow(0, copy.target_start, copy.length)
            start = records[copy.rank].positions[f"{copy.source}.{name}"]
            start += VALUE_BYTES * copy.source_start
            for part in torch.split(values, CHUNK // VALUE_BYTES):
                yield FileRange(copy.rank, start, part)
                start += VALUE_BYTES * part.numel()


def _read_ranges(ranges: Sequence[FileRange], *, uri: str) -> None:
    """Read sorted ranges into the tensors that need them."""
    for rank, in_file in groupby(ranges, key=lambda each: each.rank):
        name = f"{uri}/{file_name(rank)}"
        with open_file(name) as file:
            reader = BufferedReader(file, BUFFER)
            for each in in_file:
                values = bytearray(VALUE_BYTES * each.target.numel())
                reader.seek(each.start)
                if reader.readinto(values) < len(values):
                    raise UnusableCheckpoint(f"{name} is truncated: it has {file.size()} bytes")
                each.target.copy_(torch.frombuffer(values, dtype=torch.float32))
