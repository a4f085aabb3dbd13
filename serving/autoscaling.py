"""Replica bounds, queue limits and resources of a deployment."""

from typing import Any

from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from serving.deploy.application import DEPLOYMENTS
from serving.replica.chat import RETRY_AFTER_S
from tailorbird.config.serving import ServingConfig

# Requests beyond what a chat replica takes, which Serve hands it all the same: it refuses them in OpenAI's shape.
SPARE_REQUESTS = 256
# What a replica that leaves may take for the answers it has begun.
SHUTDOWN_S = {"classification": 10, "chat": 120}


def deployment_options(config: ServingConfig, *, task: str) -> dict[str, Any]:
    """Serve's options for a section."""
    if task == "chat":
        max_ongoing = config.max_batch_size + config.max_queued_requests + SPARE_REQUESTS
    else:
        max_ongoing = max(2 * config.max_batch_size, round(2 * config.target_ongoing_requests))
    threads = str(config.cpus_per_replica)
    env_vars = {
        "OMP_NUM_THREADS": threads,
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # The handler never blocks its loop, so it needs no thread of its own: that hop would cost half of a request.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    }
    resources: dict[str, float] = {"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica}
    placed: dict[str, Any] = {}
    if task == "chat" and config.engine == "vllm":
        # The replica's servers are actors of their own, in what it holds: a GPU is theirs, not its own process's.
        placed = {"placement_group_bundles": [_bundle(resources)], "placement_group_strategy": "STRICT_PACK"}
        resources["num_gpus"] = 0
    return {
        "name": DEPLOYMENTS[task],
        "autoscaling_config": AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            # No `initial_replicas`: Serve goes back to them at each change of `user_config`, whatever the load.
            target_ongoing_requests=config.target_ongoing_requests,
            upscale_delay_s=config.upscale_delay_s,
            downscale_delay_s=config.downscale_delay_s,
            downscale_to_zero_delay_s=config.downscale_to_zero_delay_s,
            look_back_period_s=config.look_back_period_s,
            metrics_interval_s=0.5,
        ),
        "max_ongoing_requests": max_ongoing,
        "max_queued_requests": config.max_queued_requests,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S),
        "max_surge_percent": 25,
        "graceful_shutdown_timeout_s": SHUTDOWN_S[task],
        "ray_actor_options": {**resources, "runtime_env": {"env_vars": env_vars}},
        **placed,
        "logging_config": LoggingConfig(enable_access_log=False),
    }


def _bundle(resources: dict[str, float]) -> dict[str, float]:
    """A placement group's, which names no resource of which it has none."""
    named = {"CPU": resources["num_cpus"], "GPU": resources["num_gpus"]}
    return {name: amount for name, amount in named.items() if amount}
