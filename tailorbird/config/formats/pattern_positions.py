"""The positions of a pattern, and how often the same text leads to several of them.

xgrammar follows all positions of a pattern at once. If a text leads to many of them, the allowed
tokens take seconds to find, and in a loop more with each character.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Ranges = tuple[tuple[int, int], ...]  # first and last code points, in order, without overlaps
MAX_CHOICES = 96
"""Characters of a class from which it costs as much as `.`, because most tokens are possible."""


class Positions(NamedTuple):
    """The automaton of a pattern (Glushkov, 1961): one position for each class, as often as it is
    repeated.

    Sets of positions are integers, whose bits are the indices of the positions.
    """

    classes: tuple[Ranges, ...] = ()
    first: int = 0
    last: int = 0
    followers: tuple[int, ...] = ()
    """The positions that can follow each one."""
    is_optional: bool = True
    """True if the pattern also matches the empty text."""


def of_class(ranges: Ranges) -> Positions:
    """Return the single position of a class."""
    return Positions((ranges,), 1, 1, (0,), is_optional=False)


def alternatives_of(parts: Sequence[Positions]) -> Positions:
    """Return the positions of parts, of which one is matched."""
    classes: list[Ranges] = []
    followers: list[int] = []
    first = last = 0
    for part in parts:
        shift = len(classes)
        classes += part.classes
        followers += [following << shift for following in part.followers]
        first = first | part.first << shift
        last = last | part.last << shift
    return Positions(
        tuple(classes), first, last, tuple(followers), any(part.is_optional for part in parts)
    )


def sequence_of(parts: Sequence[Positions], *, num_required: int | None = None) -> Positions:
    """Return the positions of parts that are matched in turn; those after `num_required` can be
    missing at the end."""
    num_required = len(parts) if num_required is None else num_required
    classes: list[Ranges] = []
    followers: list[int] = []
    first = last = before = 0  # `before`: positions that the next part can follow
    is_optional = True
    for index, part in enumerate(parts):
        shift = len(classes)
        classes += part.classes
        followers += [following << shift for following in part.followers]
        for position in _indices(before):
            followers[position] |= part.first << shift
        first |= part.first << shift if is_optional else 0
        ends = part.last << shift
        before = before | ends if part.is_optional else ends
        last = before if index < num_required else last | before
        is_optional = is_optional and part.is_optional
    return Positions(
        tuple(classes), first, last, tuple(followers), is_optional or num_required == 0
    )


def loop_of(part: Positions) -> Positions:
    """Return the positions of a part that is repeated without limit.

    Raises ValueError if the part can be empty, or if a text can be divided into its repetitions in
    several ways.
    """
    followers = list(part.followers)
    is_ambiguous = part.is_optional
    for position in _indices(part.last):
        is_ambiguous = is_ambiguous or bool(followers[position] & part.first)
        followers[position] |= part.first
    looped = part._replace(followers=tuple(followers))
    if is_ambiguous or any(overlaps(looped)):
        raise ValueError(
            "repeats a group without limit that can be empty, or in which a character can "
            "continue in several ways; give its parts different first characters, as in "
            "`(,[a-z]+)*`"
        )
    return looped


def overlaps(positions: Positions) -> Iterator[int]:
    """Yield in how many ways the same character can continue, at the start and after each position.

    The unit is characters of the further classes, at most `MAX_CHOICES` for each. 0 is unambiguous.
    """
    sets = Counter(each for each in (positions.first, *positions.followers) if each & (each - 1))
    for each, count in sets.items():
        yield count * _overlap([positions.classes[index] for index in _indices(each)])


def num_choices(ranges: Ranges) -> int:
    """Return the number of characters of a class, at most `MAX_CHOICES`."""
    return min(sum(last - first + 1 for first, last in ranges), MAX_CHOICES)


def _overlap(classes: Sequence[Ranges]) -> int:
    """Return the choices of classes that share a character, without one of them, for the character
    with the most."""
    edges = sorted(
        edge
        for ranges in classes
        for choices in (num_choices(ranges),)
        for first, last in ranges
        for edge in ((first, 1, choices), (last + 1, -1, -choices))
    )
    most = count = total = 0
    for _, step, choices in edges:
        count = count + step
        total = total + choices
        if count > 1:
            most = max(most, total - total // count)
    return most


def _indices(positions: int) -> Iterator[int]:
    while positions:
        lowest = positions & -positions
        yield lowest.bit_length() - 1
        positions ^= lowest
