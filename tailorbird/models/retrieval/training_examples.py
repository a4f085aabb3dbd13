"""The nearest other training rows of each training row, for `training.with_retrieved`."""

from dataclasses import dataclass

from tailorbird import storage
from tailorbird.data.rows import Rows
from tailorbird.models.loading import load_retrieval_index
from tailorbird.models.retrieval.files import index_files, index_sha256
from tailorbird.models.retrieval.index import RetrievalIndex, build_index, embed_index
from tailorbird.models.retrieval.text_encoder import load_text_encoder
from tailorbird.registry.versions import Retrieval
from tailorbird.storage.node_cache import local_copy


@dataclass(frozen=True)
class RetrievedExamples:
    """An index of training rows, and the examples of each training row."""

    index_uri: str
    retrieval: Retrieval  # with the digest of this index
    rows: tuple[tuple[int, ...], ...]  # positions in the index, nearest first

    def load_index(self, *, device: str | None = None) -> RetrievalIndex:
        """Load the index and its encoder. Raises ModelError if a file is damaged."""
        index = load_retrieval_index(
            local_copy(self.index_uri), retrieval=self.retrieval, device=device
        )
        assert index is not None
        return index


def find_examples(train: Rows, *, retrieval: Retrieval, seed: int, uri: str) -> RetrievedExamples:
    """Index the training rows, store the index at `uri`, and find the examples of each row.

    `retrieval` has the number of examples and the encoder. The rows of `RetrievalIndex.exclusions`
    are not examples of a row, as in serving, where the index lacks the answer to a new
    conversation. Raises the errors of `build_index` and `load_text_encoder`.
    """
    index = build_index(train, seed=seed)
    if retrieval.encoder is not None:
        encoder = load_text_encoder(retrieval.encoder)
        index = embed_index(index, encoder=encoder, weight=retrieval.embedding_weight)
    files = index_files(index)
    for name, content in files.items():
        storage.write_bytes(f"{uri}/{name}", content)
    rows = []
    for query, excluded in zip(train.queries, index.exclusions(train), strict=True):
        nearest = index.nearest(query, k=retrieval.num_examples, excluded=excluded)
        rows.append(tuple(nearest.rows.tolist()))
    return RetrievedExamples(
        uri,
        retrieval.model_copy(update={"index_sha256": index_sha256(files)}),
        rows=tuple(rows),
    )
