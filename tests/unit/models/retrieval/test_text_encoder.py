"""Embeddings of an index: similarities, stored files, and encoders that are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailorbird.models.errors import ModelError
from tailorbird.models.loading import load_retrieval_index
from tailorbird.models.retrieval.files import index_files
from tailorbird.models.retrieval.index import RetrievalIndex, build_index, embed_index
from tailorbird.models.retrieval.text_encoder import load_text_encoder
from tailorbird.registry.versions import PinnedEncoder, Retrieval
from tests import build, small_encoder
from tests.unit.models.retrieval.test_files import retrieval_of, write

PAIRS = (("red rose", "rose"), ("green leaf", "leaf"), ("blue sky", "sky"), ("blue skies", "sky"))


def index_of(pairs: tuple[tuple[str, str], ...] = PAIRS) -> RetrievalIndex:
    return build_index(build.pairs(pairs, chat=True), seed=0)


@pytest.fixture
def pinned(tmp_path: Path) -> PinnedEncoder:
    return small_encoder.save(tmp_path / "encoder")


def embedded(pinned: PinnedEncoder, *, weight: float = 1.0) -> RetrievalIndex:
    return embed_index(index_of(), encoder=load_text_encoder(pinned), weight=weight)


def test_the_similarity_is_the_weighted_mean_of_both_cosines(pinned: PinnedEncoder) -> None:
    cosines = embedded(pinned).similarities("azure sky")
    assert cosines.min() >= 0
    assert cosines.max() == pytest.approx(1, abs=1e-3)  # of "blue sky"
    mixed = embedded(pinned, weight=0.25).similarities("azure sky")
    expected = 0.25 * cosines + 0.75 * index_of().similarities("azure sky")
    np.testing.assert_allclose(mixed, expected, atol=1e-12)


def test_rows_with_the_same_text_are_equally_similar_and_keep_their_order(
    pinned: PinnedEncoder,
) -> None:
    longer = ("blue sky at noon", "noon")
    index = index_of((("blue sky", "once"), longer, ("blue sky", "often"), ("red rose", "often")))
    embedded_index = embed_index(index, encoder=load_text_encoder(pinned), weight=1.0)
    neighbours = embedded_index.nearest("azure sky", k=2)
    assert [index.answer(row) for row in neighbours.rows] == ["often", "once"]
    assert neighbours.similarities[0] == neighbours.similarities[1]


def stored(folder: Path, index: RetrievalIndex, *, encoder: PinnedEncoder) -> Retrieval:
    """Write the files of an index, and return its retrieval."""
    retrieval = retrieval_of(write(folder, index_files(index)))
    return retrieval.model_copy(update={"encoder": encoder, "embedding_weight": 0.75})


def load(folder: Path, retrieval: Retrieval) -> Any:
    return load_retrieval_index(folder, retrieval=retrieval)


def test_a_loaded_index_has_the_same_similarities_and_shares_its_memory(
    pinned: PinnedEncoder, tmp_path: Path
) -> None:
    index = embedded(pinned, weight=0.75)
    retrieval = stored(tmp_path / "index", index, encoder=pinned)
    loaded = load(tmp_path / "index", retrieval)
    for text in ("azure sky", "red", ""):
        np.testing.assert_array_equal(loaded.similarities(text), index.similarities(text))
    assert load(tmp_path / "index", retrieval) is loaded
    halved = retrieval.model_copy(update={"embedding_weight": 0.5})
    other = load(tmp_path / "index", halved)
    assert other.embeddings.encoder is loaded.embeddings.encoder
    assert other.embeddings.weight == 0.5


def test_an_index_without_embeddings_and_an_encoder_with_other_files_are_refused(
    pinned: PinnedEncoder, tmp_path: Path
) -> None:
    retrieval = stored(tmp_path / "index", index_of(), encoder=pinned)
    with pytest.raises(ModelError):
        load(tmp_path / "index", retrieval)
    small_encoder.save(tmp_path / "encoder", broken=True)  # embeddings that are not finite
    for encoder in (
        pinned.model_copy(update={"dtype": "bfloat16"}),
        small_encoder.pin(tmp_path / "encoder"),
    ):
        with pytest.raises(ModelError):
            load_text_encoder(encoder)
