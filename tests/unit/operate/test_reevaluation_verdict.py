"""Renewal and withdrawal of a champion's verdict on audited rows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tailorbird.config.evaluation import GatesConfig
from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.gates.cost import ServingCosts, ServingUsage
from tailorbird.evaluation.predictions import Predictions
from tailorbird.operate.reevaluation_verdict import ReevaluationVerdict, decide_reevaluation
from tests.unit.evaluation.verdict.tables import (
    BoolArray,
    inputs_of,
    models,
    predictions,
    protocol_for,
)

ONLY_GROUPS = GatesConfig(calibration=None, counterfactual=None, robustness=None)


def result_of(
    *tables: Predictions, number: int = 1, cost: float | None = None, **changes: Any
) -> ReevaluationVerdict:
    """Return the result from the tables of the previous version and of the champion; `cost` is
    relative to the previous."""
    protocol = protocol_for(len(tables[0]), **changes)
    inputs = inputs_of(*tables)
    if cost is not None:
        inputs = replace(inputs, costs=costs_of(cost))
    return decide_reevaluation(inputs, protocol=protocol, number=number)


def costs_of(cost: float) -> ServingCosts:
    rounds = np.array([1.0, 1.01, 0.99, 1.0, 1.005])
    return {
        "incumbent": ServingUsage(tuple(rounds)),
        "candidate": ServingUsage(tuple(cost * rounds[::-1])),
    }


def result(*table: int, **changes: Any) -> ReevaluationVerdict:
    return result_of(*models(*table), **changes)


def in_sites(old: BoolArray, new: BoolArray, sites: Sequence[str]) -> tuple[Predictions, ...]:
    """Return the tables of both versions, right on these rows, with the site of each row."""
    tables = (predictions("old", old), predictions("new", new))
    return tuple(replace(table, groups={"site": tuple(sites)}) for table in tables)


def test_a_champion_holds_if_it_is_better_and_not_if_it_is_worse() -> None:
    better = result(500, 300, 100, 100)
    assert better.holds is True
    assert better.numbers().startswith("+20.00 points (95% ")
    assert result(500, 100, 300, 100).holds is False
    assert result(50, 21, 18, 11).holds is None
    assert result_of(*models(500, 300, 100, 100), number=100) == better


def test_a_champion_that_is_proven_better_by_a_small_gain_is_not_withdrawn() -> None:
    small = result(90_000, 1_300, 800, 7_900)
    assert small.interval[0] > 0
    assert (small.holds, small.gain < small.minimum_gain) == (None, True)


@pytest.mark.parametrize(
    ("table", "cost", "holds"),
    [
        ((90_000, 1_000, 1_000, 8_000), None, None),  # it may have been chosen for its cost
        ((90_000, 1_000, 1_000, 8_000), 1.0, False),
        ((90_000, 1_000, 1_000, 8_000), 0.92, False),
        ((90_000, 1_000, 1_000, 8_000), 0.5, True),  # non-inferior
        ((900, 20, 40, 40), 0.5, None),
        ((8_000, 400, 800, 800), 0.5, False),  # proven to lose the margin
        ((50_000, 600, 300, 49_100), 0.5, True),  # better by less than the minimum gain
    ],
)
def test_a_champion_that_is_cheaper_or_of_unknown_cost_is_kept_while_it_is_not_inferior(
    table: tuple[int, ...], cost: float | None, holds: bool | None
) -> None:
    assert result(*table, cost=cost).holds is holds


def test_the_levels_of_the_gates_of_all_reevaluations_sum_to_the_level_of_the_protocol() -> None:
    """At the first re-evaluation, the groups gate fails by a loss that is not proven at the level
    of the twelfth."""
    rows = np.arange(1_000)
    previous = (rows < 55) | (rows >= 400)
    champion = ((rows >= 55) & (rows < 85)) | (rows >= 100)
    tables = in_sites(previous, champion, "a" * 100 + "b" * 900)
    first, last = (result_of(*tables, number=number, gates=ONLY_GROUPS) for number in (1, 12))
    assert ([gate.state for gate in first.gates], first.holds) == ([State.FAILS], False)
    assert ([gate.state for gate in last.gates], last.holds) == ([State.NOT_ASSESSABLE], True)


def test_no_group_withdraws_a_champion_that_is_better_in_all_groups() -> None:
    """Of eight groups of 125 rows, one often appears three points worse although all gain five."""
    generator = np.random.default_rng(3)
    n = 1_000
    for _ in range(60):
        alike = generator.random(n)
        before, now = (
            np.where(generator.random(n) < 0.8, alike, generator.random(n)) < level
            for level in (0.66, 0.71)
        )
        sites = generator.integers(0, 8, n).astype(str).tolist()
        tables = in_sites(before, now, sites)
        assert result_of(*tables, gates=ONLY_GROUPS).holds is not False


def test_a_proven_loss_of_a_group_withdraws_the_champion() -> None:
    harmed = np.arange(1_000) < 300
    tables = in_sites(harmed, ~harmed, "a" * 300 + "b" * 700)
    withdrawn = result_of(*tables, gates=ONLY_GROUPS, number=5)
    assert withdrawn.holds is False
    assert "groups" in withdrawn.reasons[0]
    assert withdrawn.gain > 0.3


def test_a_regulated_champion_is_renewed_only_if_every_gate_passes() -> None:
    rows = np.arange(1_000)
    previous = (rows < 500) | (rows // 100 == 8)
    tables = in_sites(previous, rows < 800, "a" * 50 + "b" * 950)
    assert result_of(*tables, gates=ONLY_GROUPS).holds is True
    regulated = result_of(*tables, gates=ONLY_GROUPS, regulated=True)
    assert (regulated.holds, regulated.interval[0] > 0) == (None, True)
    assert "groups" in regulated.reasons[0]


def test_the_rows_of_a_unit_count_as_one() -> None:
    """Fifty units, each with twenty copies of one row."""
    units = np.arange(50).repeat(20)
    tables = (predictions("old", units < 30), predictions("new", units < 33))
    clusters = tuple(map(str, units))
    clustered = result_of(*(replace(table, clusters=clusters) for table in tables))
    assert (clustered.n, clustered.num_units, clustered.holds) == (1_000, 50, None)
    assert clustered.interval == result(30, 3, 0, 17).interval
    assert result_of(*tables).holds is True


def test_a_metric_with_scores_between_0_and_1_is_compared_by_its_mean() -> None:
    generator = np.random.default_rng(1)
    scores = generator.uniform(0, 0.9, 2_000)
    old, new = models(0, 0, 0, 2_000)
    old = replace(old, measures={"token_f1": scores})
    new = replace(new, measures={"token_f1": scores + 0.05})
    renewed = result_of(old, new, metric="token_f1")
    assert (renewed.holds, renewed.compared) == (True, "token_f1")
    assert renewed.gain == pytest.approx(0.05)


def test_under_macro_f1_a_champion_is_withdrawn_only_if_its_accuracy_is_proven_worse() -> None:
    """An interval of accuracy does not show that a mean over classes is non-inferior either."""
    similar = result(8_000, 400, 440, 1_160, metric="macro_f1")
    assert similar.holds is None
    assert similar.interval[1] < 0.01
    worse = result(500, 100, 300, 100, metric="macro_f1")
    assert (worse.holds, worse.metric, worse.compared) == (False, "macro_f1", "accuracy")
    assert "of accuracy" in worse.numbers()
    assert result(90_000, 1_000, 1_000, 8_000, cost=0.5, metric="macro_f1").holds is None
