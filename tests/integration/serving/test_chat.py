"""A deployed chat version gives OpenAI's client the same answers as in memory.

The engine is vLLM if it is installed, otherwise transformers.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import requests

from cluster.local import stack
from serving.deploy import application, rollout, serve_client
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
    assert (answer.model, answer.version) == ("chat-serving-test", service.first.version)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= LIMIT


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


def test_openais_client_lists_the_served_model_and_raises_its_exceptions(service: Service) -> None:
    (model,) = service.client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("champion", "model", "tailorbird")
    assert model.model_extra is not None
    assert (model.model_extra["digest"], model.model_extra["kind"]) == (
        service.first.digest,
        "zero_shot",
    )
    ready = requests.get(f"{service.url}/readyz", timeout=60).json()
    assert ready["digest"] == service.first.digest
    for stream in (True, False):
        with pytest.raises(openai.BadRequestError) as caught:
            service.ask("abc", temperature=9, stream=stream)
        assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        service.ask("abc", extra_body={"model": "gpt-4"})
    assert service.ask("abc").choices[0].message.content


def test_a_deploy_during_streams_interrupts_none_of_them(service: Service) -> None:
    expected = {
        version.version: service.expected(version, max_new_tokens=180)
        for version in (service.first, service.second)
    }
    replicas = _replicas()
    swapped = threading.Event()

    def stream_answers(index: int) -> list[str]:
        """Stream answers until one starts after the swap. Return the versions that answered."""
        versions: list[str] = []
        while True:
            last = swapped.is_set()
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
            swapped.set()
        versions_by_client = [future.result() for future in streaming]
    try:
        for client_versions in versions_by_client:
            in_order = dict.fromkeys(client_versions)
            assert list(in_order) == [service.first.version, service.second.version]
            assert client_versions == sorted(client_versions, key=list(in_order).index)
        assert _replicas() == replicas
    finally:
        service.deploy(service.first)


def test_retrieved_and_stored_answers_equal_those_of_the_evaluation(service: Service) -> None:
    rows = rows_of(QUESTIONS)
    versions = (service.retrieved, service.nearest, service.trained)
    additional = application.AdditionalVersions(
        baseline=service.nearest, selectable=[service.trained]
    )
    service.url = rollout.deploy(
        CONFIG, task_uri=TASK_URI, version=service.retrieved, additional=additional
    )
    try:
        for version in versions:
            table = predict_rows(version.uri, rows=rows)
            probes = [parity._probe(rows, table, row, version=version) for row in range(len(rows))]
            checked = parity.check_parity(probes, url=service.url, version=version)
            assert checked.matching == len(QUESTIONS)
        answer = service.ask("what is a dog", model=service.nearest.version)
        assert answer.version == service.nearest.version
        assert answer.choices[0].message.content == "what is a cat"
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (13, 13)
    finally:
        service.deploy(service.first)


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
