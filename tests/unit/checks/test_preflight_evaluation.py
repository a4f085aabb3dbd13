from dataclasses import replace
from typing import Any

import pytest

from tailorbird.checks.doctor import GIB
from tailorbird.checks.preflight import check_facts
from tailorbird.checks.result import CheckResult
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
) -> list[CheckResult]:
    cluster = replace(CLUSTER, reports={"1": replace(REPORT, gpu_bytes=gpu_bytes)})
    changed = recipe(**sections)
    facts = replace(GOOD, base_models=(base_model(LARGE),), cluster=cluster)
    lines = check_facts(changed, facts)
    return [line for line in lines if line.name == "model on GPUs"]


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
    lines = on_gpus(sections, gpu_bytes=gpu_bytes)
    assert [line.state for line in lines] == ["fault"] * is_refused


@pytest.mark.parametrize(("num_gpus", "gib", "is_refused"), [(2, 80, False), (2, 48, True)])
def test_several_gpus_of_a_replica_judge_a_model_that_they_hold_together(
    num_gpus: int, gib: int, is_refused: bool
) -> None:
    lines = on_gpus(divided(num_gpus), gpu_bytes=(gib * GIB,) * 8)
    assert [f"on {num_gpus} GPUs, even if more" in line.message for line in lines] == [
        True
    ] * is_refused
