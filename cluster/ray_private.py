"""All uses of Ray's private API, written for Ray 2.60.

tests/unit/cluster/test_ray_private.py names the part that another version of Ray has changed.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

RAY_VERSION = "2.60"
HEAD_RESOURCE = "node:__internal_head__"  # a resource of the head node only


def free_resources_by_node() -> Mapping[str, Mapping[str, float]]:
    """Return the free resources of each node of the connected cluster, by node id."""
    from ray._private.state import available_resources_per_node

    return available_resources_per_node()  # type: ignore[no-any-return]


def preemption_context() -> Any:
    """Return the preemption state of this Ray Train worker. Its `preemption_info` is None until a
    node is drained.

    The public ray.train.get_preemption_info() is a barrier over all ranks and would cost an actor
    call per step.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context


def kill_train_controllers() -> None:
    """Kill the controllers of this driver's Ray Train runs, and with them their workers. Their
    `fit` then raises.

    Ray Train stops a run by Ctrl-C only in the main thread.
    """
    from ray import ActorID
    from ray._private.state import actors
    from ray._private.worker import global_worker

    for name, actor in actors(job_id=global_worker.current_job_id).items():
        if actor["ActorClassName"] == "TrainController" and actor["State"] != "DEAD":
            global_worker.core_worker.kill_actor(ActorID.from_hex(name), True)


def run_in_main_thread(function: Callable[[], None]) -> None:
    """Run a function in the main thread of this Ray Train worker. The training function runs in
    another thread."""
    import ray

    ray.get(ray.get_runtime_context().current_actor.execute.remote(function))


def unwrap_worker_failure(failure: BaseException) -> BaseException:
    """Return the error of a worker without the exceptions in which Ray Train wraps it."""
    for name in ("health_check_failure", "_base_exc"):
        failure = getattr(failure, name, failure)
    return failure


def exclude_from_tune_actors(prefix: str) -> None:
    """Prevent Tune from passing environment variables with this prefix to its actors; Tune has no
    setting for that.

    Ray writes such variables to its logs and shows them to all clients that can list actors.
    """
    from ray.tune.execution import class_cache

    names = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in names if not name.startswith(prefix)}


def silence_slow_tune_operations() -> None:
    """Prevent Tune from warning that an operation of its event loop took more than 0.5 s; other
    warnings are kept.

    On few CPUs every sweep would print such warnings, and nothing in a recipe changes them. The
    environment variable TUNE_WARN_THRESHOLD_S has no effect here, because Tune reads it when it is
    imported.
    """
    from ray.tune.utils.util import warn_if_slow

    warn_if_slow.DEFAULT_THRESHOLD = math.inf


def keep_trial_error_as_text(trial: Any) -> None:
    """Make Tune read the error of a failed trial from a text file instead of a pickle on S3, which
    could run code."""
    trial.run_metadata.pickled_error_filename = None
