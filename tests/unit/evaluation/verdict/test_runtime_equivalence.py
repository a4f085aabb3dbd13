"""Tests of the conditions for serving an evaluated model with another engine."""

from dataclasses import replace
from typing import Any

import pytest

from tailorbird.config.evaluation import CalibrationGateConfig
from tailorbird.evaluation.gates.cost import ServingCosts
from tailorbird.evaluation.predictions import Predictions, VerdictRefused
from tailorbird.evaluation.verdict.protocol import NO_GATES
from tailorbird.evaluation.verdict.runtime_equivalence import Equivalence, evaluate_equivalence
from tests.unit.evaluation.simulated import on_cpu
from tests.unit.evaluation.verdict.tables import (
    inputs_of,
    models,
    models_in_documents,
    protocol_for,
)

CHEAP = on_cpu({"incumbent": (10.0, 10.2, 9.9, 10.1, 10.0), "candidate": (5.0, 5.1, 5.0, 4.9, 5.0)})
EQUALLY_EXPENSIVE = {**CHEAP, **on_cpu({"candidate": (9.0, 10.1, 9.9, 9.0, 10.0)})}
DIFFERENT = models(1500, 2, 3, 495)
"""The tables of the evaluated and of the exported model, which is right on 2 further rows and wrong
on 3."""


def equivalence_of(
    evaluated: Predictions,
    exported: Predictions,
    *,
    costs: ServingCosts | None = CHEAP,
    **changes: Any,
) -> Equivalence:
    inputs = replace(inputs_of(evaluated, exported), costs=costs)
    return evaluate_equivalence(inputs, protocol=protocol_for(len(evaluated), **changes))


def test_an_engine_is_accepted_if_it_is_cheaper_and_loses_less_than_a_point() -> None:
    result = equivalence_of(*DIFFERENT)
    assert result.accepted
    assert (result.num_different, result.n) == (5, 2000)
    assert result.interval[0] > -0.01
    assert result.cost_ratio[0] == pytest.approx(0.5, abs=0.01)
    dear = equivalence_of(*DIFFERENT, costs=EQUALLY_EXPENSIVE)
    assert not dear.accepted
    assert dear.interval[0] > -0.01
    worse = equivalence_of(*models(1480, 10, 25, 485))
    assert not worse.accepted
    assert worse.interval[0] < -0.01


def test_few_documents_cannot_rule_out_rare_losses_whether_outputs_differ_or_not() -> None:
    evaluated, exported = models_in_documents(60, size=20)
    result = equivalence_of(evaluated, exported)
    assert result.interval[0] > -0.01
    assert not result.accepted
    assert "starts at -6.05 points" in result.reasons[1]
    assert not equivalence_of(evaluated, evaluated).accepted
    assert equivalence_of(*models_in_documents(500, size=4)).accepted


@pytest.mark.parametrize(
    ("max_ece", "regulated", "reason"),
    [
        (0.05, False, "the calibration gate fails"),
        (0.25, False, None),
        (0.25, True, "the calibration gate cannot be assessed"),
    ],
)
def test_a_failed_gate_or_an_open_gate_in_a_regulated_recipe_prevents_acceptance(
    max_ece: float, regulated: bool, reason: str | None
) -> None:
    """The confidence is 0.5, and the accuracy 0.75."""
    calibration = CalibrationGateConfig(max_ece=max_ece)
    gates = NO_GATES.model_copy(update={"calibration": calibration})
    result = equivalence_of(*DIFFERENT, gates=gates, regulated=regulated)
    assert result.accepted == (reason is None)
    assert reason is None or any(text.startswith(reason) for text in result.reasons)


def test_changed_rows_and_a_missing_cost_measurement_are_refused() -> None:
    with pytest.raises(VerdictRefused):
        equivalence_of(*DIFFERENT, test_sha256="cd" * 32)
    with pytest.raises(ValueError, match="cost"):
        equivalence_of(*DIFFERENT, costs=None)
