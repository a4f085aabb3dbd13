"""Tests of temperature, ECE and the calibration gate on models with known calibration."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorbird.config.evaluation import CalibrationGateConfig
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.calibration import (
    TEMPERATURES,
    bins_of,
    calibration_gate,
    ece,
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


def test_the_temperature_stays_within_its_limits_if_every_row_is_right() -> None:
    temperature = fit_temperature(10 * np.eye(3), np.arange(3))
    assert TEMPERATURES[0] <= temperature < 0.2


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e5, 0.0], [1e5, 0.0], [1e5, 0.0]])
    assert fit_temperature(logits, np.array([0, 0, 1])) == pytest.approx(TEMPERATURES[1], rel=0.01)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, dtype=int), "at least one row"),
        (np.zeros((2, 2)), np.zeros(3, dtype=int), "labels \\(3,\\)"),
        (np.array([[np.nan, 0.0]]), np.array([0]), "finite"),
        (np.zeros((1, 2)), np.array([2]), "allowed: 0 to 1"),
        (np.zeros((1, 2)), np.array([-1]), "allowed: 0 to 1"),
    ],
)
def test_invalid_logits_and_labels_are_refused(
    logits: np.ndarray, labels: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels)


def test_ece_is_the_mean_gap_of_the_bins_weighted_by_rows() -> None:
    # Bin of 0.95: 3 of 4 right, gap 0.2; bin of 0.5: 1 of 1 right, gap 0.5.
    correct, confidence = np.array([1.0, 1, 1, 0, 1]), np.array([0.95, 0.95, 0.95, 0.95, 0.5])
    assert ece(confidence - correct, bins_of(confidence)) == pytest.approx(0.8 * 0.2 + 0.2 * 0.5)
    assert ece(confidence - correct, np.zeros(5, dtype=np.int64)) == pytest.approx(abs(0.86 - 0.8))
    assert ece(np.zeros(3), bins_of(np.ones(3))) == 0


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
    measured = [simulated(400, over=over, seed=seed) for seed in range(30)]
    assert (
        np.mean(
            [ece(table.calibrated - table.scores, bins_of(table.calibrated)) for table in measured]
        )
        > over + 0.005
    )


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


def test_the_gate_is_deterministic_and_uses_only_confidence_after_temperature_scaling() -> None:
    table = simulated(2_000)
    assert gate_of(replace(table, confidences=np.full(2_000, 0.99))) == gate_of(table)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=12))
def test_any_table_gives_a_state_and_an_interval_that_contains_the_estimate(
    rows: list[tuple[bool, float]],
) -> None:
    outputs = tuple("a" if row[0] else "b" for row in rows)
    gate = gate_of(
        replace(
            simulated(len(rows)), outputs=outputs, calibrated=np.array([row[1] for row in rows])
        )
    )
    assert gate.state in State
    for bound in gate.bounds:
        assert bound.interval[0] <= bound.estimate <= bound.interval[1]
        assert (bound.rows_needed is not None) <= (bound.state is State.NOT_ASSESSABLE)


def test_the_note_on_an_endpoint_says_that_its_confidences_are_not_scaled() -> None:
    assert "temperature" not in gate_of(simulated(300)).note
    endpoint = gate_of(simulated(300, model="endpoint_zero_shot"))
    assert "confidences of an endpoint are not scaled by a temperature" in endpoint.note


@pytest.mark.parametrize(("model", "share"), [("endpoint_zero_shot", 1.0), ("hybrid", 0.1)])
def test_a_candidate_without_confidences_cannot_be_assessed(model: str, share: float) -> None:
    calibrated = simulated(300).calibrated.copy()
    calibrated[: round(share * 300)] = np.nan
    candidate = replace(simulated(300), model=model, calibrated=calibrated)
    gate = gate_of(candidate)
    assert (gate.state, gate.note) == (State.NOT_ASSESSABLE, f"{model} returns no confidences")
