"""Answers and log rows of classification requests, with fake engines."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from serving.engines.classify import Prediction
from serving.engines.model_pool import ModelPool
from serving.http.metrics import HYBRID_ANSWERS as COUNTS
from serving.http.schemas import RequestError
from serving.replica.classifier import SHADOW_TEXTS, Classifier
from tailorbird.config.serving import ServingConfig
from tailorbird.registry.hybrid_routing import Routing
from tests.unit.serving.replica.loads import config, ref

CLASSES = ("a", "b")
pytestmark = pytest.mark.anyio


class FakePool(ModelPool):
    """A pool of engines whose labels are the names of their versions."""

    def load(self, uri: str, digest: str, *, is_part: bool = False) -> Any:  # noqa: ARG002
        version = SimpleNamespace(
            name="task",
            version=uri,
            digest=digest,
            endpoint=None,
            hybrid=None,
            task="classification",
        )
        version.typed_label = {"by integers": 7}.get if uri == "integers" else str
        version.classes = CLASSES

        async def submit(texts: Sequence[str], *, client: str) -> list[Prediction]:  # noqa: ARG001
            assert len(texts) <= SHADOW_TEXTS or uri != "new"
            return [
                Prediction(f"by {uri}", 0.75, np.array([0.75, 0.25]), classes=CLASSES)
                for _ in texts
            ]

        return SimpleNamespace(
            version=version, submit=submit, idle_s=lambda: 1.0, routing=None, max_length=8
        )

    def unload(self, engine: Any) -> None:
        pass


def new_classifier(
    monkeypatch: pytest.MonkeyPatch, *, task_uri: str = "s3://models/task", **fields: Any
) -> Classifier:
    module = "serving.replica.classifier"
    monkeypatch.setattr(f"{module}.configure_process", ServingConfig.model_validate_json)
    monkeypatch.setattr(f"{module}.ModelPool", FakePool)
    return Classifier(task_uri, ServingConfig(**fields).model_dump_json())


@pytest.fixture
def classifier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Classifier:
    """Return a classifier with a request log."""
    return new_classifier(monkeypatch, request_log=(tmp_path / "log").as_uri())


async def answer(classifier: Classifier, **body: Any) -> Any:
    status, content = await classifier._classify(json.dumps(body).encode(), "r")
    assert status == 200
    return json.loads(content)


async def logged(classifier: Classifier, folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the request log after its end."""
    assert classifier._replica.log is not None
    await classifier._replica.log.close()
    rows: list[dict[str, Any]] = pq.read_table(folder / "log" / "answers").to_pylist()
    return rows


async def test_readiness_is_checked_before_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier = new_classifier(monkeypatch)
    with pytest.raises(RequestError) as caught:
        await answer(classifier, input=1)
    assert caught.value.status == 503
    await classifier.reconfigure(config("one"))
    answered = await answer(classifier, input=["x", "y"])
    assert answered.pop("results") == [{"label": "by one", "score": 0.75}] * 2
    assert answered == {"request_id": "r", "model": "task", "version": "one"}


async def test_the_answer_of_a_hybrid_names_the_part_in_the_response_the_log_and_the_metrics(
    classifier: Classifier, tmp_path: Path
) -> None:
    await classifier.reconfigure(config("one"))
    engine: Any = classifier._replica.versions.champion
    by_second = Prediction("a", 0.75, np.array([0.75, 0.25]), "second", classes=CLASSES)
    by_first = by_second._replace(answered_by="first", is_fallback=True)

    async def submit(rows: Any, *, client: str) -> list[Prediction]:  # noqa: ARG001
        assert rows == [("x", None), ("y", None)]
        return [by_second, by_first]

    engine.routing = Routing(by="cascade", threshold=0.5)
    engine.submit = submit
    (_, second) = (await answer(classifier, input=["x", "y"]))["results"]
    assert (second["answered_by"], second["fallback"]) == ("first", True)
    counts = classifier._replica.meter._counts.items()
    counted = {labels[2:]: by for (metric, labels), by in counts if metric is COUNTS}
    assert counted == {("second", "no"): 1, ("first", "yes"): 1}
    rows = await logged(classifier, tmp_path)
    parts = [(row["answered_by"], row["fallback"]) for row in rows]
    assert parts == [("second", False), ("first", True)]


async def test_each_arm_of_an_experiment_is_logged(classifier: Classifier, tmp_path: Path) -> None:
    versions = {"champion": "one", "shadow": "new"}
    texts = ["x"] * (SHADOW_TEXTS + 1)
    await classifier.reconfigure(config("one", challenger=ref("new", shadow=1.0)))
    attributes = [{"sex": "f"}] * len(texts)
    await answer(classifier, input=texts, attributes=attributes)
    await asyncio.gather(*classifier._shadows._tasks)
    rows = await logged(classifier, tmp_path)
    for arm, version in versions.items():
        in_arm = [row for row in rows if row["arm"] == arm]
        assert [row["row"] for row in in_arm] == list(range(len(texts)))
        assert {row["version"] for row in in_arm} == {version}
        assert {row["label"] for row in in_arm} == {f"by {version}"}
    assert len(rows) == len(versions) * len(texts)
    assert {(row["request_id"], row["route"]) for row in rows} == {("r", "classify")}
    assert {row["attributes"] for row in rows} == {'{"sex": "f"}'}
