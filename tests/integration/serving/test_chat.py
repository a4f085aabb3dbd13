"""A deployed chat version gives OpenAI's client the same answers as in memory.

The engine is vLLM if it is installed, otherwise transformers.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from cluster.local import stack
from serving.deploy import application, rollout, serve_client
from tailorbird.config.serving import ChallengerConfig
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.release import parity
from tests.fuzz import fuzz
from tests.integration.serving.chat_service import (
    CONFIG,
    LIMIT,
    QUESTIONS,
    TASK_URI,
    Service,
    rows_of,
)
from tests.unit.serving.http.test_openapi import is_valid


@pytest.fixture(scope="module")
def service(stack: stack.StackState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    assert stack.serve_port
    service = Service(tmp_path_factory.mktemp("chat"))
    service.deploy(service.first)
    yield service
    rollout.undeploy(application.application_name(TASK_URI))


def test_answers_equal_those_of_the_version_in_memory(service: Service) -> None:
    expected = service.expected(service.first)
    with ThreadPoolExecutor(len(QUESTIONS)) as clients:
        answers = list(clients.map(service.ask, QUESTIONS))
    assert [answer.choices[0].message.content for answer in answers] == expected
    answer = answers[0]
    assert (answer.object, answer.model, answer.version) == (
        "chat.completion",
        "chat-serving-test",
        service.first.version,
    )
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens <= LIMIT


@pytest.mark.long
def test_a_fuzzer_gets_only_documented_responses(service: Service, tmp_path: Path) -> None:
    fuzz(service.url, folder=tmp_path)


def test_the_concatenated_stream_equals_the_answer(service: Service) -> None:
    answer = service.ask(QUESTIONS[1])
    chunks = list(service.ask(QUESTIONS[1], stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(parts) == answer.choices[0].message.content
    assert sum(map(bool, parts)) > 1
    assert chunks[-2].choices[0].finish_reason == answer.choices[0].finish_reason
    assert chunks[-1].usage == answer.usage


def test_openais_client_lists_the_served_model(service: Service) -> None:
    (model,) = service.client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("champion", "model", "tailorbird")
    model_info = requests.get(f"{service.url}/v1/models", timeout=60).json()["data"][0]
    assert (model_info["digest"], model_info["kind"], model_info["classes"]) == (
        service.first.digest,
        "zero_shot",
        [],
    )
    assert requests.get(f"{service.url}/healthz", timeout=60).json() == {"status": "up"}
    assert (
        requests.get(f"{service.url}/readyz", timeout=60).json()["digest"] == service.first.digest
    )


@pytest.mark.parametrize(
    ("options", "error", "param"),
    [
        ({"temperature": 9}, openai.BadRequestError, "temperature"),
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature"),
        ({"max_tokens": 201}, openai.BadRequestError, "max_tokens"),
        ({"extra_body": {"model": "gpt-4"}}, openai.NotFoundError, "model"),
        (
            {"extra_body": {"messages": [{"role": "user", "content": "a" * 300}]}},
            openai.BadRequestError,
            "messages",
        ),
        ({"temperature": 9, "stream": True}, openai.BadRequestError, "temperature"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else None,
)
def test_an_unsupported_request_raises_openais_exception_and_does_not_affect_later_requests(
    service: Service, options: dict[str, Any], error: type[openai.APIStatusError], param: str
) -> None:
    with pytest.raises(error) as caught:
        service.ask("abc", **options)
    assert caught.value.param == param
    assert caught.value.message
    assert service.ask("abc").choices[0].message.content


def test_requests_beyond_the_queue_get_429_with_retry_after(service: Service) -> None:
    # one for all threads, because creating a client takes longer than an answer
    client = service.client

    def ask(number: int) -> openai.RateLimitError | None:
        messages: Any = [{"role": "user", "content": f"abc {number}"}]
        try:
            client.chat.completions.create(
                model="champion", messages=messages, max_tokens=200, stop="never"
            )
        except openai.RateLimitError as error:
            return error
        return None

    with ThreadPoolExecutor(40) as clients:
        refused = [error for error in clients.map(ask, range(40)) if error is not None]
    assert 0 < len(refused) <= 40 - CONFIG.max_requests("chat") // 2
    assert (refused[0].code, refused[0].response.headers["retry-after"]) == (
        "rate_limit_exceeded",
        "2",
    )
    assert service.ask("abc").choices[0].message.content


def test_a_deploy_during_streams_interrupts_none_of_them(service: Service) -> None:
    expected = {
        version.version: service.expected(version, max_new_tokens=180)
        for version in (service.first, service.second)
    }
    replicas = _replicas()
    swapped: list[str] = []

    def stream_answers(index: int) -> list[str]:
        """Stream answers until one starts after the swap. Return the versions that answered."""
        versions: list[str] = []
        while True:
            last = bool(swapped)
            chunks = list(service.ask(QUESTIONS[index], stream=True, max_tokens=180))
            assert len({chunk.model_extra["version"] for chunk in chunks}) == 1
            versions.append(chunks[0].model_extra["version"])
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert text == expected[versions[-1]][index]
            assert chunks[-1].choices[0].finish_reason in ("stop", "length")
            if last:
                return versions

    with ThreadPoolExecutor(4) as clients:
        streaming = [clients.submit(stream_answers, index) for index in range(4)]
        try:
            service.deploy(service.second)
        finally:
            swapped.append("done")
        versions_by_client = [future.result() for future in streaming]
    try:
        for client_versions in versions_by_client:
            assert (client_versions[0], client_versions[-1]) == (
                service.first.version,
                service.second.version,
            )
            assert client_versions == sorted(
                client_versions, key=[service.first.version, service.second.version].index
            )
        assert _replicas() == replicas
    finally:
        service.deploy(service.first)


def test_retrieved_and_stored_answers_equal_those_of_the_evaluation(service: Service) -> None:
    rows = rows_of(QUESTIONS)
    versions = (service.retrieved, service.nearest, service.trained)
    additional = application.AdditionalVersions(
        baseline=service.nearest, challenger=service.nearest, others=[service.trained]
    )
    challenger = ChallengerConfig(version=service.nearest.version, canary=1.0)
    config = CONFIG.model_copy(update={"challenger": challenger})
    service.url = rollout.deploy(
        config, task_uri=TASK_URI, version=service.retrieved, additional=additional
    )
    try:
        for version in versions:
            table = predict_rows(version.uri, rows=rows)
            probes = [parity._probe(rows, table, row, version=version) for row in range(len(rows))]
            assert parity.check_parity(probes, url=service.url, version=version).matching == len(
                QUESTIONS
            )
        messages: Any = [{"role": "user", "content": "what is a dog"}]
        answer = service.client.chat.completions.create(model="baseline", messages=messages)
        assert answer.choices[0].message.content == "what is a cat"
        usage = answer.usage
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (13, 13)
        chunks = list(
            service.client.chat.completions.create(model="baseline", messages=messages, stream=True)
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "what is a cat"
        assert (
            service.ask("abc").version == service.nearest.version
        )  # the canary answers every request
    finally:
        service.deploy(service.first)


def test_responses_are_valid_for_the_served_openapi_document(service: Service) -> None:
    document = requests.get(f"{service.url}/openapi.json", timeout=60).json()
    body = {"messages": [{"role": "user", "content": "abc"}]}
    url = f"{service.url}/v1/chat/completions"
    assert is_valid(document, "ChatResponse", requests.post(url, json=body, timeout=60).json())
    events = requests.post(url, json=body | {"stream": True}, timeout=60).text.split("\n\n")
    for event in events[:-2]:
        assert is_valid(document, "ChatChunk", json.loads(event.removeprefix("data: ")))
    assert is_valid(document, "ErrorBody", requests.post(url, json={}, timeout=60).json())


def test_a_disconnected_client_frees_its_place_in_the_queue(service: Service) -> None:
    for _ in range(3):
        streams = [service.ask("abc", stream=True, max_tokens=200) for _ in range(6)]
        for stream in streams:
            next(stream)
            stream.close()
    assert service.ask("abc").choices[0].message.content


def _replicas() -> set[int | None]:
    return {
        replica.pid for replica in serve_client.replicas_of(application.application_name(TASK_URI))
    }
