"""Read DeepSpeed's checkpoints, which are pickles, without running code from them."""

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from training.deepspeed_private import checkpoint_records

FORCE, FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""torch's switches; the first overrides the `weights_only` of any `torch.load`."""
SUFFIX = ".pt"
MAX_NAMED = 3


class UnusableCheckpoint(ValueError):
    """A checkpoint that cannot be resumed from; the message names the file and what to do."""


@contextmanager
def tensors_only() -> Iterator[None]:
    """Restrict `torch.load` to tensors, plain values and DeepSpeed's own record classes within the block.

    DeepSpeed loads with a full unpickle, which runs any code that a file names; in the block this raises
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
    """Return the first file of a checkpoint that is not as a training writes it, and why; None if all are.

    The pickles' instructions are read, not executed. `tensors_only` is the protection; this names the file, on all
    ranks alike, before any of them waits for the others.
    """
    with torch.serialization.safe_globals(checkpoint_records()):
        for file in sorted(folder.rglob(f"*{SUFFIX}")):
            try:
                foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file)
            except (pickle.UnpicklingError, zipfile.BadZipFile, ValueError, RuntimeError, EOFError) as error:
                first_line = (str(error).splitlines() or [type(error).__name__])[0]
                return f"{file.relative_to(folder)} is no file of torch's ({first_line})"
            if foreign:
                return f"{file.relative_to(folder)} would run code when read: it names {', '.join(foreign[:MAX_NAMED])}"
    return None
