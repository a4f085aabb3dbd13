"""Send requests to an OpenAI-compatible endpoint, with time-outs and retries."""

import asyncio
import json
import os
import random
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field, replace

import httpx2
from pydantic import JsonValue

from tailorbird.config.endpoint import OTHER_SECRET, is_other_secret
from tailorbird.models.endpoint import errors
from tailorbird.models.endpoint.completion import EndpointAnswer, parse_completion, parse_event
from tailorbird.models.endpoint.fault import TOO_LONG, EndpointFault, parse_fault
from tailorbird.registry.endpoint import Endpoint

Body = Mapping[str, JsonValue]  # a request in OpenAI's format
Observer = Callable[[bytes], AbstractContextManager[Callable[[EndpointAnswer], object]]]
"""Makes the context of one attempt, from the bytes that are sent. Its function receives each part
of the answer."""

CONNECT_S = 10.0  # maximum time-out of a connection
MAX_ANSWER_BYTES = 16 << 20
MAX_RETRY_AFTER_S = 86_400.0
MAX_STREAM_TIMEOUTS = 10  # maximum time of a stream, in multiples of the time-out
LAST_EVENT = "[DONE]"
STREAMED: Body = {"stream": True, "stream_options": {"include_usage": True}}
"""Fields of a request whose answer is streamed, with the number of tokens in the last event."""
OPTIONAL = ("response_format", "logprobs", "temperature")
"""Parameters that are left out if the endpoint refuses them. The answers are then less precise or
less constrained."""
RENAMED = {"max_tokens": "max_completion_tokens"}
"""Parameters that are sent under another name if the endpoint refuses the first one."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and after which delays, a request is sent again."""

    max_attempts: int = 6
    first_delay_s: float = 1.0  # doubled after each further attempt
    max_delay_s: float = 60.0  # also of a delay from `Retry-After`
    client_waits: bool = False
    """True if a client waits for the answer. After a time-out or a `Retry-After` above
    `max_delay_s`, a request is then not sent again: the client has waited for long, or would have
    to."""

    def delay_s(self, error: errors.EndpointRetryable, *, attempt: int) -> float | None:
        """Return the delay after the `attempt`-th attempt, from 1; None if the request is not sent
        again.

        Half of the exponential delay is random, so that requests that failed together are not
        repeated together.
        """
        requested_s = error.retry_after_s or 0.0
        too_late = isinstance(error, errors.EndpointTimeout) or requested_s > self.max_delay_s
        if attempt >= self.max_attempts or (self.client_waits and too_late):
            return None
        exponential = min(self.max_delay_s, self.first_delay_s * 2.0 ** (attempt - 1))
        delay_s = exponential * random.uniform(0.5, 1.0)
        return max(delay_s, min(requested_s, self.max_delay_s))


DEFAULT_RETRY = RetryPolicy()


@dataclass(frozen=True)
class Connection:
    """An endpoint and the HTTP connections to it. Use it in one event loop."""

    endpoint: Endpoint
    client: httpx2.AsyncClient = field(repr=False)
    timeout_s: float  # of a complete answer or, in a stream, between two parts of the answer
    retry: RetryPolicy
    observe: Observer
    refused: set[str]  # parameters that the endpoint has refused

    @property
    def url(self) -> str:
        return f"{self.endpoint.url}/chat/completions"

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()


def connect(
    endpoint: Endpoint,
    *,
    timeout_s: float,
    max_connections: int,
    retry: RetryPolicy = DEFAULT_RETRY,
    observe: Observer = lambda _: nullcontext(lambda _: None),
) -> Connection:
    """Return connections to an endpoint; close them after use. Redirects are not followed.

    Raises EndpointKeyMissing if the environment of this process has no API key for the endpoint.
    """
    client = httpx2.AsyncClient(
        headers=request_headers(endpoint),
        timeout=httpx2.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
        limits=httpx2.Limits(
            max_connections=max_connections, max_keepalive_connections=max_connections
        ),
        trust_env=uses_proxy(endpoint.url),
    )
    return Connection(
        endpoint,
        client=client,
        timeout_s=timeout_s,
        retry=retry,
        observe=observe,
        refused=set(endpoint.omitted),
    )


def request_headers(endpoint: Endpoint) -> dict[str, str]:
    """Return the headers of each request. Raises EndpointKeyMissing, see `read_key`."""
    key = read_key(endpoint)
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return headers


def uses_proxy(url: str) -> bool:
    """Return whether requests use the proxy of the environment: with `http://` it would see the key
    and the texts."""
    return url.lower().startswith("https://")


