"""Patterns in which a text leads to many positions are refused, because their tokens take seconds
to find."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.config.formats.pattern_positions import Positions, overlaps
from tailorbird.config.formats.schema_pattern import MAX_AMBIGUITY, _Parser, exact_pattern
from tests.unit.config.formats.test_schema_pattern import PATTERNS


def positions_of(pattern: str) -> Positions:
    return _Parser(pattern).alternatives().positions


def matches(positions: Positions, text: str) -> bool:
    """Return whether the positions match a text."""
    reached, following, is_end = 0, positions.first, positions.is_optional
    for char in text:
        at = [index for index in range(len(positions.classes)) if following >> index & 1]
        reached = sum(
            1 << i
            for i in at
            if any(low <= ord(char) <= high for low, high in positions.classes[i])
        )
        following = 0
        for index, each in enumerate(positions.followers):
            following |= each if reached >> index & 1 else 0
        is_end = bool(reached & positions.last)
    return is_end


@given(PATTERNS, st.text("ab.1", max_size=6))
def test_the_positions_match_the_texts_of_the_pattern(pattern: str, text: str) -> None:
    try:
        positions = positions_of(pattern)
    except ValueError:
        return
    assert matches(positions, text) == bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize(
    "pattern",
    [
        "(.{0,5})*", f"({'.?' * 8})*", f"({'.?' * 20})*", "((.?.?.?.?)*(.?.?.?.?)*)*", "(..?.?.?.?.?.?.?)*",
        "(.?)*", "(.*)+", "((a+)+)b", r"(\w+\s?)+", "([a-z][a-z]?)*", "(a|ab){3,}", "(x(a*b?a*)+y){2}", "(|a)*",
    ],
)  # fmt: skip
def test_a_loop_over_a_group_that_divides_a_text_in_several_ways_is_refused(pattern: str) -> None:
    with pytest.raises(
        ValueError, match="repeats a group without limit that can be empty, or in which"
    ):
        exact_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        ".?" * 7,
        ".?" * 20,
        "(.?){22}",
        "(.+|a.){11}",
        ".{0,20}[a-z]{0,20}.{0,20}",
        "[a-z]?" * 12,
        "a?" * 128,
    ],
)
def test_many_parts_that_can_start_with_the_same_character_are_refused(pattern: str) -> None:
    with pytest.raises(
        ValueError, match="has too many parts that can start with the same character"
    ):
        exact_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        ".{0,256}", ".?" * 6, "^[a-z0-9]+(-[a-z0-9]+)*$", r"(\w+ )*\w+", "([^,]*,)*[^,]*", "([A-Z][a-z]* ?)+",
        r"^[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}$", r"(https?://)?[\w.-]+(/[\w.-]*)*", ".*foo.*",
        r"((25[0-5]|2[0-4]\d|1?\d?\d)(\.|)){4}", "(jan|jun|jul|aug)", ".{1,16}.{1,16}", "(a?b?c?d)*",
    ],
)  # fmt: skip
def test_usual_patterns_are_accepted(pattern: str) -> None:
    assert exact_pattern(pattern).text


def test_options_that_can_be_empty_are_written_once() -> None:
    assert exact_pattern("((a?)?){0,2}").text == exact_pattern("((a?)){2}").text


def test_the_ambiguity_is_counted_in_characters_of_the_further_classes() -> None:
    assert sum(overlaps(positions_of("[ab]|[a-z]|x"))) == 14  # half of [ab] and [a-z]
    assert sum(overlaps(positions_of("ab|cd"))) == 0
    assert sum(overlaps(positions_of(".?" * 6))) == 15 * 96 < MAX_AMBIGUITY
