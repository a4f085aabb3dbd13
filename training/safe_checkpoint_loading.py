"""Read DeepSpeed's checkpoints, which are pickles, without running code from them."""

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from training.engine.deepspeed_private import checkpoint_records

FORCE, FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Environment variables of torch. The first overrides the `weights_only` argument of every `torch.load`."""
SUFFIX = ".pt"
MAX_NAMED = 3


class UnusableCheckpoint(ValueError):
    """A training cannot resume from the checkpoint."""


@contextmanager
def tensors_only() -> Iterator[None]:
    """Restrict `torch.load` within the block to tensors, plain values and DeepSpeed's record classes.

    DeepSpeed loads with a full unpickle, which runs any code that a file names. Within the block, such a file raises
    `pickle.UnpicklingError`.
    """
    previous = {name: os.environ.pop(name, None) for name in (FORCE, FORBID)}
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals(checkpoint_records()):
            yield
    finally:
        for name, value in previous.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def find_unsafe_file(folder: Path) -> str | None:
    """Return a description of the first unsafe or invalid file of a checkpoint, or None.

    Pickle instructions are read, not executed. The protection is `tensors_only`. This function finds the file on every
    rank before the ranks wait for each other in a collective operation.
    """
    with torch.serialization.safe_globals(checkpoint_records()):
        for file in sorted(folder.rglob(f"*{SUFFIX}")):
            try:
                foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file)
            except (pickle.UnpicklingError, zipfile.BadZipFile, ValueError, RuntimeError, EOFError) as error:
                first_line = (str(error).splitlines() or [type(error).__name__])[0]
                return f"{file.relative_to(folder)} is not a torch file ({first_line})"
            if foreign:
                return f"{file.relative_to(folder)} would run code when loaded ({', '.join(foreign[:MAX_NAMED])})"
    return None
