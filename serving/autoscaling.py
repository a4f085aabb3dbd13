"""Replica bounds, queue limits and resources of a deployment."""

from typing import Any

from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from cluster.resources import gpu_visibility
from serving.http.server_middleware import SETTINGS
from serving.served_tasks import RETRY_AFTER_S, SERVED_TASKS
from tailorbird.config.serving import ServingConfig

AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": 1,
    "target_ongoing_requests": 32.0,
    # Longer than the look-back period, so that requests that waited for a cold start do not count
    # as load.
    "upscale_delay_s": 3.0,
    "look_back_period_s": 2.0,
    "downscale_delay_s": 10.0,
    "downscale_to_zero_delay_s": 60.0,
    "metrics_interval_s": 0.5,
}
"""Options of Serve's autoscaler that `serving.autoscaling` can override. `initial_replicas` is not
set: Serve would scale to it at each change of `user_config`."""
SPARE_REQUESTS = 256
"""Requests that Serve sends to a replica beyond the replica's own limit. The replica refuses
requests by client, which Serve's queue does not distinguish, and in its own error format."""


def deployment_options(config: ServingConfig, *, task: str) -> dict[str, Any]:
    """Return Serve's options of the deployment for a task."""
    served = SERVED_TASKS[task]
    threads = str(config.cpus_per_replica)
    env_vars = {
        "OMP_NUM_THREADS": threads,
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # The handlers do not block the event loop, and a separate thread would double the time of a
        # request.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        **SETTINGS,
        # The actors of an engine inherit it, so a replica whose GPUs are in its placement group
        # must not be limited.
        **gpu_visibility(config.gpus_per_replica),
    }
    resources: dict[str, float] = {
        "num_cpus": config.cpus_per_replica,
        "num_gpus": config.gpus_per_replica,
    }
    placement: dict[str, object] = {}
    options = dict(config.autoscaling)
    if config.max_replicas_per_node is not None:
        placement = {"max_replicas_per_node": int(options.pop("max_replicas_per_node"))}
    if config.engine in served.actor_engines:
        # The engine's actors run in the replica's placement group and use its GPUs. The replica
        # itself uses no GPU.
        placement = {
            "placement_group_bundles": _engine_bundles(config),
            "placement_group_strategy": "STRICT_PACK",
        }
        resources["num_gpus"] = 0
    return {
        "name": served.deployment,
        "autoscaling_config": AutoscalingConfig(**AUTOSCALING | options),
        "max_ongoing_requests": config.max_requests(task) + SPARE_REQUESTS,
        "max_queued_requests": config.max_queued_requests,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S),
        "max_surge_percent": 25,
        "graceful_shutdown_timeout_s": served.shutdown_s,
        "ray_actor_options": {**resources, "runtime_env": {"env_vars": env_vars}},
        **placement,
        "logging_config": LoggingConfig(enable_access_log=False),
    }


def _engine_bundles(config: ServingConfig) -> list[dict[str, float]]:
    """Return the bundles of a replica whose engine runs in actors: one per GPU, the first one with
    the replica's CPUs.

    A worker of the engine uses one bundle.
    """
    first: dict[str, float] = {"CPU": config.cpus_per_replica}
    if not config.gpus_per_replica:  # Ray rejects amounts of 0
        return [first]
    share = min(config.gpus_per_replica, 1)
    return [first | {"GPU": share}, *({"GPU": 1.0} for _ in range(1, int(config.gpus_per_replica)))]
