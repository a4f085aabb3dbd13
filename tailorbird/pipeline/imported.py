"""Models that were tuned elsewhere, as versions of the task that can be compared and served."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import save

from tailorbird.models.imported_head import import_head
from tailorbird.models.pretrained import dtype_name
from tailorbird.pipeline.contenders import contender_errors
from tailorbird.pipeline.inputs import RunInputs
from tailorbird.pipeline.tasks import Task
from tailorbird.registry.pooling import MEAN, Pooling
from tailorbird.registry.versions import Dtype, ModelVersion, read_version, register, write_config
from tailorbird.storage.node_cache import local_copy

NUM_COMPARED = 32
"""Number of training rows on which an imported classifier is compared with transformers."""


@dataclass(frozen=True)
class ImportedModel:
    """What a version of an imported model needs in addition to the staged model."""

    dtype: Dtype  # of the worker
    pooling: Pooling = MEAN
    head: bytes | None = None  # content of head.safetensors; None for a chat model


def import_models(inputs: RunInputs, task: Task) -> dict[str, ModelVersion]:
    """Return a version for each model in `RunInputs.imported`, by name; cached stages.

    Raises ContenderError if a classifier has other labels than the training rows, or a head that
    cannot be imported.
    """
    return {name: _import_model(inputs, task, name=name) for name in inputs.imported}


def _import_model(inputs: RunInputs, task: Task, *, name: str) -> ModelVersion:
    model = inputs.imported[name]
    recipe = inputs.recipe
    texts = inputs.splits.train.texts[:NUM_COMPARED] if task.classes else ()
    config = task.version_config("imported", dtype="float32")

    def compute(_: str) -> str:
        inputs.progress.activity(f"importing {name} from {model.source}")
        imported = inputs.remote(read_imported)(
            model.uri, classes=task.classes, texts=texts, max_length=recipe.data.max_length
        )
        fields = {"base_model": model.uri, "dtype": imported.dtype, "pooling": imported.pooling}
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if imported.head is not None:
                (folder / "head.safetensors").write_bytes(imported.head)
            write_config(folder, config.model_copy(update=fields))
            return register(recipe.task_uri, folder).uri

    stage_inputs = inputs.stage_inputs(
        read_imported,
        model=asdict(model),
        classes=task.classes,
        prompting=None if config.prompting is None else config.prompting.model_dump(mode="json"),
        max_length=recipe.data.max_length,
    )
    with contender_errors(name):
        return read_version(
            inputs.cached("contender", output=str, inputs=stage_inputs, compute=compute)
        )


def read_imported(
    uri: str, *, classes: tuple[str, ...], texts: Sequence[str], max_length: int
) -> ImportedModel:
    """Return the head of a staged classifier, compared on `texts`; no head without classes. Raises
    ModelError."""
    if not classes:
        return ImportedModel(dtype_name())
    head, pooling = import_head(
        local_copy(uri), classes=classes, texts=texts, max_length=max_length
    )
    return ImportedModel(dtype_name(), pooling, save(head.state_dict()))
