"""A replica loads versions without stopping the requests of the served versions."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.engines.classify import Prediction, scores_by_class
from serving.engines.model_pool import ModelPool
from serving.http.metrics import Meter
from tailorbird.models import bag_of_words
from tailorbird.models.bag_of_words import BagOfWords, load_bag
from tailorbird.registry.hybrid_routing import PARTS, Routing, routes_to_second
from tailorbird.registry.hybrids import hybrid_config
from tailorbird.registry.versions import (
    ModelVersion,
    RegistryError,
    VersionConfig,
    register,
    write_config,
)
from tests.unit.serving.engines.test_sharing import (
    BATCH,
    TEXTS,
    alone,
    assert_same,
    base,
    make_version,
)

__all__ = ["base"]  # a fixture


def registered(base: Path, folder: Path, *, name: str = "d") -> ModelVersion:
    """Register a version of `test_sharing`, by default a probe with a bag of words."""
    files = folder / f"files-{name}"
    files.mkdir()
    version = make_version(base, files, name=name)
    write_config(
        files, VersionConfig(**version.model_dump(include=set(VersionConfig.model_fields)))
    )
    return register((folder / "registry" / "task").as_uri(), files)


def test_a_bag_of_words_is_loaded_in_the_thread_of_the_caller(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def recorded(folder: Path) -> BagOfWords:
        threads.append(threading.current_thread())
        return load_bag(folder)

    monkeypatch.setattr(bag_of_words, "load_bag", recorded)
    version = registered(base, tmp_path)
    options: Any = {
        "batch_size": BATCH,
        "meter": Meter(),
        "load_endpoint": None,
    }  # it has no endpoint
    with ThreadPoolExecutor(1) as worker:
        engine = ModelPool(**options, worker=worker).load(version.uri, version.digest)
        assert threads == [threading.current_thread()]

        async def predict() -> list[Prediction]:
            return await engine.submit(TEXTS, client="a")

        predictions = asyncio.run(predict())
    assert_same(predictions, alone(version, base))
    assert not np.allclose(predictions[0].scores, predictions[1].scores)


def test_a_hybrid_composes_the_engines_of_its_parts_and_needs_both(
    base: Path, tmp_path: Path
) -> None:
    parts = [registered(base, tmp_path, name=name) for name in ("a", "d")]
    expected = [alone(part, base) for part in parts]
    confidences = sorted({prediction.score for prediction in expected[0]})
    routing = Routing(by="cascade", threshold=(confidences[0] + confidences[-1]) / 2)
    (tmp_path / "hybrid").mkdir()
    write_config(tmp_path / "hybrid", hybrid_config(parts[0], second=parts[1], routing=routing))
    version = register((tmp_path / "registry" / "task").as_uri(), tmp_path / "hybrid")
    routed = routes_to_second(
        routing, confidences=[prediction.score for prediction in expected[0]]
    ).tolist()
    assert len(set(routed)) == 2
    with ThreadPoolExecutor(1) as worker:
        options: Any = {
            "batch_size": BATCH,
            "meter": Meter(),
            "load_endpoint": None,
        }  # it has no endpoint
        pool = ModelPool(**options, worker=worker)
        engine = pool.load(version.uri, version.digest)

        async def predict() -> list[Prediction]:
            return await engine.submit([(text, None) for text in TEXTS], client="a")

        predictions = asyncio.run(predict())
        assert [prediction.answered_by for prediction in predictions] == [
            PARTS[to] for to in routed
        ]
        assert_same(predictions, [expected[to][row] for row, to in enumerate(routed)])
        prediction = next(each for each in predictions if each.answered_by == "second")
        assert (
            scores_by_class(prediction, classes=version.classes)["a"] == 0.0
        )  # a class of the first part only
        engine.unload()
        (Path(parts[1].uri.removeprefix("file://")) / "manifest.json").unlink()
        with pytest.raises(RegistryError, match="no complete model"):
            pool.load(version.uri, version.digest)
