"""Parts of a batch whose version is an endpoint, or a hybrid with one: each row is sent once,
within the limits."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.batch_jobs import runner
from serving.batch_jobs.schema import BatchSpec, Part, PartResult
from serving.batch_jobs.scoring import _error, request_limits
from serving.batch_jobs.worker import PartScorer
from serving.http.schemas import BatchJob
from tailorbird import storage
from tailorbird.config.serving import ANSWER_TIMEOUT_S, ServingConfig
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.models.endpoint.client import RetryPolicy
from tailorbird.models.endpoint.prompts import label_answer, label_format, label_prompting
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.hybrids import hybrid_config
from tailorbird.registry.versions import ModelVersion, Prompting
from tests.endpoint_server import (
    MODEL,
    Answer,
    Reply,
    Server,
    completion,
    endpoint_server,
    question,
    refusal,
)
from tests.unit.serving.endpoint.versions import KEY, VARIABLE
from tests.unit.serving.engines.test_model_pool import registered
from tests.unit.serving.engines.test_sharing import TEXTS, base
from tests.unit.serving.hybrid.test_endpoint_without_key import endpoint_of, register_config

__all__ = ["base"]  # a fixture

LIMITS = RequestLimits(
    max_concurrency=2, retry=RetryPolicy(max_attempts=2, first_delay_s=0.001, max_delay_s=0.01)
)
CONFIG = ServingConfig()
PRICED: dict[str, Any] = {
    "prices": (0.0, 500.0),
}  # an answer of 2 output tokens costs 1


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


@pytest.fixture
def model(base: Path, tmp_path: Path) -> ModelVersion:
    """Return a registered classifier with the classes of the tests' endpoints."""
    return registered(base, tmp_path)


def register(
    server: Server, model: ModelVersion, folder: Path, *, chat: bool = False, **fields: Any
) -> ModelVersion:
    """Register a version of the endpoint, a classifier or a chat version."""
    endpoint = Endpoint(
        url=server.url, model="m", api_key=f"env://{VARIABLE}", reported_model=MODEL, **fields
    )
    model = model.model_copy(update={"classes": ()}) if chat else model
    prompting = Prompting(system="s", max_new_tokens=2) if chat else label_prompting(model.classes)
    return register_config(  # type: ignore[no-any-return]
        folder, "endpoint", endpoint_of(model, prompting, endpoint=endpoint)
    )


class Batch:
    """A batch of texts in parts of two rows. Each call of `score` is that of a new worker."""

    def __init__(self, version: ModelVersion, folder: Path, texts: Sequence[str]) -> None:
        pq.write_table(
            pa.table({"text": pa.array(texts), "key": range(len(texts))}), folder / "in.parquet"
        )
        self.uri = (folder / "in.parquet").as_uri()
        self.spec = BatchSpec(
            input=self.uri,
            output=(folder / "out").as_uri(),
            version_uri=version.uri,
            digest=version.digest,
            column="text",
            id_column="key",
        )
        entry = storage.file_entry(self.uri)
        assert entry is not None
        self.parts = [
            Part(
                number=start // 2,
                uri=self.uri,
                start=start,
                first=start,
                num_rows=min(2, len(texts) - start),
                etag=entry.tag,
            )
            for start in range(0, len(texts), 2)
        ]

    def score(self, limits: RequestLimits = LIMITS) -> list[PartResult]:
        worker = PartScorer(self.spec, CONFIG, limits)
        rows = [{"part": part.model_dump_json()} for part in self.parts]
        return [PartResult.model_validate_json(worker(row)["result"]) for row in rows]

    def scored(self, *names: str) -> dict[str, list[Any]]:
        """Return these columns of the output."""
        uris = [part.output_uri(self.spec.output) for part in self.parts]
        table = pa.concat_tables(
            [pq.read_table(pa.BufferReader(storage.read_bytes(uri))) for uri in uris]
        )
        return {name: table[name].to_pylist() for name in names}


def labelled(label: str) -> Answer:
    return lambda *_: completion(label_answer(label), logprobs=(-0.5,))


