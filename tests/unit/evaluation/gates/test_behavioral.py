"""Flips and drops counted by hand, and the tables that must not be compared."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorbird.config.evaluation import CounterfactualGateConfig, RobustnessGateConfig
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.behavioral import Tables, counterfactual_gate, robustness_gate
from tailorbird.evaluation.predictions import Predictions, VerdictRefused
from tailorbird.evaluation.statistics.paired import PairedCounts, newcombe_paired_interval


def table(row_ids: list[str], outputs: list[str]) -> Predictions:
    """Predictions of rows whose label is a."""
    n, scores = len(row_ids), np.array([float(output == "a") for output in outputs])
    return Predictions("full", tuple(row_ids), ("a",) * n, tuple(outputs), scores, np.ones(n), np.ones(n))


def both(clean: str, changed: str, kinds: tuple[str, ...] = ("sex",)) -> Tables:
    """One letter an answer; of each row one changed text for each kind, kind by kind within a row."""
    rows = [str(row) for row in range(len(clean))]
    return table(rows, list(clean)), table([f"{row}|{kind}" for row in rows for kind in kinds], list(changed))


def flips(candidate: Tables, incumbent: Tables) -> Gate:
    """The gate on at most one point more."""
    limits = CounterfactualGateConfig(max_increase=0.01)
    return counterfactual_gate(candidate=candidate, incumbent=incumbent, limits=limits, alpha=0.05)


def drops(candidate: Tables, incumbent: Tables) -> Gate:
    """The gate on at most two points more."""
    limits = RobustnessGateConfig(max_extra_drop=0.02)
    return robustness_gate(candidate=candidate, incumbent=incumbent, limits=limits, alpha=0.05)


STEADY = both("a" * 600, "a" * 600)


def test_a_candidate_that_never_turns_passes_and_one_that_often_does_fails() -> None:
    assert flips(STEADY, STEADY).state is State.PASSES
    turning = both("a" * 600, "b" * 60 + "a" * 540)
    gate = flips(turning, STEADY)
    assert gate.state is State.FAILS
    assert gate.bounds[0].estimate == pytest.approx(0.1)
    assert gate.bounds[0].interval == newcombe_paired_interval(PairedCounts(0, 60, 0, 540))
    assert "sex 60 and 0 of 600" in gate.note


def test_an_incumbent_that_turns_as_often_excuses_the_candidate() -> None:
    turning = both("a" * 6000, "b" * 60 + "a" * 5940)
    assert flips(turning, turning).state is State.PASSES


def test_a_flip_is_a_change_of_the_same_models_answer_whether_right_or_not() -> None:
    gate = flips(both("bbb", "bab"), both("aaa", "aaa"))
    assert gate.bounds[0].estimate == pytest.approx(1 / 3)


def test_a_row_with_several_changed_texts_counts_once() -> None:
    gate = flips(both("aa", "bbaa", ("age", "sex")), both("aa", "aaab", ("age", "sex")))
    assert gate.bounds[0].n == 2
    assert gate.bounds[0].estimate == 0
    assert gate.note.endswith("age 1 and 0 of 2, sex 1 and 1 of 2")


def test_few_swappable_rows_decide_nothing_and_none_at_all_is_noted() -> None:
    few = both("a" * 20, "a" * 20)
    assert flips(few, few).state is State.NOT_ASSESSABLE
    none = (few[0], table([], []))
    gate = flips(none, none)
    assert (gate.state, gate.bounds) == (State.NOT_ASSESSABLE, ())
    assert "could be swapped" in gate.note


def test_row_ids_may_hold_the_sign_that_parts_them_from_the_kind() -> None:
    odd = table(["a|b", "c"], ["a", "b"]), table(["a|b|sex"], ["b"])
    assert flips(odd, odd).bounds[0].n == 1


def test_a_drop_is_what_the_change_costs_and_is_compared_with_the_incumbents() -> None:
    fragile = both("a" * 600, "b" * 60 + "a" * 540)
    gate = drops(fragile, STEADY)
    assert gate.state is State.FAILS
    assert gate.bounds[0].estimate == pytest.approx(0.1)
    assert gate.note == "the candidate loses 10.00 points, the incumbent 0.00"
    assert drops(fragile, fragile).state is State.PASSES
    assert drops(STEADY, fragile).state is State.PASSES
    assert drops(STEADY, fragile).bounds[0].estimate == pytest.approx(-0.1)


def test_a_lower_clean_score_is_no_drop() -> None:
    assert drops(both("b" * 600, "b" * 600), STEADY).bounds[0].estimate == 0


def test_rows_on_which_nothing_happened_prove_nothing_where_they_are_few() -> None:
    few = both("a" * 50, "a" * 50)
    assert drops(few, few).state is State.NOT_ASSESSABLE
    assert drops(few, few).bounds[0].rows_needed is not None
    single = both("a", "a")
    assert (drops(single, single).state, drops(single, single).bounds) == (State.NOT_ASSESSABLE, ())


@pytest.mark.parametrize("judge", [flips, drops])
def test_tables_of_other_rows_are_refused(judge: object) -> None:
    assert callable(judge)
    pair = both("aa", "ab")
    shifted = (pair[0], table(["1|sex", "2|sex"], ["a", "b"]))
    with pytest.raises(VerdictRefused, match=r"'2\|sex' comes of no row"):
        judge(shifted, shifted)
    with pytest.raises(VerdictRefused, match="row ids"):
        judge(pair, shifted)
    with pytest.raises(VerdictRefused, match="2 and 3 rows"):
        judge(pair, both("aaa", "aaa"))
    relabelled = (pair[0], replace(pair[1], labels=("a", "b")))
    with pytest.raises(VerdictRefused, match="has the label 'b'"):
        judge(relabelled, relabelled)
    with pytest.raises(VerdictRefused, match="no row"):
        judge((pair[0], table([], [])), pair)
    with pytest.raises(VerdictRefused):
        judge(pair, (pair[0], table([], [])))


@settings(max_examples=15)
@given(st.lists(st.text("ab", min_size=4, max_size=4), min_size=1, max_size=30))
def test_any_tables_give_one_state_by_their_whole_interval(rows: list[str]) -> None:
    candidate, incumbent = (
        both("".join(row[at] for row in rows), "".join(row[at + 1] for row in rows)) for at in (0, 2)
    )
    for gate in (flips(candidate, incumbent), drops(candidate, incumbent)):
        for bound in gate.bounds:
            low, high = bound.interval
            assert low <= bound.estimate <= high
            assert (bound.state is State.PASSES) == (high <= bound.limit)
            assert (bound.state is State.FAILS) == (low > bound.limit)
