"""Prompts of chat and completion requests, and concurrency during tokenization."""

import asyncio
import json
import threading
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from serving.http.chat_schemas import parse_chat
from serving.http.metrics import Meter
from serving.http.schemas import RequestError
from serving.replica.chat import Chat, _Loader
from serving.replica.config import ReplicaConfig
from tailorbird.config.serving import ServingConfig
from tailorbird.data.conversations import logged_conversation
from tailorbird.registry.kinds import KINDS
from tests.unit.serving.http.application import deployment
from tests.unit.serving.replica.fake_engine import TOKENIZER, FakeEngine

pytestmark = pytest.mark.anyio
CONFIG = {
    "champion": {"uri": "u", "digest": "d"},
    "challenger": {"uri": "v", "digest": "c"},
}


def new_chat(config: ServingConfig) -> Any:
    """Return the deployment with an engine that answers `one`."""
    engine = FakeEngine("one</s>")
    engine.version.digest = "d" * 64
    return deployment(Chat, config, engine)


def add_challenger(service: Any, engine: FakeEngine, **shares: float) -> None:
    """Add a challenger with shares of the requests."""
    engine.version.digest = "c" * 64
    versions = service._replica.versions
    versions.engines = dict(versions.engines) | {"challenger": engine}
    challenger = CONFIG["challenger"] | shares
    versions.config = ReplicaConfig.model_validate(CONFIG | {"challenger": challenger})


async def answer(service: Any, contents: Sequence[str] = ("abc",), **fields: Any) -> Any:
    """Return the answer to turns of the user and the model."""
    roles = cycle(("user", "assistant"))
    turns = [
        {"role": role, "content": content} for content, role in zip(contents, roles, strict=False)
    ]
    body = json.dumps({"messages": turns} | fields).encode()
    status, content = await service._chat(body, "r")
    assert status == 200
    return json.loads(content)["choices"][0]["message"]["content"]


