"""The outcome table: a test a rule, a test a hole between rules, and every input gets exactly one outcome."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.verdict.rules import OUTCOME_OF_RULE, Facts, Outcome, select_rule

PASSES, FAILS, OPEN = State.PASSES, State.FAILS, State.NOT_ASSESSABLE
WON = Facts(leaks=False, proven=True, low=0.02, high=0.06, minimum_gain=0.01)
UNSURE = Facts(leaks=False, proven=False, low=-0.005, high=0.03, minimum_gain=0.01)
NAMES = ("calibration", "groups", "counterfactual", "robustness", "cost")

gate_states = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(list(State)))
ends = st.floats(-1, 1)
facts = st.builds(
    lambda a, b, **rest: Facts(low=min(a, b), high=max(a, b), **rest),
    ends,
    ends,
    leaks=st.booleans(),
    proven=st.booleans(),
    minimum_gain=st.floats(0, 0.5),
    regulated=st.booleans(),
    gates=gate_states,
    hybrid_proven=st.booleans(),
    hybrid_gates=gate_states,
    cheaper=st.booleans(),
)


def test_2_a_leak_outranks_everything() -> None:
    assert select_rule(replace(WON, leaks=True)) == 2


@pytest.mark.parametrize("gates", [{}, {"calibration": PASSES, "cost": PASSES}, {"groups": OPEN}])
def test_3_proven_and_nothing_fails(gates: dict[str, State]) -> None:
    assert select_rule(replace(WON, gates=gates)) == 3


@pytest.mark.parametrize("failed", [{"groups": FAILS}, {"cost": FAILS}, {"groups": FAILS, "cost": FAILS}])
def test_4_a_proven_hybrid_mends_groups_and_cost(failed: dict[str, State]) -> None:
    assert select_rule(replace(WON, gates=failed, hybrid_proven=True, hybrid_gates={"groups": PASSES})) == 4


@pytest.mark.parametrize("name", ["calibration", "counterfactual", "robustness"])
def test_5_a_hybrid_mends_no_gate_on_the_model_itself(name: str) -> None:
    assert select_rule(replace(WON, gates={name: FAILS, "groups": FAILS}, hybrid_proven=True)) == 5


def test_5_a_hybrid_that_fails_a_gate_of_its_own_mends_nothing() -> None:
    assert select_rule(replace(WON, gates={"groups": FAILS}, hybrid_proven=True, hybrid_gates={"groups": FAILS})) == 5


def test_5_a_hybrid_that_is_not_proven_mends_nothing() -> None:
    assert select_rule(replace(WON, gates={"groups": FAILS}, hybrid_gates={"groups": PASSES})) == 5


def test_5_a_failed_gate_stays_even_where_another_is_open_and_the_recipe_regulated() -> None:
    assert select_rule(replace(WON, gates={"robustness": FAILS, "groups": OPEN}, regulated=True)) == 5


def test_6_an_open_gate_stops_a_regulated_change() -> None:
    assert select_rule(replace(WON, gates={"groups": OPEN, "calibration": PASSES}, regulated=True)) == 6


def test_5_a_regulated_hybrid_needs_every_gate_assessed() -> None:
    held = replace(WON, gates={"groups": FAILS}, hybrid_proven=True, hybrid_gates={"groups": OPEN})
    assert select_rule(held) == 4
    assert select_rule(replace(held, regulated=True)) == 5


def test_7_a_cheaper_candidate_that_is_not_much_worse() -> None:
    assert select_rule(replace(UNSURE, cheaper=True)) == 7
    assert select_rule(replace(UNSURE, cheaper=True, low=-0.01)) == 8  # on the limit is not above it
    assert select_rule(replace(UNSURE, cheaper=True, gates={"calibration": FAILS})) == 8
    assert select_rule(replace(UNSURE, cheaper=True, gates={"calibration": OPEN}, regulated=True)) == 8


def test_8_the_interval_holds_no_gain_and_the_minimum() -> None:
    assert select_rule(UNSURE) == 8
    assert select_rule(replace(UNSURE, low=0.0, high=0.01)) == 8


@pytest.mark.parametrize(
    ("low", "high"),
    [(-0.02, 0.009), (-0.05, -0.02), (0.001, 0.009), (0.001, 0.03)],
    ids=["gain ruled out", "worse", "too small", "not proven for another reason"],
)
def test_9_otherwise(low: float, high: float) -> None:
    assert select_rule(replace(UNSURE, low=low, high=high)) == 9


@given(facts)
def test_every_input_gets_exactly_one_outcome(case: Facts) -> None:
    assert OUTCOME_OF_RULE[select_rule(case)] in Outcome


@given(facts)
def test_a_change_of_model_never_follows_a_leak_or_a_failed_gate(case: Facts) -> None:
    if OUTCOME_OF_RULE[select_rule(case)] is Outcome.FINE_TUNE:
        assert not case.leaks
        assert FAILS not in case.gates.values()
        assert case.proven or case.cheaper
        assert not (case.regulated and OPEN in case.gates.values())


@given(facts)
def test_without_proof_only_cost_changes_the_model(case: Facts) -> None:
    rule = select_rule(replace(case, proven=False, cheaper=False))
    assert rule in (2, 8, 9)
