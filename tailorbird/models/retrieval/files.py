"""Store an index of training rows as safetensors and Parquet; loading it executes no code."""

from collections.abc import Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from weakref import WeakValueDictionary

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tailorbird.data.rows import digest_of
from tailorbird.models.errors import ModelError
from tailorbird.models.retrieval.index import SCHEMA, Postings, RetrievalIndex
from tailorbird.registry.versions import INDEX_FILES

MATRIX_FILE, ROWS_FILE = INDEX_FILES
ARRAYS = ("columns", "idf", "starts", "rows", "weights")


_in_memory: WeakValueDictionary[str, RetrievalIndex] = WeakValueDictionary()
"""Indexes that are in use, by digest."""


def index_files(index: RetrievalIndex) -> dict[str, bytes]:
    """Return the content of the files of an index by name."""
    rows = BytesIO()
    pq.write_table(index.table, rows, compression="zstd")
    return {MATRIX_FILE: save({name: getattr(index.postings, name) for name in ARRAYS}), ROWS_FILE: rows.getvalue()}


def index_sha256(files: Mapping[str, bytes]) -> str:
    """Return the digest of an index, given the content of its files by name."""
    return digest_of(sha256(files[name]).hexdigest() for name in INDEX_FILES)


def load_index(folder: Path, *, expected_sha256: str) -> RetrievalIndex:
    """Load an index; it returns the same neighbours as the stored one. Versions with the same index share its memory.

    Raises ModelError if a file is missing or damaged, or if the digest differs.
    """
    try:
        files = {name: (folder / name).read_bytes() for name in INDEX_FILES}
    except OSError as error:
        raise ModelError(
            f"the index of training rows in {folder} cannot be read: {error}; run the recipe again"
        ) from None
    actual = index_sha256(files)
    if actual != expected_sha256:
        raise ModelError(
            f"the index of training rows in {folder} has the digest {actual[:12]}, but the model requires "
            f"{expected_sha256[:12]}; restore the files, or run the recipe again"
        )
    if (known := _in_memory.get(actual)) is not None:
        return known
    try:
        arrays = load(files[MATRIX_FILE])
        postings = Postings(**{name: arrays[name] for name in ARRAYS})
        if pq.read_schema(BytesIO(files[ROWS_FILE])) != SCHEMA:
            raise ValueError(f"{ROWS_FILE} has other columns")
        table = pq.read_table(BytesIO(files[ROWS_FILE])).combine_chunks()
    except (KeyError, ValueError, SafetensorError, pa.ArrowException) as error:
        raise ModelError(
            f"the index of training rows in {folder} cannot be loaded: {error}; run the recipe again"
        ) from None
    index = _in_memory[actual] = RetrievalIndex(postings, table)
    return index
