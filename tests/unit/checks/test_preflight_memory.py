"""Checks of the memory of nodes and GPUs."""

from dataclasses import replace

from cluster.resources import Resources
from tailorbird.checks.doctor import GIB
from tailorbird.checks.preflight import check_facts
from tailorbird.checks.preflight_memory import tried_configs
from tests.build import recipe
from tests.unit.checks.test_preflight import CLUSTER, REPORT, nodes, on, only_fault


def test_the_workers_of_a_node_must_fit_its_memory() -> None:
    little = replace(REPORT, memory_bytes=4 * GIB, free_bytes=2 * GIB)
    line = only_fault(on(CLUSTER, reports={"1": little}))
    assert line.name == "memory"
    assert (
        "10.0.0.1 has 1.80 GiB free for 4 workers" in line.message
    )  # the CPUs fit two trials of two workers


def test_a_small_gpu_is_a_fault_and_an_unknown_one_a_note() -> None:
    changed_recipe = recipe(training={"gpus_per_worker": 1, "num_workers": 1})
    room = nodes(Resources(4, 1))
    states = {}
    for sizes in ((), (GIB,), (80 * GIB,)):
        reports = {"1": replace(REPORT, gpu_bytes=sizes)}
        lines = check_facts(changed_recipe, on(CLUSTER, nodes=room, reports=reports))
        states[sizes] = next(line.state for line in lines if line.name == "GPU memory")
    assert list(states.values()) == ["note", "fault", "ok"]


def test_memory_is_estimated_for_all_configurations_of_the_sweep() -> None:
    space = {"batch_size": {"choice": [16, 64]}, "method": {"choice": ["full", "lora"]}}
    tried = tried_configs(recipe(tuning={"space": space}))
    assert len({(config.batch_size, config.method) for config in tried}) == 4


def test_unknown_memory_of_nodes_is_a_note() -> None:
    lines = check_facts(
        recipe(), on(CLUSTER, reports={}, probe_errors={"1": "no answer within 60 s"})
    )
    (line,) = [line for line in lines if line.name == "memory"]
    assert line.state == "note"
