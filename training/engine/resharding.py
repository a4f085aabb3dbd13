"""Load a checkpoint with another number of ranks: each rank reads only the values of its own
partition from storage.

A checkpoint has a shard for each former rank. A new rank reads the headers of the shards, computes
where the values of its partition are, and reads these byte ranges into the tensors of its engine.
Nothing is written to a disk. Ranges that are close together in a file are read at once, because
each read is a request to S3.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from tailorbird.storage import open_file, storage_errors
from training.engine.deepspeed_private import (
    COMMON_STATE,
    LOSS_SCALE,
    MOMENTS,
    OPTIMIZER,
    PARAMETER_SHAPES,
    STEP,
    VERSION,
    WEIGHTS,
    common_and_shards,
    flat_tensors,
    load_optimizer_state,
    new_optimizer_state,
    paddings_of_parameters,
    parameter_shapes,
    splits_parameters,
)
from training.engine.partitions import (
    Copy,
    Piece,
    Shapes,
    copies,
    pieces_of_concatenation,
    pieces_of_parameters,
)
from training.ranks import raise_on_all_ranks
from training.safe_checkpoint_loading import (
    UnusableCheckpoint,
    position_in_file,
    read_header,
    tensors_only,
)

NUM_THREADS = 8  # that read at the same time; each holds the bytes of a read up to twice
CHUNK = 16 << 20  # maximum bytes of a read
MAX_GAP = 1 << 20
"""Maximum bytes between two ranges of a read. To read and discard them takes about as long as
another request to S3."""


@dataclass(frozen=True)
class FileRange:
    """Consecutive values in the file of a shard, and where this rank needs them."""

    rank: int
    """The former rank that wrote the shard."""
    start: int
    """Position of the first byte in the file."""
    dtype: torch.dtype
    """Type of the values in the file."""
    target: torch.Tensor
    """As many values of this rank's state, which the values in the file replace."""

    @property
    def end(self) -> int:
        return self.start + self.target.numel() * self.dtype.itemsize


def load_resharded(engine: Any, *, uri: str, names: Iterable[str], num_saved: int) -> None:
    """Load the files `names` under `uri`, which `num_saved` ranks wrote, into a new engine.

    Every rank must call it. Raises UnusableCheckpoint on every rank.
    """
    state = new_optimizer_state(engine)
    own = _pieces(state, parameter_shapes(engine), num_ranks=dist.get_world_size())[dist.get_rank()]
    common = raise_on_all_ranks(
        lambda: _read(state, own=own, uri=uri, names=names, num_saved=num_saved), UnusableCheckpoint
    )
    load_optimizer_state(engine, state, common=common)


def _read(
    state: dict[str, Any], *, own: Sequence[Piece], uri: str, names: Iterable[str], num_saved: int
) -> dict[str, Any]:
    """Read the values of `own` into the tensors of `state`, and return what all ranks share
    (COMMON_STATE).

    Raises UnusableCheckpoint.
    """
    common_name, shard_names = common_and_shards(names)
    if common_name is None or len(shard_names) != num_saved:
        raise UnusableCheckpoint(
            f"checkpoint {uri} has {len(shard_names)} shards instead of {num_saved}"
        )
    with ExitStack() as stack, tensors_only(), ThreadPoolExecutor(NUM_THREADS) as pool:
        files = [
            stack.enter_context(open_file(f"{uri}/{name}")) for name in (common_name, *shard_names)
        ]
        header, *headers = pool.map(
            partial(read_header, uri=uri), files, (common_name, *shard_names)
        )
        try:
            shards = [of_rank[OPTIMIZER] for of_rank in headers]
            saved = _pieces(shards[0], header[PARAMETER_SHAPES], num_ranks=num_saved)
            reads = coalesced(_file_ranges(state, shards=shards, copied=copies(own, saved=saved)))
            common = {name: header[name] for name in COMMON_STATE}
        except ValueError as error:
            raise UnusableCheckpoint(f"checkpoint {uri} does not fit the model: {error}") from error
        except (AttributeError, LookupError, RuntimeError, TypeError) as error:
            raise UnusableCheckpoint(
                f"checkpoint {uri} does not have the layout of DeepSpeed {VERSION} "
                f"({type(error).__name__}: {error})"
            ) from error
        uris = [f"{uri}/{name}" for name in shard_names]
        for _ in pool.map(
            lambda read: _read_ranges(files[1 + read[0].rank], read, uri=uris[read[0].rank]), reads
        ):
            pass
    state.update({name: shards[0][name] for name in LOSS_SCALE if name in shards[0]})
    return common


def _file_ranges(
    state: dict[str, Any], *, shards: Sequence[dict[str, Any]], copied: Iterable[Copy]
) -> Iterator[FileRange]:
    """Yield the ranges of at most `CHUNK` bytes from which the values of `state` must be read.

    `shards` are the headers of the shards.
    """
    sources = [flat_tensors(shard) for shard in shards]
    targets = flat_tensors(state)
    step = sources[0][0][STEP]
    for target in targets:
        yield FileRange(0, position_in_file(step), step.dtype, target[STEP].view(1))
    for copy in copied:
        for name in (WEIGHTS, *MOMENTS):
            source = sources[copy.rank][copy.source][name].narrow(0, copy.source_start, copy.length)
            values = targets[copy.target][name].detach().narrow(0, copy.target_start, copy.length)
            size = CHUNK // source.dtype.itemsize
            for part, target_part in zip(
                torch.split(source, size), torch.split(values, size), strict=True
            ):
                yield FileRange(copy.rank, position_in_file(part), part.dtype, target_part)


def coalesced(ranges: Iterable[FileRange]) -> list[list[FileRange]]:
    """Return the ranges of each read, sorted by their position in the file.

    They are of one file, at most `MAX_GAP` bytes apart, and together at most `CHUNK` bytes with the
    bytes in between.
    """
    reads: list[list[FileRange]] = []
    for own in sorted(ranges, key=lambda own: (own.rank, own.start)):
        last = reads[-1] if reads else [own]
        near = own.rank == last[0].rank and own.start - last[-1].end <= MAX_GAP
        if reads and near and own.end - last[0].start <= CHUNK:
            last.append(own)
        else:
            reads.append([own])
    return reads


def _pieces(
    state: dict[str, Any], shapes: Sequence[Shapes], *, num_ranks: int
) -> list[list[Piece]]:
    if splits_parameters(state):
        return pieces_of_parameters(shapes, num_ranks=num_ranks)
    lengths = [len(tensors[MOMENTS[0]]) for tensors in flat_tensors(state)]
    paddings = paddings_of_parameters(state, shapes)
    return pieces_of_concatenation(shapes, num_ranks=num_ranks, lengths=lengths, paddings=paddings)


def _read_ranges(file: Any, ranges: Sequence[FileRange], *, uri: str) -> None:
    """Read ranges of a file, in one read, into the tensors that need them."""
    start = ranges[0].start
    num_bytes = max(own.end for own in ranges) - start
    with storage_errors(uri):
        data = memoryview(file.read_at(num_bytes, start))
    if len(data) != num_bytes:
        raise UnusableCheckpoint(
            f"{uri} is truncated: {len(data)} instead of {num_bytes} bytes of tensors were read"
        )
    for own in ranges:
        values = bytearray(data[own.start - start : own.end - start])
        own.target.copy_(torch.frombuffer(values, dtype=own.dtype))
