"""Texts and tokens of requests are charged to their API key."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving.http.asgi import ASGIApp
from serving.replica.chat import Chat
from tailorbird.config.serving import ServingConfig
from tests.unit.serving.http.application import application, chunks, exchange
from tests.unit.serving.replica.fake_engine import FakeEngine
from tests.unit.serving.replica.loads import config, stored_keys
from tests.unit.serving.replica.test_classifier import new_classifier

ROUTE = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "abcd"}]


class Client:
    """A client with a key that has a limit, given as `option`."""

    def __init__(self, folder: Path, option: str) -> None:
        self.uri, keys = stored_keys(folder, app=option)
        self.headers = {"authorization": f"Bearer {keys['app']}"}
        self.app: ASGIApp

    def serve(self, engine: FakeEngine) -> None:
        self.app = application(Chat, ServingConfig(api_keys=self.uri), engine)

    def post(self, path: str = ROUTE, **body: Any) -> Any:
        client = TestClient(self.app, base_url="http://127.0.0.1")
        return client.post(path, json=body, headers=self.headers)


def num_tokens(engine: FakeEngine) -> int:
    """Return the number of tokens of the prompt of `MESSAGES`."""
    return len(engine.chat_prompt((("user", "abcd"),), max_new_tokens=None))


# Three texts of one letter have about six tokens.
@pytest.mark.parametrize("option", ["texts=4", "tokens=7"])
def test_texts_of_a_classifier_are_charged_before_their_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    client = Client(tmp_path, option)
    classifier = new_classifier(monkeypatch, api_keys=client.uri)
    asyncio.run(classifier.reconfigure(config("one")))
    client.app = classifier.__serve_build_asgi_app__()

    def status(**body: Any) -> int:
        return int(client.post("/v1/classify", **body).status_code)

    assert status(input=["a", "b", "c"]) == 200
    assert status(input=1) == 422  # not charged
    assert status(input=["a"] * 4, model="unknown") == 404  # not charged
    assert status(input=["a", "b", "c"]) == 200
    answer = client.post("/v1/classify", input="a")
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limited")
    assert int(answer.headers["retry-after"]) > 1


@pytest.mark.parametrize(("more", "last"), [(0, 429), (1, 200)])
@pytest.mark.parametrize("stream", [False, True])
def test_prompt_and_answer_of_a_chat_model_are_charged(
    tmp_path: Path, more: int, last: int, stream: bool
) -> None:
    engine = FakeEngine("ab")
    two = 2 * (num_tokens(engine) + len(engine.tokens))
    client = Client(tmp_path, f"tokens={two + more}")
    client.serve(engine)
    answers = [client.post(messages=MESSAGES, stream=stream) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, last]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_before_the_answer_is_charged_for_its_maximum(
    tmp_path: Path, stream: bool
) -> None:
    engine = FakeEngine("", hangs=True)
    client = Client(tmp_path, f"tokens={num_tokens(engine) + 8}")
    client.serve(engine)
    request = {"messages": MESSAGES, "max_tokens": 8, "stream": stream}
    body = chunks(json.dumps(request).encode())
    headers = {name.encode(): value.encode() for name, value in client.headers.items()}
    left = exchange(
        client.app, "POST", ROUTE, body=body, headers=headers, disconnect=engine.started
    )
    asyncio.run(left)
    engine.hangs = False
    assert client.post(messages=MESSAGES).status_code == 429


def test_a_prompt_without_room_for_its_answer_is_refused_with_openais_code_and_charged_as_a_text(
    tmp_path: Path,
) -> None:
    client = Client(tmp_path, "texts=1")
    client.serve(FakeEngine("ab"))
    messages = [{"role": "user", "content": "abcd" * 64}]
    first, second = [client.post(messages=messages) for _ in range(2)]
    assert (first.status_code, second.status_code) == (400, 429)
    assert first.json()["error"]["code"] == "context_length_exceeded"
