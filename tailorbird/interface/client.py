"""A client of a served task: classify texts, chat, and send feedback over HTTP."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from types import TracebackType
from typing import Self, TypeVar, overload

import httpx2
from pydantic import JsonValue, ValidationError

from tailorbird.interface.answer import Answer, Input, last_text
from tailorbird.interface.answers import Answers
from tailorbird.interface.responses import (
    Choice,
    Classified,
    Completion,
    Models,
    Received,
    ServedModel,
    ServiceError,
    invalid,
    parse_event,
    refusal,
    unreachable,
)

API_KEY_VARIABLE = "TAILORBIRD_API_KEY"
LAST_EVENT = "[DONE]"

Body = dict[str, JsonValue]
ReceivedT = TypeVar("ReceivedT", bound=Received)


@dataclass(frozen=True)
class Piece:
    """A part of a streamed answer."""

    text: str
    """The text that follows the former pieces."""
    answer: Answer | None = None
    """The whole answer, in the last piece only."""


@dataclass(frozen=True)
class Client:
    """A client of one served task, for example `Client("http://127.0.0.1:8000")`.

    The key is sent as `Authorization: Bearer KEY`. By default, it is read from the variable `TAILORBIRD_API_KEY`.
    Representations and errors do not contain it. Proxies in the environment are used for `https://` only: with
    `http://`, a proxy would see the key and the texts. All methods raise ServiceError if the service refuses a request,
    cannot be reached, or does not answer within `timeout_s`, and ValueError if the client is closed. Requests are not
    repeated.
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
        if not _is_address(url):
            raise ValueError(f"{self.url!r} is not the address of a service; give http://HOST:PORT or https://HOST")
        key = (os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key).strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"the API key (or {API_KEY_VARIABLE}) is not a key; give printable ASCII characters")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        uses_proxy = url.lower().startswith("https://")
        http = httpx2.Client(headers=headers, timeout=self.timeout_s, trust_env=uses_proxy)
        object.__setattr__(self, "url", url)
        object.__setattr__(self, "_http", http)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> tuple[ServedModel, ...]:
        """Return the models that the service can use, the champion first."""
        return self._request("GET", "/v1/models", received=Models).data

    @overload
    def classify(  # type: ignore[overload-overlap]  # a text is a sequence of texts too
        self,
        texts: str,
        *,
        model: str = ...,
        scores: bool = ...,
        attributes: Mapping[str, str] | Sequence[Mapping[str, str]] | None = ...,
        subject: str | None = ...,
    ) -> Answer: ...

    @overload
    def classify(
        self,
        texts: Sequence[str],
        *,
        model: str = ...,
        scores: bool = ...,
        attributes: Mapping[str, str] | Sequence[Mapping[str, str]] | None = ...,
        subject: str | None = ...,
    ) -> Answers: ...

    def classify(
        self,
        texts: str | Sequence[str],
        *,
        model: str = "champion",
        scores: bool = False,
        attributes: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
        subject: str | None = None,
    ) -> Answer | Answers:
        """Return the class of a text, or the classes of a list of texts in one request.

        `scores` also returns the probability of every class. `attributes` are those of the texts by name, for a hybrid
        that routes by group: one mapping for all texts, or a list with one per text. `subject` is your id for the
        person that the texts are about.
        """
        listed = [texts] if isinstance(texts, str) else list(texts)
        body: Body = {"input": list[JsonValue](listed), "model": model, "scores": scores}
        if attributes is not None:
            each: JsonValue = (
                dict[str, JsonValue](attributes)
                if isinstance(attributes, Mapping)
                else [dict[str, JsonValue](values) for values in attributes]
            )
            body["attributes"] = each
        if subject is not None:
            body["subject"] = subject
        received = self._request("POST", "/v1/classify", body, received=Classified)
        answers = Answers(
            Answer(
                input=text,
                output=result.label,
                confidence=result.score,
                version=received.version,
                scores=result.scores,
                answered_by=result.answered_by,
                fallback=bool(result.fallback),
                reported_model=result.reported_model,
                request_id=received.request_id,
                row=row,
            )
            for row, (text, result) in enumerate(zip(listed, received.results, strict=True))
        )
        return answers[0] if isinstance(texts, str) else answers

    def chat(
        self,
        messages: Input,
        *,
        model: str = "champion",
        max_tokens: int | None = None,
        temperature: float | None = None,
        attributes: Mapping[str, str] | None = None,
        subject: str | None = None,
    ) -> Answer:
        """Return the answer to a prompt or to a conversation, when it is complete.

        The defaults of `max_tokens` and `temperature` are those of the evaluation. `attributes` are those of the
        conversation by name, for the groups in the reports of `watch`. `subject` is your id for the person that the
        conversation is about.
        """
        options: Body = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
        body = _chat_body(messages, options, attributes=attributes, subject=subject)
        received = self._request("POST", "/v1/chat/completions", body, received=Completion)
        if not received.choices:
            raise ServiceError(f"{self.url} sent a completion without an answer", status=200)
        choice = received.choices[0]
        return _chat_answer(received, choice, text=choice.message.content or "", prompt=last_text(messages))

    def stream(
        self,
        messages: Input,
        *,
        model: str = "champion",
        max_tokens: int | None = None,
        temperature: float | None = None,
        attributes: Mapping[str, str] | None = None,
        subject: str | None = None,
    ) -> Iterator[Piece]:
        """Yield the answer to a prompt or to a conversation in pieces, as the model generates it.

        The request is sent when the first piece is requested. To stop the generation, close the iterator. Arguments are
        those of `chat`. Also raises ServiceError if the generation fails after its start.
        """
        options: Body = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
        body = _chat_body(messages, options, attributes=attributes, subject=subject) | {"stream": True}
        texts, url = list[str](), f"{self.url}/v1/chat/completions"
        try:
            with self._open().stream("POST", url, json=body) as response:
                if response.status_code != 200:
                    raise refusal(response, response.read(), url=url)
                for event in httpx2.EventSource(response):
                    if event.data == LAST_EVENT:
                        break
                    chunk = parse_event(event.data, url=url)
                    for choice in chunk.choices:
                        text = choice.delta.content or ""
                        texts.append(text)
                        answer = None
                        if choice.finish_reason is not None:
                            answer = _chat_answer(chunk, choice, text="".join(texts), prompt=last_text(messages))
                        if text or answer:
                            yield Piece(text, answer)
                        if answer:
                            return
        except httpx2.HTTPError as error:
            raise unreachable(error, url=url) from None
        raise ServiceError(f"{url} ended a stream before the end of the answer; send the request again")

    def feedback(
        self, answer: Answer, label: str | int | None = None, *, score: float | None = None, correct_answer: str = ""
    ) -> None:
        """Report the correct label of an answer of this service, for monitoring and for the next run.

        For chat, report `good` or `bad`, or a score from 0 to 1, and the answer that would have been correct. Requires
        `serving.request_log` in the recipe, a correct answer also `log_texts`. Raises ValueError for an answer of a
        loaded model.
        """
        if answer.request_id is None:
            raise ValueError("this answer has no request id; give an answer of `Client.classify` or `Client.chat`")
        given = {"label": label, "score": score, "correct_answer": correct_answer or None}
        body: Body = {"request_id": answer.request_id, "row": answer.row}
        body |= {name: value for name, value in given.items() if value is not None}
        self._request("POST", "/v1/feedback", body, received=Received)

    def _open(self) -> httpx2.Client:
        if self._http.is_closed:
            raise ValueError(f"the client of {self.url} is closed; create another client")
        return self._http

    def _request(self, method: str, path: str, body: Body | None = None, *, received: type[ReceivedT]) -> ReceivedT:
        url = f"{self.url}{path}"
        try:
            response = self._open().request(method, url, json=body)
        except httpx2.HTTPError as error:
            raise unreachable(error, url=url) from None
        if not response.is_success:
            raise refusal(response, response.content, url=url)
        try:
            return received.model_validate_json(response.content)
        except ValidationError as error:
            raise invalid(error, url=url) from None


def _is_address(url: str) -> bool:
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL:
        return False
    port_exists = address.port is None or 0 < address.port < 2**16
    return address.scheme in ("http", "https") and bool(address.host) and port_exists and not {"?", "#"} & set(url)


def _chat_body(messages: Input, options: Body, *, attributes: Mapping[str, str] | None, subject: str | None) -> Body:
    """Return the body of a request; arguments that are None are not sent."""
    conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    fields: Body = {
        "messages": [dict[str, JsonValue](message) for message in conversation],
        "attributes": None if attributes is None else dict[str, JsonValue](attributes),
        "safety_identifier": subject,
    }
    return {name: value for name, value in (fields | options).items() if value is not None}


def _chat_answer(received: Completion, choice: Choice, *, text: str, prompt: str) -> Answer:
    return Answer(
        input=prompt,
        output=text,
        confidence=choice.confidence,
        version=received.version,
        answered_by=choice.answered_by,
        fallback=bool(choice.fallback),
        finish_reason=choice.finish_reason,
        reported_model=choice.reported_model,
        request_id=received.id,
    )
