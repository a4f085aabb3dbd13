"""Every private part of Ray that the project uses, written for Ray 2.60.

tests/unit/cluster/test_ray_private.py fails with the name of what another version moved.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

RAY_VERSION = "2.60"
HEAD_RESOURCE = "node:__internal_head__"  # a resource that the head node alone has
GCS_TIMEOUT_S = 10


def cluster_versions(address: str) -> tuple[str, str] | None:
    """Return the versions of Ray and Python that GCS at `address` (host:port) has stored, without joining the cluster.

    Raises what Ray raises if it refuses the token or does not answer.
    """
    from ray._common.usage import usage_constants
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    content = GcsClient(address=address).internal_kv_get(
        usage_constants.CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER, timeout=GCS_TIMEOUT_S
    )
    if content is None:
        return None
    metadata = json.loads(content)
    return metadata["ray_version"], metadata["python_version"]


def free_resources_by_node() -> Mapping[str, Mapping[str, float]]:
    """Return the free resources of each node of the connected cluster, by node id."""
    from ray._private.state import available_resources_per_node

    return available_resources_per_node()  # type: ignore[no-any-return]


def autoscaler_node_groups() -> tuple[Any, ...]:
    """Return the node types that the cluster's autoscaler has reported to GCS.

    Each has `name`, `resources` by name, and `max_count`, which is -1 if there is no bound. Ray's own autoscalers
    report none, up to 2.60 at least.
    """
    from ray._private.state import state

    config = state.get_cluster_config()
    return tuple(config.node_group_configs) if config is not None else ()


def package_uri(content: bytes) -> str:
    """Return the URI under which Ray's job client stores an uploaded working directory: by the zip's sha1."""
    return f"gcs://_ray_pkg_{hashlib.sha1(content, usedforsecurity=False).hexdigest()}.zip"


def preemption_context() -> Any:
    """Return the preemption state of this Ray Train worker; its `preemption_info` is None until a node is drained.

    ray.train.get_preemption_info() is a barrier over all ranks: an actor call at each step.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context


def run_in_main_thread(function: Callable[[], None]) -> None:
    """Run a function in the main thread of this Ray Train worker, which runs the training function in another one."""
    import ray

    ray.get(ray.get_runtime_context().current_actor.execute.remote(function))


def unwrap_worker_failure(failure: BaseException) -> BaseException:
    """Return a worker's own error from the exceptions that Ray Train wraps it in."""
    for name in ("health_check_failure", "_base_exc"):
        failure = getattr(failure, name, failure)
    return failure


def exclude_from_tune_actors(prefix: str) -> None:
    """Do not pass environment variables with this prefix on to Tune's actors, for which Tune has no setting.

    Ray writes what it passes on to its logs, and shows it to anyone who may list actors.
    """
    from ray.tune.execution import class_cache

    names = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in names if not name.startswith(prefix)}


def keep_trial_error_as_text(trial: Any) -> None:
    """Do not let Tune load a failed trial's error from its pickle on S3; it reads the text stored next to it."""
    trial.run_metadata.pickled_error_filename = None
