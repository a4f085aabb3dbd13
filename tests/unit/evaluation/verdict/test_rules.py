"""Tests of the outcome table: one test per rule and per boundary between rules."""

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


def test_2_a_leak_takes_precedence_over_every_other_rule() -> None:
    assert select_rule(replace(WON, leaks=True)) == 2


@pytest.mark.parametrize("gates", [{}, {"calibration": PASSES, "cost": PASSES}, {"groups": OPEN}])
def test_3_a_proven_gain_without_a_failed_gate(gates: dict[str, State]) -> None:
    assert select_rule(replace(WON, gates=gates)) == 3


@pytest.mark.parametrize("failed", [{"groups": FAILS}, {"cost": FAILS}, {"groups": FAILS, "cost": FAILS}])
def test_4_a_proven_hybrid_resolves_failed_groups_and_cost_gates(failed: dict[str, State]) -> None:
    assert select_rule(replace(WON, gates=failed, hybrid_proven=True, hybrid_gates={"groups": PASSES})) == 4


@pytest.mark.parametrize("name", ["calibration", "counterfactual", "robustness"])
def test_5_a_hybrid_does_not_resolve_other_failed_gates(name: str) -> None:
    assert select_rule(replace(WON, gates={name: FAILS, "groups": FAILS}, hybrid_proven=True)) == 5


def test_5_a_hybrid_that_fails_a_gate_is_not_served() -> None:
    assert select_rule(replace(WON, gates={"groups": FAILS}, hybrid_proven=True, hybrid_gates={"groups": FAILS})) == 5


def test_5_a_hybrid_without_a_proven_gain_is_not_served() -> None:
    assert select_rule(replace(WON, gates={"groups": FAILS}, hybrid_gates={"groups": PASSES})) == 5


def test_5_a_failed_gate_takes_precedence_over_an_open_gate_in_a_regulated_recipe() -> None:
    assert select_rule(replace(WON, gates={"robustness": FAILS, "groups": OPEN}, regulated=True)) == 5


def test_6_an_open_gate_prevents_a_change_in_a_regulated_recipe() -> None:
    assert select_rule(replace(WON, gates={"groups": OPEN, "calibration": PASSES}, regulated=True)) == 6


def test_5_a_regulated_recipe_requires_every_gate_of_the_hybrid_to_pass() -> None:
    open_hybrid = replace(WON, gates={"groups": FAILS}, hybrid_proven=True, hybrid_gates={"groups": OPEN})
    assert select_rule(open_hybrid) == 4
    assert select_rule(replace(open_hybrid, regulated=True)) == 5


def test_7_a_cheaper_candidate_that_is_not_much_worse() -> None:
    assert select_rule(replace(UNSURE, cheaper=True)) == 7
    assert select_rule(replace(UNSURE, cheaper=True, low=-0.01)) == 8  # equal to the limit, not above it
    assert select_rule(replace(UNSURE, cheaper=True, gates={"calibration": FAILS})) == 8
    assert select_rule(replace(UNSURE, cheaper=True, gates={"calibration": OPEN}, regulated=True)) == 8


def test_8_the_interval_contains_0_and_the_minimum_gain() -> None:
    assert select_rule(UNSURE) == 8
    assert select_rule(replace(UNSURE, low=0.0, high=0.01)) == 8


@pytest.mark.parametrize(
    ("low", "high"),
    [(-0.02, 0.009), (-0.05, -0.02), (0.001, 0.009), (0.001, 0.03)],
    ids=["gain ruled out", "worse", "too small", "not proven for another reason"],
)
def test_9_every_other_interval(low: float, high: float) -> None:
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
def test_without_a_proven_gain_only_cost_justifies_a_change(case: Facts) -> None:
    rule = select_rule(replace(case, proven=False, cheaper=False))
    assert rule in (2, 8, 9)
