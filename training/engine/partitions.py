"""Where the values of each parameter are in the flat tensors of ZeRO's ranks. All numbers count
values."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

Shapes = Mapping[str, Sequence[int]]
"""The shapes of the parameters of a flat tensor, in their order."""


@dataclass(frozen=True)
class Piece:
    """Consecutive values of a parameter in a flat tensor of a rank."""

    parameter: str
    offset: int
    """Position of the first value in the whole parameter."""
    length: int
    tensor: int
    """Index of the flat tensor."""
    start: int
    """Position of the first value in the flat tensor."""


@dataclass(frozen=True)
class Copy:
    """Consecutive values that a former rank has and a new rank needs."""

    rank: int
    """The former rank."""
    source: int
    """Index of the flat tensor of the former rank."""
    source_start: int
    target: int
    """Index of the flat tensor of the new rank."""
    target_start: int
    length: int


def pieces_of_concatenation(
    tensors: Sequence[Shapes],
    *,
    num_ranks: int,
    lengths: Sequence[int],
    paddings: Sequence[Sequence[int]],
) -> list[list[Piece]]:
    """Return the pieces of each rank at stages 1 and 2, where the ranks split the concatenation of
    the parameters.

    `lengths` has the length of each flat tensor of a rank, and `paddings` the values after each of
    its parameters.
    """
    pieces: list[list[Piece]] = [[] for _ in range(num_ranks)]
    for index, (shapes, length) in enumerate(zip(tensors, lengths, strict=True)):
        first = 0
        for (name, shape), padding in zip(shapes.items(), paddings[index], strict=True):
            last = first + prod(shape)
            for rank in range(first // length, ceil(last / length)):
                start = max(first, rank * length)
                end = min(last, (rank + 1) * length)
                pieces[rank].append(
                    Piece(name, start - first, end - start, index, start - rank * length)
                )
            first = last + padding
    return pieces


def pieces_of_parameters(tensors: Iterable[Shapes], *, num_ranks: int) -> list[list[Piece]]:
    """Return the pieces of each rank at stage 3, where the ranks split each parameter.

    All ranks have the same number of values of a parameter; the last values can be padding.
    """
    pieces: list[list[Piece]] = [[] for _ in range(num_ranks)]
    for index, shapes in enumerate(tensors):
        start = 0
        for name, shape in shapes.items():
            per_rank = ceil(prod(shape) / num_ranks)
            for rank, own in enumerate(pieces):
                length = min(per_rank, prod(shape) - rank * per_rank)
                if length > 0:
                    own.append(Piece(name, rank * per_rank, length, index, start))
            start += per_rank
    return pieces


def copies(pieces: Iterable[Piece], *, saved: Iterable[Iterable[Piece]]) -> Iterator[Copy]:
    """Yield what a rank with these pieces copies from the pieces that each former rank saved.

    Raises ValueError if the former ranks did not save all values.
    """
    sources: dict[str, list[tuple[int, Piece]]] = defaultdict(list)
    for rank, of_rank in enumerate(saved):
        for source in of_rank:
            sources[source.parameter].append((rank, source))
    for piece in pieces:
        num_found = 0
        for rank, source in sources[piece.parameter]:
            first = max(piece.offset, source.offset)
            length = min(piece.offset + piece.length, source.offset + source.length) - first
            if length > 0:
                num_found += length
                source_start = source.start + first - source.offset
                start = piece.start + first - piece.offset
                yield Copy(rank, source.tensor, source_start, piece.tensor, start, length)
        if num_found != piece.length:
            raise ValueError(
                f"{num_found} instead of {piece.length} values of {piece.parameter} were saved"
            )
