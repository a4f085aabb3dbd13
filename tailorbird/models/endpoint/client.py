"""Send requests to an OpenAI-compatible endpoint, with time-outs and retries."""

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2
from pydantic import JsonValue

from tailorbird.config.endpoint import OTHER_SECRET, is_other_secret
from tailorbird.models.endpoint import errors
from tailorbird.models.endpoint.completion import EndpointAnswer, parse_completion
from tailorbird.models.endpoint.fault import TOO_LONG, EndpointFault, parse_fault
from tailorbird.registry.endpoint import Endpoint

Body = Mapping[str, JsonValue]

MAX_ANSWER_BYTES = 16 << 20
MAX_RETRY_AFTER_S = 86_400.0
OPTIONAL = ("response_format", "logprobs", "temperature")
"""Parameters that are left out if the endpoint refuses them. The answers are then less precise or less constrained."""
RENAMED = {"max_tokens": "max_completion_tokens"}
"""Parameters that are sent under another name if the endpoint refuses the first one."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and after which delays, a request is sent again."""

    max_attempts: int = 6
    first_delay_s: float = 1.0  # doubled after each further attempt
    max_delay_s: float = 60.0  # also of a delay from `Retry-After`

    def delay_s(self, attempt: int, *, retry_after_s: float | None) -> float:
        """Return the delay after the `attempt`-th attempt, from 1.

        Half of the exponential delay is random, so that requests that failed together are not repeated together.
        """
        exponential = min(self.max_delay_s, self.first_delay_s * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)
        return exponential if retry_after_s is None else max(exponential, min(retry_after_s, self.max_delay_s))


@dataclass(frozen=True)
class Connection:
    """An endpoint and the HTTP connections to it."""

    endpoint: Endpoint
    client: httpx2.AsyncClient = field(repr=False)
    timeout_s: float
    retry: RetryPolicy
    refused: set[str] = field(default_factory=set)  # parameters that the endpoint has refused

    @property
    def url(self) -> str:
        return f"{self.endpoint.url}/chat/completions"


@asynccontextmanager
async def connect(
    endpoint: Endpoint, *, timeout_s: float, max_connections: int, retry: RetryPolicy | None = None
) -> AsyncIterator[Connection]:
    """Yield connections to an endpoint. The API key is read from the environment of this process.

    Raises EndpointKeyMissing if the variable is not set. Proxies in the environment are used as `uses_proxy` states.
    """
    key = read_key(endpoint)
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    limits = httpx2.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
    async with httpx2.AsyncClient(
        headers=headers, timeout=timeout_s, limits=limits, trust_env=uses_proxy(endpoint)
    ) as client:
        yield Connection(endpoint, client, timeout_s, retry or RetryPolicy(), refused=set(endpoint.omitted))


def uses_proxy(endpoint: Endpoint) -> bool:
    """Return whether requests use the proxy of the environment: with `http://` it would see the key and the texts."""
    return endpoint.url.lower().startswith("https://")


def read_key(endpoint: Endpoint) -> str | None:
    """Return the API key from the environment, or None for an endpoint without one.

    Raises EndpointKeyMissing if the variable is not set or does not contain a key. The reference can be that of a
    version in the registry, which is not trusted.
    """
    if endpoint.api_key is None:
        return None
    name = endpoint.api_key.removeprefix("env://")
    if is_other_secret(name):
        raise errors.EndpointKeyMissing(f"{name} is a {OTHER_SECRET}; its content is not sent to {endpoint.url}")
    key = os.environ.get(name, "").strip()
    if not key:
        raise errors.EndpointKeyMissing(
            f"the environment variable {name}, which contains the API key of {endpoint.url}, is not set in this "
            "process; set it where Ray starts, because the jobs and replicas inherit the environment of Ray"
        )
    if not (key.isascii() and key.isprintable()):
        raise errors.EndpointKeyMissing(f"the environment variable {name} is not an API key; use printable ASCII")
    return key


async def complete(connection: Connection, body: Body) -> EndpointAnswer:
    """Return the answer to a request for a chat completion, without streaming.

    A request that failed because of the network, a time-out, a rate limit or a failure of the endpoint is sent again,
    up to the attempts of `connection.retry`. Parameters of `OPTIONAL` and `RENAMED` that the endpoint refuses are left
    out or renamed; in later requests too, once it has answered without them. Raises EndpointModelChanged if the answer
    is of another model than `endpoint.reported_model`, and the other errors of `models.endpoint.errors`.
    """
    refused = set(connection.refused)
    while True:
        adapted = adapted_body(body, refused=refused)
        try:
            answer = await _with_retries(connection, adapted)
        except errors.EndpointRefused as error:
            name = refused_parameter(error.fault, body=adapted)
            if name is None:
                raise
            refused.add(name)
            continue
        require_model(answer.model, endpoint=connection.endpoint)
        connection.refused.update(refused)
        return replace(answer, omitted=tuple(name for name in OPTIONAL if name in body and name in refused))


def adapted_body(body: Body, *, refused: set[str]) -> dict[str, JsonValue]:
    """Return a request without the optional parameters that the endpoint refused, and with the others renamed."""
    names = {name: RENAMED.get(name, name) if name in refused else name for name in body}
    return {names[name]: value for name, value in body.items() if name not in refused or name in RENAMED}


