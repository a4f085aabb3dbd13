"""Checks of `tailorbird preflight` and of each run on the GPUs that baselines and the evaluation
use."""

from collections.abc import Iterator, Sequence
from itertools import chain

from cluster.node_probe import gpu_bytes_of_cluster
from cluster.resources import evaluation_resources
from tailorbird.checks.doctor import GIB
from tailorbird.checks.preflight_facts import Cluster
from tailorbird.checks.result import CheckResult, fault, note, ok
from tailorbird.config.recipe import Recipe
from tailorbird.data.task_data import recipe_task
from tailorbird.models.metadata import ModelMetadata, read_metadata
from tailorbird.models.tensor_parallel.ranks import Ranks

BF16_BYTES = 2


def check_evaluation(
    recipe: Recipe, model: ModelMetadata | None, *, ranks: Ranks, cluster: Cluster
) -> Iterator[CheckResult]:
    """Check that a node has the GPUs that the evaluation of a service on GPUs needs, and that the
    model fits them.

    Without such a node, the evaluation would wait forever.
    """
    if recipe.serving.gpus_per_replica:
        needed = evaluation_resources(recipe.training, recipe.serving, num_ranks=ranks.number)
        if any(room.num_workers(needed) for room in cluster.rooms):
            yield ok(
                "evaluation", f"a node has room for the evaluation, which needs {needed.text()}"
            )
        else:
            text = (
                "no node has room for the evaluation, which runs on GPUs like the service and "
                f"needs {needed.text()}"
            )
            yield fault(
                "evaluation", text, "add nodes with as many GPUs, or lower serving.gpus_per_replica"
            )
    sizes = list(chain.from_iterable(report.gpu_bytes for report in cluster.reports.values()))
    if model is not None:
        yield from check_gpus(recipe, model, ranks=ranks, gpu_bytes=sizes)


def check_gpus(
    recipe: Recipe, model: ModelMetadata, *, ranks: Ranks, gpu_bytes: Sequence[int]
) -> Iterator[CheckResult]:
    """Check that the GPUs of an evaluation can hold the model; `gpu_bytes` has the memory of each
    GPU, if known."""
    if not uses_gpu(recipe):
        return
    weights = BF16_BYTES * model.shape.num_parameters
    if gpu_bytes and weights >= ranks.number * min(gpu_bytes):
        gpus = "one GPU" if ranks.number == 1 else f"{ranks.number} GPUs"
        text = (
            f"the weights take {weights / GIB:.0f} GiB in bf16, and the smallest GPU has "
            f"{min(gpu_bytes) / GIB:.0f} GiB"
        )
        if ranks.reason is None:
            text += (
                f". Baselines and the evaluation hold the whole model on {gpus}, even if more "
                "GPUs train it"
            )
            remedy = (
                "raise serving.gpus_per_replica (chat with engine: vllm), or choose a smaller "
                "base model"
            )
        else:
            text += f"; {ranks.reason}"
            remedy = (
                "choose another base model, or a serving.gpus_per_replica that divides its heads"
            )
        yield fault("model on GPUs", text, f"{remedy}, or GPUs with more memory")
    elif ranks.note is not None:
        yield note("model on GPUs", ranks.note)


def require_gpus(recipe: Recipe, *, base_model: str, ranks: Ranks) -> None:
    """Raise ValueError if the GPUs of an evaluation in the connected cluster cannot hold the staged
    base model."""
    if not uses_gpu(recipe):
        return
    model = read_metadata(base_model, task=recipe_task(recipe))
    for result in check_gpus(recipe, model, ranks=ranks, gpu_bytes=gpu_bytes_of_cluster()):
        if result.state == "fault":
            raise ValueError(f"{result.message}; {result.remedy}")


def uses_gpu(recipe: Recipe) -> bool:
    """Return True if baselines or the evaluation use a GPU."""
    return bool(recipe.training.gpus_per_worker or recipe.serving.gpus_per_replica)
