from dataclasses import replace
from typing import Any

import pytest

from cluster.resources import Resources
from tailorbird.checks.doctor import GIB
from tailorbird.checks.preflight import check_facts
from tailorbird.checks.result import CheckResult
from tests.unit.checks.test_preflight import CLUSTER, GOOD, MODEL, REPORT, SHAPE, nodes, recipe

LARGE = replace(MODEL, shape=replace(SHAPE, num_parameters=70_000_000_000), num_stored=70_000_000_000)
ON_GPUS = ({"training": {"gpus_per_worker": 1}}, {"serving": {"gpus_per_replica": 1}})


def on_one_gpu(sections: dict[str, Any], *, gpu_bytes: tuple[int, ...]) -> list[CheckResult]:
    cluster = replace(CLUSTER, reports={"1": replace(REPORT, gpu_bytes=gpu_bytes)})
    lines = check_facts(recipe(**sections), replace(GOOD, model=LARGE, cluster=cluster))
    return [line for line in lines if line.name == "model on one GPU"]


@pytest.mark.parametrize("sections", ON_GPUS)
def test_a_model_that_only_several_gpus_can_hold_is_refused_because_one_judges_it(sections: dict[str, Any]) -> None:
    (line,) = on_one_gpu(sections, gpu_bytes=(80 * GIB,) * 8)
    assert line.state == "fault"
    assert "the weights take 130 GiB in bf16, and the smallest GPU has 80 GiB" in line.message


@pytest.mark.parametrize(("sections", "gpu_bytes"), [(ON_GPUS[0], (141 * GIB,)), (ON_GPUS[0], ()), ({}, (80 * GIB,))])
def test_a_model_is_not_refused_on_a_large_gpu_an_unknown_one_or_on_cpus(
    sections: dict[str, Any], gpu_bytes: tuple[int, ...]
) -> None:
    assert on_one_gpu(sections, gpu_bytes=gpu_bytes) == []


@pytest.mark.parametrize(("memory_gib", "is_refused"), [(120, True), (512, False)])
def test_models_that_no_node_can_hold_for_the_comparison_of_costs_are_refused(
    memory_gib: int, is_refused: bool
) -> None:
    """The head node and the node with few CPUs have enough memory, but the comparison cannot run there."""
    sizes = {"1": 512, "2": memory_gib, "3": 64, "4": 512}
    reports = {node: replace(REPORT, memory_bytes=gib * GIB, gpu_bytes=(80 * GIB,)) for node, gib in sizes.items()}
    rooms = nodes(Resources(64), Resources(8, 1), Resources(8, 1), Resources(1, 8))
    large = replace(MODEL, shape=replace(SHAPE, num_parameters=32_000_000_000, stored_bf16=True))
    facts = replace(GOOD, model=large, cluster=replace(CLUSTER, nodes=rooms, reports=reports))
    sections = {"serving": {"gpus_per_replica": 1}, "training": {"method": "lora", "cpus_per_worker": 2}}
    lines = check_facts(recipe(**sections), facts)
    texts = [line.message for line in lines if line.name == "memory of the evaluation"]
    needs = "holds models of 119 GiB in the host's memory, and the largest node with 2 CPUs and 1 GPU has 120 GiB"
    assert [needs in text for text in texts] == [True] * is_refused
