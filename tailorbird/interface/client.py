"""A client of a served task: classify texts, chat, and send feedback over HTTP."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack, overload

import httpx2

from tailorbird.interface.answer import Answer, Input, last_text
from tailorbird.interface.answers import Answers
from tailorbird.interface.responses import (
    Classified,
    Completion,
    Models,
    Received,
    ServedModel,
    ServiceError,
    is_address,
    parse,
    refusal,
    unreachable,
)
from tailorbird.models.endpoint.client import LAST_EVENT, uses_proxy

API_KEY_VARIABLE = "TAILORBIRD_API_KEY"

ReceivedT = TypeVar("ReceivedT", bound=Received)


class ClassifyOptions(TypedDict, total=False):
    """Options of a classification."""

    model: str
    """Value of `ServedModel.id`, or a version; by default, `champion`."""
    scores: bool
    """If true, also return the probability of every class."""
    attributes: Mapping[str, str] | Sequence[Mapping[str, str]] | None
    """Attributes of the texts by name, for a hybrid that routes by group: one mapping for all, or
    one per text."""
    subject: str | None
    """Your id for the person that the texts are about."""


class ChatOptions(TypedDict, total=False):
    """Options of a chat. The defaults of `max_tokens` and `temperature` are those of the
    evaluation."""

    model: str
    """Value of `ServedModel.id`, or a version; by default, `champion`."""
    max_tokens: int | None
    temperature: float | None
    attributes: Mapping[str, str] | None
    """Attributes of the conversation by name, for the groups in the reports of `watch`."""
    subject: str | None
    """Your id for the person that the conversation is about."""


@dataclass(frozen=True)
class Piece:
    """A part of a streamed answer."""

    text: str
    """The text that follows the previous pieces."""
    answer: Answer | None = None
    """The whole answer, in the last piece only."""


@dataclass(frozen=True)
class Client:
    """A client of one served task, for example `Client("http://127.0.0.1:8000")`.

    The key is sent as `Authorization: Bearer KEY`. By default, it is read from the variable
    `TAILORBIRD_API_KEY`. Representations and errors do not contain it. Proxies in the environment
    are used for `https://` only: with `http://`, a proxy would see the key and the texts. All
    methods raise ServiceError if the service refuses a request, cannot be reached, or does not
    answer within `timeout_s`, and ValueError if the client is closed. Requests are not repeated.
    """

    url: str
    """Address that `tailorbird serve` prints, without `/v1`."""
    api_key: InitVar[str | None] = None
    timeout_s: float = 60.0
    """Maximum time without a response; for streams, between two events."""
    _http: httpx2.Client = field(init=False, repr=False, compare=False)

    def __post_init__(self, api_key: str | None) -> None:
        """Open no connection yet. Raise ValueError for an address or a key that cannot be used."""
        url = self.url.rstrip("/")
        if not is_address(url):
            raise ValueError(
                f"{self.url!r} is not the address of a service; give http://HOST:PORT or "
                "https://HOST"
            )
        key = (os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key).strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError(
                f"the API key (or {API_KEY_VARIABLE}) is not a key; give printable ASCII characters"
            )
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        http = httpx2.Client(headers=headers, timeout=self.timeout_s, trust_env=uses_proxy(url))
        object.__setattr__(self, "url", url)
        object.__setattr__(self, "_http", http)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> tuple[ServedModel, ...]:
        """Return the models that the service can use, the champion first."""
        return self._received(Models, "GET", "/v1/models").data

    @overload
    def classify(  # type: ignore[overload-overlap]  # a text is a sequence of texts too
        self, texts: str, **options: Unpack[ClassifyOptions]
    ) -> Answer: ...

    @overload
    def classify(self, texts: Sequence[str], **options: Unpack[ClassifyOptions]) -> Answers: ...

    def classify(
        self, texts: str | Sequence[str], **options: Unpack[ClassifyOptions]
    ) -> Answer | Answers:
        """Return the class of a text, or the classes of a list of texts in one request; see
        `ClassifyOptions`."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        received = self._received(Classified, "POST", "/v1/classify", {"input": listed, **options})
        answers = Answers(
            Answer(
                input=text,
                version=received.version,
                request_id=received.request_id,
                row=row,
                **dict(result),
            )
            for row, (text, result) in enumerate(zip(listed, received.results, strict=True))
        )
        if isinstance(texts, str):
            return answers[0]
        return answers

    def chat(self, messages: Input, **options: Unpack[ChatOptions]) -> Answer:
        """Return the answer to a prompt or to a conversation, when it is complete; see
        `ChatOptions`."""
        received = self._received(
            Completion, "POST", "/v1/chat/completions", _chat_body(messages, options)
        )
        if not received.choices:
            raise ServiceError(f"{self.url} sent a completion without an answer", status=200)
        text = received.choices[0].message.content or ""
        return _chat_answer(received, text=text, messages=messages)

    def stream(self, messages: Input, **options: Unpack[ChatOptions]) -> Iterator[Piece]:
        """Yield the answer to a prompt or to a conversation in pieces, as the model generates it;
        see `ChatOptions`.

        The request is sent when the first piece is requested. To stop the generation, close the
        iterator. Also raises ServiceError if the generation fails after its start.
        """
        texts = []
        with self._response(
            "POST", "/v1/chat/completions", _chat_body(messages, options) | {"stream": True}
        ) as answer:
            for event in httpx2.EventSource(answer):
                if event.data == LAST_EVENT:
                    break
                chunk = parse(Completion, event.data, url=self.url)
                for choice in chunk.choices:
                    text = choice.delta.content or ""
                    texts.append(text)
                    if choice.finish_reason is not None:
                        yield Piece(
                            text, _chat_answer(chunk, text="".join(texts), messages=messages)
                        )
                        return
                    if text:
                        yield Piece(text)
        raise ServiceError(
            f"{self.url} ended a stream before the end of the answer; send the request again"
        )

    def feedback(
        self,
        answer: Answer,
        label: str | int | None = None,
        *,
        score: float | None = None,
        correct_answer: str = "",
    ) -> None:
        """Report the correct label of an answer of this service, for monitoring and for the next
        run.

        For chat, report `good` or `bad`, or a score from 0 to 1, and the answer that would have
        been correct. Requires `serving.request_log` in the recipe, a correct answer also
        `log_texts`. Raises ValueError for an answer of a loaded model.
        """
        if answer.request_id is None:
            raise ValueError(
                "this answer has no request id; give an answer of `Client.classify` or "
                "`Client.chat`"
            )
        given = {"label": label, "score": score, "correct_answer": correct_answer or None}
        self._received(
            Received,
            "POST",
            "/v1/feedback",
            {"request_id": answer.request_id, "row": answer.row} | given,
        )

    def _received(
        self,
        kind: type[ReceivedT],
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
    ) -> ReceivedT:
        with self._response(method, path, body) as response:
            return parse(kind, response.read(), url=f"{self.url}{path}")

    @contextmanager
    def _response(
        self, method: str, path: str, body: Mapping[str, object] | None
    ) -> Iterator[httpx2.Response]:
        """Send a request and yield the response; fields of the body that are None are not sent."""
        if self._http.is_closed:
            raise ValueError(f"the client of {self.url} is closed; create another client")
        url = f"{self.url}{path}"
        fields = {name: value for name, value in (body or {}).items() if value is not None}
        content = json.dumps(fields, default=dict)  # mappings of other types than `dict`
        try:
            with self._http.stream(method, url, content=content if fields else None) as response:
                if not response.is_success:
                    raise refusal(response, response.read(), url=url)
                yield response
        except httpx2.HTTPError as error:
            raise unreachable(error, url=url) from None


def _chat_body(messages: Input, options: ChatOptions) -> dict[str, Any]:
    conversation: list[Mapping[str, str]]
    if isinstance(messages, str):
        conversation = [{"role": "user", "content": messages}]
    else:
        conversation = list(messages)
    fields: dict[str, Any] = {"messages": conversation, **options}
    fields["safety_identifier"] = fields.pop("subject", None)  # OpenAI's name
    return fields


def _chat_answer(received: Completion, *, text: str, messages: Input) -> Answer:
    [choice] = received.choices
    answered = choice.model_dump(exclude={"message", "delta"})
    return Answer(
        last_text(messages), text, version=received.version, request_id=received.id, **answered
    )
