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
        ("one two", (), "one two", False),
        (" one ", (), "one", False),
        ("one\n\ntwo", ("\n\n",), "one", True),
        ("one END", ("END", "E"), "one", True),
        ("END", ("END",), "", True),
        ("abcd", ("abcd", "bc"), "a", True),
        ("abc", ("bc", "abc"), "", True),
    ],
)
def test_an_answer_ends_before_the_stop_text_that_is_complete_first(
    decoded: str, stops: tuple[str, ...], text: str, stopped: bool
) -> None:
    assert visible_text(decoded, stops=stops, ended=True) == (text, stopped)


def test_a_possible_start_of_a_stop_text_is_held_back() -> None:
    assert visible_text("so it EN", stops=("END",), ended=False)[0] == "so it"
    assert visible_text("so it ENds", stops=("END",), ended=False)[0] == "so it ENds"
    assert visible_text("so it EN", stops=("END",), ended=True)[0] == "so it EN"


def test_an_incomplete_character_is_held_back() -> None:
    assert visible_text("a \ufffd", stops=(), ended=False)[0] == "a"
    assert visible_text("a é", stops=(), ended=False)[0] == "a é"
    assert visible_text("a \ufffd", stops=(), ended=True)[0] == "a \ufffd"


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
