"""Tests of the claimed power: how often such tests choose a fine-tuned model."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.evaluation.verdict.decide import Outcome
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.parts import Power
from tailorbird.evaluation.verdict.power import with_score
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.reach import reach_verdict
from tests.unit.evaluation.simulated import Simulation, inputs_of_tables, protocol_of, tables_of
from tests.unit.evaluation.verdict.tables import (
    PRICED,
    PROTOCOL,
    N,
    decision_of,
    inputs_of,
    inputs_of_right,
    measured,
    predictions,
    protocol_for,
    right,
)

Draw = Callable[[np.random.Generator, int], VerdictInputs]
CLASSES = np.array(["a", "b", "c"])


def power_of(inputs: VerdictInputs, protocol: TestProtocol) -> Power:
    power = reach_verdict(inputs, protocol=protocol).power
    assert power is not None
    return power


def correlated(
    generator: np.random.Generator, num_rows: int, **accuracy: float
) -> dict[str, np.ndarray]:
    """Return which rows the models get right: four of five rows are as hard for each of them."""
    shared = generator.random(num_rows)
    is_shared = generator.random((len(accuracy), num_rows)) < 0.8
    luck = np.where(is_shared, shared, generator.random((len(accuracy), num_rows)))
    return {role: of_model < accuracy[role] for role, of_model in zip(accuracy, luck, strict=True)}


def of_rows(generator: np.random.Generator, num_rows: int, *others: float) -> VerdictInputs:
    kinds = zip(("bag_of_words", "centroid"), others, strict=False)
    return inputs_of_right(
        **correlated(generator, num_rows, incumbent=0.74, candidate=0.77, **dict(kinds))
    )


def of_documents(generator: np.random.Generator, num_rows: int) -> VerdictInputs:
    """Return models that are better on some documents of four rows than on others."""
    documents = np.arange(num_rows) // 4
    tables = []
    for kind, rows in correlated(generator, num_rows, probe=0.79, full=0.84).items():
        lost = generator.random(documents.max() + 1) < 0.06
        table = predictions(kind, rows & ~lost[documents])
        tables.append(replace(table, clusters=tuple(map(str, documents))))
    return inputs_of(*tables)


def of_classes(generator: np.random.Generator, num_rows: int) -> VerdictInputs:
    """Return models of three classes; a wrong answer is the next class."""
    codes = generator.choice(3, num_rows, p=[0.6, 0.3, 0.1])
    tables = []
    for kind, rows in correlated(generator, num_rows, probe=0.74, full=0.78).items():
        outputs = tuple(CLASSES[np.where(rows, codes, (codes + 1) % 3)].tolist())
        tables.append(
            replace(predictions(kind, rows), labels=tuple(CLASSES[codes].tolist()), outputs=outputs)
        )
    return inputs_of(*tables)


@pytest.mark.parametrize(
    ("draw", "num_rows", "gain", "metric", "num_tests", "tolerance"),
    [
        pytest.param(of_rows, 1000, 0.03, "accuracy", 120, 0.14, id="two models"),
        pytest.param(
            lambda *of: of_rows(*of, 0.73, 0.70),
            1500,
            0.03,
            "accuracy",
            120,
            0.14,
            id="four models",
        ),
        pytest.param(of_documents, 1200, 0.047, "accuracy", 80, 0.17, id="documents"),
        pytest.param(of_classes, 800, 0.0429, "macro_f1", 30, 0.27, id="macro-F1"),
    ],
)
def test_the_claimed_power_is_the_frequency_of_fine_tune(
    draw: Draw, num_rows: int, gain: float, metric: str, num_tests: int, tolerance: float
) -> None:
    """The gain is the true one. The tolerance is three standard errors of the frequency."""
    generator = np.random.default_rng(3)
    protocol = protocol_for(num_rows, metric=metric, expected_gain=gain)
    claimed = [power_of(draw(generator, num_rows), protocol).at_expected_gain for _ in range(4)]
    outcomes = [
        decision_of(draw(generator, num_rows), protocol=protocol).outcome for _ in range(num_tests)
    ]
    frequency = outcomes.count(Outcome.FINE_TUNE) / num_tests
    assert 0.4 < frequency < 0.97
    assert np.mean(claimed) == pytest.approx(frequency, abs=tolerance)


def test_the_rows_needed_grow_with_a_smaller_gain_and_give_the_power_that_they_claim() -> None:
    inputs = of_rows(np.random.default_rng(5), N)
    powers = {
        gain: power_of(inputs, protocol_for(N, expected_gain=gain)) for gain in (0.02, 0.03, 0.05)
    }
    needed = [power.rows_needed or 0 for power in powers.values()]
    assert needed == sorted(needed, reverse=True)
    assert needed[-1] > 0
    shares = [power.at_expected_gain for power in powers.values()]
    assert shares == sorted(shares)
    for power, share in zip(powers.values(), shares, strict=True):
        assert ((power.rows_needed or 0) <= N) == (share >= 0.8)
    rows = powers[0.02].rows_needed or 0
    more = of_rows(np.random.default_rng(5), rows)
    again = power_of(more, protocol_for(rows, expected_gain=0.02))
    assert again.at_expected_gain == pytest.approx(0.8, abs=0.1)


def test_no_number_of_rows_is_enough_for_a_gain_of_the_minimum() -> None:
    powers = power_of(of_rows(np.random.default_rng(5), N), protocol_for(N, expected_gain=0.01))
    assert powers.rows_needed is None
    assert powers.at_expected_gain == powers.at_minimum_gain < 0.6


def test_the_strongest_model_without_fine_tuning_is_the_one_to_beat() -> None:
    inputs = inputs_of_right(incumbent=right(1300), candidate=right(1310), bag_of_words=right(1340))
    powers = power_of(inputs, PROTOCOL)
    assert (powers.over, powers.limited_by) == ("bag_of_words", "bag_of_words")
    stopped = measured(inputs, bag_of_words=10_000.0)
    assert power_of(stopped, PRICED).over == "incumbent"


def test_a_lower_cost_and_the_gates_count() -> None:
    inputs = of_rows(np.random.default_rng(5), N)
    plain = power_of(measured(inputs), PRICED).at_minimum_gain
    assert power_of(measured(inputs, candidate=1.0), PRICED).at_minimum_gain > plain + 0.2
    harmed = Simulation(num_rows=4000, candidate=0.80, by_group={"unstated": 0.50})
    powers = power_of(inputs_of_tables(harmed, tables_of(harmed)), protocol_of(harmed))
    assert (powers.at_expected_gain, powers.rows_needed, powers.limited_by) == (0.0, None, "gates")


def test_an_open_gate_of_a_regulated_recipe_is_assumed_to_pass() -> None:
    simulation = Simulation(num_rows=1000)
    regulated = replace(simulation, evaluation={"regulated": True})
    inputs = inputs_of_tables(simulation, tables_of(simulation))
    verdict = reach_verdict(inputs, protocol=protocol_of(regulated))
    assert not verdict.model("candidate").passes
    assert verdict.power is not None
    assert verdict.power == power_of(inputs, protocol_of(simulation)).model_copy(
        update={"over": verdict.power.over, "limited_by": verdict.power.limited_by}
    )


@pytest.mark.parametrize(
    ("metric", "target"), [("accuracy", 0.9), ("accuracy", 0.5), ("macro_f1", 0.8)]
)
def test_random_rows_are_changed_until_the_score_is_the_target(metric: str, target: float) -> None:
    table: Predictions = of_classes(np.random.default_rng(1), 1000).candidate.clean
    changed = with_score(table, target=target, metric=metric)
    assert score_table(metric, changed) == pytest.approx(target, abs=0.003)
    rows = np.flatnonzero(changed.scores != table.scores)
    assert len(set((rows // 100).tolist())) == 10  # everywhere in the table
    assert (
        changed.scores
        == np.array([a == b for a, b in zip(changed.labels, changed.outputs, strict=True)])
    ).all()