def refused_parameter(fault: EndpointFault, *, body: Body) -> str | None:
    """Return the parameter of a request that the endpoint refuses, if it can be left out or renamed.

    A request that is too long, or a number of tokens that is too large, is another fault.
    """
    if fault.code == TOO_LONG:
        return None
    names = (*(() if fault.too_large else RENAMED), *OPTIONAL)
    return next((name for name in fault.parameters if name in body and name in names), None)


def require_model(reported: str, *, endpoint: Endpoint) -> None:
    """Raise EndpointModelChanged if the endpoint reports another model than in the evaluation."""
    if endpoint.reported_model not in (None, reported):
        raise errors.EndpointModelChanged(
            f"{endpoint.url} now answers {endpoint.model!r} with the model {reported!r}, but it was "
            f"{endpoint.reported_model!r} before; answers of different models cannot be compared. Set "
            "evaluation.endpoint.model to a name that always means the same model or, if the change is permanent, "
            "evaluation.endpoint.revision to a new text, and start a new run. A champion whose model no longer answers "
            "cannot be compared on new rows: roll back to another version, or give the recipe another name, which is a "
            "task without a champion"
        )


async def _with_retries(connection: Connection, body: Body) -> EndpointAnswer:
    for attempt in range(1, connection.retry.max_attempts + 1):
        try:
            return await _attempt(connection, body)
        except errors.EndpointRetryable as error:
            if attempt == connection.retry.max_attempts:
                number = "one attempt" if attempt == 1 else f"{attempt} attempts"
                raise type(error)(f"{error} ({number})") from None
            await asyncio.sleep(connection.retry.delay_s(attempt, retry_after_s=error.retry_after_s))
    raise AssertionError("a retry policy has at least one attempt")


async def _attempt(connection: Connection, body: Body) -> EndpointAnswer:
    url = connection.url
    content = json.dumps(body).encode()  # in ASCII, so that text with lone surrogates can be sent
    try:
        async with (
            asyncio.timeout(connection.timeout_s),
            connection.client.stream("POST", url, content=content) as response,
        ):
            answer = await read_limited(response, url=url)
    except (TimeoutError, httpx2.TimeoutException):
        raise errors.EndpointTimeout(
            f"{url} did not answer within {connection.timeout_s:g} s; raise evaluation.endpoint.timeout_s or lower "
            "max_concurrency, and start the run again"
        ) from None
    except httpx2.HTTPError as error:
        raise errors.EndpointUnreachable(
            f"{url} cannot be reached: {error or type(error).__name__}; check evaluation.endpoint.url and the network, "
            "and start the run again"
        ) from None
    raise_for_status(response, answer, url=url)
    return parse_completion(answer, url=url)


async def read_limited(response: httpx2.Response, *, url: str) -> bytes:
    """Return the body of a response; raise EndpointAnswerInvalid if it is larger than `MAX_ANSWER_BYTES`."""
    parts, size = [], 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise errors.EndpointAnswerInvalid(f"an answer of {url} has more than {MAX_ANSWER_BYTES:,} bytes")
    return b"".join(parts)


def raise_for_status(response: httpx2.Response, content: bytes, *, url: str) -> None:
    """Raise the error of a response that is not 200. `content` is its body.

    Messages and exceptions contain no text of the body, because servers repeat texts of the request and keys in it.
    """
    status = response.status_code
    if status == 200:
        return
    if status in (401, 403):
        raise errors.EndpointKeyRefused(
            f"{url} refused the API key ({status}); check the variable that evaluation.endpoint.api_key names, and "
            "whether the key may use the model"
        )
    fault = parse_fault(content)
    stated = f"{status}: {fault}" if str(fault) else str(status)
    if status == 429:
        limited = errors.EndpointRateLimited(
            f"{url} refuses further requests ({stated}); lower evaluation.endpoint.max_concurrency or check your "
            "quota, and start the run again"
        )
        limited.retry_after_s = retry_after_s(response.headers.get("Retry-After"))
        raise limited
    if status >= 500 or status == 408:
        failed = errors.EndpointUnreachable(f"{url} failed ({stated}); start the run again later")
        failed.retry_after_s = retry_after_s(response.headers.get("Retry-After"))
        raise failed
    if 200 < status < 300:
        raise errors.EndpointAnswerInvalid(f"{url} answered {status} instead of 200 with a chat completion")
    refused = errors.EndpointRefused(
        f"{url} refused a request ({stated}); check evaluation.endpoint.url and model. The server's log may state more"
    )
    refused.fault = fault if status in (400, 422) else replace(fault, parameters=())
    raise refused


def retry_after_s(value: str | None) -> float | None:
    """Return the number of seconds in a `Retry-After` header, which is a number or a date; None if it is invalid.

    It is at most `MAX_RETRY_AFTER_S`.
    """
    if value is None:
        return None
    if value.strip().isdecimal():
        return min(float(value), MAX_RETRY_AFTER_S)
    try:
        at = parsedate_to_datetime(value)
        seconds = (at - datetime.now(UTC)).total_seconds() if at.tzinfo else None
    except (ValueError, OverflowError):
        return None
    return None if seconds is None else min(max(seconds, 0.0), MAX_RETRY_AFTER_S)
