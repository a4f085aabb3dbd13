"""Tests of the outcome table: one test per rule and per boundary between rules."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.verdict.rules import OUTCOME_OF_RULE, Facts, Outcome, select_rule

PASSES, FAILS, OPEN = State.PASSES, State.FAILS, State.NOT_ASSESSABLE
WON = Facts(leaks=False, proven=True, low=0.02, high=0.06, minimum_gain=0.01, margin=0.01)
UNSURE = Facts(leaks=False, proven=False, low=-0.005, high=0.03, minimum_gain=0.01, margin=0.01)
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
    margin=st.floats(0, 0.5),
    regulated=st.booleans(),
    gates=gate_states,
    hybrid_holds=st.booleans(),
    hybrid_gates=gate_states,
    cheaper=st.booleans(),
    accepted_loss=st.floats(0, 0.5),
    other_proven=st.booleans(),
    surpassed=st.booleans(),
)


def test_2_a_leak_takes_precedence_over_every_other_rule() -> None:
    assert select_rule(replace(WON, leaks=True, hybrid_holds=True)) == 2


@pytest.mark.parametrize("candidate", [WON, UNSURE, replace(WON, gates={"groups": FAILS})])
def test_3_a_hybrid_that_holds_takes_precedence_over_the_candidate(candidate: Facts) -> None:
    hybrid = replace(candidate, hybrid_holds=True, hybrid_gates={"groups": OPEN})
    assert select_rule(hybrid) == 3
    assert select_rule(replace(hybrid, hybrid_gates={"groups": FAILS})) != 3


def test_3_a_regulated_recipe_requires_every_gate_of_the_hybrid_to_pass() -> None:
    hybrid = replace(WON, gates={"groups": FAILS}, hybrid_holds=True, hybrid_gates={"groups": OPEN}, regulated=True)
    assert select_rule(hybrid) == 5


@pytest.mark.parametrize("gates", [{}, {"calibration": PASSES, "cost": PASSES}, {"groups": OPEN}])
def test_4_a_proven_gain_without_a_failed_gate(gates: dict[str, State]) -> None:
    assert select_rule(replace(WON, gates=gates, other_proven=True)) == 4


def test_4_a_candidate_is_not_chosen_if_a_contender_is_better_than_it() -> None:
    assert select_rule(replace(WON, other_proven=True, surpassed=True)) == 9


@pytest.mark.parametrize("name", NAMES)
def test_5_a_failed_gate_takes_precedence_over_an_open_gate_in_a_regulated_recipe(name: str) -> None:
    assert select_rule(replace(WON, gates={"another": OPEN, name: FAILS}, regulated=True)) == 5


def test_6_an_open_gate_prevents_a_change_in_a_regulated_recipe() -> None:
    regulated = replace(WON, gates={"groups": OPEN, "calibration": PASSES}, regulated=True)
    assert select_rule(regulated) == 6
    assert select_rule(replace(regulated, other_proven=True)) == 9


def test_7_a_cheaper_candidate_that_is_not_inferior() -> None:
    cheaper = replace(UNSURE, cheaper=True)
    assert select_rule(cheaper) == 7
    assert select_rule(replace(cheaper, low=-0.01)) == 8  # equal to the limit, not above it
    assert select_rule(replace(cheaper, margin=0.005)) == 8
    assert select_rule(replace(cheaper, gates={"calibration": FAILS})) == 8
    assert select_rule(replace(cheaper, gates={"calibration": OPEN}, regulated=True)) == 8
    assert select_rule(replace(cheaper, surpassed=True, other_proven=True)) == 9


def test_7_the_losses_accepted_for_cost_stay_under_the_minimum_gain() -> None:
    cheaper = replace(UNSURE, cheaper=True)
    assert select_rule(replace(cheaper, accepted_loss=0.009)) == 7
    assert select_rule(replace(cheaper, accepted_loss=0.01)) == 8
    assert select_rule(replace(cheaper, minimum_gain=0.0, accepted_loss=0.0)) == 7


def test_8_the_interval_contains_0_and_the_minimum_gain() -> None:
    assert select_rule(UNSURE) == 8
    assert select_rule(replace(UNSURE, low=0.0, high=0.01)) == 8


def test_9_a_proven_contender_replaces_the_incumbent_although_the_candidate_is_unclear() -> None:
    assert select_rule(replace(UNSURE, other_proven=True)) == 9


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
    outcome = OUTCOME_OF_RULE[select_rule(case)]
    gates = {Outcome.FINE_TUNE: case.gates, Outcome.HYBRID: case.hybrid_gates}.get(outcome, {})
    assert FAILS not in gates.values()
    assert not (case.regulated and OPEN in gates.values())
    if outcome in (Outcome.FINE_TUNE, Outcome.HYBRID):
        assert not case.leaks
    if outcome is Outcome.FINE_TUNE:
        assert case.proven or case.cheaper
        assert not case.surpassed


@given(facts)
def test_without_a_proven_gain_only_cost_justifies_the_candidate(case: Facts) -> None:
    rule = select_rule(replace(case, proven=False, cheaper=False, hybrid_holds=False))
    assert rule in (2, 8, 9)
