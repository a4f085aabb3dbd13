"""Every value of a new rank comes from its place in the tensors of the previous ranks, for any number
of ranks."""

from collections.abc import Callable, Iterator
from math import ceil, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.engine.partitions import Piece, copies, pieces_of_concatenation, pieces_of_parameters

PADDING = -1
SHAPES = st.lists(st.lists(st.integers(1, 5), max_size=2), min_size=1, max_size=5)
RANKS = st.integers(1, 7)
Layout = tuple[list[list[list[int]]], list[list[Piece]]]
"""The values of each flat tensor of each rank, and the pieces of each rank."""


def concatenated(shapes: list[list[int]], num_ranks: int) -> Layout:
    """Lay out two flat tensors as stages 1 and 2 do: concatenate the parameters, pad them, and
    split the result."""
    flats: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    lengths, paddings = [], []
    for numbers in halves(len(shapes)):
        paddings.append([number % 3 for number in numbers])
        values = []
        for number in numbers:
            values += [1000 * number + value for value in range(prod(shapes[number]))] + [
                PADDING
            ] * (number % 3)
        lengths.append(
            ceil(len(values) / num_ranks) + 1
        )  # also with padding if the division is exact
        for rank, flat in enumerate(flats):
            own = values[rank * lengths[-1] : (rank + 1) * lengths[-1]]
            flat.append(own + [PADDING] * (lengths[-1] - len(own)))
    tensors = named(shapes)
    return flats, pieces_of_concatenation(
        tensors, num_ranks=num_ranks, lengths=lengths, paddings=paddings
    )


def split(shapes: list[list[int]], num_ranks: int) -> Layout:
    """Lay out two flat tensors as stage 3 does: pad and split each parameter, and concatenate the
    parts of a rank."""
    flats: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    for numbers in halves(len(shapes)):
        for rank in range(num_ranks):
            flats[rank].append([])
            for number in numbers:
                values = [1000 * number + value for value in range(prod(shapes[number]))]
                length = ceil(len(values) / num_ranks)
                own = values[rank * length : (rank + 1) * length]
                flats[rank][-1] += own + [PADDING] * (length - len(own))
    return flats, pieces_of_parameters(named(shapes), num_ranks=num_ranks)


def named(shapes: list[list[int]]) -> list[dict[str, list[int]]]:
    return [{str(number): shapes[number] for number in numbers} for numbers in halves(len(shapes))]


def halves(number: int) -> Iterator[range]:
    yield range(number // 2)
    yield range(number // 2, number)


@pytest.mark.parametrize("layout", [concatenated, split])
@given(shapes=SHAPES, before=RANKS, after=RANKS)
def test_a_new_rank_copies_each_of_its_values_from_the_former_ranks(
    layout: Callable[[list[list[int]], int], Layout],
    shapes: list[list[int]],
    before: int,
    after: int,
) -> None:
    (previous, saved), (expected, pieces) = layout(shapes, before), layout(shapes, after)
    for rank in range(after):
        result = [[PADDING] * len(flat) for flat in expected[rank]]
        for copy in copies(pieces[rank], saved=saved):
            values = previous[copy.rank][copy.source][
                copy.source_start : copy.source_start + copy.length
            ]
            result[copy.target][copy.target_start : copy.target_start + copy.length] = values
        assert result == expected[rank]
