"""Decisions of Serve's own autoscaling policy with the options of a recipe."""

from collections.abc import Callable
from typing import Any

import pytest
from ray.serve import autoscaling_policy
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext
from ray.serve.schema import DeploymentSchema

from serving.autoscaling import deployment_options
from serving.replica.base import Replica
from tailorbird.config.serving import ServingConfig
from tests.unit.serving.replica.loads import Loads

TICK_S = 0.1
LOADS_IN_S = 10.0


def replicas(
    monkeypatch: pytest.MonkeyPatch,
    config: ServingConfig,
    *,
    in_flight: Callable[[float], float],
    seconds: float,
) -> list[int]:
    """Return the target number of replicas at each tick, starting at 0; a replica is ready after
    `LOADS_IN_S`."""
    options: AutoscalingConfig = deployment_options(config, task="classification")[
        "autoscaling_config"
    ]
    decide: Any = autoscaling_policy._apply_autoscaling_config(
        autoscaling_policy.default_autoscaling_policy
    )
    state: dict[str, Any] = {}
    now, wanted = 1000.0, [0]
    monkeypatch.setattr(autoscaling_policy.time, "time", lambda: now)
    history: list[float] = []
    for tick in range(round(seconds / TICK_S)):
        history.append(in_flight(tick * TICK_S))
        window = history[-round(options.look_back_period_s / TICK_S) :]
        loaded = wanted[max(0, len(wanted) - 1 - round(LOADS_IN_S / TICK_S))]
        context = AutoscalingContext(
            deployment_id=DeploymentID("classifier", "app"),
            deployment_name="classifier",
            app_name="app",
            current_num_replicas=min(loaded, wanted[-1]),
            target_num_replicas=wanted[-1],
            running_replicas=[],
            total_num_requests=sum(window) / len(window),
            total_queued_requests=None,
            aggregated_metrics=None,
            raw_metrics=None,
            capacity_adjusted_min_replicas=options.min_replicas,
            capacity_adjusted_max_replicas=options.max_replicas,
            policy_state=state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now,
            config=options,
        )
        num_replicas, state = decide(context)
        wanted.append(max(options.min_replicas, min(options.max_replicas, num_replicas)))
        now += TICK_S
    return wanted


def cold_start(seconds: float) -> float:
    """Return the load of 200 requests that wait for the first replica, which answers them within
    half a second."""
    return 200.0 if seconds < LOADS_IN_S + 0.5 else 0.0


def test_requests_that_wait_for_a_cold_start_start_no_second_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = ServingConfig(autoscaling={"min_replicas": 0, "max_replicas": 4})
    assert max(replicas(monkeypatch, config, in_flight=cold_start, seconds=40)) == 1
    config = config.model_copy(
        update={"autoscaling": {"upscale_delay_s": 1.0}}
    )  # shorter than the look-back period
    assert max(replicas(monkeypatch, config, in_flight=cold_start, seconds=40)) == 4


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
    assert replicas.initial_replicas is None  # or each change of `user_config` would scale to it
    schema = {key: options[key] for key in ("name", "max_replicas_per_node")}
    assert DeploymentSchema.model_validate(schema).max_replicas_per_node == 2
    assert "max_replicas_per_node" not in deployment_options(ServingConfig(), task=task)


def test_replicas_follow_a_sustained_load_within_seconds_and_scale_to_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = ServingConfig(autoscaling={"min_replicas": 0, "max_replicas": 4})

    def load(seconds: float) -> float:
        return 1.0 if seconds < 20 else 96.0 if seconds < 60 else 0.0

    wanted = replicas(monkeypatch, config, in_flight=load, seconds=160)

    def at(seconds: float) -> int:
        return wanted[round(seconds / TICK_S)]

    assert [at(seconds) for seconds in (1, 19, 30, 59)] == [1, 1, 3, 3]
    assert [at(seconds) for seconds in (65, 78, 100, 159)] == [3, 1, 1, 0]


@pytest.mark.parametrize(
    ("num_gpus", "task", "limit"),
    [(0, "classification", 164), (0, "chat", 164), (1, "classification", 356), (1, "chat", 164)],
)
def test_serve_sends_a_replica_256_requests_more_than_all_clients_may_hold(
    num_gpus: float, task: str, limit: int
) -> None:
    config = ServingConfig(gpus_per_replica=num_gpus, max_queued_requests=100)
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
    assert (options["ray_actor_options"]["num_cpus"], options["ray_actor_options"]["num_gpus"]) == (
        2,
        0,
    )


@pytest.mark.parametrize("num_gpus", [0, 0.5, 1])
def test_other_replicas_use_their_gpu_themselves(num_gpus: float) -> None:
    options = deployment_options(ServingConfig(gpus_per_replica=num_gpus), task="classification")
    assert "placement_group_bundles" not in options
    assert options["ray_actor_options"]["num_gpus"] == num_gpus


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_replica_without_gpus_sees_none_and_a_server_sees_those_of_its_placement_group(
    engine: str,
) -> None:
    def environment(gpus: float) -> Any:
        config = ServingConfig.model_validate({"engine": engine, "gpus_per_replica": gpus})
        return deployment_options(config, task="chat")["ray_actor_options"]["runtime_env"][
            "env_vars"
        ]

    assert environment(0)["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in environment(1)
