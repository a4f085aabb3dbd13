"""Options of Serve for the deployments of a recipe."""

import pytest
from ray.serve.schema import DeploymentSchema

from serving.autoscaling import deployment_options
from serving.replica.base import Replica
from tailorbird.config.serving import ServingConfig
from tests.unit.serving.replica.loads import Loads


@pytest.mark.parametrize("task", ["classification", "chat"])
def test_the_options_of_serve_have_the_limits_of_the_recipe(task: str) -> None:
    config = ServingConfig(
        autoscaling={"min_replicas": 0, "max_replicas": 3, "max_replicas_per_node": 2}
    )
    options = deployment_options(config, task=task)
    backpressure = options["backpressure_config"]
    assert (backpressure.status_code, backpressure.retry_after_s) == (429, 2)
    replicas = options["autoscaling_config"]
    assert (replicas.min_replicas, replicas.max_replicas) == (0, 3)
    # requests that waited for a cold start are no load
    assert replicas.upscale_delay_s > replicas.look_back_period_s
    assert replicas.initial_replicas is None  # or each change of `user_config` would scale to it
    schema = {key: options[key] for key in ("name", "max_replicas_per_node")}
    assert DeploymentSchema.model_validate(schema).max_replicas_per_node == 2
    assert "max_replicas_per_node" not in deployment_options(ServingConfig(), task=task)


@pytest.mark.parametrize(("task", "limit"), [("classification", 356), ("chat", 164)])
def test_serve_sends_a_replica_256_requests_more_than_all_clients_may_hold(
    task: str, limit: int
) -> None:
    config = ServingConfig(gpus_per_replica=1, max_queued_requests=100)
    replica = Replica(Loads().versions(), task=task, task_uri="s3://models/task", config=config)
    assert replica._admission.budgets["requests"].limit == limit
    assert deployment_options(config, task=task)["max_ongoing_requests"] == limit + 256


@pytest.mark.parametrize(
    ("num_gpus", "bundles"),
    [
        (1, [{"CPU": 2, "GPU": 1}]),
        (0, [{"CPU": 2}]),
        (0.5, [{"CPU": 2, "GPU": 0.5}]),
        (4, [{"CPU": 2, "GPU": 1}, {"GPU": 1}, {"GPU": 1}, {"GPU": 1}]),
    ],
)
def test_vllm_servers_share_the_replicas_placement_group_and_use_its_gpus(
    num_gpus: float, bundles: list[dict[str, float]]
) -> None:
    config = ServingConfig(engine="vllm", cpus_per_replica=2, gpus_per_replica=num_gpus)
    options = deployment_options(config, task="chat")
    assert (options["placement_group_bundles"], options["placement_group_strategy"]) == (
        bundles,
        "STRICT_PACK",
    )
    resources = options["ray_actor_options"]
    assert (resources["num_cpus"], resources["num_gpus"]) == (2, 0)
    visible = resources["runtime_env"]["env_vars"].get("CUDA_VISIBLE_DEVICES")
    assert visible == (None if num_gpus else "")
