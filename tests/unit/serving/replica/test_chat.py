"""From a request to what is sent: answers and their events, over an engine that says what the test wants."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from serving.engines.base_chat import ChatEngine, Sampling
from serving.http.chat_schemas import CHAT, COMPLETION, parse_chat, parse_completion
from serving.http.schemas import RequestError
from serving.replica import chat
from serving.replica.base import Replica
from serving.replica.chat import (
    Chat,
    GenerationRequest,
    PartialAnswer,
    Told,
    _chat_prompt,
    _events,
    _job,
    _text_prompt,
    _whole,
)
from tailorbird.config.serving import ServingConfig
from tailorbird.registry.versions import Prompting
from tests.small_chat import tokenizer

TOKENIZER = tokenizer()
WORDS = ("</s>", "▁a", "▁fracture", "▁is", "▁break")
HEAD = CHAT.head(CHAT.chunk, request_id="r", created=5, model="m", version="v")


class Said:
    """An engine that says a text, a few tokens at a time."""

    def __init__(self, text: str, *, at_once: int = 1, fails_after: int | None = None, most: int | None = None) -> None:
        self.tokens = TOKENIZER(text, add_special_tokens=False)["input_ids"][:most]
        self.at_once, self.fails_after = at_once, fails_after
        self.end_id = TOKENIZER.eos_token_id
        self.max_length = 64
        self.tokenizer = TOKENIZER
        self.prompting = Prompting(system="own", shots=(("user", "q"), ("assistant", "a")), max_new_tokens=8)
        self.num_told = 0
        self.num_active = 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        self.num_active += 1
        yield
        self.num_active -= 1

    async def generate(self, _prompt: list[int], **_options: Any) -> AsyncGenerator[tuple[list[int], bool], None]:
        for end in range(self.at_once, len(self.tokens) + self.at_once, self.at_once):
            if self.fails_after is not None and end > self.fails_after:
                raise RequestError(500, "engine_failed", "it gave up")
            self.num_told = min(end, len(self.tokens))
            yield self.tokens[:end], end >= len(self.tokens)


def job(engine: Said, *, stops: tuple[str, ...] = ()) -> GenerationRequest:
    return GenerationRequest(engine, [1, 2, 3], 8, Sampling(0.0, 1.0, 0), stops)  # type: ignore[arg-type]


def streamed(
    engine: Said, *, stops: tuple[str, ...] = (), with_usage: bool = False, tell: Told = lambda _: None
) -> list[Any]:
    """The events of a stream, decoded."""

    async def read() -> list[bytes]:
        events = _events(job(engine, stops=stops), shape=CHAT, head=HEAD, with_usage=with_usage, tell=tell)
        return [event async for event in events]

    lines = [event.removeprefix(b"data: ").removesuffix(b"\n\n") for event in asyncio.run(read())]
    return [line.decode() if line == b"[DONE]" else json.loads(line) for line in lines]


def text_of(events: list[Any]) -> str:
    return "".join(
        event["choices"][0]["delta"].get("content", "") for event in events if event != "[DONE]" and event["choices"]
    )


@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("said", "stops", "text", "reason"),
    [
        ("one two</s>", (), "one two", "stop"),
        ("one two", (), "one two", "length"),
        (" one </s>", (), "one", "stop"),
        ("</s>", (), "", "stop"),
        ("one two three</s>", ("tw",), "one", "stop"),
        ("one two three</s>", ("x", "e t"), "on", "stop"),
        ("one twx</s>", ("two",), "one twx", "stop"),
    ],
)
def test_the_events_put_together_are_the_answer(
    said: str, stops: tuple[str, ...], text: str, reason: str, at_once: int
) -> None:
    whole = asyncio.run(_whole(job(Said(said, at_once=at_once), stops=stops)))
    assert (whole.text, whole.finish_reason) == (text, reason)
    events = streamed(Said(said, at_once=at_once), stops=stops, with_usage=True)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(events) == text
    assert [event["choices"][0]["finish_reason"] for event in events[:-3]] == [None] * len(events[:-3])
    assert (events[-3]["choices"][0]["finish_reason"], events[-1]) == (reason, "[DONE]")
    assert events[-2]["usage"]["completion_tokens"] == whole.num_tokens


def test_after_a_stop_text_nothing_more_is_generated() -> None:
    engine = Said("one two three")
    found = asyncio.run(_whole(job(engine, stops=("tw",))))
    assert found == PartialAnswer("one", 6, "stop")
    assert (engine.num_told, engine.num_active) == (6, 0)


def test_a_stream_that_fails_at_once_is_refused_and_a_later_failure_is_its_last_event() -> None:
    with pytest.raises(RequestError, match="it gave up"):
        streamed(Said("abcd", fails_after=0))
    events = streamed(Said("abcd", fails_after=2))
    assert text_of(events[:-1]) == "ab"
    assert events[-1]["error"]["type"] == "engine_failed"


def test_what_a_stream_said_is_told_once_also_where_it_broke_off_or_the_client_hung_up() -> None:
    told: list[PartialAnswer] = []
    streamed(Said("one two</s>"), tell=told.append)
    streamed(Said("abcd", fails_after=2), tell=told.append)
    with pytest.raises(RequestError):
        streamed(Said("abcd", fails_after=0), tell=told.append)

    async def hang_up() -> None:
        events = _events(job(Said("one two")), shape=CHAT, head=HEAD, with_usage=False, tell=told.append)
        async with aclosing(events):
            async for event in events:
                if b'"content":"n"' in event:
                    break

    asyncio.run(hang_up())
    assert [grown.text for grown in told] == ["one two", "ab", "on"]


def made(fields: dict[str, Any], *, cap: int | None = None) -> GenerationRequest:
    body = {"messages": [{"role": "user", "content": "abc"}]} | fields
    request, engine = parse_chat(json.dumps(body).encode()), cast(ChatEngine, Said(""))
    return _job(request, _chat_prompt(request, engine=engine), engine=engine, param="messages", cap=cap)


def test_a_completion_continues_a_text_as_it_stands() -> None:
    engine = cast(ChatEngine, Said(""))
    for prompt in ("one</s>two", ["one</s>two"]):
        request = parse_completion(json.dumps({"prompt": prompt}).encode())
        tokens = _text_prompt(request, engine=engine)
        assert TOKENIZER.eos_token_id in tokens
        assert TOKENIZER.decode(tokens) == "one</s>two"
        assert _job(request, tokens, engine=engine, param="prompt", cap=None).prompt == tokens
    with pytest.raises(RequestError, match="prompt: give a text that is not empty"):
        _text_prompt(parse_completion(b'{"prompt": ""}'), engine=engine)


def in_words() -> Any:
    """A tokenizer whose words carry the space before them, and which leaves out that of a text's first."""
    inner = Tokenizer(WordLevel({word: place for place, word in enumerate(("?", *WORDS))}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="?")


@pytest.mark.parametrize(
    ("tokens", "prompt", "said"),
    [
        (TOKENIZER, "a fracture is", " a break  "),
        (TOKENIZER, "a fracture is ", "a break"),
        (in_words(), "a fracture is", " a break"),
    ],
)
def test_a_prompt_and_its_completion_are_the_text_that_the_model_wrote(tokens: Any, prompt: str, said: str) -> None:
    engine = Said("")
    engine.tokenizer = tokens
    request = parse_completion(json.dumps({"prompt": prompt}).encode())
    written = tokens(prompt)["input_ids"]
    engine.tokens = tokens(prompt + said)["input_ids"][len(written) :]
    asked = _job(request, written, engine=cast(ChatEngine, engine), param="prompt", cap=None)
    whole = asyncio.run(_whole(asked)).text
    assert prompt + whole == tokens.decode(written + engine.tokens) == prompt + said

    async def read() -> list[bytes]:
        events = _events(asked, shape=COMPLETION, head=HEAD, with_usage=False, tell=lambda _: None)
        return [event async for event in events]

    told = [json.loads(event.removeprefix(b"data: ")) for event in asyncio.run(read())[:-1]]
    assert "".join(event["choices"][0]["text"] for event in told) == whole


def test_a_completions_events_put_together_are_its_text() -> None:
    async def read() -> list[bytes]:
        events = _events(job(Said("one two</s>")), shape=COMPLETION, head=HEAD, with_usage=False, tell=lambda _: None)
        return [event async for event in events]

    *told, last = asyncio.run(read())
    choices = [json.loads(event.removeprefix(b"data: "))["choices"][0] for event in told]
    assert "".join(choice["text"] for choice in choices) == "one two"
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert last == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "abc"}]}),
        ("/v1/completions", {"prompt": "abc"}),
    ],
)
def test_while_a_prompt_becomes_tokens_the_others_go_on_and_the_engine_stays(
    monkeypatch: pytest.MonkeyPatch, route: str, body: dict[str, Any]
) -> None:
    engine: Any = Said("one</s>")
    engine.running, engine.version = True, SimpleNamespace(name="task", version="v", digest="d")
    go = threading.Event()

    def slow(*_: Any, **__: Any) -> Any:
        assert go.wait(10)
        return [1, 2]

    monkeypatch.setattr(chat, "_chat_prompt", slow)
    monkeypatch.setattr(chat, "_text_prompt", slow)
    replica: Any = Replica(lambda _uri, _digest: engine, config=ServingConfig())
    replica._engines = {"champion": engine}
    service: Any = object.__new__(Chat)
    service._replica, service._section = replica, ServingConfig()
    answers = {"/v1/chat/completions": service._chat, "/v1/completions": service._complete}

    async def ask() -> int:
        asked = asyncio.create_task(answers[route](json.dumps(body).encode(), "r"))
        while not engine.num_active:
            await asyncio.sleep(0)
        go.set()
        status, _ = await asked
        return int(status)

    assert (asyncio.run(ask()), engine.num_active) == (200, 0)