def read_key(endpoint: Endpoint) -> str | None:
    """Return the API key from the environment, or None for an endpoint without one.

    Raises EndpointKeyMissing if the variable is not set or does not contain a key. The reference
    can be that of a version in the registry, which is not trusted.
    """
    if endpoint.api_key is None:
        return None
    name = endpoint.api_key.removeprefix("env://")
    if is_other_secret(name):
        raise errors.EndpointKeyMissing(
            f"{name} is a {OTHER_SECRET}; its content is not sent to {endpoint.url}"
        )
    key = os.environ.get(name, "").strip()
    if not key:
        raise errors.EndpointKeyMissing(
            f"the environment variable {name}, which contains the API key of {endpoint.url}, is "
            "not set in this process; set it where Ray starts, because the jobs and replicas "
            "inherit the environment of Ray"
        )
    if not (key.isascii() and key.isprintable()):
        raise errors.EndpointKeyMissing(
            f"the environment variable {name} is not an API key; use printable ASCII"
        )
    return key


async def complete(connection: Connection, body: Body) -> EndpointAnswer:
    """Return the answer to a request for a chat completion, without streaming.

    Raises EndpointModelChanged if the answer is of another model than `endpoint.reported_model`,
    and the errors of `answer_parts`.
    """
    [answer] = [part async for part in answer_parts(connection, body)]
    require_model(answer.model, endpoint=connection.endpoint)
    return answer


async def answer_parts(
    connection: Connection, body: Body, *, streaming: bool = False, chosen: Collection[str] = ()
) -> AsyncGenerator[EndpointAnswer, None]:
    """Send a request for a chat completion, and yield the parts of its answer; one part if not
    `streaming`.

    A request that failed before the first part because of the network, a time-out, a rate limit or
    a failure of the endpoint is sent again, as `connection.retry` states. Parameters of `OPTIONAL`
    and `RENAMED` that the endpoint refuses are left out or renamed; in later requests too, once it
    has answered without them. A refusal of the parameters in `chosen`, which a client set, or of a
    temperature above 0 is an error. Closing the generator cancels the request. Raises the errors of
    `models.endpoint.errors`.
    """
    refused = set(connection.refused)
    attempt = 1
    while True:
        adapted = adapted_body(body, refused=refused.difference(chosen))
        omitted = tuple(name for name in OPTIONAL if name in body and name not in adapted)
        started = False
        try:
            async with aclosing(_attempt(connection, adapted, streaming=streaming)) as parts:
                async for part in parts:
                    if not started:
                        connection.refused.update(refused)
                    started = True
                    yield replace(part, omitted=omitted) if omitted else part
            return
        except errors.EndpointRefused as error:
            name = refused_parameter(error.fault, body=adapted)
            if name is None or name in chosen or (name == "temperature" and body["temperature"]):
                raise
            refused.add(name)
        except errors.EndpointRetryable as error:
            delay_s = connection.retry.delay_s(error, attempt=attempt)
            if started or delay_s is None:
                error.args = (f"{error} (attempts: {attempt})",)
                raise
            attempt += 1
            await asyncio.sleep(delay_s)


def adapted_body(body: Body, *, refused: set[str]) -> dict[str, JsonValue]:
    """Return a request without the optional parameters that the endpoint refused, and with the
    others renamed."""
    adapted = {name: value for name, value in body.items() if name not in refused}
    for name, other_name in RENAMED.items():
        if name in refused and name in body:
            adapted[other_name] = body[name]
    return adapted


def refused_parameter(fault: EndpointFault, *, body: Body) -> str | None:
    """Return the parameter of a request that the endpoint refuses, if it can be left out or
    renamed.

    A request that is too long, or a number of tokens that is too large, is another fault.
    """
    if fault.code == TOO_LONG:
        return None
    names = {*OPTIONAL}
    if not fault.too_large:
        names.update(RENAMED)
    return next((name for name in fault.parameters if name in names.intersection(body)), None)


def require_model(reported: str, *, endpoint: Endpoint) -> None:
    """Raise EndpointModelChanged if the endpoint reports another model than in the evaluation."""
    if endpoint.reported_model not in (None, reported):
        raise errors.EndpointModelChanged(
            f"{endpoint.url} now answers {endpoint.model!r} with the model {reported!r}, but it "
            f"was {endpoint.reported_model!r} before; answers of different models cannot be "
            "compared. Set model of the endpoint to a name that always means the same model "
            "or, if the change is permanent, revision of the endpoint to a new text, and "
            "start a new run. A champion whose model no longer answers cannot be compared on new "
            "rows: roll back to another version, or give the recipe another name, which is a task "
            "without a champion"
        )


