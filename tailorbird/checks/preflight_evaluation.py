"""Checks of `tailorbird preflight` and of each run on the GPUs that baselines and the evaluation
use."""

from collections.abc import Iterator, Sequence
from itertools import chain

from cluster.node_probe import gpu_bytes_of_cluster
from cluster.resources import evaluation_resources
from tailorbird.checks.doctor import GIB
from tailorbird.checks.preflight_facts import Cluster
from tailorbird.checks.result import CheckResult, fault, ok
from tailorbird.config.recipe import Recipe
from tailorbird.data.task_data import recipe_task
from tailorbird.models.metadata import ModelMetadata, read_metadata

BF16_BYTES = 2


def check_evaluation(
    recipe: Recipe, model: ModelMetadata | None, *, cluster: Cluster
) -> Iterator[CheckResult]:
    """Check that a node has the GPUs that the evaluation of a service on GPUs needs, and that the
    model fits them.

    Without such a node, the evaluation would wait forever.
    """
    if recipe.serving.gpus_per_replica:
        needed = evaluation_resources(recipe.training, recipe.serving)
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
        yield from check_gpus(recipe, model, gpu_bytes=sizes)


def check_gpus(
    recipe: Recipe, model: ModelMetadata, *, gpu_bytes: Sequence[int]
) -> Iterator[CheckResult]:
    """Check that the GPUs of an evaluation can hold the model; `gpu_bytes` has the memory of each
    GPU, if known."""
    if not uses_gpu(recipe):
        return
    weights = BF16_BYTES * model.shape.num_parameters
    num_gpus = max(1, int(recipe.serving.gpus_per_replica))
    if gpu_bytes and weights >= num_gpus * min(gpu_bytes):
        gpus = "one GPU" if num_gpus == 1 else f"{num_gpus} GPUs"
        text = (
            f"the weights take {weights / GIB:.0f} GiB in bf16, and the smallest GPU has "
            f"{min(gpu_bytes) / GIB:.0f} GiB. Baselines and the evaluation hold the whole model on "
            f"{gpus}, even if more GPUs train it"
        )
        remedy = (
            "raise serving.gpus_per_replica (chat with engine: vllm), or choose a smaller base "
            "model, or GPUs with more memory"
        )
        yield fault("model on GPUs", text, remedy)


def require_gpus(recipe: Recipe, *, base_model: str) -> None:
    """Raise ValueError if the GPUs of an evaluation in the connected cluster cannot hold the staged
    base model."""
    if not uses_gpu(recipe):
        return
    model = read_metadata(base_model, task=recipe_task(recipe))
    for result in check_gpus(recipe, model, gpu_bytes=gpu_bytes_of_cluster()):
        if result.state == "fault":
            raise ValueError(f"{result.message}; {result.remedy}")


def uses_gpu(recipe: Recipe) -> bool:
    """Return True if baselines or the evaluation use a GPU."""
    return bool(recipe.training.gpus_per_worker or recipe.serving.gpus_per_replica)
