"""Tests of the states of gates in simulated repetitions of a test."""

import numpy as np
import pytest

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.base import Gate, State, at_most, gate
from tailorbird.evaluation.gates.redraw import all_of, group_states, redrawn_states
from tailorbird.evaluation.gates.subgroups import group_bounds, harm_level
from tailorbird.evaluation.statistics.paired import PairedCounts
from tailorbird.evaluation.statistics.simulation import SimulatedTests


def gate_of(estimate: float, *, half: float = 0.01) -> Gate:
    interval = (estimate - half, estimate + half)
    return gate("robustness", [at_most(0.02, what="drop", estimate=estimate, interval=interval, n=500)])


def share(states: np.ndarray, state: State) -> float:
    return float(np.mean(states == state))


def test_a_gate_that_passes_clearly_passes_in_every_repetition_and_one_at_its_limit_in_few() -> None:
    assert share(redrawn_states(gate_of(-0.02), num_tests=500, scale=1, alpha=0.05), State.PASSES) == 1
    at_limit = redrawn_states(gate_of(0.02), num_tests=4_000, scale=1, alpha=0.05)
    assert share(at_limit, State.PASSES) == pytest.approx(0.025, abs=0.01)
    assert share(at_limit, State.FAILS) == pytest.approx(0.025, abs=0.01)


def test_more_rows_decide_an_open_gate() -> None:
    shares = [
        share(redrawn_states(gate_of(0.015), num_tests=2_000, scale=scale, alpha=0.05), State.PASSES)
        for scale in (1, 4, 16)
    ]
    assert shares == sorted(shares)
    assert shares[0] < 0.3 < 0.95 < shares[2]


def test_a_gate_without_bounds_keeps_its_state() -> None:
    none = Gate("counterfactual", State.NOT_APPLICABLE, ())
    assert share(redrawn_states(none, num_tests=3, scale=1, alpha=0.05), State.NOT_APPLICABLE) == 1


def test_the_states_of_simulated_groups_are_those_of_the_groups_gate() -> None:
    tables = {
        "harmed": PairedCounts(600, 20, 90, 290),
        "also harmed": PairedCounts(70, 1, 12, 17),
        "open": PairedCounts(70, 11, 8, 11),
        "helped": PairedCounts(1400, 160, 100, 340),
    }
    counts = list(tables.values())
    gains = np.array([[each.gain for each in counts]])
    errors = np.sqrt([[(each.discordance - each.gain**2) / each.n for each in counts]])
    empty, freedom = np.zeros((1, 0)), np.full(4, np.inf)
    tests = SimulatedTests(100, empty, empty, None, empty, np.zeros(0), gains, errors, freedom)
    limits = SubgroupGateConfig()
    states = group_states(tests, limits=limits, level=harm_level(counts, limits=limits, alpha=0.05), alpha=0.05)
    assert states[0].tolist() == [bound.state for bound in group_bounds(tables, limits=limits, alpha=0.05)]
    assert [states[0][0], states[0][3]] == [State.FAILS, State.PASSES]
    assert all_of(states)[0] is State.FAILS
    assert all_of(states[:, 3:])[0] is State.PASSES
