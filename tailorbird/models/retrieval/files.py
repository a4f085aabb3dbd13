"""Store an index of training rows as safetensors and Parquet; loading it executes no code."""

from collections.abc import Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy.sparse import csc_matrix

from tailorbird.data.rows import digest_of
from tailorbird.models.errors import ModelError
from tailorbird.models.retrieval.index import SCHEMA, Embeddings, Postings, RetrievalIndex
from tailorbird.registry.versions import INDEX_FILES, Retrieval

if TYPE_CHECKING:
    from tailorbird.models.retrieval.text_encoder import TextEncoder

MATRIX_FILE, ROWS_FILE = INDEX_FILES
EMBEDDINGS = "embeddings"  # array of the embeddings, float16

_in_memory: WeakValueDictionary[tuple[str, "TextEncoder | None", float], RetrievalIndex] = (
    WeakValueDictionary()
)
"""Indexes that are in use, by digest, encoder and weight of the embeddings."""


def index_files(index: RetrievalIndex) -> dict[str, bytes]:
    """Return the content of the files of an index by name. The encoder is not part of them."""
    matrix = index.postings.matrix
    arrays = {
        "columns": index.postings.columns,
        "idf": index.postings.idf,
        "starts": matrix.indptr,
        "rows": matrix.indices,
        "weights": matrix.data,
    }
    if index.embeddings is not None:
        arrays[EMBEDDINGS] = index.embeddings.rows.astype(np.float16)
    rows = BytesIO()
    pq.write_table(index.table, rows, compression="zstd")
    return {MATRIX_FILE: save(arrays), ROWS_FILE: rows.getvalue()}


def index_sha256(files: Mapping[str, bytes]) -> str:
    """Return the digest of an index, given the content of its files by name."""
    return digest_of(sha256(files[name]).hexdigest() for name in INDEX_FILES)


def load_index(
    folder: Path, *, retrieval: Retrieval, encoder: "TextEncoder | None"
) -> RetrievalIndex:
    """Load an index with the encoder of the retrieval. Equal indexes share their memory.

    Raises ModelError if a file is missing or damaged, or if the digest differs.
    """
    key = (retrieval.index_sha256, encoder, retrieval.embedding_weight)
    if (known := _in_memory.get(key)) is not None:
        return known
    try:
        files = {name: (folder / name).read_bytes() for name in INDEX_FILES}
        if index_sha256(files) != retrieval.index_sha256:
            raise ValueError("its digest is not the one that the model requires")
        index = _parse(files, encoder=encoder, weight=retrieval.embedding_weight)
    except (OSError, KeyError, ValueError, SafetensorError, pa.ArrowException) as error:
        raise ModelError(
            f"the index of training rows in {folder} cannot be loaded: {error}; restore the files, "
            "or run the recipe again"
        ) from None
    _in_memory[key] = index
    return index


def _parse(
    files: Mapping[str, bytes], *, encoder: "TextEncoder | None", weight: float
) -> RetrievalIndex:
    arrays = load(files[MATRIX_FILE])
    if pq.read_schema(BytesIO(files[ROWS_FILE])) != SCHEMA:
        raise ValueError(f"{ROWS_FILE} has other columns")
    table = pq.read_table(BytesIO(files[ROWS_FILE])).combine_chunks()
    parts = (arrays["weights"], arrays["rows"], arrays["starts"])
    matrix = csc_matrix(parts, shape=(len(table), len(arrays["columns"])))
    postings = Postings(arrays["columns"], arrays["idf"], matrix)
    if encoder is None:
        return RetrievalIndex(postings, table)
    rows = arrays[EMBEDDINGS].astype(np.float32)
    return RetrievalIndex(postings, table, Embeddings(encoder, weight, rows))
