"""Read DeepSpeed's checkpoints, which are pickles, without running code from them."""

import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from training.engine.deepspeed_private import checkpoint_records

FORCE, FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Environment variables of torch. The first overrides the `weights_only` argument of every `torch.load`."""
SUFFIX = ".pt"
MAX_NAMED = 3
CHANGED = "checkpoint {uri} was changed after it was written: {problem}; check the write permissions of this path"


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
            problem = _problem(file)
            if problem:
                return f"{file.relative_to(folder)} {problem}"
    return None


def read_header(file: Any, name: str, *, uri: str) -> dict[str, Any]:
    """Return the content of an open torch file, the file `name` of a checkpoint, with tensors on the meta device.

    Must be called within `tensors_only`. Several threads can call it. Raises UnusableCheckpoint if the file is unsafe
    or invalid, and errors of the storage as they are.
    """
    reader: Any = _Reader(file)
    try:
        problem = _problem(reader)
        file.seek(0)
        header: dict[str, Any] = {} if problem else torch.load(reader, map_location="meta", weights_only=True)
    finally:
        if reader.error is not None:
            raise reader.error
    if problem:
        raise UnusableCheckpoint(CHANGED.format(uri=uri, problem=f"{name} {problem}"))
    return header


class _Reader:
    """An open file that keeps the error of a read. torch can raise another one instead, such as SystemError."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        return bytes(self._kept(self._file.read, size))

    def readinto(self, buffer: Any) -> int:
        return int(self._kept(self._file.readinto, buffer))

    def _kept(self, read: Callable[[Any], Any], argument: Any) -> Any:
        try:
            return read(argument)
        except OSError as error:
            self.error = error
            raise


def position_in_file(tensor: torch.Tensor) -> int:
    """Return the position in bytes of the first value of a tensor from `read_header`, or of a slice of it.

    torch records the position of each storage that it loads on the meta device, but does not document the attribute.
    """
    start = tensor.untyped_storage()._checkpoint_offset
    assert start is not None, f"torch {torch.__version__} records no positions"
    return start + int(tensor.storage_offset()) * tensor.element_size()


def _problem(file: Any) -> str | None:
    """Return why a torch file, open or at a path, is unsafe or invalid; None if it is neither."""
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except (pickle.UnpicklingError, zipfile.BadZipFile, ValueError, RuntimeError, EOFError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        return f"is not a torch file ({first_line})"
    return f"would run code when loaded ({', '.join(foreign[:MAX_NAMED])})" if foreign else None
