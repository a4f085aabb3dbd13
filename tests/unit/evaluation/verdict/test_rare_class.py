"""A class that is rare in validation and frequent in the test: its answers come from offsets."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.evaluation import CalibrationGateConfig, EvaluationConfig
from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.gates.calibration import (
    calibration_error,
    calibration_gate,
    fit_temperature,
)
from tailorbird.evaluation.offsets import fit_offsets
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.verdict.decide import Outcome
from tailorbird.evaluation.verdict.protocol import NO_GATES
from tailorbird.evaluation.verdict.reach import reach_verdict
from tailorbird.models.decision import at_index, temperature_softmax
from tests import build
from tests.unit.evaluation.verdict.tables import inputs_of, protocol_for

NUM_CLASSES = 10
RARE = 0
MISSED = 4.0  # lowers the logit of the rare class, as few training rows do
SHARES = {"validation": 0.03, "test": 0.18}
NUM_ROWS = {"validation": 3_000, "test": 5_500}
LIMITS = CalibrationGateConfig()
CALIBRATION = NO_GATES.model_copy(update={"calibration": LIMITS})


def rows_of(split: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the class of each row, and what both models see of it [N, L]."""
    generator = np.random.default_rng(len(split))
    truth = generator.integers(1, NUM_CLASSES, NUM_ROWS[split])
    truth[generator.random(len(truth)) < SHARES[split]] = RARE
    return truth, generator.normal(size=(len(truth), NUM_CLASSES))


def logits_of(split: str, *, signal: float) -> tuple[NDArray[np.int64], NDArray[Any]]:
    truth, noise = rows_of(split)
    logits = signal * (signal * np.eye(NUM_CLASSES)[truth] + noise)
    logits[:, RARE] -= MISSED
    return truth, logits


def model_of(kind: str, *, signal: float) -> tuple[Predictions, Predictions]:
    """Return a model's predictions, and the same with the confidences of logits without offsets."""
    truth, logits = logits_of("validation", signal=signal)
    fit = fit_offsets(logits, truth=truth, metric="accuracy")
    assert fit.offsets[RARE] > 1  # the rule that the case is about
    temperature = fit_temperature(fit.held_out_logits, labels=truth)
    labels, plain = logits_of("test", signal=signal)
    decided = plain + np.array(fit.offsets)
    answers = decided.argmax(1)
    names = [answers.astype(str).tolist(), labels.astype(str).tolist()]
    confidence, before = (
        at_index(temperature_softmax(values, temperature=temperature), answers)
        for values in (decided, plain)
    )
    table = replace(build.predictions(*names, calibrated=confidence), model=kind)
    return table, replace(table, calibrated=before)


INCUMBENT, _ = model_of("probe", signal=2.8)
CANDIDATE, WITHOUT_OFFSETS = model_of("full", signal=3.05)


def test_a_better_model_that_decides_by_offsets_is_chosen() -> None:
    protocol = protocol_for(len(CANDIDATE), gates=CALIBRATION)
    verdict = reach_verdict(inputs_of(INCUMBENT, CANDIDATE), protocol=protocol)
    gain = CANDIDATE.scores.mean() - INCUMBENT.scores.mean()
    assert 0.02 < gain < 0.05
    assert (verdict.outcome, verdict.selected) == (Outcome.FINE_TUNE, "candidate")
    assert verdict.stopped_by == ()


def test_confidences_without_the_offsets_that_decide_fail_the_gate() -> None:
    """So the first test detects them."""
    error = calibration_error(CANDIDATE, alpha=0.05)
    assert calibration_error(WITHOUT_OFFSETS, alpha=0.05).value > error.value + LIMITS.margin
    arguments: dict[str, Any] = {"incumbent": INCUMBENT, "limits": LIMITS, "alpha": 0.05}
    assert calibration_gate(WITHOUT_OFFSETS, **arguments).state is State.FAILS
    assert calibration_gate(CANDIDATE, **arguments).state is not State.FAILS


def test_a_limit_of_the_recipe_holds_for_the_incumbent_too_and_the_report_says_so() -> None:
    """Both models are right more often than they are confident."""
    tables = [
        replace(table, calibrated=0.85 * table.calibrated) for table in (INCUMBENT, CANDIDATE)
    ]
    config = EvaluationConfig.model_validate({"regulated": True, "gates": {"groups": None}})
    limits = NO_GATES.model_copy(update={"calibration": config.limits.calibration})
    protocol = protocol_for(
        len(CANDIDATE), gates=limits, required_gates=config.required_gates, regulated=True
    )
    verdict = reach_verdict(inputs_of(*tables), protocol=protocol)
    assert (verdict.outcome, verdict.selected) == (Outcome.STAY, "incumbent")
    assert verdict.stopped_by == ("calibration",)
    answer = verdict.sentence()
    assert answer.startswith("Keep the incumbent, the pretrained model with a linear head (8")
    assert "the fine-tuned model is better by" in answer
    assert "calibration gate fails (debiased ECE" in answer
    assert "limit 5.0)" in answer
    text = " ".join(verdict.sentences)
    assert "it is kept, because no model that passes its gates dominates it" in text

    relative = protocol.model_copy(update={"gates": CALIBRATION, "regulated": False})
    verdict = reach_verdict(inputs_of(*tables), protocol=relative)
    assert verdict.outcome is Outcome.FINE_TUNE


def test_a_limit_is_required_where_the_recipe_writes_it() -> None:
    def required(**fields: Any) -> tuple[str, ...]:
        return EvaluationConfig.model_validate(fields).required_gates

    assert required() == ()
    written = {"groups": {"max_loss": 0.05}, "calibration": {"max_ece": 0.1}, "robustness": {}}
    assert required(gates=written) == ("calibration", "groups")
    everything = ("calibration", "groups", "counterfactual", "robustness")
    assert required(regulated=True) == everything
    stored = EvaluationConfig.model_validate({"gates": written}).model_dump(mode="json")
    assert required(**stored) == ("calibration", "groups")
