"""A replica of a hybrid starts without the API key of its endpoint: the other part answers, and the
log says why."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from serving.endpoint.loading import load_classifier
from serving.endpoint.upstream import Limits
from serving.engines.classify import Prediction
from serving.engines.model_pool import ModelPool
from serving.http.metrics import Meter
from serving.replica.chat import _Loader
from tailorbird.config.serving import ServingConfig
from tailorbird.data.rows import Rows
from tailorbird.models.endpoint.errors import EndpointKeyMissing
from tailorbird.models.endpoint.prompts import label_prompting
from tailorbird.models.retrieval.files import index_files, index_sha256
from tailorbird.models.retrieval.index import build_index
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.hybrids import hybrid_config
from tailorbird.registry.versions import (
    ModelVersion,
    Prompting,
    Retrieval,
    VersionConfig,
    register,
    write_config,
)
from tests import small_chat
from tests.endpoint_server import MODEL
from tests.unit.serving.endpoint.versions import VARIABLE
from tests.unit.serving.engines.test_model_pool import registered
from tests.unit.serving.engines.test_sharing import BATCH, TEXTS, base
from tests.unit.serving.hybrid.test_chat_engine import KNOWN, SIMILAR, answers_of

__all__ = ["base"]  # a fixture

ENDPOINT = Endpoint(
    url="http://127.0.0.1:9/v1", model="m", api_key=f"env://{VARIABLE}", reported_model=MODEL
)


@pytest.fixture(autouse=True)
def _without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def register_config(
    folder: Path, name: str, config: VersionConfig, files: dict[str, bytes] | None = None
) -> Any:
    """Register a version without weights, with these other files."""
    local = folder / name
    local.mkdir()
    for file, content in (files or {}).items():
        (local / file).write_bytes(content)
    write_config(local, config)
    return register((folder / "registry" / "task").as_uri(), local)


def endpoint_of(
    version: ModelVersion, prompting: Prompting, *, endpoint: Endpoint = ENDPOINT
) -> VersionConfig:
    fields = version.model_dump(include=set(VersionConfig.model_fields))
    return VersionConfig(
        **fields | {"kind": "endpoint_zero_shot", "prompting": prompting, "endpoint": endpoint}
    )


def test_a_classifier_answers_with_its_first_part(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = registered(base, tmp_path)
    second = register_config(
        tmp_path, "endpoint", endpoint_of(first, label_prompting(first.classes))
    )
    config = hybrid_config(first, second=second, routing=Routing(by="cascade", threshold=1.0))
    hybrid = register_config(tmp_path, "hybrid", config)
    meter = Meter()
    load_endpoint = partial(load_classifier, limits=Limits(2, 5.0), meter=meter)
    with ThreadPoolExecutor(1) as worker:
        pool = ModelPool(worker=worker, batch_size=BATCH, meter=meter, load_endpoint=load_endpoint)
        with pytest.raises(EndpointKeyMissing, match=VARIABLE):  # alone, it could answer nothing
            pool.load(second.uri, second.digest)
        with caplog.at_level(logging.ERROR, logger="ray.serve"):
            engine = pool.load(hybrid.uri, hybrid.digest)
        assert f"{VARIABLE}, which contains the API key" in caplog.text
        assert "the other part of the hybrid answers" in caplog.text

        async def predict() -> list[Prediction]:
            return await engine.submit([(text, None) for text in TEXTS], client="a")

        predictions = asyncio.run(predict())
    assert {(prediction.answered_by, prediction.is_fallback) for prediction in predictions} == {
        ("first", True)
    }


def test_a_chat_model_answers_with_its_first_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small_chat.save(tmp_path / "base")
    turns = ((("user", KNOWN),), (("user", "green leaf"),))
    files = index_files(
        build_index(
            Rows(("0", "1"), (KNOWN, "green leaf"), ("Blue!", "g"), conversations=turns), seed=0
        )
    )
    retrieval = Retrieval(num_examples=1, max_prompt_tokens=64, index_sha256=index_sha256(files))
    nearest = VersionConfig(
        kind="nearest",
        classes=(),
        base_model=(tmp_path / "base").as_uri(),
        max_length=64,
        dtype="float32",
        code="s3://models/code.zip",
        recipe_hash="0" * 64,
        created_at="2026-01-01T00:00:00+00:00",
        prompting=Prompting(system="s", max_new_tokens=8, retrieval=retrieval),
    )
    first = register_config(tmp_path, "nearest", nearest, files)
    second = register_config(
        tmp_path, "endpoint", endpoint_of(first, Prompting(system="s", max_new_tokens=8))
    )
    config = hybrid_config(first, second=second, routing=Routing(by="cascade", threshold=0.9))
    hybrid = register_config(tmp_path, "hybrid", config)
    loader = _Loader(ServingConfig(), meter=Meter())
    with pytest.raises(EndpointKeyMissing, match=VARIABLE):
        loader.load(second.uri, second.digest)
    with caplog.at_level(logging.ERROR, logger="ray.serve"):
        engine: Any = loader.load(hybrid.uri, hybrid.digest)
    assert f"{VARIABLE}, which contains the API key" in caplog.text
    known, similar = (answers_of(engine, text)[-1] for text in (KNOWN, SIMILAR))
    assert (known.answered_by, known.is_fallback) == ("first", False)
    assert (similar.text, similar.answered_by, similar.is_fallback) == ("Blue!", "first", True)
