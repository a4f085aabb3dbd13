"""Answers, log rows and shadows of chat requests, with fake engines, and the bounded queue of
shadows."""

import asyncio
import json
import threading
from collections.abc import Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from serving.http.schemas import RequestError
from serving.replica import shadow
from serving.replica.chat import Chat
from serving.replica.config import ReplicaConfig
from serving.replica.shadow import ShadowRunner
from tailorbird.config.serving import ServingConfig
from tailorbird.data.conversations import logged_conversation
from tests.unit.serving.http.application import deployment
from tests.unit.serving.replica.fake_engine import FakeEngine
from tests.unit.serving.replica.loads import config

pytestmark = pytest.mark.anyio


class Service:
    """A deployment with an engine that answers `one`, and with a request log in a folder."""

    def __init__(self, folder: Path, *, texts: bool = True) -> None:
        self.folder = folder
        self.champion = FakeEngine("one</s>")
        serving = ServingConfig(request_log=folder.as_uri(), log_texts=texts)
        self.chat: Any = deployment(Chat, serving, self.champion)

    def add_challenger(self, engine: FakeEngine, **shares: float) -> None:
        """Add a challenger with shares of the requests."""
        engine.version.digest = "c" * 64
        versions = self.chat._replica.versions
        versions.engines = dict(versions.engines) | {"challenger": engine}
        challenger = {"uri": "v", "digest": engine.version.digest, **shares}
        versions.config = ReplicaConfig.model_validate(config("u", challenger=challenger))

    async def answer(self, contents: Sequence[str] = ("abc",), **fields: Any) -> Any:
        """Return the answer to turns of the user and the model."""
        turns = [
            {"role": role, "content": content}
            for content, role in zip(contents, cycle(("user", "assistant")), strict=False)
        ]
        status, content = await self.chat._chat(
            json.dumps({"messages": turns} | fields).encode(), "r"
        )
        assert status == 200
        return json.loads(content)["choices"][0]["message"]["content"]

    async def logged(self, kind: str = "answers") -> list[dict[str, Any]]:
        """Return the rows of the request log after its end."""
        await self.chat._replica.log.close()
        rows: list[dict[str, Any]] = pq.read_table(self.folder / kind).to_pylist()
        return rows


@pytest.mark.parametrize("is_tokenization", [True, False])
async def test_tokenization_and_redaction_do_not_block_other_requests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_tokenization: bool
) -> None:
    begun = threading.Event()
    go = threading.Event()

    def slow(text: Any, **_options: Any) -> Any:
        begun.set()
        assert go.wait(10)
        return [1, 2] if is_tokenization else f"redacted {text}"

    service = Service(tmp_path)
    if is_tokenization:
        monkeypatch.setattr(service.champion, "chat_prompt", slow)
    else:
        monkeypatch.setattr("serving.request_log.log.redact", slow)
    answering = asyncio.create_task(service.answer())
    while not begun.is_set():
        await asyncio.sleep(0)
    assert service.champion.num_active == int(is_tokenization)  # the engine is kept
    go.set()
    assert await answering == "one"
    assert service.champion.num_active == 0


@pytest.mark.parametrize("texts", [True, False])
async def test_the_log_has_the_length_and_with_texts_the_whole_redacted_conversation(
    tmp_path: Path, texts: bool
) -> None:
    service = Service(tmp_path, texts=texts)
    await service.answer(("call 5551234567", "ok", "abc"))
    [row] = await service.logged()
    assert row["text_chars"] == 3
    if not texts:
        assert [row[name] for name in ("text", "context", "answer")] == [None] * 3
        return
    assert (row["text"], row["answer"]) == ("abc", "one")
    turns = (("user", "call [number]"), ("assistant", "ok"), ("user", "abc"))
    assert logged_conversation(row["context"], "abc") == turns


