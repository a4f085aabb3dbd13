"""Outcome and significance level of re-evaluations."""

from dataclasses import replace

import numpy as np
import pytest

from tailorbird.config.evaluation import GatesConfig
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.rules import Outcome
from tailorbird.operate.reevaluate import holds, with_spent_alpha
from tests.unit.evaluation.verdict.test_decide import inputs_of, predictions, protocol_for, verdict_of

ONLY_GROUPS = GatesConfig(calibration=None, counterfactual=None, robustness=None)
PROTOCOL = protocol_for(1_000, gates=ONLY_GROUPS)


def test_a_champion_holds_if_it_is_better_and_not_if_it_is_worse() -> None:
    assert holds(verdict_of(500, 300, 100, 100)) is True
    worse = verdict_of(500, 100, 300, 100)
    assert (worse.outcome, holds(worse)) == (Outcome.STAY, False)
    unclear = verdict_of(50, 21, 18, 11)
    assert (unclear.outcome, holds(unclear)) == (Outcome.INSUFFICIENT_EVIDENCE, None)


def test_a_champion_that_is_proven_better_is_not_withdrawn() -> None:
    """STAY is also the outcome of a gain that is too small."""
    small = verdict_of(90_000, 1_200, 800, 8_000)
    assert (small.outcome, small.interval[0] > 0, holds(small)) == (Outcome.STAY, True, None)


def test_a_champion_of_unknown_cost_is_not_withdrawn_if_it_is_not_worse() -> None:
    as_good = verdict_of(90_000, 1_000, 1_000, 8_000)
    assert (as_good.outcome, as_good.cost_ratio, holds(as_good)) == (Outcome.STAY, None, None)
    costly = as_good.model_copy(update={"cost_ratio": (1.0, 0.98, 1.02)})
    assert holds(costly) is False


def test_the_levels_of_all_reevaluations_sum_to_the_level_of_the_protocol() -> None:
    levels = [with_spent_alpha(PROTOCOL, number=number).alpha for number in range(1, 1_001)]
    assert levels[:3] == pytest.approx([0.025, 0.05 / 6, 0.05 / 12])
    assert 0.0499 < sum(levels) < 0.05


def test_no_group_withdraws_a_champion_that_is_better_in_all_groups() -> None:
    """Of eight groups of 125 rows, one often appears three points worse although all gain five."""
    generator, n = np.random.default_rng(3), 1_000
    protocol = with_spent_alpha(PROTOCOL, number=1)
    for _ in range(60):
        alike = generator.random(n)
        before, now = (
            np.where(generator.random(n) < 0.8, alike, generator.random(n)) < level for level in (0.66, 0.71)
        )
        groups = {"site": tuple(f"site {site}" for site in generator.integers(0, 8, n))}
        tables = [replace(predictions(name, right), groups=groups) for name, right in (("old", before), ("new", now))]
        inputs = inputs_of(*tables)
        assert holds(decide(inputs, protocol=protocol)) is not False


def test_a_proven_loss_of_a_group_withdraws_the_champion() -> None:
    harmed = np.arange(1_000) < 300
    groups = {"site": tuple("a" if row else "b" for row in harmed)}
    tables = [replace(predictions(name, right), groups=groups) for name, right in (("old", harmed), ("new", ~harmed))]
    verdict = decide(inputs_of(*tables), protocol=with_spent_alpha(PROTOCOL, number=5))
    assert (verdict.outcome, holds(verdict)) == (Outcome.STAY, False)
