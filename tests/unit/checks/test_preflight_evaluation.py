from dataclasses import replace
from typing import Any

import pytest

from tailorbird.checks.doctor import GIB
from tailorbird.checks.preflight import check_facts
from tailorbird.checks.result import CheckResult
from tailorbird.models.metadata import ModelMetadata
from tailorbird.models.tensor_parallel.ranks import plan_ranks
from tests.build import recipe
from tests.unit.checks.test_preflight import CLUSTER, GOOD, MODEL, REPORT, SHAPE, base_model

LARGE = replace(
    MODEL, shape=replace(SHAPE, num_parameters=70_000_000_000), num_stored=70_000_000_000
)
ON_GPUS = ({"training": {"gpus_per_worker": 1}}, {"serving": {"gpus_per_replica": 1}})


def on_gpus(
    sections: dict[str, Any],
    *,
    gpu_bytes: tuple[int, ...],
    divisor: int = 8,
    model: ModelMetadata = LARGE,
    name: str = "model on GPUs",
) -> list[CheckResult]:
    cluster = replace(CLUSTER, reports={"1": replace(REPORT, gpu_bytes=gpu_bytes)})
    changed = recipe(**sections)
    ranks = plan_ranks(changed.serving, {"s3://m/base": divisor})
    facts = replace(GOOD, base_models=(base_model(model),), ranks=ranks, cluster=cluster)
    lines = check_facts(changed, facts)
    return [line for line in lines if line.name == name]


def divided(num_gpus: int) -> dict[str, Any]:
    return {
        "task": "chat",
        "evaluation": {"metric": "rouge_l"},
        "serving": {"engine": "vllm", "gpus_per_replica": num_gpus},
    }


@pytest.mark.parametrize(
    ("sections", "gpu_bytes", "is_refused"),
    [
        *((each, (80 * GIB,), True) for each in ON_GPUS),
        (ON_GPUS[0], (), False),
        ({}, (GIB,), False),
    ],
)
def test_a_model_that_one_gpu_cannot_hold_is_refused_if_a_gpu_of_known_size_judges_it(
    sections: dict[str, Any], gpu_bytes: tuple[int, ...], is_refused: bool
) -> None:
    lines = on_gpus(sections, gpu_bytes=gpu_bytes, divisor=1)
    assert [line.state for line in lines] == ["fault"] * is_refused


@pytest.mark.parametrize(("num_gpus", "gib", "is_refused"), [(2, 80, False), (2, 48, True)])
def test_several_gpus_of_a_replica_judge_a_model_that_they_hold_together(
    num_gpus: int, gib: int, is_refused: bool
) -> None:
    lines = on_gpus(divided(num_gpus), gpu_bytes=(gib * GIB,) * 8)
    assert [f"on {num_gpus} GPUs, even if more" in line.message for line in lines] == [
        True
    ] * is_refused


INDIVISIBLE = [
    (8, 4, "only among a divisor of 4"),
    (3, 8, "only among a divisor of 8"),
    (2, 1, "because of its type or its heads"),
]


@pytest.mark.parametrize(("num_gpus", "divisor", "reason"), INDIVISIBLE)
def test_a_model_that_cannot_be_divided_among_the_gpus_of_a_replica_is_evaluated_on_one(
    num_gpus: int, divisor: int, reason: str
) -> None:
    (line,) = on_gpus(divided(num_gpus), gpu_bytes=(80 * GIB,) * 8, divisor=divisor, model=MODEL)
    assert line.state == "note"
    assert f"among {num_gpus} GPUs, {reason} (s3://m/base), so it uses one GPU" in line.message
    assert "the measured cost is an upper bound" in line.message
    (node,) = on_gpus(divided(num_gpus), gpu_bytes=(), divisor=divisor, name="evaluation")
    assert node.message.endswith("needs 1 CPU and 1 GPU")


@pytest.mark.parametrize(("num_gpus", "divisor", "reason"), INDIVISIBLE)
def test_a_model_that_can_neither_be_divided_nor_fits_one_gpu_is_refused(
    num_gpus: int, divisor: int, reason: str
) -> None:
    (line,) = on_gpus(divided(num_gpus), gpu_bytes=(80 * GIB,) * 8, divisor=divisor)
    assert line.state == "fault"
    assert "the smallest GPU has 80 GiB; the evaluation cannot divide" in line.message
    assert reason in line.message
    assert (
        "choose another base model, or a serving.gpus_per_replica that divides its heads"
        in line.remedy
    )
