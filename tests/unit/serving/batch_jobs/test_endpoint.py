"""Parts of a batch whose version is an endpoint: each row is sent once, within the limits."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.batch_jobs.schema import BatchSpec, InputFile, PartResult
from serving.batch_jobs.scoring import parts_of
from serving.batch_jobs.worker import PartScorer
from serving.endpoint.classifier import EndpointClassifier
from serving.endpoint.upstream import Limits, Upstream
from serving.http.metrics import Meter
from tailorbird import storage
from tailorbird.config.endpoint import EndpointConfig
from tailorbird.config.serving import ServingConfig
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.models.endpoint.client import RetryPolicy
from tailorbird.models.endpoint.prompts import label_answer, label_prompting
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.versions import ModelVersion, Prompting
from tests.build import rows, version_config
from tests.endpoint_server import (
    MODEL,
    Reply,
    Server,
    completion,
    endpoint_server,
    question,
    refusal,
)
from tests.unit.serving.endpoint.versions import KEY, VARIABLE, register_config

LIMITS = RequestLimits(
    max_concurrency=2, retry=RetryPolicy(max_attempts=2, first_delay_s=0.001, max_delay_s=0.01)
)
CONFIG = ServingConfig()
CLASSES = ("x", "y")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def register(
    server: Server,
    folder: Path,
    *,
    chat: bool = False,
    prompting: Prompting | None = None,
    **fields: Any,
) -> ModelVersion:
    """Register a version of the endpoint, a classifier or a chat version."""
    if prompting is None:
        prompting = Prompting(system="s", max_new_tokens=2) if chat else label_prompting(CLASSES)
    config = version_config(
        kind="endpoint_zero_shot",
        classes=() if chat else CLASSES,
        prompting=prompting,
        endpoint=Endpoint(
            url=server.url, model="m", api_key=f"env://{VARIABLE}", reported_model=MODEL, **fields
        ),
    )
    return register_config(folder, "version", config)


class Batch:
    """A batch of texts in parts of two rows. Each call of `score` is that of a new worker."""

    def __init__(self, version: ModelVersion, folder: Path, texts: Sequence[str]) -> None:
        numbers = range(len(texts))
        pq.write_table(pa.table({"text": pa.array(texts), "key": numbers}), folder / "in.parquet")
        uri = (folder / "in.parquet").as_uri()
        self.spec = BatchSpec(
            input=uri,
            output=(folder / "out").as_uri(),
            version_uri=version.uri,
            digest=version.digest,
            column="text",
            id_column="key",
        )
        entry = storage.file_entry(uri)
        assert entry is not None
        file = InputFile(uri=uri, etag=entry.tag, size_bytes=0, num_rows=len(texts), read_bytes=0)
        self.parts = list(parts_of([file], size=2))

    def score(self, limits: RequestLimits = LIMITS) -> list[PartResult]:
        worker = PartScorer(self.spec, CONFIG, limits)
        rows = [{"part": part.model_dump_json()} for part in self.parts]
        return [PartResult.model_validate_json(worker(row)["result"]) for row in rows]

    def scored(self, name: str) -> list[Any]:
        """Return a column of the output."""
        values = []
        for part in self.parts:
            content = storage.read_bytes(part.output_uri(self.spec.output))
            values += pq.read_table(pa.BufferReader(content))[name].to_pylist()
        return values


def causes(results: list[PartResult]) -> list[str | None]:
    return [result.cause for result in results]


def test_a_resumed_batch_sends_only_the_requests_without_an_answer(
    tmp_path: Path,
) -> None:
    is_down = True

    def answer(body: dict[str, Any], _: int) -> Reply:
        if question(body) == "b":
            return refusal(400, "no", code="content_filter")
        if is_down and question(body) == "d":
            return refusal(500, "down")
        return completion(label_answer("x"), logprobs=(-0.5,))

    with endpoint_server(answer) as server:
        batch = Batch(register(server, tmp_path), tmp_path, list("abcdef"))
        assert causes(batch.score()) == [None, "EndpointUnreachable", "EndpointUnreachable"]
        assert {"e", "f"}.isdisjoint(map(question, server.bodies))  # none after the error
        is_down = False
        num_before = len(server.bodies)
        results = batch.score()
        assert causes(results) == [None] * 3
        assert [result.num_unanswered for result in results] == [1, 0, 0]
        assert sorted(map(question, server.bodies[num_before:])) == ["d", "e", "f"]
        assert server.max_at_once <= LIMITS.max_concurrency
    assert batch.scored("label") == ["x", None, "x", "x", "x", "x"]
    assert batch.scored("score")[:2] == [pytest.approx(0.6065, abs=1e-4), None]
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


def test_the_limit_of_the_spend_stops_a_batch_and_a_higher_one_continues_it(
    tmp_path: Path,
) -> None:
    prices: dict[str, Any] = {"prices": (0.0, 500.0)}  # an answer of 2 output tokens costs 1

    def answer(body: dict[str, Any], _: int) -> Reply:
        text = question(body)
        assert body["messages"][0] == {"role": "system", "content": "s"}
        if text == "long":
            return refusal(400, "This model's maximum context length is 8 tokens")
        return completion(text, finish_reason="length" if text == "cut" else "stop")

    texts = ["a", "long", "cut", "b", "c", "d"]
    with endpoint_server(answer) as server:
        version = register(server, tmp_path, chat=True, max_spend=3.0, **prices)
        batch = Batch(version, tmp_path, texts)
        assert causes(batch.score()) == [None, None, "EndpointSpendExceeded"]
        assert len(server.bodies) == 4  # a refusal costs nothing
        named = EndpointConfig(url=server.url, model="m", max_spend=5.0, prices=(1, 1))
        higher = replace(LIMITS, named=(named,))
        assert causes(batch.score(higher)) == [None] * 3
        assert sorted(map(question, server.bodies)) == sorted(texts)
    assert batch.scored("answer") == ["a", None, "cut", "b", "c", "d"]
    reasons = ["stop", "context_length_exceeded", "length", "stop", "stop", "stop"]
    assert batch.scored("finish_reason") == reasons


def test_the_service_and_a_batch_send_the_prompt_that_was_evaluated(tmp_path: Path) -> None:
    prompting = label_prompting(
        CLASSES, system="{labels}", template="Text: {text}", descriptions={"x": "first"}
    )
    texts = ["a row"]
    with endpoint_server(lambda *_: completion(label_answer("x"))) as server:
        version = register(server, tmp_path, prompting=prompting)
        predict_rows(version.uri, rows=rows(texts, ["x"]), limits=LIMITS)
        Batch(version, tmp_path, texts).score()
        upstream = Upstream(version, limits=Limits(1, 5), meter=Meter())
        classifier = EndpointClassifier(version, upstream=upstream, concurrency=1)
        asyncio.run(classifier.submit(texts, client="a"))
    evaluated, in_batch, served = server.bodies
    assert evaluated == in_batch == served
    assert evaluated["messages"] == [
        {"role": "system", "content": '"x": "first"\n"y"'},
        {"role": "user", "content": "Text: a row"},
    ]