def test_labels_are_those_of_the_endpoint_and_null_if_it_refuses_a_text_or_names_no_class(
    model: ModelVersion, tmp_path: Path
) -> None:
    def answer(body: dict[str, Any], _: int) -> Reply:
        assert body["response_format"] == label_format(model.classes)
        text = question(body)
        if text == "refused":
            return refusal(400, "no", code="content_filter")
        return completion(
            "?" if text == "unclear" else label_answer(model.classes[1]), logprobs=(-0.5,)
        )

    with endpoint_server(answer) as server:
        batch = Batch(
            register(server, model, tmp_path), tmp_path, ["a", "refused", "unclear", "b", "a"]
        )
        results = batch.score()
        assert sorted(map(question, server.bodies)) == [
            "a",
            "b",
            "refused",
            "unclear",
        ]  # equal texts once
        assert set(server.authorizations) == {f"Bearer {KEY}"}
    assert [(result.error, result.num_rows, result.num_unanswered) for result in results] == [
        (None, 2, 1), (None, 2, 1), (None, 1, 0)
    ]  # fmt: skip
    columns = batch.scored("row", "id", "label", "score")
    label = model.classes[1]
    assert (columns["row"], columns["id"]) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    assert columns["label"] == [label, None, None, label, label]
    assert columns["score"][0] == pytest.approx(0.6065, abs=1e-4)
    assert columns["score"][1] is None
    assert [result.num_unanswered for result in batch.score()] == [1, 1, 0]  # stored with the parts
    assert KEY.encode() not in b"".join(
        path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()
    )


def test_chat_answers_have_the_reason_why_they_ended_or_were_refused(
    model: ModelVersion, tmp_path: Path
) -> None:
    def answer(body: dict[str, Any], _: int) -> Reply:
        text = question(body)
        if text == "long":
            return refusal(400, "This model's maximum context length is 8 tokens")
        return completion(f"re: {text}", finish_reason="length" if text == "cut" else "stop")

    with endpoint_server(answer) as server:
        batch = Batch(register(server, model, tmp_path, chat=True), tmp_path, ["a", "long", "cut"])
        assert [result.num_unanswered for result in batch.score()] == [1, 0]
        assert {body["max_tokens"] for body in server.bodies} == {2}
        assert server.bodies[0]["messages"][0] == {"role": "system", "content": "s"}
    assert batch.scored("answer", "finish_reason", "confidence") == {
        "answer": ["re: a", None, "re: cut"],
        "finish_reason": ["stop", "context_length_exceeded", "length"],
        "confidence": [None] * 3,
    }


def test_a_resumed_batch_sends_only_the_requests_without_an_answer(
    model: ModelVersion, tmp_path: Path
) -> None:
    is_down = True

    def answer(body: dict[str, Any], _: int) -> Reply:
        return (
            refusal(500, "down")
            if is_down and question(body) == "d"
            else completion(label_answer("x"))
        )

    with endpoint_server(answer) as server:
        batch = Batch(register(server, model, tmp_path), tmp_path, list("abcdef"))
        results = batch.score()
        assert [result.cause for result in results] == [
            None,
            "EndpointUnreachable",
            "EndpointUnreachable",
        ]
        assert [
            question(body) for body in server.bodies if question(body) in "ef"
        ] == []  # after the error
        is_down, num_before = False, len(server.bodies)
        assert [result.error for result in batch.score()] == [None] * 3
        assert sorted(question(body) for body in server.bodies[num_before:]) == ["d", "e", "f"]
        assert server.max_at_once <= LIMITS.max_concurrency
    assert batch.scored("label")["label"] == ["x"] * 6


