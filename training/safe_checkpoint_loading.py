"""Read DeepSpeed's checkpoints, which are pickles, without running code from them."""

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tailorbird.storage import storage_errors
from training.engine.deepspeed_private import checkpoint_records

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
FORBID = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Environment variables of torch. The first overrides the `weights_only` argument of every
`torch.load`."""
SUFFIX = ".pt"
MAX_NAMED = 3
BLOCK = 1 << 17  # bytes of a read from a header
INVALID = (
    AssertionError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)  # errors of torch's reader
CHANGED = (
    "checkpoint {uri} was changed after it was written: {problem}; check the write permissions "
    "of this path"
)


class UnusableCheckpoint(ValueError):
    """A training cannot resume from the checkpoint."""


@contextmanager
def tensors_only() -> Iterator[None]:
    """Restrict `torch.load` within the block to tensors, plain values and DeepSpeed's record
    classes.

    DeepSpeed loads with a full unpickle, which runs any code that a file names. Within the block,
    such a file raises `pickle.UnpicklingError`.
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

    Pickle instructions are read, not executed. The protection is `tensors_only`. This function
    finds the file on every rank before the ranks wait for each other in a collective operation.
    """
    with torch.serialization.safe_globals(checkpoint_records()):
        for file in sorted(folder.rglob(f"*{SUFFIX}")):
            problem = _problem(file)
            if problem:
                return f"{file.relative_to(folder)} {problem}"
    return None


def read_header(file: Any, name: str, *, uri: str) -> dict[str, Any]:
    """Return the content of an open torch file, the file `name` of a checkpoint, with tensors on
    the meta device.

    Must be called within `tensors_only`. Several threads can call it, each with its own file.
    Raises UnusableCheckpoint if the file is unsafe or invalid, and StorageError.
    """
    reader: Any = _Reader(file)
    try:
        problem = _problem(reader)
        reader.seek(0)
        header: dict[str, Any] = (
            {} if problem else torch.load(reader, map_location="meta", weights_only=True)
        )
    except INVALID as error:
        problem = _not_a_torch_file(error)
    finally:
        if reader.error is not None:
            with storage_errors(f"{uri}/{name}"):
                raise reader.error
    if problem:
        raise UnusableCheckpoint(CHANGED.format(uri=uri, problem=f"{name} {problem}"))
    return header


class _Reader:
    """An open file for torch's reader. It reads blocks and keeps them, because torch reads a few
    bytes at a time.

    It also keeps the error of a read, because torch can raise another one instead, such as
    SystemError.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._blocks: dict[int, bytes] = {}
        self._position = 0
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = int(self._file.seek(offset, whence))
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        first, start = divmod(self._position, BLOCK)
        if 0 <= size <= BLOCK:
            blocks = range(first, (self._position + size - 1) // BLOCK + 1)
            data = b"".join(map(self._block, blocks))[start : start + size]
        else:
            data = self._read(self._position, size)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            self._blocks[number] = self._read(number * BLOCK, BLOCK)
        return self._blocks[number]

    def _read(self, start: int, size: int) -> bytes:
        try:
            self._file.seek(start)
            return bytes(self._file.read(size))
        except OSError as error:
            self.error = error
            raise


def position_in_file(tensor: torch.Tensor) -> int:
    """Return the position in bytes of the first value of a tensor from `read_header`, or of a slice
    of it.

    torch records the position of each storage that it loads on the meta device, but does not
    document the attribute.
    """
    start = tensor.untyped_storage()._checkpoint_offset
    assert start is not None, f"torch {torch.__version__} records no positions"
    return start + int(tensor.storage_offset()) * tensor.element_size()


def _problem(file: Any) -> str | None:
    """Return why a torch file, open or at a path, is unsafe or invalid; None if it is neither."""
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        ValueError,
        RuntimeError,
        EOFError,
    ) as error:
        return _not_a_torch_file(error)
    if foreign:
        return f"would run code when loaded ({', '.join(foreign[:MAX_NAMED])})"
    return None


def _not_a_torch_file(error: Exception) -> str:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return f"is not a torch file ({first_line})"
