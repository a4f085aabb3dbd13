"""When another engine may serve what was judged: cheaper, by the interval not a point worse, and no gate against it."""

from typing import Any

import numpy as np
import pytest

from tailorbird.config.evaluation import CalibrationGateConfig, GatesConfig
from tailorbird.evaluation.gates.cost import CpuRounds
from tailorbird.evaluation.predictions import ModelPredictions, VerdictRefused
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.runtime_equivalence import Equivalence, evaluate_equivalence
from tests.unit.evaluation.verdict.test_decide import SHA, models, predictions, protocol_for

CHEAP = CpuRounds((10.0, 10.2, 9.9, 10.1, 10.0), (5.0, 5.1, 5.0, 4.9, 5.0))
AS_DEAR = CpuRounds((10.0, 10.2, 9.9, 10.1, 10.0), (9.0, 10.1, 9.9, 9.0, 10.0))


def accepted(*table: int, cpu: CpuRounds | None = CHEAP, **changes: Any) -> Equivalence:
    """Of both right, only the exported, only the judged, neither."""
    evaluated, exported = models(*table)
    reference = predictions("tf_idf", np.zeros(sum(table), dtype=bool))
    inputs = VerdictInputs(ModelPredictions(evaluated), ModelPredictions(exported), reference, SHA, cpu=cpu)
    return evaluate_equivalence(inputs, protocol=protocol_for(sum(table), **changes))


def test_the_same_answers_for_less_are_accepted() -> None:
    result = accepted(1500, 2, 3, 495)
    assert result.accepted
    assert (result.num_different, result.n) == (5, 2000)
    assert result.interval[0] > -0.01
    assert result.reasons[0].startswith("it takes 0.50 of the judged engine's CPU-seconds a row")
    assert result.reasons[1].endswith("above -1.00")


def test_an_engine_that_is_not_proven_to_be_cheaper_is_not_accepted() -> None:
    result = accepted(1500, 0, 0, 500, cpu=AS_DEAR)
    assert not result.accepted
    assert result.reasons[0].endswith("which is not shown to be under 0.9")


def test_a_loss_of_a_point_that_is_not_ruled_out_is_not_accepted() -> None:
    result = accepted(1480, 10, 25, 485)
    assert not result.accepted
    assert result.reasons[1].endswith("not above -1.00")


def test_few_rows_rule_no_loss_out() -> None:
    assert not accepted(150, 0, 0, 50).accepted
    assert accepted(450, 0, 0, 150).accepted


def test_a_gate_that_fails_or_in_a_regulated_recipe_is_open_stops_it() -> None:
    none = {"groups": None, "counterfactual": None, "robustness": None}
    strict = GatesConfig(calibration=CalibrationGateConfig(max_ece=0.05, max_increase=0.02), **none)
    result = accepted(1500, 2, 3, 495, gates=strict)  # confidences of 0.5 where three of four are right
    assert not result.accepted
    assert any(reason.startswith("the gate calibration fails") for reason in result.reasons)
    near = GatesConfig(calibration=CalibrationGateConfig(max_ece=0.25, max_increase=0.02), **none)
    assert accepted(1500, 2, 3, 495, gates=near).accepted
    result = accepted(1500, 2, 3, 495, gates=near, regulated=True)
    assert not result.accepted
    assert any("cannot be assessed on these rows" in reason for reason in result.reasons)


def test_it_is_plain_json() -> None:
    result = accepted(1500, 2, 3, 495)
    assert Equivalence.model_validate_json(result.model_dump_json()) == result


def test_other_rows_and_a_cost_that_was_not_measured_are_refused() -> None:
    with pytest.raises(VerdictRefused, match="the test rows changed"):
        accepted(1500, 2, 3, 495, test_sha256="cd" * 32)
    with pytest.raises(ValueError, match="cost of both engines was not measured"):
        accepted(1500, 2, 3, 495, cpu=None)
