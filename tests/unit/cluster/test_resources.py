import pytest

from cluster.resources import (
    Holder,
    Resources,
    command_name,
    evaluation_resources,
    held_by,
    workers_that_fit,
)
from tailorbird.config.serving import ServingConfig
from tailorbird.config.training import TrainingConfig


@pytest.mark.parametrize(
    ("node", "worker", "fits"),
    [
        (Resources(3), Resources(2), 1),
        (Resources(0.3), Resources(0.1), 3),
        (Resources(8, 1), Resources(2, 1), 1),
    ],
)
def test_the_number_of_workers_on_a_node_is_limited_by_its_scarcest_resource(
    node: Resources, worker: Resources, fits: int
) -> None:
    assert node.num_workers(worker) == fits


def test_a_worker_does_not_span_two_nodes() -> None:
    assert workers_that_fit([Resources(5), Resources(3)], Resources(2)) == 3


@pytest.mark.parametrize(
    ("entrypoint", "name"),
    [
        (
            "python -m tailorbird run recipes/a.yaml tuning.num_trials=2",
            "tailorbird run recipes/a.yaml",
        ),
        (
            "/opt/env/lib/python3.11/site-packages/tailorbird/__main__.py watch b.yaml",
            "tailorbird watch b.yaml",
        ),
        ("/opt/env/bin/tailorbird run c.yaml", "tailorbird run c.yaml"),
        ("python train.py --token=abc", None),
    ],
)
def test_a_job_has_the_name_of_its_command_if_it_is_a_verb(
    entrypoint: str, name: str | None
) -> None:
    assert command_name(entrypoint) == name


def test_a_wait_names_up_to_three_holders() -> None:
    replicas = [Holder("replica", Resources(1))] * 3
    text = held_by([Holder("tailorbird run a.yaml", Resources(2, 1)), *replicas])
    assert "`tailorbird run a.yaml` (2 CPUs and 1 GPU), `replica` (1 CPU)" in text
    assert text.endswith("and 1 more")
    assert len({held_by(None), held_by([]), text}) == 3


@pytest.mark.parametrize(
    ("gpus", "expected"), [(0, Resources(2)), (0.5, Resources(4, 1)), (8, Resources(4, 8))]
)
def test_an_evaluation_has_the_whole_gpus_and_the_cpus_of_a_replica(
    gpus: float, expected: Resources
) -> None:
    serving = ServingConfig(engine="vllm", gpus_per_replica=gpus, cpus_per_replica=4)
    training = TrainingConfig(cpus_per_worker=2)
    assert evaluation_resources(training, serving) == expected
