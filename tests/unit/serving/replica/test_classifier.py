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
from tailorbird import storage
from tailorbird.config.serving import ServingConfig
from tailorbird.registry.draws import DrawSecret
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.storage.paths import TaskPaths
from tests.unit.serving.replica.loads import SECRET, config, ref

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


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, Any]:
    """Return serving fields with a request log that stores subjects."""
    (tmp_path / "key").write_bytes(b"k" * 32)
    return {"request_log": (tmp_path / "log").as_uri(), "subject_key": (tmp_path / "key").as_uri()}


def new_classifier(
    monkeypatch: pytest.MonkeyPatch, *, task_uri: str = "s3://models/task", **fields: Any
) -> Classifier:
    module = "serving.replica.classifier"
    monkeypatch.setattr(f"{module}.configure_process", ServingConfig.model_validate_json)
    monkeypatch.setattr(f"{module}.ModelPool", FakePool)
    return Classifier(task_uri, ServingConfig(**fields).model_dump_json())


async def answer(classifier: Classifier, body: dict[str, Any]) -> Any:
    status, content = await classifier._classify(json.dumps(body).encode(), "r")
    assert status == 200
    return json.loads(content)


async def logged(classifier: Classifier, folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the request log after its end."""
    assert classifier._replica.log is not None
    await classifier._replica.log.close()
    rows: list[dict[str, Any]] = pq.read_table(folder / "log" / "answers").to_pylist()
    return rows


async def test_an_answer_has_one_result_per_text_scores_on_request_and_integers_for_integer_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier = new_classifier(monkeypatch)
    with pytest.raises(RequestError):
        await answer(classifier, {"input": 1})  # readiness is checked before the request
    await classifier.reconfigure(config("one", others={"integers": ref("integers")}))
    result = {"label": "by one", "score": 0.75}
    fields = {"request_id": "r", "model": "task", "version": "one"}
    answered = await answer(classifier, {"input": ["x", "y"]})
    assert answered == fields | {"results": [result, result]}
    with_scores = await answer(classifier, {"input": "x", "scores": True})
    assert with_scores["results"] == [result | {"scores": {"a": 0.75, "b": 0.25}}]
    integers = await answer(classifier, {"input": "x", "model": "integers"})
    assert integers["results"] == [{"label": 7, "score": 0.75}]
    with pytest.raises(RequestError):
        await answer(classifier, {"input": "x", "subject": "s"})


async def test_the_answer_of_a_hybrid_names_the_part_in_the_response_the_log_and_the_metrics(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], tmp_path: Path
) -> None:
    classifier = new_classifier(monkeypatch, **fields)
    await classifier.reconfigure(config("one"))
    engine: Any = classifier._replica.versions.champion
    scores = np.array([0.75, 0.25])

    async def submit(rows: Any, *, client: str) -> list[Prediction]:  # noqa: ARG001
        assert rows == [("x", None), ("y", None)]
        return [
            Prediction("a", 0.75, scores, "second", classes=CLASSES),
            Prediction("b", 0.25, scores, "first", True, classes=CLASSES),
        ]

    engine.routing, engine.submit = Routing(by="cascade", threshold=0.5), submit
    first, second = (await answer(classifier, {"input": ["x", "y"]}))["results"]
    assert first == {"label": "a", "score": 0.75, "answered_by": "second"}
    assert second == {"label": "b", "score": 0.25, "answered_by": "first", "fallback": True}
    counts = classifier._replica.meter._counts.items()
    counted = {labels: by for (metric, labels), by in counts if metric is COUNTS}
    assert counted == {("task", "one", "second", "no"): 1, ("task", "one", "first", "yes"): 1}
    rows = await logged(classifier, tmp_path)
    parts = [(row["answered_by"], row["fallback"]) for row in rows]
    assert parts == [("second", False), ("first", True)]


@pytest.mark.parametrize(
    ("share", "arms"), [("canary", {"canary"}), ("shadow", {"champion", "shadow"})]
)
async def test_each_arm_of_an_experiment_is_logged(
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    tmp_path: Path,
    share: str,
    arms: set[str],
) -> None:
    texts = ["x"] * (SHADOW_TEXTS + 1 if share == "shadow" else 2)
    task_uri = (tmp_path / "task").as_uri()
    stored = DrawSecret(key=SECRET.hex()).model_dump_json()
    storage.write_bytes(TaskPaths(task_uri).draw_secret, stored.encode())
    classifier = new_classifier(monkeypatch, task_uri=task_uri, **fields)
    await classifier.reconfigure(config("one", challenger=ref("new", **{share: 1.0})))
    attributes = [{"sex": "f"}] * len(texts)
    await answer(classifier, {"input": texts, "subject": "s", "attributes": attributes})
    await asyncio.gather(*classifier._shadows._tasks)
    rows = await logged(classifier, tmp_path)
    assert {row["arm"] for row in rows} == arms
    for row in rows:
        assert row["version"] == ("one" if row["arm"] == "champion" else "new")
        assert (row["request_id"], row["route"], row["label"]) == (
            "r",
            "classify",
            f"by {row['version']}",
        )
    assert sorted(row["row"] for row in rows) == sorted(list(range(len(texts))) * len(arms))
    assert len({row["subject"] for row in rows}) == 1
    assert {row["attributes"] for row in rows} == {'{"sex": "f"}'}
