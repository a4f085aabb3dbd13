"""After further seeds: one model whose weights are the mean of several trainings'."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from tailorbird.storage import upload_folder
from tailorbird.storage.node_cache import local_copy


def average_weights(uris: Sequence[str], uri: str) -> None:
    """Writes to `uri` the mean of the weights under each of `uris`: trainings of one model that began alike.

    It costs no more to ask than one of them, and often answers better. Wortsman et al., Model soups: averaging weights
    of multiple fine-tuned models improves accuracy without increasing inference time (ICML 2022). Of whole weights
    only: a LoRA update is a product, and the mean of products is not that of their factors. Raises ValueError where
    the files, or the weights in them, are not the same ones.
    """
    folders = [local_copy(one) for one in uris]
    names = [sorted(path.name for path in folder.glob("*.safetensors")) for folder in folders]
    if not names[0] or any(found != names[0] for found in names):
        raise ValueError(f"{', '.join(uris)} do not hold the same files of weights, so there is no mean of them")
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as temporary:
        for name in names[0]:
            _average_file([folder / name for folder in folders], Path(temporary) / name)
        upload_folder(Path(temporary), uri)


def _average_file(files: Sequence[Path], mean: Path) -> None:
    """One tensor of all files is in memory at a time, beside the mean itself."""
    opened: list[Any] = [safe_open(file, framework="pt") for file in files]
    keys = set(opened[0].keys())
    if any(set(one.keys()) != keys for one in opened):
        raise ValueError(f"the weights in {', '.join(map(str, files))} have different names")
    tensors = {}
    for key in sorted(keys):
        values = [one.get_tensor(key) for one in opened]
        if any(value.shape != values[0].shape for value in values):
            raise ValueError(f"the weights {key!r} in {', '.join(map(str, files))} have different shapes")
        tensors[key] = (sum(value.double() for value in values) / len(values)).to(values[0].dtype)
    save_file(tensors, mean)
