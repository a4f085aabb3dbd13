"""Tests of temperature, ECE and the calibration gate on models with known calibration."""

from dataclasses import replace

import numpy as np
import pytest

from tailorbird.config.evaluation import CalibrationGateConfig
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.calibration import calibration_gate, fit_temperature
from tailorbird.evaluation.predictions import Predictions, VerdictRefused
from tests import build


def simulated(n: int, *, over: float = 0.0, seed: int = 0) -> Predictions:
    """Return predictions of a model with confidences in [0.3, 1] that is right with probability
    confidence - `over`."""
    generator = np.random.default_rng(seed)
    confidences = 0.3 + 0.7 * generator.beta(4, 1.5, size=n)
    outputs = np.where(generator.random(n) < confidences - over, "a", "b").tolist()
    return build.predictions(outputs, "a" * n, calibrated=confidences)


def gate_of(candidate: Predictions) -> Gate:
    limits = CalibrationGateConfig(max_ece=0.05)
    return calibration_gate(candidate, incumbent=candidate, limits=limits, alpha=0.05)


def relative_gate(candidate: Predictions, incumbent: Predictions) -> Gate:
    return calibration_gate(
        candidate, incumbent=incumbent, limits=CalibrationGateConfig(), alpha=0.05
    )


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_the_temperature_of_simulated_logits_is_recovered(temperature: float) -> None:
    generator = np.random.default_rng(1)
    calibrated = generator.normal(scale=2.0, size=(20_000, 5))
    shares = np.exp(calibrated) / np.exp(calibrated).sum(1, keepdims=True)
    labels = (shares.cumsum(1) < generator.random((len(calibrated), 1))).sum(1).clip(max=4)
    assert fit_temperature(calibrated * temperature, labels) == pytest.approx(temperature, rel=0.05)


def test_logits_of_a_diverged_model_are_refused() -> None:
    with pytest.raises(ValueError, match="logits"):
        fit_temperature(np.array([[np.nan, 0.0]]), np.array([0]))


@pytest.mark.parametrize("confidence", [-0.1, 1.1, np.nan])
def test_an_invalid_confidence_is_refused(confidence: float) -> None:
    broken = replace(simulated(8), calibrated=np.append(np.full(7, 0.5), confidence))
    with pytest.raises(VerdictRefused, match="position 7"):
        gate_of(broken)


def test_a_perfectly_calibrated_model_passes_on_many_rows_and_does_not_fail_on_few() -> None:
    assert gate_of(simulated(2_000)).state is State.PASSES
    assert gate_of(simulated(2_000, over=0.1)).state is State.FAILS
    for n in (5, 50, 200):
        for seed in range(8):
            assert gate_of(simulated(n, seed=seed)).state is not State.FAILS


def test_a_true_ece_at_the_limit_rarely_fails() -> None:
    states = [gate_of(simulated(200, over=0.05, seed=seed)).state for seed in range(60)]
    # 60 tests at a rate of 0.025; the rate is 0.07 without the correction for chance
    assert states.count(State.FAILS) <= 5


@pytest.mark.parametrize("over", [0.0, 0.08])
def test_the_estimate_is_debiased_and_the_interval_contains_the_true_ece(over: float) -> None:
    bounds = [gate_of(simulated(400, over=over, seed=seed)).bounds[0] for seed in range(30)]
    assert np.mean([bound.estimate for bound in bounds]) == pytest.approx(over, abs=0.02)
    assert sum(bound.interval[0] <= over <= bound.interval[1] for bound in bounds) >= 26


def test_rows_that_share_documents_have_a_wider_interval() -> None:
    table = simulated(100)
    sources = np.repeat(np.arange(100), 10).tolist()
    copies = replace(table.take(sources), row_ids=tuple(map(str, range(1_000))))
    in_documents = replace(copies, clusters=tuple(map(str, sources)))
    alone, clustered, wrong = (
        gate_of(rows).bounds[0].interval for rows in (table, in_documents, copies)
    )
    assert clustered == pytest.approx(alone, abs=0.01)
    assert wrong[1] - wrong[0] < 0.6 * (clustered[1] - clustered[0])
    few = gate_of(replace(copies, clusters=tuple("01234" * 200)))
    assert (few.state, few.bounds) == (State.NOT_ASSESSABLE, ())


def test_without_a_limit_the_candidate_is_compared_with_the_incumbent() -> None:
    """Both ECEs of 10 points are above the limit of a regulated recipe."""
    poor = simulated(12_000, over=0.1)
    assert gate_of(poor).state is State.FAILS
    equal = relative_gate(poor, simulated(12_000, over=0.1, seed=1))
    assert equal.state is State.PASSES
    assert equal.bounds[0].interval[0] < 0 < equal.bounds[0].interval[1]
    assert "10" in equal.note
    worse = relative_gate(poor, simulated(12_000, seed=1))
    assert worse.state is State.FAILS
    assert worse.bounds[0].estimate == pytest.approx(0.1, abs=0.02)
    assert relative_gate(simulated(12_000), poor).bounds[0].estimate < 0


def test_the_interval_of_the_increase_contains_the_true_one() -> None:
    covered = 0
    for seed in range(40):
        candidate = simulated(600, over=0.08, seed=seed)
        bound = relative_gate(candidate, simulated(600, over=0.03, seed=1_000 + seed)).bounds[0]
        covered += bound.interval[0] <= 0.05 <= bound.interval[1]
    assert covered >= 36


def test_a_comparison_with_an_incumbent_without_confidences_cannot_be_assessed() -> None:
    without = simulated(300)
    without = replace(without, model="endpoint_zero_shot", calibrated=np.full(300, np.nan))
    gate = relative_gate(simulated(300), without)
    assert (gate.state, gate.bounds) == (State.NOT_ASSESSABLE, ())
    assert gate.note == "endpoint_zero_shot returns no confidences"


def test_six_right_answers_with_confidence_1_are_not_assessable() -> None:
    gate = gate_of(build.predictions("a" * 6, "a" * 6, confidences=1.0))
    assert gate.bounds[0].estimate == pytest.approx(0, abs=1e-9)
    assert gate.state is State.NOT_ASSESSABLE


@pytest.mark.parametrize(("model", "num_missing"), [("endpoint_zero_shot", 300), ("hybrid", 30)])
def test_a_candidate_without_confidences_cannot_be_assessed(model: str, num_missing: int) -> None:
    calibrated = simulated(300).calibrated.copy()
    calibrated[:num_missing] = np.nan
    gate = gate_of(replace(simulated(300), model=model, calibrated=calibrated))
    assert (gate.state, gate.bounds) == (State.NOT_ASSESSABLE, ())