async def _attempt(
    connection: Connection, body: Body, *, streaming: bool
) -> AsyncGenerator[EndpointAnswer, None]:
    """Send a request once, and yield the parts of its answer."""
    url = connection.url
    fields = {**body, **STREAMED} if streaming else body
    content = json.dumps(fields).encode()  # in ASCII, so that text with lone surrogates can be sent
    with connection.observe(content) as count:
        try:
            async with (
                asyncio.timeout(connection.timeout_s) as deadline,
                connection.client.stream("POST", url, content=content) as response,
            ):
                if streaming and response.status_code == 200:
                    # A stream has its own deadlines, without the time of the consumer.
                    deadline.reschedule(None)
                    async with aclosing(_streamed_parts(response, connection=connection)) as parts:
                        async for part in parts:
                            count(part)
                            yield part
                    return
                received = await _read_limited(response, url=url)
        except (httpx2.ConnectTimeout, httpx2.PoolTimeout):
            raise errors.EndpointConnectTimeout(
                f"{url} did not accept a connection in time"
            ) from None
        except (TimeoutError, httpx2.TimeoutException):
            raise errors.EndpointTimeout(
                f"{url} did not answer within {connection.timeout_s:g} s; raise "
                "timeout_s of the endpoint, or lower the number of requests at the same time, "
                "and start again"
            ) from None
        except httpx2.HTTPError as error:
            raise errors.EndpointUnreachable(
                f"{url} cannot be reached: {error or type(error).__name__}; check "
                "url of the endpoint and the network, and start the run again"
            ) from None
        raise_for_status(response, received, url=url)
        answer = parse_completion(received, url=url)
        count(answer)
        yield answer


async def _streamed_parts(
    response: httpx2.Response, *, connection: Connection
) -> AsyncGenerator[EndpointAnswer, None]:
    """Yield the parts of a streamed answer.

    Comments and events without text, finish reason and number of tokens do not extend the time.
    Raises TimeoutError if the stream does not continue, or takes too long in total,
    EndpointAnswerInvalid for an event that is not in OpenAI's format, or if there are more than
    `MAX_ANSWER_BYTES`, and EndpointUnreachable for an error within the stream or a stream without
    an end.
    """
    url = connection.url
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + MAX_STREAM_TIMEOUTS * connection.timeout_s
    due_at = loop.time() + connection.timeout_s
    finished = False
    size = 0
    events = aiter(httpx2.EventSource(response))
    while True:
        try:
            # Not during `yield`, which waits for the consumer.
            async with asyncio.timeout_at(min(due_at, ends_at)):
                event = await anext(events, None)
        except httpx2.SSEError as error:
            raise errors.EndpointAnswerInvalid(
                f"{url} did not answer with server-sent events: {error}"
            ) from None
        if event is None or event.data == LAST_EVENT:
            break
        size += len(event.data)  # the events can be compressed
        if max(size, response.num_bytes_downloaded) > MAX_ANSWER_BYTES:
            raise errors.EndpointAnswerInvalid(
                f"a stream of {url} has more than {MAX_ANSWER_BYTES:,} bytes"
            )
        part = parse_event(event.data, url=url)
        finished = finished or part.finish_reason is not None
        yield part
        if part.text or part.finish_reason is not None or part.input_tokens is not None:
            due_at = loop.time() + connection.timeout_s
    if not finished:
        raise errors.EndpointUnreachable(f"{url} ended a stream before the end of the answer")


async def _read_limited(response: httpx2.Response, *, url: str) -> bytes:
    """Return the body of a response; raise EndpointAnswerInvalid if it is larger than
    `MAX_ANSWER_BYTES`."""
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) > MAX_ANSWER_BYTES:
            raise errors.EndpointAnswerInvalid(
                f"an answer of {url} has more than {MAX_ANSWER_BYTES:,} bytes"
            )
    return bytes(content)


def raise_for_status(response: httpx2.Response, content: bytes, *, url: str) -> None:
    """Raise the error of a response that is not 200. `content` is its body.

    Messages and exceptions contain no text of the body, because servers repeat texts of the request
    and keys in it.
    """
    status = response.status_code
    if status == 200:
        return
    if status in (401, 403):
        raise errors.EndpointKeyRefused(
            f"{url} refused the API key ({status}); check the variable that "
            "api_key of the endpoint names, and whether the key may use the model"
        )
    fault = parse_fault(content)
    stated = f"{status}: {fault}" if str(fault) else str(status)
    if status in (408, 429) or status >= 500:
        failed: errors.EndpointRetryable = errors.EndpointUnreachable(
            f"{url} failed ({stated}); start the run again later"
        )
        if status == 429:
            failed = errors.EndpointRateLimited(
                f"{url} refuses further requests ({stated}); lower "
                "max_concurrency of the endpoint or check your quota, and start the run again"
            )
        failed.retry_after_s = retry_after_s(response.headers.get("Retry-After"))
        raise failed
    if 200 < status < 300:
        raise errors.EndpointAnswerInvalid(
            f"{url} answered {status} instead of 200 with a chat completion"
        )
    refused = errors.EndpointRefused(
        f"{url} refused a request ({stated}); check url and model of the endpoint. The "
        "server's log may state more"
    )
    refused.fault = fault
    if status not in (400, 422):
        refused.fault = replace(fault, parameters=())
    raise refused


def retry_after_s(value: str | None) -> float | None:
    """Return the number of seconds in a `Retry-After` header, at most `MAX_RETRY_AFTER_S`; None for
    a date, which endpoints do not send."""
    if value is None or not value.strip().isdecimal():
        return None
    return min(float(value), MAX_RETRY_AFTER_S)
