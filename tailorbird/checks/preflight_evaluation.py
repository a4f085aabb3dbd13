"""Checks of `tailorbird preflight` on the GPU that baselines and the evaluation use."""

from collections.abc import Iterator

from cluster.resources import evaluation_resources
from tailorbird.checks.doctor import GIB
from tailorbird.checks.preflight_facts import Cluster
from tailorbird.checks.result import CheckResult, fault, ok
from tailorbird.config.recipe import Recipe
from tailorbird.models.metadata import ModelMetadata

BF16_BYTES = 2


def check_evaluation(recipe: Recipe, model: ModelMetadata | None, *, cluster: Cluster) -> Iterator[CheckResult]:
    """Check that a node has the GPU that the evaluation of a service on GPUs needs, and that the model fits it.

    Without such a node, the evaluation would wait forever.
    """
    if recipe.serving.gpus_per_replica:
        needed = evaluation_resources(recipe.training, recipe.serving)
        rooms = [node.total for node in cluster.nodes] + [kind.resources for kind in cluster.node_types or ()]
        if any(room.num_workers(needed) for room in rooms):
            yield ok("evaluation", f"a node has room for the evaluation, which needs {needed.text()}")
        else:
            text = (
                f"no node has room for the evaluation, which runs on a GPU like the service and needs {needed.text()}"
            )
            yield fault("evaluation", text, "add nodes with GPUs, or set serving.gpus_per_replica to 0")
    sizes = [size for report in cluster.reports.values() for size in report.gpu_bytes]
    if model is None or not sizes or not (recipe.training.gpus_per_worker or recipe.serving.gpus_per_replica):
        return
    weights = BF16_BYTES * model.shape.num_parameters
    if weights >= min(sizes):
        yield fault(
            "model on one GPU",
            f"the weights take {weights / GIB:.0f} GiB in bf16, and the smallest GPU has {min(sizes) / GIB:.0f} GiB. "
            "Baselines and the evaluation hold the whole model on one GPU, even if several GPUs train it",
            "choose a smaller base model, or GPUs with more memory",
        )
