"""The visible part of a growing answer is the same, however its text arrives."""

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


def test_what_may_become_a_stop_text_is_held_back_until_it_is_not() -> None:
    assert visible_text("so it EN", stops=("END",), ended=False)[0] == "so it"
    assert visible_text("so it ENds", stops=("END",), ended=False)[0] == "so it ENds"
    assert visible_text("so it EN", stops=("END",), ended=True)[0] == "so it EN"


def test_half_a_character_is_held_back_until_its_other_half_is_there() -> None:
    assert visible_text("a \ufffd", stops=(), ended=False)[0] == "a"
    assert visible_text("a é", stops=(), ended=False)[0] == "a é"
    assert visible_text("a \ufffd", stops=(), ended=True)[0] == "a \ufffd"


def test_what_continues_a_text_keeps_the_white_space_at_its_ends() -> None:
    assert visible_text(" a\n", stops=(), ended=False, stripped=False)[0] == " a\n"
    assert visible_text(" a END", stops=("END",), ended=True, stripped=False) == (" a ", True)


@given(LETTERS, STOPS, st.booleans())
def test_each_result_begins_with_those_before_it_and_the_last_is_the_whole_texts(
    text: str, stops: list[str], stripped: bool
) -> None:
    whole = visible_text(text, stops=stops, ended=True, stripped=stripped)
    before = ""
    for size in range(len(text) + 1):
        visible, stopped = visible_text(text[:size], stops=stops, ended=size == len(text), stripped=stripped)
        assert visible.startswith(before)
        before = visible
        if stopped:
            break
    assert (visible, stopped) == whole