def text_asked(fields: dict[str, Any]) -> str:
    return "".join(TOKENIZER.convert_ids_to_tokens(made(fields).prompt))


def test_a_request_is_asked_as_it_was_evaluated_unless_it_has_a_system_message() -> None:
    shots = "<user>q</s><assistant>a</s>"
    assert text_asked({}) == f"<system>own</s>{shots}<user>abc</s><assistant>"
    turns = [{"role": "system", "content": "z"}, {"role": "user", "content": "abc"}]
    assert text_asked({"messages": turns}) == f"<system>z</s>{shots}<user>abc</s><assistant>"
    assert made({}).sampling[:2] == (0.0, 1.0)
    assert made({}).max_new_tokens == 8


def test_more_tokens_than_were_evaluated_are_given_only_where_the_recipe_allows_them() -> None:
    assert made({"max_tokens": 3}).max_new_tokens == 3
    assert made({"max_tokens": 20}, cap=20).max_new_tokens == 20
    assert made({}, cap=20).max_new_tokens == 8
    for cap, most in ((None, 8), (20, 20), (4, 4)):
        with pytest.raises(RequestError, match=f"at most {most} are given") as caught:
            made({"max_tokens": most + 1}, cap=cap)
        assert (caught.value.status, caught.value.param) == (400, "max_tokens")


def test_a_cap_under_what_was_evaluated_is_the_default_too() -> None:
    assert made({}, cap=4).max_new_tokens == 4


def test_a_prompt_that_leaves_no_room_for_its_answer_is_a_400_with_openais_code() -> None:
    with pytest.raises(RequestError, match=r"may have 8, together more than the 64") as caught:
        made({"messages": [{"role": "user", "content": "abc" * 20}]})
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


def test_a_seed_of_any_sign_is_taken_and_without_one_answers_differ() -> None:
    assert made({"seed": -1}).sampling.seed == 2**64 - 1
    assert made({}).sampling.seed != made({}).sampling.seed
