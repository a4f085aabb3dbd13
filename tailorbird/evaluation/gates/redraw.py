"""States of gates in simulated repetitions of a test, for the power of the whole procedure."""

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.statistics.distributions import norm_isf, t_isf, t_sf
from tailorbird.evaluation.statistics.simulation import SimulatedTests

FloatArray = NDArray[np.float64]
States = NDArray[np.object_]

SEED = 1812


def redrawn_states(gate: Gate, *, num_tests: int, scale: float, alpha: float, shift: float = 0.0) -> States:
    """Return the states [B] of a gate in tests with `scale` times the rows, if its estimates are true.

    Each estimate is redrawn from a normal distribution with the standard error that its interval implies; the interval
    moves with it. `shift` is added to the true values. A gate without bounds keeps its state.
    """
    if not gate.bounds:
        return np.full(num_tests, gate.state, dtype=object)
    generator, z = np.random.default_rng(SEED), float(norm_isf(alpha / 2))
    failed, passed = np.zeros(num_tests, dtype=bool), np.ones(num_tests, dtype=bool)
    for bound in gate.bounds:
        below, above = (abs(end - bound.estimate) / np.sqrt(scale) for end in bound.interval)
        errors = generator.standard_normal(num_tests)
        drawn = bound.estimate + shift + np.where(errors < 0, below, above) / z * errors
        low, high = drawn - below, drawn + above
        if gate.name == "groups":
            failed |= high < 0
            passed &= low > bound.limit
        elif gate.name == "cost":
            failed |= high <= bound.limit
            passed &= low > bound.limit
        else:
            failed |= low > bound.limit
            passed &= high <= bound.limit
    return _states(failed=failed, passed=passed)


def group_states(tests: SimulatedTests, *, limits: SubgroupGateConfig, level: float, alpha: float) -> States:
    """Return the states [B, K] of the groups of simulated tests by the rule of `subgroups.group_bounds`.

    `level` is the one-sided level of a likely loss (`subgroups.harm_level`).
    """
    gains, errors, freedom = tests.group_gains, tests.group_errors, tests.group_freedom
    p_values = 2 * t_sf(np.abs(gains) / errors, freedom)
    order = np.argsort(p_values, axis=1)
    adjusted = np.empty_like(p_values)
    steps = np.take_along_axis(p_values, order, axis=1) * np.arange(p_values.shape[1], 0, -1)
    np.put_along_axis(adjusted, order, np.maximum.accumulate(steps, axis=1), axis=1)
    failed = (adjusted < alpha) & (gains < 0)
    if level > 0:
        failed |= (gains <= -limits.max_loss) & (gains + t_isf(level, freedom) * errors < 0)
    return _states(failed=failed, passed=gains - t_isf(alpha / 2, freedom) * errors > -limits.max_loss)


def all_of(states: States) -> States:
    """Return the states [B] of a gate from those of its bounds [B, K]."""
    return _states(failed=(states == State.FAILS).any(axis=1), passed=(states == State.PASSES).all(axis=1))


def _states(*, failed: NDArray[np.bool_], passed: NDArray[np.bool_]) -> States:
    states = np.full(passed.shape, State.NOT_ASSESSABLE, dtype=object)  # np.where would give plain strings
    states[passed], states[failed] = State.PASSES, State.FAILS
    return states
