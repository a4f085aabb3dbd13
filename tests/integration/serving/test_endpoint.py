"""A service in front of an endpoint: promotion, answers, streams, failures, API keys and the
request log."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from cluster import code_snapshot
from cluster.local import stack
from serving.batch_jobs import scoring
from serving.deploy import application, rollout
from serving.http.api_keys import new_key
from tailorbird import storage
from tailorbird.config.serving import ServingConfig
from tailorbird.evaluation.statistics.text_metrics import words_sha256
from tailorbird.registry import versions as registry
from tailorbird.registry.endpoint import Endpoint
from tailorbird.release import parity, probe_requests
from tests.build import version_config
from tests.endpoint_server import (
    MODEL,
    Reply,
    completion,
    endpoint_server,
    event,
    last_events,
    question,
    refusal,
    stream,
)
from tests.integration.small import ROOT, await_rows, write_table
from tests.unit.serving.endpoint.versions import KEY, VARIABLE

TASK_URI = "s3://models/endpoint-serving-test"


def answer(body: dict[str, Any], _: int) -> Reply:
    """Answer with the system message and the question; refuse the question `busy`."""
    if question(body) == "busy":
        return refusal(429, "slow down", Retry_After="30")
    text = f"{body['messages'][0]['content']}: {question(body)}"
    if not body.get("stream"):
        return completion(text, tokens=(20, 4))
    return stream([*map(event, text.split(" ")), event(end="stop"), *last_events((20, 4))])


def register(folder: Path, url: str, *, system: str) -> registry.ModelVersion:
    folder.mkdir()
    config = version_config(
        kind="endpoint_zero_shot",
        code=code_snapshot.ship_code(TASK_URI, ROOT).uri,
        created_at=registry.now(),
        prompting=registry.Prompting(system=system, max_new_tokens=8),
        endpoint=Endpoint(url=url, model="m", api_key=f"env://{VARIABLE}", reported_model=MODEL),
    )
    registry.write_config(folder, config)
    return registry.register(TASK_URI, folder)


@pytest.fixture
def undeployed(stack: stack.StackState) -> Iterator[None]:
    assert stack.serve_port
    yield
    rollout.undeploy(application.application_name(TASK_URI))


@pytest.mark.usefixtures("connected")
def test_a_batch_is_scored_by_one_worker_with_the_key_of_its_environment_and_resumed_without_a_request(
    tmp_path: Path, bucket: str
) -> None:
    texts = [f"row {number}" for number in range(40)]
    for number, rows in enumerate((texts[:25], texts[25:])):
        write_table(f"{bucket}/in/{number}.parquet", pa.table({"prompt": rows}))

    def slow(body: dict[str, Any], number: int) -> Reply:
        time.sleep(0.2)  # so that the requests of several workers would overlap
        return answer(body, number)

    with endpoint_server(slow) as server:
        version = register(tmp_path / "brief", server.url, system="brief")
        batch = scoring.new_batch(version, input=f"{bucket}/in", output=f"{bucket}/out")

        def score() -> scoring.ScoringResult:
            config = ServingConfig(max_batch_size=2)
            return scoring.score_batch(batch, config, version=version)

        result = score()
        assert (result.num_rows, result.num_parts, result.num_new, result.num_unanswered) == (
            40,
            2,
            40,
            0,
        )
        assert server.max_at_once <= 2
        assert set(server.authorizations) == {f"Bearer {KEY}"}
        part = f"{bucket}/out/part-000001.parquet"
        scored = pq.read_table(pa.BufferReader(storage.read_bytes(part)))
        assert scored["answer"].to_pylist() == [f"brief: {text}" for text in texts[25:]]
        for uri in (
            part,
            result.manifest,
        ):  # as after an interruption before the end of the last part
            storage.delete(uri)
        assert score().num_new == 15
        assert sorted(map(question, server.bodies)) == sorted(texts)


@pytest.mark.usefixtures("undeployed")
def test_a_version_of_an_endpoint_is_promoted_and_answers_with_our_keys_errors_and_log(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, stored = new_key("app")
    (tmp_path / "keys").write_text(stored.to_line())
    monkeypatch.setenv(probe_requests.KEY, key)
    config = ServingConfig(
        api_keys=(tmp_path / "keys").as_uri(), request_log=f"{bucket}/log", max_new_tokens=8
    )
    with endpoint_server(answer) as server:
        first, second = (
            register(tmp_path / name, server.url, system=name) for name in ("brief", "kind")
        )
        rollout.deploy(config, task_uri=TASK_URI, version=first)
        num_at_start = len(server.bodies)
        assert num_at_start == 0  # a replica is ready without a paid request

        bodies: list[Any] = [
            {"model": second.version, "messages": [{"role": "user", "content": text}]}
            for text in ("a", "b")
        ]
        outputs = [words_sha256("kind: a"), words_sha256("another answer")]
        probes = [
            probe_requests.ParityProbe(output, "text", body, output, endpoint=second.endpoint)
            for body, output in zip(bodies, outputs, strict=True)
        ]
        with rollout.staged(TASK_URI, version=second) as url:
            assert url is not None
            result = parity.check_parity(probes, url=url, version=second)
        assert (result.rows, result.matching, result.requires_equality) == (2, 1, False)
        assert rollout.switch_version(TASK_URI, version=second, baseline=None, verdict=None) == url

        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, timeout=60, max_retries=0)
        messages: list[Any] = [{"role": "user", "content": "hello"}]
        whole = client.chat.completions.create(model="champion", messages=messages)
        assert whole.choices[0].message.content == "kind: hello"
        with pytest.raises(openai.InternalServerError) as failure:
            client.chat.completions.create(
                model="champion", messages=[{"role": "user", "content": "busy"}]
            )
        error = failure.value
        assert (error.status_code, error.type) == (503, "endpoint_busy")
        assert error.response.headers["retry-after"] == "30"
        body = {"messages": messages}
        assert requests.post(f"{url}/v1/chat/completions", json=body, timeout=30).status_code == 401
        assert set(server.authorizations) == {
            f"Bearer {KEY}"
        }  # the clients' keys are not sent to the endpoint

        rows = await_rows(f"{bucket}/log", num_rows=3)  # two of the parity gate
        assert {row["reported_model"] for row in rows} == {MODEL}
        assert [row["caller"] for row in rows] == ["app"] * 3
        assert {
            (row["version"], row["prompt_tokens"], row["completion_tokens"]) for row in rows
        } == {(second.version, 20, 4)}
