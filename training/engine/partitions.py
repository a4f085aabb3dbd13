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
    """Consecutive values that a rank has saved and a new rank needs."""

    rank: int
    """The rank that saved them."""
    source: int
    """Index of the flat tensor of the rank that saved them."""
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
                piece = Piece(
                    name,
                    offset=start - first,
                    length=end - start,
                    tensor=index,
                    start=start - rank * length,
                )
                pieces[rank].append(piece)
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
            for rank in range(num_ranks):
                offset = rank * per_rank
                length = min(per_rank, prod(shape) - offset)
                if length > 0:
                    piece = Piece(name, offset=offset, length=length, tensor=index, start=start)
                    pieces[rank].append(piece)
            start += per_rank
    return pieces


def copies(pieces: Iterable[Piece], *, saved: Iterable[Iterable[Piece]]) -> Iterator[Copy]:
    """Yield what a rank with these pieces copies from the pieces that each rank saved.

    Raises ValueError if the ranks did not save all values.
    """
    sources: dict[str, list[tuple[int, Piece]]] = defaultdict(list)
    for rank, saved_pieces in enumerate(saved):
        for source in saved_pieces:
            sources[source.parameter].append((rank, source))
    for piece in pieces:
        num_found = 0
        for rank, source in sources[piece.parameter]:
            first = max(piece.offset, source.offset)
            length = min(piece.offset + piece.length, source.offset + source.length) - first
            if length > 0:
                num_found += length
                yield Copy(
                    rank=rank,
                    source=source.tensor,
                    source_start=source.start + first - source.offset,
                    target=piece.tensor,
                    target_start=piece.start + first - piece.offset,
                    length=length,
                )
        if num_found != piece.length:
            raise ValueError(
                f"{num_found} instead of {piece.length} values of {piece.parameter} were saved"
            )
