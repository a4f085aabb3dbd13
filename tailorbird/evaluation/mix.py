"""Mix a fine-tuned classifier with a bag of words, by one weight that is selected on validation."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tailorbird.data.copies import documents
from tailorbird.data.rows import Rows
from tailorbird.data.tokenize import label_indices
from tailorbird.evaluation.baselines.linear_head import HeldOut
from tailorbird.evaluation.baselines.linear_solver import FloatArray
from tailorbird.evaluation.gates.calibration import fit_temperature
from tailorbird.evaluation.mix_weight import MixRecord, select_weight
from tailorbird.models.bag_of_words import bag_files, load_bag
from tailorbird.models.loading import LoadedClassifier, load_artifact
from tailorbird.registry.versions import read_artifact_config, write_config
from tailorbird.storage import upload_folder
from tailorbird.storage.node_cache import local_copy


def mix_with_bag(
    model_uri: str, *, bag_uri: str, validation: Rows, metric: str, to: str
) -> MixRecord:
    """Select the weight of a mix on validation, and write the mixed classifier to the URI `to` if
    it scores higher.

    The mix of two models has the log-probabilities w * model + (1 - w) * bag of words, up to a
    constant per row. Each gets a temperature first, without its offsets. Raises ValueError
    if the models have different classes.
    """
    classes = read_artifact_config(model_uri).classes
    if read_artifact_config(bag_uri).classes != classes:
        raise ValueError(
            f"{model_uri} and the bag of words {bag_uri} have different classes and cannot be "
            "mixed; run the recipe again"
        )
    truth = label_indices(validation.labels, classes=classes)
    held_out = HeldOut(truth, metric, documents(validation))
    logits = [_unshifted_logits(uri, validation) for uri in (model_uri, bag_uri)]
    temperatures = [fit_temperature(values, labels=truth) for values in logits]
    scaled = [values / np.float32(t) for values, t in zip(logits, temperatures, strict=True)]
    record = select_weight(*scaled, held_out=held_out)
    if record.weight < 1:
        factors = (record.weight / temperatures[0], (1 - record.weight) / temperatures[1])
        write_mix(model_uri, bag_uri=bag_uri, factors=factors, to=to)
    return record


def write_mix(model_uri: str, *, bag_uri: str, factors: tuple[float, float], to: str) -> None:
    """Write the mix of a classifier and a bag of words as an artifact to the URI `to`, with
    temperature 1, no offsets.

    A mixed classifier adds the logits of its head and its bag of words. `factors` are those of both
    linear layers: weights divided by temperatures.
    """
    model = read_artifact_config(model_uri)
    assert model.spec.mixed is not None  # the model is fine-tuned
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as name:
        folder = Path(name)
        source = local_copy(model_uri)
        rewritten = shutil.ignore_patterns("head.safetensors", "config.json")
        shutil.copytree(
            source, folder, copy_function=os.symlink, ignore=rewritten, dirs_exist_ok=True
        )
        factor = np.float32(factors[0])
        head = load_file(source / "head.safetensors")
        save_file({key: value * factor for key, value in head.items()}, folder / "head.safetensors")
        scaled = load_bag(local_copy(bag_uri)).scaled(factors[1])
        for file, content in bag_files(scaled).items():
            (folder / file).write_bytes(content)
        changes = {"kind": model.spec.mixed, "temperature": 1.0, "offsets": ()}
        write_config(folder, model.model_copy(update=changes))
        upload_folder(folder, to)


def _unshifted_logits(uri: str, rows: Rows) -> FloatArray:
    loaded = load_artifact(uri)
    assert isinstance(loaded, LoadedClassifier)
    return np.asarray(loaded.unshifted_logits(rows.texts), dtype=np.float32)