@pytest.mark.parametrize(
    ("texts", "fields", "stored"),
    [
        (False, {"correct_answer": "two"}, None),
        (False, {"label": "good"}, ("good", None, None)),
        (
            True,
            {"score": 0.25, "correct_answer": "two, ann@example.org"},
            (None, 0.25, "two, [email]"),
        ),
    ],
)
async def test_feedback_on_an_answer_is_logged_and_a_correct_answer_only_with_texts(
    tmp_path: Path, texts: bool, fields: dict[str, Any], stored: Any
) -> None:
    service = Service(tmp_path, texts=texts)
    body = json.dumps({"request_id": f"chatcmpl-{'0' * 32}"} | fields).encode()
    if stored is None:
        with pytest.raises(RequestError) as caught:
            await service.chat._replica._feedback(body, "r")
        assert caught.value.status == 422
        return
    status, _ = await service.chat._replica._feedback(body, "r")
    [row] = await service.logged("feedback")
    assert (status, row["request_id"]) == (202, "0" * 32)
    assert (row["label"], row["score"], row["correct_answer"]) == stored


class InterruptedEngine(FakeEngine):
    """An engine during whose first answers a client sends a request to the champion; it fails if
    they are below 0."""

    num_starts = 0

    def __init__(self, champion: FakeEngine, num_interruptions: int) -> None:
        super().__init__("two</s>")
        self.champion = champion
        self.left = num_interruptions

    async def generate(self, generation: Any) -> Any:
        self.num_starts += 1
        if self.left < 0:
            raise RuntimeError("the engine failed")
        async for tokens, is_last in super().generate(generation):
            if self.left:
                self.left -= 1
                self.champion.num_active += 1
                asyncio.get_running_loop().call_later(0.05, self._end_request)
            yield tokens, is_last

    def _end_request(self) -> None:
        self.champion.num_active -= 1


@pytest.mark.parametrize(
    ("num_interruptions", "num_starts", "text", "failure"),
    [
        (0, 1, "two", None),
        (1, 2, "two", None),
        (9, 3, None, "interrupted"),
        (-1, 1, None, "failed"),
    ],
)
async def test_a_shadow_answers_after_the_champion_and_starts_again_if_a_client_interrupts_it(
    tmp_path: Path, num_interruptions: int, num_starts: int, text: str | None, failure: str | None
) -> None:
    service = Service(tmp_path)
    shadow = InterruptedEngine(service.champion, num_interruptions)
    service.add_challenger(shadow, shadow=1.0)
    assert await service.answer(attributes={"language": "en"}) == "one"
    while service.chat._shadows._tasks:
        await asyncio.sleep(0.01)
    rows = {row["arm"]: row for row in await service.logged()}
    assert set(rows) == {"champion", "shadow"}
    answers = [(row["answer"], row["failure"]) for row in (rows["champion"], rows["shadow"])]
    assert answers == [("one", None), (text, failure)]
    for row in rows.values():
        assert (row["request_id"], row["text_chars"], row["text"]) == ("r", 3, "abc")
        assert row["attributes"] == '{"language": "en"}'
    assert (shadow.num_starts, shadow.num_active) == (num_starts, 0)


async def test_shadows_run_one_by_one_despite_errors() -> None:
    turn = asyncio.Lock()
    answered = []
    shadows = ShadowRunner(lambda: True)

    async def answer(number: int) -> None:
        assert not turn.locked()
        async with turn:
            await asyncio.sleep(0)
        if number == 1:
            raise ValueError("cannot be answered")
        answered.append(number)

    for number in range(4):
        shadows.add(partial(answer, number), num_bytes=10, caller=None)
    await asyncio.gather(*shadows._tasks)
    assert answered == [0, 2, 3]


async def test_a_key_that_fills_the_queue_loses_only_its_own_requests_and_answered_ones_free_space(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shadow, "MAX_BYTES", 7 * (shadow.REQUEST_BYTES + 100))
    gate = asyncio.Event()
    shadows = ShadowRunner(lambda: True)
    for caller in ["flood"] * 10 + ["calm"]:
        shadows.add(gate.wait, num_bytes=100, caller=caller)
    assert (shadows.num_dropped, len(shadows._tasks)) == (7, 4)
    gate.set()
    await asyncio.gather(*shadows._tasks)
    shadows.add(gate.wait, num_bytes=100, caller="flood")
    assert shadows.num_dropped == 7
