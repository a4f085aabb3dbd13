"""Tests of temperature, ECE and the calibration gate on models with known calibration."""

from dataclasses import replace

import numpy as np
import pytest

from tailorbird.config.evaluation import CalibrationGateConfig
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.calibration import (
    calibration_gate,
    fit_temperature,
)
from tailorbird.evaluation.predictions import Predictions, VerdictRefused

LIMITS = CalibrationGateConfig(max_ece=0.05)


def simulated(n: int, *, over: float = 0.0, seed: int = 0, model: str = "full") -> Predictions:
    """Return predictions of a model with confidences in [0.3, 1] that is right with probability
    confidence - `over`."""
    generator = np.random.default_rng(seed)
    confidences = 0.3 + 0.7 * generator.beta(4, 1.5, size=n)
    right = generator.random(n) < confidences - over
    outputs = tuple("a" if is_right else "b" for is_right in right)
    row_ids = tuple(str(row) for row in range(n))
    return Predictions(
        model, row_ids, ("a",) * n, outputs, right.astype(float), np.ones(n), confidences
    )


def gate_of(candidate: Predictions) -> Gate:
    return calibration_gate(candidate, limits=LIMITS, alpha=0.05)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_the_temperature_of_simulated_logits_is_recovered(temperature: float) -> None:
    generator = np.random.default_rng(1)
    calibrated = generator.normal(scale=2.0, size=(20_000, 5))
    shares = np.exp(calibrated) / np.exp(calibrated).sum(1, keepdims=True)
    labels = (shares.cumsum(1) < generator.random((len(calibrated), 1))).sum(1).clip(max=4)
    assert fit_temperature(calibrated * temperature, labels) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((0, 2)), np.zeros(0, dtype=int)),
        (np.zeros((2, 2)), np.zeros(3, dtype=int)),
        (np.array([[np.nan, 0.0]]), np.array([0])),
        (np.zeros((1, 2)), np.array([2])),
        (np.zeros((1, 2)), np.array([-1])),
    ],
)
def test_invalid_logits_and_labels_are_refused(logits: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"logits|labels"):
        fit_temperature(logits, labels)


@pytest.mark.parametrize("confidence", [-0.1, 1.1, np.nan, np.inf])
def test_an_invalid_confidence_is_refused(confidence: float) -> None:
    broken = replace(
        simulated(8), model="broken", calibrated=np.append(np.full(7, 0.5), confidence)
    )
    with pytest.raises(VerdictRefused, match="broken: the confidence at position 7"):
        gate_of(broken)


def test_a_perfectly_calibrated_model_passes_on_many_rows_and_does_not_fail_on_few() -> None:
    assert gate_of(simulated(2_000)).state is State.PASSES
    for n in (5, 50, 200):
        for seed in range(8):
            assert gate_of(simulated(n, seed=seed)).state is not State.FAILS


def test_an_overconfident_model_fails() -> None:
    gate = gate_of(simulated(2_000, over=0.1))
    assert gate.state is State.FAILS
    assert [bound.what for bound in gate.bounds] == ["debiased ECE"]


def test_a_true_ece_at_the_limit_rarely_fails() -> None:
    failed = sum(
        gate_of(simulated(200, over=0.05, seed=seed)).state is State.FAILS for seed in range(60)
    )
    assert (
        failed <= 5
    )  # 60 tests at a rate of 0.025; the rate is 0.07 without the correction for chance


@pytest.mark.parametrize("over", [0.0, 0.08])
def test_the_estimate_is_debiased_and_the_interval_contains_the_true_ece(over: float) -> None:
    bounds = [gate_of(simulated(400, over=over, seed=seed)).bounds[0] for seed in range(30)]
    assert np.mean([bound.estimate for bound in bounds]) == pytest.approx(over, abs=0.02)
    assert sum(bound.interval[0] <= over <= bound.interval[1] for bound in bounds) >= 26


def test_rows_that_share_documents_have_a_wider_interval() -> None:
    table = simulated(100)
    copies = replace(
        simulated(1_000),
        outputs=tuple(np.repeat(table.outputs, 10).tolist()),
        scores=np.repeat(table.scores, 10),
        calibrated=np.repeat(table.calibrated, 10),
    )
    intervals = [
        gate_of(rows).bounds[0].interval
        for rows in (
            table,
            replace(copies, clusters=tuple(np.repeat(np.arange(100), 10).astype(str))),
            copies,
        )
    ]
    assert intervals[1] == pytest.approx(intervals[0], abs=0.01)
    assert intervals[2][1] - intervals[2][0] < 0.6 * (intervals[1][1] - intervals[1][0])
    few = replace(copies, clusters=tuple(str(row % 5) for row in range(1_000)))
    gate = gate_of(few)
    assert (gate.state, gate.bounds) == (State.NOT_ASSESSABLE, ())
    assert "5 independent rows or documents" in gate.note


def test_six_right_answers_with_confidence_1_are_not_assessable() -> None:
    table = replace(simulated(6), outputs=("a",) * 6, scores=np.ones(6), calibrated=np.ones(6))
    gate = gate_of(table)
    assert gate.bounds[0].estimate == pytest.approx(0, abs=1e-9)
    assert gate.state is State.NOT_ASSESSABLE


@pytest.mark.parametrize(("model", "share"), [("endpoint_zero_shot", 1.0), ("hybrid", 0.1)])
def test_a_candidate_without_confidences_cannot_be_assessed(model: str, share: float) -> None:
    calibrated = simulated(300).calibrated.copy()
    calibrated[: round(share * 300)] = np.nan
    candidate = replace(simulated(300), model=model, calibrated=calibrated)
    gate = gate_of(candidate)
    assert (gate.state, gate.note) == (State.NOT_ASSESSABLE, f"{model} returns no confidences")
