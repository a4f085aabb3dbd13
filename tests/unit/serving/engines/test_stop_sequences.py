"""The visible part of an answer does not depend on the parts in which its text arrives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engines.stop_sequences import visible_text

LETTERS = st.text(alphabet="ab \n\ufffd", max_size=12)
STOPS = st.lists(st.text(alphabet="ab \n", min_size=1, max_size=4), max_size=4)


@pytest.mark.parametrize(
    ("decoded", "stops", "text", "stopped"),
    [
        ("one END", ("END", "E"), "one", True),
        ("abcd", ("abcd", "bc"), "a", True),
        ("abc", ("bc", "abc"), "", True),
        (" so it EN ", ("END",), "so it EN", False),
    ],
)
def test_an_answer_ends_before_the_stop_text_that_is_complete_first(
    decoded: str, stops: tuple[str, ...], text: str, stopped: bool
) -> None:
    assert visible_text(decoded, stops=stops, ended=True) == (text, stopped)


@pytest.mark.parametrize(
    ("decoded", "text"), [("so it EN", "so it"), ("so it ENds", "so it ENds"), ("a \ufffd", "a")]
)
def test_only_an_incomplete_character_and_a_possible_start_of_a_stop_text_are_held_back(
    decoded: str, text: str
) -> None:
    assert visible_text(decoded, stops=("END",), ended=False) == (text, False)


@given(LETTERS, STOPS)
def test_each_result_starts_with_the_previous_one_and_the_last_equals_the_whole(
    text: str, stops: list[str]
) -> None:
    whole = visible_text(text, stops=stops, ended=True)
    before = ""
    for size in range(len(text) + 1):
        visible, stopped = visible_text(text[:size], stops=stops, ended=size == len(text))
        assert visible.startswith(before)
        before = visible
        if stopped:
            break
    assert (visible, stopped) == whole