async def logged(service: Any, folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the request log after its end."""
    await service._replica.log.close()
    rows: list[dict[str, Any]] = pq.read_table(folder / "answers").to_pylist()
    return rows


async def test_tokenization_does_not_block_other_requests_and_keeps_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go = threading.Event()

    def slow(*_: Any, **__: Any) -> Any:
        assert go.wait(10)
        return [1, 2]

    monkeypatch.setattr(FakeEngine, "chat_prompt", slow)
    engine = FakeEngine("one</s>")
    answering = asyncio.create_task(answer(deployment(Chat, ServingConfig(), engine)))
    while not engine.num_active:
        await asyncio.sleep(0)
    go.set()
    assert (await answering, engine.num_active) == ("one", 0)


async def test_redaction_of_the_prompt_does_not_block_other_requests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(text: str) -> str:
        if text == "abc":
            begun.set()
            assert go.wait(10)
        return f"redacted {text}"

    monkeypatch.setattr("serving.request_log.log.redact", slow)
    service = new_chat(ServingConfig(request_log=tmp_path.as_uri(), log_texts=True))
    answering = asyncio.create_task(answer(service))
    while not begun.is_set():
        await asyncio.sleep(0)
    assert not answering.done()
    go.set()
    await answering
    [row] = await logged(service, tmp_path)
    assert (row["text"], row["answer"]) == ("redacted abc", "redacted one")


@pytest.mark.parametrize("texts", [True, False])
async def test_the_log_has_the_length_and_with_texts_the_whole_redacted_conversation(
    tmp_path: Path, texts: bool
) -> None:
    service = new_chat(ServingConfig(request_log=tmp_path.as_uri(), log_texts=texts))
    await answer(service, ("call 5551234567", "ok", "abc"))
    [row] = await logged(service, tmp_path)
    assert row["text_chars"] == 3
    if not texts:
        assert [row[name] for name in ("text", "context", "answer")] == [None] * 3
        return
    assert (row["text"], row["answer"]) == ("abc", "one")
    turns = (("user", "call [number]"), ("assistant", "ok"), ("user", "abc"))
    assert logged_conversation(row["context"], "abc") == turns


async def test_feedback_on_an_answer_is_logged_and_a_correct_answer_only_with_texts(
    tmp_path: Path,
) -> None:
    request_id = "0" * 32

    async def send(texts: bool, **fields: Any) -> int:
        service = new_chat(ServingConfig(request_log=tmp_path.as_uri(), log_texts=texts))
        body = json.dumps({"request_id": f"chatcmpl-{request_id}"} | fields).encode()
        try:
            status, _ = await service._replica._feedback(body, "r")
        except RequestError as error:
            status = error.status
        await service._replica.log.close()
        return int(status)

    assert await send(False, correct_answer="two") == 422
    assert await send(False, label="two") == 422
    assert await send(False, label="good") == 202
    assert await send(True, score=0.25, correct_answer="two, ann@example.org") == 202
    rows = pq.read_table(tmp_path / "feedback").to_pylist()
    names = ("request_id", "label", "score", "correct_answer")
    stored = {tuple(row[name] for name in names) for row in rows}
    expected = {(request_id, "good", None, None), (request_id, None, 0.25, "two, [email]")}
    assert (stored, len(rows)) == (expected, 2)


class InterruptedEngine(FakeEngine):
    """An engine during whose first answers a client sends a request to the champion; it fails if
    they are below 0."""

    def __init__(self, text: str, *, champion: FakeEngine, num_interruptions: int) -> None:
        super().__init__(text)
        self.champion, self.left, self.num_starts = champion, num_interruptions, 0

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
    service = new_chat(ServingConfig(request_log=tmp_path.as_uri(), log_texts=True))
    champion = service._replica.versions.champion
    shadow = InterruptedEngine("two</s>", champion=champion, num_interruptions=num_interruptions)
    add_challenger(service, shadow, shadow=1.0)
    assert await answer(service, attributes={"language": "en"}) == "one"
    while service._shadows._tasks:
        await asyncio.sleep(0.01)
    rows = await logged(service, tmp_path)
    names = ("answer", "failure", "text_chars", "request_id")
    by_arm = {row["arm"]: tuple(row[name] for name in names) for row in rows}
    assert by_arm == {"champion": ("one", None, 3, "r"), "shadow": (text, failure, 3, "r")}
    assert [row["attributes"] for row in rows] == ['{"language": "en"}'] * 2
    assert [row["text"] for row in rows if row["answer"]] == ["abc"] * (2 if text else 1)
    assert (shadow.num_starts, shadow.num_active) == (num_starts, 0)


async def test_the_champion_answers_in_a_format_that_the_challenger_cannot_have() -> None:
    service = new_chat(ServingConfig())
    challenger: Any = FakeEngine("two</s>")
    challenger.has_formats = False
    add_challenger(service, challenger, canary=1.0)
    assert await answer(service) == "two"
    assert await answer(service, response_format={"type": "text"}) == "two"
    assert await answer(service, response_format={"type": "json_object"}) == "one"


def prompt_text(fields: dict[str, Any]) -> str:
    request = parse_chat(
        json.dumps({"messages": [{"role": "user", "content": "abc"}]} | fields).encode()
    )
    prompt = FakeEngine("").chat_prompt(request.conversation, max_new_tokens=8)
    return "".join(TOKENIZER.convert_ids_to_tokens(prompt))


def test_the_prompt_is_that_of_the_evaluation_unless_the_request_has_a_system_message() -> None:
    shots = "<user>q</s><assistant>a</s>"
    assert prompt_text({}) == f"<system>own</s>{shots}<user>abc</s><assistant>"
    turns = [{"role": "system", "content": "z"}, {"role": "user", "content": "abc"}]
    assert prompt_text({"messages": turns}) == f"<system>z</s>{shots}<user>abc</s><assistant>"


@pytest.mark.parametrize(("engine", "device"), [("transformers", None), ("vllm", "cpu")])
def test_a_vllm_replica_embeds_on_the_cpu_because_its_gpus_belong_to_the_engines_actors(
    monkeypatch: pytest.MonkeyPatch, engine: str, device: str | None
) -> None:
    class Loading(Exception):
        pass

    def load_version(_version: Any, *, device: str | None) -> None:
        raise Loading(device)

    version = SimpleNamespace(spec=KINDS["nearest"], endpoint=None, hybrid=None, digest="d")
    monkeypatch.setattr("serving.replica.chat.read_version", lambda _: version)
    monkeypatch.setattr("tailorbird.models.loading.load_version", load_version)
    config = ServingConfig.model_validate({"engine": engine, "gpus_per_replica": 1})
    with pytest.raises(Loading) as raised:
        _Loader(config, meter=Meter()).load("s3://models/t/versions/nearest-1", "d")
    assert raised.value.args == (device,)
