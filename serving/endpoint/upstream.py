"""Requests of a replica to the endpoint of a version, with retries, metrics and errors for clients."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Collection
from concurrent.futures import Future
from contextlib import AsyncExitStack, aclosing
from typing import NamedTuple

import httpx2

from serving.endpoint.events import STREAMED, Body, Piece, streamed_pieces
from serving.endpoint.failures import request_error
from serving.http.metrics import ENDPOINT_REQUESTS, ENDPOINT_SPEND, ENDPOINT_TOKENS, OTHER_MODEL, Meter
from tailorbird.models.endpoint.client import (
    Connection,
    RetryPolicy,
    adapted_body,
    raise_for_status,
    read_key,
    read_limited,
    refused_parameter,
    uses_proxy,
)
from tailorbird.models.endpoint.completion import parse_completion
from tailorbird.models.endpoint.errors import (
    EndpointAnswerInvalid,
    EndpointError,
    EndpointKeyMissing,
    EndpointRefused,
    EndpointRetryable,
    EndpointTimeout,
    EndpointUnreachable,
)
from tailorbird.models.endpoint.prompts import BYTES_PER_TOKEN
from tailorbird.registry.versions import ModelVersion

RETRY = RetryPolicy(max_attempts=3, first_delay_s=0.5, max_delay_s=5.0)
"""A client waits for the answer, so there are fewer attempts than in an evaluation."""
CONNECT_S = 10.0  # timeout of a connection
MAX_STREAM_TIMEOUTS = 10  # maximum time of a stream, in multiples of the timeout
WARN_S = 60.0  # minimum time between two warnings about the same problem

_log = logging.getLogger("ray.serve")


class _ConnectTimeout(EndpointTimeout):
    """The endpoint did not accept a connection in time, so it has not received the request."""


class Limits(NamedTuple):
    """Limits of a replica's requests to an endpoint."""

    concurrency: int  # requests at the same time
    timeout_s: float  # of a complete answer or, in a stream, between two parts of the answer


