"""The examples of training rows for `training.with_retrieved`: for each row, the nearest other training rows."""

from dataclasses import dataclass

from tailorbird import storage
from tailorbird.data.rows import Rows
from tailorbird.models.retrieval.files import index_files, index_sha256, load_index
from tailorbird.models.retrieval.index import RetrievalIndex, build_index, query_of
from tailorbird.storage.node_cache import local_copy


@dataclass(frozen=True)
class RetrievedExamples:
    """An index of training rows, and the examples of each training row as rows of the index, nearest first."""

    index_uri: str
    index_sha256: str
    rows: tuple[tuple[int, ...], ...]

    def load_index(self) -> RetrievalIndex:
        """Load the index, downloaded once per node. Raises ModelError if it is damaged."""
        return load_index(local_copy(self.index_uri), expected_sha256=self.index_sha256)


def find_examples(train: Rows, *, num_examples: int, seed: int, uri: str) -> RetrievedExamples:
    """Index the training rows, store the index in the folder `uri`, and find the examples of each row.

    The rows of `RetrievalIndex.exclusions` are not examples of a row, among them the row itself. So the training
    resembles serving, where the index does not contain the answer to a new conversation. Raises DataError as
    `build_index`.
    """
    index = build_index(train, seed=seed)
    files = index_files(index)
    for name, content in files.items():
        storage.write_bytes(f"{uri}/{name}", content)
    assert train.conversations is not None
    queries = [query_of(turns) for turns in train.conversations]
    neighbours = index.search(queries, k=num_examples, exclude=index.exclusions(train))
    rows = tuple(tuple(int(row) for row in nearest.rows) for nearest in neighbours)
    return RetrievedExamples(uri, index_sha256(files), rows)
