"""Tests of the claimed power: how often such tests choose a fine-tuned model."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tailorbird.evaluation.verdict.decide import Outcome
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.parts import Power
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.reach import reach_verdict
from tailorbird.evaluation.verdict.types import Verdict
from tests import build
from tests.unit.evaluation.simulated import Simulation, inputs_of_tables, protocol_of, tables_of
from tests.unit.evaluation.verdict.tables import (
    PRICED,
    PROTOCOL,
    N,
    correlated,
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


def simulated_rows(
    generator: np.random.Generator, num_rows: int, **further: float
) -> VerdictInputs:
    accuracies = {"incumbent": 0.74, "candidate": 0.77} | further
    return inputs_of_right(**correlated(generator, num_rows, **accuracies))


def simulated_documents(generator: np.random.Generator, num_rows: int) -> VerdictInputs:
    """Return models that are better on some documents of four rows than on others."""
    documents = np.arange(num_rows) // 4
    tables = []
    for kind, rows in correlated(generator, num_rows, probe=0.79, full=0.84).items():
        lost = generator.random(documents.max() + 1) < 0.06
        table = predictions(kind, rows & ~lost[documents])
        tables.append(replace(table, clusters=tuple(map(str, documents))))
    return inputs_of(*tables)


def simulated_classes(generator: np.random.Generator, num_rows: int) -> VerdictInputs:
    """Return models of three classes; a wrong answer is the next class."""
    codes = generator.choice(3, num_rows, p=[0.6, 0.3, 0.1])
    tables = []
    for kind, rows in correlated(generator, num_rows, probe=0.74, full=0.78).items():
        outputs = CLASSES[np.where(rows, codes, (codes + 1) % 3)].tolist()
        tables.append(build.predictions(outputs, CLASSES[codes].tolist(), model=kind))
    return inputs_of(*tables)


@pytest.mark.parametrize(
    ("draw", "num_rows", "gain", "metric", "num_tests", "tolerance"),
    [
        pytest.param(simulated_rows, 1000, 0.03, "accuracy", 120, 0.14, id="two models"),
        pytest.param(
            lambda *size: simulated_rows(*size, bag_of_words=0.73, centroid=0.70),
            1500,
            0.03,
            "accuracy",
            120,
            0.14,
            id="four models",
        ),
        pytest.param(simulated_documents, 1200, 0.047, "accuracy", 80, 0.17, id="documents"),
        pytest.param(simulated_classes, 800, 0.0429, "macro_f1", 30, 0.27, id="macro-F1"),
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
    inputs = simulated_rows(np.random.default_rng(5), N)
    shares = []
    needed = []
    for gain in (0.02, 0.03, 0.05):
        power = power_of(inputs, protocol_for(N, expected_gain=gain))
        shares.append(power.at_expected_gain)
        needed.append(power.rows_needed or 0)
        assert (needed[-1] <= N) == (shares[-1] >= 0.8)
    assert needed == sorted(needed, reverse=True)
    assert needed[-1] > 0
    assert shares == sorted(shares)
    more = simulated_rows(np.random.default_rng(5), needed[0])
    again = power_of(more, protocol_for(needed[0], expected_gain=0.02))
    assert again.at_expected_gain == pytest.approx(0.8, abs=0.1)


def test_the_strongest_model_without_fine_tuning_is_the_one_to_beat() -> None:
    inputs = inputs_of_right(incumbent=right(1300), candidate=right(1310), bag_of_words=right(1340))
    powers = power_of(inputs, PROTOCOL)
    assert (powers.over, powers.limited_by) == ("bag_of_words", "bag_of_words")
    stopped = measured(inputs, bag_of_words=10_000.0)
    assert power_of(stopped, PRICED).over == "bag_of_words"
    required = PRICED.model_copy(update={"required_gates": ("cost",)})
    assert power_of(stopped, required).over == "incumbent"


def test_a_lower_cost_and_the_gates_count() -> None:
    inputs = simulated_rows(np.random.default_rng(5), N)
    plain = power_of(measured(inputs), PRICED).at_minimum_gain
    assert power_of(measured(inputs, candidate=1.0), PRICED).at_minimum_gain > plain + 0.2
    harmed = Simulation(num_rows=4000, candidate=0.80, by_group={"unstated": 0.50})
    powers = power_of(inputs_of_tables(harmed, tables_of(harmed)), protocol_of(harmed))
    assert (powers.at_expected_gain, powers.rows_needed, powers.limited_by) == (0.0, None, "gates")


SIMULATIONS = {
    "accuracy": Simulation(num_rows=600, candidate=0.74),
    "macro_f1": Simulation(
        num_rows=600, candidate=0.79, evaluation={"metric": "macro_f1"}, access_number=9
    ),
    "token_f1": Simulation(num_rows=600, chat=True),
}


def figures(verdict: Verdict) -> dict[str, float | None]:
    """Return the figures that depend on draws."""
    gain = verdict.relation("candidate", "incumbent")
    power = verdict.power
    assert power is not None
    calibration = [
        bound for gate in verdict.gates if gate.name == "calibration" for bound in gate.bounds
    ]
    return {
        "low": gain.interval[0],
        "high": gain.interval[1],
        "p": gain.p_value,
        "power at the minimum": power.at_minimum_gain,
        "power": power.at_expected_gain,
        "rows": power.rows_needed,
        **{bound.what: bound.interval[1] for bound in calibration},
    }


EXPECTED = {
    "accuracy": {
        "low": -0.001773590667511038,
        "high": 0.06177545271796594,
        "p": 0.06421280662713105,
        "power at the minimum": 0.0875,
        "power": 0.2125,
        "rows": 3544,
        "debiased ECE above the incumbent's": 0.04195292606293398,
    },
    "macro_f1": {
        "low": 0.010560910568872373,
        "high": 0.1330971602476362,
        "p": 5.343513070321813e-05,
        "power at the minimum": 0.0025,
        "power": 0.0125,
        "rows": 10469,
        "debiased ECE above the incumbent's": 0.039004191068722695,
    },
    "token_f1": {
        "low": 0.024525269608009357,
        "high": 0.07861967115653028,
        "p": 0.00022328531347705498,
        "power at the minimum": 0.07,
        "power": 0.21,
        "rows": 2980,
    },
}


@pytest.mark.parametrize("name", SIMULATIONS)
def test_the_figures_of_a_verdict_are_the_same_everywhere(name: str) -> None:
    simulation = SIMULATIONS[name]
    verdict = reach_verdict(
        inputs_of_tables(simulation, tables_of(simulation)), protocol=protocol_of(simulation)
    )
    assert figures(verdict) == pytest.approx(EXPECTED[name], rel=1e-9, abs=1e-12)
