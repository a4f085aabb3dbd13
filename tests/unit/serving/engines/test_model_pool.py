"""A replica loads versions without stopping the requests of the served versions."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.engines.classify import Prediction
from serving.engines.model_pool import ModelPool
from serving.http.metrics import Meter
from tailorbird.models import bag_of_words
from tailorbird.models.bag_of_words import BagOfWords, load_bag
from tailorbird.registry.versions import ModelVersion, VersionConfig, register, write_config
from tests.unit.serving.engines.test_sharing import BATCH, TEXTS, alone, assert_same, base, make_version

__all__ = ["base"]  # a fixture


def registered(base: Path, folder: Path) -> ModelVersion:
    """Register a probe with a bag of words."""
    (folder / "files").mkdir()
    version = make_version(base, folder / "files", name="d")
    write_config(folder / "files", VersionConfig(**version.model_dump(include=set(VersionConfig.model_fields))))
    return register((folder / "registry" / "task").as_uri(), folder / "files")


def test_a_bag_of_words_is_loaded_in_the_thread_of_the_caller(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def recorded(folder: Path) -> BagOfWords:
        threads.append(threading.current_thread())
        return load_bag(folder)

    monkeypatch.setattr(bag_of_words, "load_bag", recorded)
    version = registered(base, tmp_path)
    options: Any = {"batch_size": BATCH, "meter": Meter(), "load_endpoint": None}  # it has no endpoint
    with ThreadPoolExecutor(1) as worker:
        engine = ModelPool(**options, worker=worker).load(version.uri, version.digest)
        assert threads == [threading.current_thread()]

        async def predict() -> list[Prediction]:
            return await engine.submit(TEXTS, client="a")

        predictions = asyncio.run(predict())
    assert_same(predictions, alone(version, base))
    assert not np.allclose(predictions[0].scores, predictions[1].scores)
