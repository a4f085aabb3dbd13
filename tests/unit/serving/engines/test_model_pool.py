"""A replica loads versions without stopping the requests of the served versions."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving.engines.classify import Prediction
from serving.engines.model_pool import ClassifierEngine, ModelPool
from serving.http.metrics import Meter
from tailorbird.registry.hybrid_routing import PARTS, Routing, routes_to_second
from tailorbird.registry.hybrids import hybrid_config
from tailorbird.registry.versions import (
    ModelVersion,
    RegistryError,
    VersionConfig,
    register,
    write_config,
)
from tests.unit.serving.engines.tiny_versions import (
    BATCH,
    TEXTS,
    alone,
    assert_same,
    base,
    make_version,
)

__all__ = ["base"]  # a fixture


def registered(base: Path, folder: Path, *, name: str = "d") -> ModelVersion:
    """Register a version of `tiny_versions`, by default a probe with a bag of words."""
    files = folder / f"files-{name}"
    files.mkdir()
    version = make_version(base, files, name=name)
    write_config(
        files, VersionConfig(**version.model_dump(include=set(VersionConfig.model_fields)))
    )
    return register((folder / "registry" / "task").as_uri(), files)


def test_a_hybrid_composes_the_engines_of_its_parts_and_needs_both(
    base: Path, tmp_path: Path
) -> None:
    parts = [registered(base, tmp_path, name=name) for name in ("a", "d")]
    expected = [alone(part, base) for part in parts]
    confidences = [prediction.score for prediction in expected[0]]
    routing = Routing(by="cascade", threshold=(min(confidences) + max(confidences)) / 2)
    (tmp_path / "hybrid").mkdir()
    write_config(tmp_path / "hybrid", hybrid_config(parts[0], second=parts[1], routing=routing))
    version = register((tmp_path / "registry" / "task").as_uri(), tmp_path / "hybrid")
    routed = routes_to_second(routing, confidences=confidences).tolist()
    assert len(set(routed)) == 2
    no_endpoint: Any = None

    async def predict(engine: ClassifierEngine) -> list[Prediction]:
        return await engine.submit([(text, None) for text in TEXTS], client="a")

    with ThreadPoolExecutor(1) as worker:
        pool = ModelPool(worker=worker, batch_size=BATCH, meter=Meter(), load_endpoint=no_endpoint)
        engine = pool.load(version.uri, version.digest)
        predictions = asyncio.run(predict(engine))
        engine.unload()
        (Path(parts[1].uri.removeprefix("file://")) / "manifest.json").unlink()
        with pytest.raises(RegistryError):
            pool.load(version.uri, version.digest)
    assert [prediction.answered_by for prediction in predictions] == [PARTS[to] for to in routed]
    assert_same(predictions, [expected[to][row] for row, to in enumerate(routed)])
