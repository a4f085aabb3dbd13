"""Texts and tokens of requests are charged to their API key."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving.engines.language_model import Generation
from serving.http.api_keys import new_key
from serving.replica.chat import Chat
from tailorbird.config.serving import ServingConfig
from tests.unit.serving.http.application import application, chunks, exchange
from tests.unit.serving.replica.fake_engine import FakeEngine
from tests.unit.serving.replica.loads import config
from tests.unit.serving.replica.test_classifier import new_classifier

ROUTE = "/v1/chat/completions"
MESSAGES = {"messages": [{"role": "user", "content": "abcd"}]}


def num_tokens(engine: FakeEngine) -> int:
    """Return the number of tokens of the prompt of `MESSAGES`."""
    return len(engine.chat_prompt((("user", "abcd"),), max_new_tokens=None))


def keys(folder: Path, option: str) -> tuple[dict[str, str], str]:
    """Return the headers of a new key with a limit, and the URI of its file."""
    key, stored = new_key("app", options=[option])
    (folder / "keys").write_text(stored.to_line())
    return {"authorization": f"Bearer {key}"}, (folder / "keys").as_uri()


@pytest.mark.parametrize(
    "option", ["texts=4", "tokens=7"]
)  # three texts of one letter have about six tokens
def test_texts_of_a_classifier_are_charged_before_their_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    headers, uri = keys(tmp_path, option)
    classifier = new_classifier(monkeypatch, api_keys=uri)
    asyncio.run(classifier.reconfigure(config("one")))
    client = TestClient(classifier.__serve_build_asgi_app__(), base_url="http://127.0.0.1")

    def status(body: dict[str, Any]) -> int:
        return client.post("/v1/classify", json=body, headers=headers).status_code

    assert status({"input": ["a", "b", "c"]}) == 200
    assert status({"input": 1}) == 422  # not charged
    assert status({"input": ["a"] * 4, "model": "unknown"}) == 404  # not charged
    assert status({"input": ["a", "b", "c"]}) == 200
    answer = client.post("/v1/classify", json={"input": "a"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limited")
    quantity, _, limit = option.partition("=")
    assert f"is limited to {limit} {quantity} a minute" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) > 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("option", "num_accepted"), [("texts=2", 2), ("tokens={two}", 2), ("tokens={two_and_one}", 3)]
)
def test_prompt_and_answer_of_a_chat_model_are_charged(
    tmp_path: Path, option: str, num_accepted: int, stream: bool
) -> None:
    engine = FakeEngine("ab")
    two = 2 * (num_tokens(engine) + len(engine.tokens))
    headers, uri = keys(tmp_path, option.format(two=two, two_and_one=two + 1))
    client = TestClient(
        application(Chat, ServingConfig(api_keys=uri), engine), base_url="http://127.0.0.1"
    )
    body = {**MESSAGES, "stream": stream}
    answers = [client.post(ROUTE, json=body, headers=headers) for _ in range(num_accepted + 1)]
    assert [answer.status_code for answer in answers] == [200] * num_accepted + [429]
    assert answers[-1].json()["error"]["type"] == "rate_limited"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_before_the_answer_is_charged_for_its_maximum(
    tmp_path: Path, stream: bool
) -> None:
    started = asyncio.Event()

    class WaitingEngine(FakeEngine):
        async def generate(
            self, generation: Generation
        ) -> AsyncGenerator[tuple[list[int], bool], None]:
            if not started.is_set():
                started.set()
                await asyncio.Event().wait()
            yield generation.prompt, True

    engine = WaitingEngine("")
    headers, uri = keys(tmp_path, f"tokens={num_tokens(engine) + 8}")
    app = application(Chat, ServingConfig(api_keys=uri), engine)
    body = chunks(json.dumps({**MESSAGES, "max_tokens": 8, "stream": stream}).encode())
    raw = {name.encode(): value.encode() for name, value in headers.items()}
    asyncio.run(exchange(app, "POST", ROUTE, body=body, headers=raw, disconnect=started))
    client = TestClient(app, base_url="http://127.0.0.1")
    answer = client.post(ROUTE, json=MESSAGES, headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limited")


def test_a_prompt_that_is_refused_because_of_its_length_is_charged_as_a_text(
    tmp_path: Path,
) -> None:
    engine = FakeEngine("ab")
    headers, uri = keys(tmp_path, "texts=1")
    client = TestClient(
        application(Chat, ServingConfig(api_keys=uri), engine), base_url="http://127.0.0.1"
    )
    body = {"messages": [{"role": "user", "content": "abcd" * 64}]}
    answers = [client.post(ROUTE, json=body, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [400, 429]
