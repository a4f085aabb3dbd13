"""How DeepSpeed's checkpoint is read: its files are pickles, and what they may name is written down here."""

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from training.deepspeed_engine import import_deepspeed

FORCE, FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""torch's own switches; the first holds whatever the caller of `torch.load` asks for."""
SUFFIX = ".pt"
MAX_NAMED = 3


class UnusableCheckpoint(ValueError):
    """A checkpoint that cannot be gone on from; the message names the file and what to do."""


@contextmanager
def tensors_only() -> Iterator[None]:
    """Inside the block `torch.load` makes tensors, plain values and DeepSpeed's few records, and runs no other code.

    DeepSpeed itself asks for a full unpickle, which runs whatever a file names. Raises, from within the block,
    `pickle.UnpicklingError` where a file names anything else.
    """
    before = {name: os.environ.get(name) for name in (FORCE, FORBID)}
    os.environ[FORCE] = "1"
    os.environ.pop(FORBID, None)
    try:
        with torch.serialization.safe_globals(_records()):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def find_unsafe_file(folder: Path) -> str | None:
    """What is wrong with the first of a checkpoint's pickles that names more than a training writes; None for none.

    Nothing is loaded for it: a pickle is a list of instructions, and they are read. `tensors_only` is what protects;
    this tells which file it was, and all ranks alike, before one of them waits for the others.
    """
    with torch.serialization.safe_globals(_records()):
        for file in sorted(folder.rglob(f"*{SUFFIX}")):
            try:
                foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file)
            except (pickle.UnpicklingError, zipfile.BadZipFile, ValueError, RuntimeError, EOFError) as error:
                return f"{file.relative_to(folder)} is no file of torch's ({_line(error)})"
            if foreign:
                return f"{file.relative_to(folder)} would run code when read: it names {', '.join(foreign[:MAX_NAMED])}"
    return None


def _records() -> list[Any]:
    """What DeepSpeed's optimizer states hold beside tensors and plain values, at any stage."""
    import_deepspeed()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
