"""Tests that power counts the whole procedure: the family, the gates, the hybrid and the cost."""

from dataclasses import replace
from typing import Any

import numpy as np

from tailorbird.evaluation.verdict.assess import assess
from tailorbird.evaluation.verdict.power import VerdictPower, power_of
from tests.unit.evaluation.simulated import Simulation, inputs_of_tables, on_cpu, protocol_of, tables_of


def power(simulation: Simulation, **changes: Any) -> VerdictPower:
    inputs = replace(inputs_of_tables(simulation, tables_of(simulation)), **changes)
    protocol = protocol_of(simulation)
    return power_of(inputs, assessment=assess(inputs, protocol=protocol), protocol=protocol)


def test_gates_lower_the_power_of_a_regulated_recipe_and_are_named() -> None:
    evaluation = {"expected_gain": 0.05}
    free = power(Simulation(candidate=0.72, gates=False, evaluation=evaluation))
    gated = power(Simulation(candidate=0.72, evaluation=evaluation))
    regulated = power(Simulation(candidate=0.72, evaluation=evaluation | {"regulated": True}))
    assert free.fine_tune > 0.9
    assert free.fine_tune >= gated.fine_tune > regulated.fine_tune
    assert regulated.fine_tune < 0.5
    assert regulated.blocked_by in ("the calibration gate does not pass", "the groups gate does not pass")
    assert free.needed.rows is not None
    assert regulated.needed.rows is None or regulated.needed.rows > 2 * free.needed.rows


def test_a_harmed_group_leaves_no_power_at_any_number_of_rows() -> None:
    harmed = power(Simulation(num_rows=4000, candidate=0.80, by_group={"unstated": 0.50}))
    assert harmed.fine_tune < 0.05
    assert harmed.needed.rows is None
    assert "the groups gate does not pass" in harmed.needed.reason


def test_the_rows_needed_grow_with_a_smaller_gain_and_both_are_given() -> None:
    small, large = (power(Simulation(candidate=0.71, evaluation={"expected_gain": gain})) for gain in (0.02, 0.05))
    assert small.needed.rows is not None
    assert large.needed.rows is not None
    assert small.needed.rows > large.needed.rows
    assert small.needed_for_minimum == large.needed_for_minimum
    assert small.needed_for_minimum.rows is not None
    assert small.needed_for_minimum.rows > small.needed.rows
    assert small.fine_tune < large.fine_tune


def test_a_cheaper_candidate_is_also_chosen_for_its_cost() -> None:
    simulation = Simulation(num_rows=8000, incumbent=0.72, candidate=0.72, gates=False)
    inputs = inputs_of_tables(simulation, tables_of(simulation))
    seconds = dict.fromkeys(("incumbent", *inputs.contenders), (2.0,) * 5) | {"candidate": (1.0,) * 5}
    assert power(simulation, costs=on_cpu(seconds)).fine_tune > power(simulation).fine_tune


def test_a_measured_loss_is_not_counted_in_tests_with_another_gain() -> None:
    simulation = Simulation(num_rows=1500, incumbent=0.72, candidate=0.67, gates=False)
    inputs = inputs_of_tables(simulation, tables_of(simulation))
    seconds = dict.fromkeys(("incumbent", *inputs.contenders), (2.0,) * 5) | {"candidate": (1.0,) * 5}
    none, earlier = (power(simulation, costs=on_cpu(seconds), accepted_loss=accepted) for accepted in (0.0, 0.02))
    assert none.fine_tune > earlier.fine_tune + 0.2


def test_a_contender_that_a_gate_stops_does_not_take_the_place_of_the_candidate() -> None:
    gates = {"calibration": None, "counterfactual": None, "groups": None}
    contenders = {"bag_of_words": 0.85, "centroid": 0.6}
    simulation = Simulation(contenders=contenders, evaluation={"expected_gain": 0.06, "gates": gates})
    inputs = inputs_of_tables(simulation, tables_of(simulation))
    bag = inputs.contenders["bag_of_words"]
    noise = bag.changed["noise"]
    wrong = replace(noise, outputs=("other",) * len(noise), scores=np.zeros(len(noise)))
    fragile = {**inputs.contenders, "bag_of_words": replace(bag, changed={**bag.changed, "noise": wrong})}
    assert power(simulation).blocked_by == "a further contender is better"
    assert power(simulation).fine_tune < 0.1 < 0.8 < power(simulation, contenders=fragile).fine_tune


def test_power_is_deterministic_and_computed_for_macro_f1_and_chat() -> None:
    for simulation in (Simulation(evaluation={"metric": "macro_f1"}), Simulation(chat=True)):
        first = power(simulation)
        assert first == power(simulation)
        assert 0 < first.fine_tune <= 1
        assert np.isfinite(first.minimum_detectable_effect)