class Upstream:
    """The endpoint of a version. Use it in one event loop.

    Requests go to the URL of the version only: clients do not choose it, and redirects are not followed. Raises
    EndpointKeyMissing if the environment has no API key for it. With `may_lack_key`, for a part of a hybrid, each
    request fails instead, so that the other part answers.
    """

    def __init__(
        self,
        version: ModelVersion,
        *,
        limits: Limits,
        meter: Meter,
        retry: RetryPolicy = RETRY,
        may_lack_key: bool = False,
    ) -> None:
        assert version.endpoint is not None  # a version of an endpoint kind
        self._version = version
        self._endpoint = version.endpoint
        self._meter = meter
        self._warned_at: dict[str, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        key, self._key_missing = None, None
        try:
            key = read_key(version.endpoint)
        except EndpointKeyMissing as error:
            if not may_lack_key:
                raise
            self._key_missing = error
            _log.error("%s: %s; until then, the other part of the hybrid answers", version.version, error)
        client = httpx2.AsyncClient(
            headers={"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {}),
            follow_redirects=False,
            trust_env=uses_proxy(version.endpoint),
            timeout=httpx2.Timeout(limits.timeout_s, connect=min(CONNECT_S, limits.timeout_s)),
            limits=httpx2.Limits(max_connections=limits.concurrency),
        )
        refused = set(version.endpoint.omitted)
        self._connection = Connection(version.endpoint, client, limits.timeout_s, retry, refused)

    async def pieces(self, body: Body, *, streaming: bool, chosen: Collection[str] = ()) -> AsyncGenerator[Piece, None]:
        """Send a request and yield the parts of its answer; one part if not `streaming`.

        A request that failed before the first part is sent again, as `RetryPolicy` states, except after a time-out: the
        endpoint may charge for that answer, and the client has waited for long. Parameters that the endpoint refuses
        are left out or renamed, as in the evaluation; in later requests too, once it has answered without them. A
        temperature above 0 and the parameters in `chosen`, which a client set, are never left out. Closing the
        generator cancels the request. Raises RequestError.
        """
        if self._key_missing is not None:
            raise request_error(self._key_missing, body=body)
        self._loop = asyncio.get_running_loop()
        refused, attempt = set(self._connection.refused), 1
        while True:
            adapted = adapted_body(body, refused=refused.difference(chosen))
            started = False
            try:
                async with aclosing(self._attempt(adapted, streaming=streaming)) as pieces:
                    async for piece in pieces:
                        if not started:
                            self._connection.refused.update(refused)
                        started = True
                        yield piece
                return
            except EndpointRefused as error:
                name = refused_parameter(error.fault, body=adapted)
                if name is None or name in chosen or (name == "temperature" and body["temperature"]):
                    raise request_error(error, body=body) from None
                refused.add(name)
            except EndpointError as error:
                delay_s = self._delay_s(error, attempt=attempt)
                if started or delay_s is None:
                    raise request_error(error, body=body) from None
                attempt += 1
                await asyncio.sleep(delay_s)

    def _delay_s(self, error: EndpointError, *, attempt: int) -> float | None:
        """Return the delay before the next attempt, or None if the request is not sent again."""
        retry = self._connection.retry
        if not isinstance(error, EndpointRetryable) or isinstance(error, EndpointTimeout):
            return None
        if attempt >= retry.max_attempts or (error.retry_after_s or 0) > retry.max_delay_s:
            return None
        return retry.delay_s(attempt, retry_after_s=error.retry_after_s)

    async def _attempt(self, body: Body, *, streaming: bool) -> AsyncGenerator[Piece, None]:
        """Send the request once, and count its outcome and tokens. Raises EndpointError.

        If the endpoint has not counted the tokens of a request that it can charge for, they are estimated.
        """
        content = json.dumps({**body, **(STREAMED if streaming else {})}).encode()  # ASCII, also for lone surrogates
        outcome, counted, is_charged, num_texts, num_bytes = "cancelled", Piece(), True, 0, 0
        try:
            async with aclosing(self._response(content, streaming=streaming)) as pieces:
                async for piece in pieces:
                    num_texts += bool(piece.text)
                    num_bytes += len(piece.text.encode(errors="replace"))
                    if piece.input_tokens is not None:  # some endpoints repeat the tokens up to here in each event
                        counted = piece
                    yield piece
            outcome = "ok"
        except EndpointError as error:
            outcome = request_error(error, body=body).type
            is_charged = num_texts > 0 or isinstance(error, EndpointTimeout | EndpointAnswerInvalid)
            is_charged = is_charged and not isinstance(error, _ConnectTimeout)
            self._warn(outcome, str(error))
            raise
        finally:
            is_estimated = counted.input_tokens is None and is_charged
            if is_estimated:
                num_output = max(num_texts, -(-num_bytes // BYTES_PER_TOKEN))
                counted = Piece(input_tokens=-(-len(content) // BYTES_PER_TOKEN), output_tokens=num_output)
            self._count(counted, is_estimated=is_estimated)
            self._meter.count(ENDPOINT_REQUESTS, self._version.name, self._version.version, outcome)

    async def _response(self, content: bytes, *, streaming: bool) -> AsyncGenerator[Piece, None]:
        connection, url = self._connection, self._connection.url
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(connection.timeout_s):
                    request = connection.client.stream("POST", url, content=content)
                    response = await stack.enter_async_context(request)
                    is_stream = streaming and response.status_code == 200
                    received = b"" if is_stream else await read_limited(response, url=url)
                if is_stream:
                    pieces = await stack.enter_async_context(aclosing(streamed_pieces(response, url=url)))
                    timely = await stack.enter_async_context(aclosing(_in_time(pieces, timeout_s=connection.timeout_s)))
                    async for piece in timely:
                        yield piece
                    return
        except (httpx2.ConnectTimeout, httpx2.PoolTimeout):
            raise _ConnectTimeout(f"{url} did not accept a connection in time") from None
        except (TimeoutError, httpx2.TimeoutException):
            raise EndpointTimeout(f"{url} did not answer or continue within {connection.timeout_s:g} s") from None
        except httpx2.HTTPError as error:
            raise EndpointUnreachable(f"{url} cannot be reached: {error or type(error).__name__}") from None
        raise_for_status(response, received, url=url)
        answer = parse_completion(received, url=url)
        yield Piece(
            answer.text,
            answer.finish_reason,
            answer.model,
            answer.input_tokens,
            answer.output_tokens,
            answer.probability,
        )

    def _count(self, piece: Piece, *, is_estimated: bool) -> None:
        labels, estimated = (self._version.name, self._version.version), "yes" if is_estimated else "no"
        self._meter.count(ENDPOINT_TOKENS, *labels, "prompt", estimated, by=piece.input_tokens or 0)
        self._meter.count(ENDPOINT_TOKENS, *labels, "completion", estimated, by=piece.output_tokens or 0)
        spend = self._endpoint.price(input_tokens=piece.input_tokens, output_tokens=piece.output_tokens)
        self._meter.count(ENDPOINT_SPEND, *labels, estimated, by=spend or 0)

    def check_model(self, reported: str | None) -> None:
        """Count an answer of another model than the evaluated one, and write a warning to the replica's log.

        Call it once for each answer. The service continues: the provider decides which model answers.
        """
        expected = self._endpoint.reported_model
        if reported in (None, expected):
            return
        self._meter.count(OTHER_MODEL, self._version.name, self._version.version)
        self._warn("other model", f"the endpoint reports the model {reported!r}; the model {expected!r} was evaluated")

    def _warn(self, problem: str, message: str) -> None:
        now = time.monotonic()
        if now - self._warned_at.get(problem, float("-inf")) >= WARN_S:
            self._warned_at[problem] = now
            _log.warning("%s: %s", self._version.version, message)

    def close(self) -> None:
        """Close the connections. This call blocks; do not call it from the event loop."""
        if closing := self.start_close():
            closing.result()

    def start_close(self) -> Future[None] | None:
        """Start to close the connections, from any thread. Return None if no request was sent."""
        if self._loop is None:
            return None
        return asyncio.run_coroutine_threadsafe(self._connection.client.aclose(), self._loop)


async def _in_time(pieces: AsyncGenerator[Piece, None], *, timeout_s: float) -> AsyncGenerator[Piece, None]:
    """Yield the parts of a stream. Raise TimeoutError if it does not continue, or takes too long in total.

    Comments and events without text, finish reason and number of tokens do not extend the time.
    """
    loop = asyncio.get_running_loop()
    due_at, ends_at = loop.time() + timeout_s, loop.time() + MAX_STREAM_TIMEOUTS * timeout_s
    while True:
        async with asyncio.timeout_at(min(due_at, ends_at)):  # not during `yield`, which waits for the client
            piece = await anext(pieces, None)
        if piece is None:
            return
        yield piece
        if piece.text or piece.finish_reason is not None or piece.input_tokens is not None:
            due_at = loop.time() + timeout_s
