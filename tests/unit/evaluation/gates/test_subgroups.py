"""Tests of the groups gate on paired counts for each condition."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.base import Estimate, Gate, State
from tailorbird.evaluation.gates.subgroups import group_bounds, groups_gate
from tailorbird.evaluation.predictions import Predictions, VerdictRefused
from tailorbird.evaluation.statistics.paired import PairedCounts, newcombe_paired_interval
from tests.unit.evaluation.verdict.tables import predictions

Counts = tuple[int, int, int, int]
LIMITS = SubgroupGateConfig(max_loss=0.03)
UNHARMED = (1400, 100, 100, 400)
HARMED = (70, 2, 7, 21)
HELPED = (1400, 160, 100, 340)


def tables(groups: Mapping[str, Counts], *columns: str) -> tuple[Predictions, Predictions]:
    """Return candidate and incumbent with paired counts by group (both right, only candidate, only
    incumbent, neither); all columns have the same groups."""
    cells = np.concatenate([np.repeat(range(4), counts) for counts in groups.values()])
    names = np.repeat([*groups], [sum(counts) for counts in groups.values()])
    values = dict.fromkeys(columns, tuple(names.tolist()))
    candidate = predictions("full", np.isin(cells, (0, 1)))
    incumbent = predictions("probe", np.isin(cells, (0, 2)))
    return replace(candidate, groups=values), replace(incumbent, groups=values)


def gate_of(groups: Mapping[str, Counts], *columns: str, **options: Any) -> Gate:
    candidate, incumbent = tables(groups, *(columns or ("sex",)))
    return groups_gate(candidate, incumbent=incumbent, limits=LIMITS, alpha=0.05, **options)


def state_of(gate: Gate, group: str) -> State:
    """Return the state of the bound of `sex = group`."""
    return next(bound.state for bound in gate.bounds if bound.what == f"change for sex = {group}")


def test_a_group_passes_if_a_loss_of_the_limit_is_unlikely() -> None:
    """The 95% interval of 1 point lost on 375 rows contains -3, the one-sided 80% interval does
    not."""
    counts = (262, 26, 30, 57)
    assert newcombe_paired_interval(PairedCounts(*counts))[0] < -0.03
    groups = {"female": UNHARMED, "male": counts}
    gate = gate_of(groups)
    assert state_of(gate, "male") is State.PASSES
    assert "one-sided 80% interval" in gate.note
    proven = gate_of(groups, likely_harm=0)
    assert state_of(proven, "male") is State.NOT_ASSESSABLE
    assert "one-sided 97.5% interval" in proven.note


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        (HARMED, State.FAILS),  # 5 points lost on 100 rows
        ((70, 9, 13, 8), State.NOT_ASSESSABLE),  # 4 points lost, which is no more than chance
        ((81, 1, 3, 15), State.NOT_ASSESSABLE),  # 2 points lost
        ((20, 1, 5, 4), State.NOT_ASSESSABLE),  # 13 points lost on 30 rows
    ],
)
def test_a_likely_loss_that_differs_from_the_other_rows_fails(counts: Counts, state: State) -> None:
    groups = {"male": counts, "female": HELPED}
    assert state_of(gate_of(groups), "male") is state
    assert state_of(gate_of(groups, likely_harm=0), "male") is State.NOT_ASSESSABLE


def test_a_loss_must_be_clearer_among_more_groups_of_all_columns() -> None:
    many = {f"g{number}": HELPED for number in range(20)}
    assert state_of(gate_of({"male": HARMED} | many), "male") is State.NOT_ASSESSABLE
    groups = {"male": (70, 3, 7, 20), "female": HELPED}
    assert gate_of(groups).state is State.FAILS
    assert gate_of(groups, *"0123456789").state is State.NOT_ASSESSABLE


def test_chance_fails_at_most_one_in_twenty_candidates_that_change_nothing() -> None:
    generator = np.random.default_rng(0)
    z = 1.96
    failed = 0
    for _ in range(1_000):
        gains = 0.02 * generator.standard_normal(8)
        changes = {
            str(row): Estimate(gain, (gain - z * 0.02, gain + z * 0.02), 375, 0.05)
            for row, gain in enumerate(gains)
        }
        states = [
            bound.state for bound in group_bounds(changes, limits=LIMITS, alpha=0.05, level=0.2)
        ]
        failed += State.FAILS in states
    assert 0.02 < failed / 1_000 < 0.07


def test_a_small_group_is_not_assessable_and_reports_the_rows_needed() -> None:
    gate = gate_of({"female": UNHARMED, "male": (70, 7, 8, 15)})
    assert gate.state is State.NOT_ASSESSABLE
    # (0.84 + 0.84)^2 times the variance of the difference of a row, divided by 0.03^2
    assert gate.bounds[1].rows_needed == pytest.approx(0.15 * 1.683**2 / 0.03**2, rel=0.1)
    assert gate.bounds[0].rows_needed is None


def test_a_gate_without_groups_is_not_assessable_and_different_groups_are_refused() -> None:
    table = predictions("full", np.ones(2, bool))
    gate = groups_gate(table, incumbent=table, limits=LIMITS, alpha=0.05)
    assert (gate.state, gate.bounds) == (State.NOT_ASSESSABLE, ())
    pair = [replace(table, groups={"sex": sexes}) for sexes in (("m", "f"), ("f", "m"))]
    with pytest.raises(VerdictRefused, match="groups"):
        groups_gate(pair[0], incumbent=pair[1], limits=LIMITS, alpha=0.05)


def test_a_group_of_one_row_is_not_assessable_by_a_mean_score() -> None:
    table = predictions("full", np.arange(90) < 60)
    names = tuple(["single"] + ["rest"] * 89)
    table = replace(table, groups={"g": names}, measures={"token_f1": table.scores / 2})
    gate = groups_gate(table, incumbent=table, limits=LIMITS, alpha=0.05, metric="token_f1")
    states = {bound.what: bound.state for bound in gate.bounds}
    assert states["change for g = single"] is State.NOT_ASSESSABLE
