"""Run a function on several processes of one node that hold a model together, or on one process."""

import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from cluster.progress import SILENT, ProgressReporter, current_progress
from cluster.ranks.process_group import Group, OtherRankFailed, join_group
from cluster.remote import report_waiting, reporting_function, run_remote, task_options
from cluster.resources import Resources

P = ParamSpec("P")
R = TypeVar("R")


def run_evaluation(
    function: Callable[P, R],
    *,
    num_ranks: int,
    resources: Resources,
    progress: ProgressReporter = SILENT,
) -> Callable[P, R]:
    """Return a function that runs `function` on one process, or on several ranks that hold a model
    together.

    See `run_remote` and `run_on_ranks`.
    """
    if num_ranks == 1:
        return run_remote(function, resources=resources, progress=progress)
    return run_on_ranks(function, num_ranks=num_ranks, resources=resources, progress=progress)


def run_on_ranks(
    function: Callable[P, R],
    *,
    num_ranks: int,
    resources: Resources,
    progress: ProgressReporter = SILENT,
) -> Callable[P, R]:
    """Return a function that runs `function` in `num_ranks` processes of one node, and returns the
    first one's result.

    The processes form a process group; see `join_group`. They have `resources` together, in equal
    parts. A call ends all of them at the first error, and raises it with its original type, not an
    error of another process that follows from it. See `run_remote` for `progress`, which is that of
    the first process. Raises ValueError for more GPUs than a cluster of fixed size has.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    first = function
    if progress is not SILENT:
        first = reporting_function(function, progress)
    # A rank that is run again would not find the others.
    task = ray.remote(max_calls=1, max_retries=0)(_run_rank)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        here = current_progress()
        options = task_options(resources)
        if options["num_gpus"] < resources.gpus:
            raise ValueError(
                f"the evaluation needs {resources.gpus:g} GPUs, and Ray has "
                f"{options['num_gpus']:g} here"
            )
        part = {"CPU": options["num_cpus"] / num_ranks, "GPU": options["num_gpus"] / num_ranks}
        bundle = {name: amount for name, amount in part.items() if amount}
        store = f"tailorbird-ranks-{uuid.uuid4().hex}"
        arguments = ray.put((args, kwargs))
        group = placement_group([bundle] * num_ranks, strategy="STRICT_PACK")
        try:
            ranks = []
            for rank in range(num_ranks):
                placed = task.options(
                    num_cpus=part["CPU"],
                    num_gpus=part["GPU"],
                    runtime_env=options["runtime_env"],
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        group, placement_group_bundle_index=rank
                    ),
                )
                called = first if rank == 0 else function
                ranks.append(placed.remote(called, Group(rank, num_ranks), store, arguments))
            report_waiting(
                ranks[0], resources=resources, progress=progress if progress is not SILENT else here
            )
            running = ranks
            while running:
                ended, running = ray.wait(running)
                try:
                    ray.get(ended)
                except ray.exceptions.RayTaskError as error:
                    if not isinstance(error.cause, OtherRankFailed):
                        raise
            value: R = ray.get(ranks[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        finally:
            remove_placement_group(group)
        return value

    return call


def _run_rank(
    function: Callable[..., R],
    group: Group,
    store: str,
    arguments: tuple[Sequence[Any], Mapping[str, Any]],
) -> R | None:
    """Return the result of `function` on the first rank, and None on the others.

    Raises OtherRankFailed for an error that follows one of another rank, such as that of a closed
    connection.
    """
    args, kwargs = arguments
    file = Path(tempfile.gettempdir()) / store
    file.touch()
    try:
        with join_group(group, store=file):
            result = function(*args, **kwargs)
    except OtherRankFailed:
        raise
    except BaseException as error:
        try:
            # only the first rank that fails can; torch removes the file of a complete group
            file.unlink()
        except FileNotFoundError:
            raise OtherRankFailed(f"another rank failed before: {error}") from error
        raise
    if group.rank:
        return None
    return result