def test_the_limit_of_the_spend_stops_a_batch_and_a_higher_one_continues_it(
    model: ModelVersion, tmp_path: Path
) -> None:
    with endpoint_server(lambda body, _: completion(question(body))) as server:
        version = register(server, model, tmp_path, chat=True, max_spend=3.0, **PRICED)
        batch = Batch(version, tmp_path, list("abcde"))
        results = batch.score()
        assert [result.cause for result in results] == [
            None,
            *["EndpointSpendExceeded"] * 2,
        ]
        assert "cost 3, " in str(results[1].error)
        assert len(server.bodies) == 3
        assert storage.exists(batch.parts[0].output_uri(batch.spec.output))
        assert version.endpoint is not None
        assert [
            result.error
            for result in batch.score(replace(LIMITS, max_spend=5.0, recipe=version.endpoint))
        ] == [None] * 3
        assert sorted(map(question, server.bodies)) == list("abcde")
    assert batch.scored("answer")["answer"] == list("abcde")


def test_another_model_or_a_missing_key_stops_a_batch(
    model: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with endpoint_server(lambda *_: completion("x", model="another")) as server:
        batch = Batch(register(server, model, tmp_path), tmp_path, list("abc"))
        changed, _ = batch.score()
        assert (changed.cause, "'another'" in str(changed.error)) == (
            "EndpointModelChanged",
            True,
        )
        assert len(server.bodies) == 1
        monkeypatch.delenv(VARIABLE)
        missing, _ = batch.score()
        assert (missing.cause, VARIABLE in str(missing.error)) == (
            "EndpointKeyMissing",
            True,
        )
        assert len(server.bodies) == 1
    assert not storage.exists(batch.parts[0].output_uri(batch.spec.output))


def test_a_cascade_sends_only_the_texts_on_which_its_first_part_is_not_confident(
    model: ModelVersion, tmp_path: Path
) -> None:
    texts = [text for text in TEXTS if text]
    alone = Batch(model, tmp_path, texts)
    alone.score()
    expected = alone.scored("label", "score")
    threshold = sorted(expected["score"])[2] + 1e-6
    routed = [score < threshold for score in expected["score"]]
    assert 0 < sum(routed) < len(routed)
    other = tmp_path / "other"
    other.mkdir()
    with endpoint_server(labelled("y")) as server:
        second = register(server, model, tmp_path)
        config = hybrid_config(
            model, second=second, routing=Routing(by="cascade", threshold=threshold)
        )
        batch = Batch(register_config(tmp_path, "hybrid", config), other, texts)
        assert [result.error for result in batch.score()] == [None] * 3
        sent = {question(body) for body in server.bodies}
    assert sent == {text for text, to_second in zip(texts, routed, strict=True) if to_second}
    columns = batch.scored("label", "answered_by")
    assert columns["answered_by"] == ["second" if to_second else "first" for to_second in routed]
    labels = zip(expected["label"], routed, strict=True)
    assert columns["label"] == ["y" if to_second else label for label, to_second in labels]


def test_the_limits_of_a_service_are_those_of_its_configuration() -> None:
    limits = request_limits(ServingConfig(max_batch_size=3), task="chat")
    assert (limits.max_concurrency, limits.timeout_s) == (3, ANSWER_TIMEOUT_S)


def test_clients_see_the_kind_of_an_cause_but_not_the_url(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = {
        name: "x" for name in BatchJob.model_fields if BatchJob.model_fields[name].is_required()
    }
    fields |= {"status": "running", "input": "s3://lake/pre/in", "output": "s3://lake/pre/out"}
    job = BatchJob.model_validate(fields)
    batch = BatchSpec.model_validate(job.model_dump(include=set(BatchSpec.model_fields)))
    failed = PartResult(
        part=0, error="http://internal/v1 failed (503)", cause="EndpointUnreachable"
    )
    error = _error(failed, batch=batch)
    assert "http://internal/v1 failed (503). Complete parts" in str(error)

    def stopped(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(runner, "read_job", lambda *_: job)
    monkeypatch.setattr(runner, "score_batch", stopped)
    monkeypatch.setattr("tailorbird.registry.versions.read_version", lambda _: None)
    config = ServingConfig(batch_prefixes=("s3://lake/pre",))
    message = runner.run_job("s3://models/task", "0" * 24, config)
    assert message is not None
    assert "(EndpointUnreachable)" in message
    assert "internal" not in message
