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
from serving.http.schemas import RequestError
from serving.replica.chat import _Loader
from tailorbird.config.serving import ServingConfig
from tailorbird.models.endpoint.errors import EndpointKeyMissing
from tailorbird.models.endpoint.prompts import label_prompting
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.hybrids import hybrid_config
from tailorbird.registry.versions import (
    ModelVersion,
    Prompting,
    VersionConfig,
    register,
    write_config,
)
from tests.build import version
from tests.endpoint_server import MODEL
from tests.unit.serving.endpoint.versions import VARIABLE
from tests.unit.serving.engines.test_model_pool import registered
from tests.unit.serving.engines.test_sharing import BATCH, TEXTS, base
from tests.unit.serving.hybrid.test_chat_engine import answers_of

__all__ = ["base"]  # a fixture

ENDPOINT = Endpoint(
    url="http://127.0.0.1:9/v1", model="m", api_key=f"env://{VARIABLE}", reported_model=MODEL
)


@pytest.fixture(autouse=True)
def _without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def register_config(folder: Path, name: str, config: VersionConfig) -> ModelVersion:
    """Register a version without weights."""
    (folder / name).mkdir()
    write_config(folder / name, config)
    return register((folder / "registry" / "task").as_uri(), folder / name)


def endpoint_of(version: ModelVersion, prompting: Prompting) -> VersionConfig:
    fields = version.model_dump(include=set(VersionConfig.model_fields))
    kind = {"kind": "endpoint_zero_shot", "prompting": prompting, "endpoint": ENDPOINT}
    return VersionConfig(**fields | kind)


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
        with pytest.raises(EndpointKeyMissing):  # alone, it could answer nothing
            pool.load(second.uri, second.digest)
        with caplog.at_level(logging.ERROR, logger="ray.serve"):
            engine = pool.load(hybrid.uri, hybrid.digest)
        assert VARIABLE in caplog.text

        async def predict() -> list[Prediction]:
            return await engine.submit([(text, None) for text in TEXTS], client="a")

        predictions = asyncio.run(predict())
    assert {(prediction.answered_by, prediction.is_fallback) for prediction in predictions} == {
        ("first", True)
    }


def test_a_chat_model_starts_too_and_refuses_what_no_part_can_answer(tmp_path: Path) -> None:
    prompting = Prompting(system="s", max_new_tokens=8)
    part = register_config(tmp_path, "endpoint", endpoint_of(version(), prompting))
    config = hybrid_config(part, second=part, routing=Routing(by="cascade", threshold=0.9))
    hybrid = register_config(tmp_path, "hybrid", config)
    loader = _Loader(ServingConfig(), meter=Meter())
    with pytest.raises(EndpointKeyMissing):
        loader.load(part.uri, part.digest)
    engine: Any = loader.load(hybrid.uri, hybrid.digest)
    with pytest.raises(RequestError) as caught:
        answers_of(engine, "x")
    assert caught.value.status == 503
