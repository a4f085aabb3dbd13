"""Requests of a replica to the endpoint of a version, with retries, metrics and errors for clients."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
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
    EndpointError,
    EndpointRefused,
    EndpointRetryable,
    EndpointTimeout,
    EndpointUnreachable,
)
from tailorbird.registry.versions import ModelVersion

RETRY = RetryPolicy(max_attempts=3, first_delay_s=0.5, max_delay_s=5.0)
"""A client waits for the answer, so there are fewer attempts than in an evaluation."""
CONNECT_S = 10.0  # timeout of a connection
WARN_S = 60.0  # minimum time between two warnings about the same problem

_log = logging.getLogger("ray.serve")


class Limits(NamedTuple):
    """Limits of a replica's requests to an endpoint."""

    concurrency: int  # requests at the same time
    timeout_s: float  # of a complete answer or, in a stream, between two events


class Upstream:
    """The endpoint of a version. Use it in one event loop.

    Requests go to the URL of the version only: clients do not choose it, and redirects are not followed. Raises
    EndpointKeyMissing if the environment has no API key for it.
    """

    def __init__(self, version: ModelVersion, *, limits: Limits, meter: Meter, retry: RetryPolicy = RETRY) -> None:
        assert version.endpoint is not None  # a version of an endpoint kind
        self._version = version
        self._endpoint = version.endpoint
        self._meter = meter
        self._warned_at: dict[str, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        key = read_key(version.endpoint)
        client = httpx2.AsyncClient(
            headers={"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {}),
            follow_redirects=False,
            trust_env=uses_proxy(version.endpoint),
            timeout=httpx2.Timeout(limits.timeout_s, connect=min(CONNECT_S, limits.timeout_s)),
            limits=httpx2.Limits(max_connections=limits.concurrency),
        )
        self._connection = Connection(version.endpoint, client, limits.timeout_s, retry)

    async def pieces(self, body: Body, *, streaming: bool) -> AsyncGenerator[Piece, None]:
        """Send a request and yield the parts of its answer; one part if not `streaming`.

        A request that failed before the first part is sent again, as `RetryPolicy` states, except after a time-out: the
        endpoint may charge for that answer, and the client has waited for long. Parameters that the endpoint refuses
        are left out or renamed, as in the evaluation; in later requests too, once it has answered without them. Closing
        the generator cancels the request. Raises RequestError.
        """
        self._loop = asyncio.get_running_loop()
        refused, attempt = set(self._connection.refused), 1
        while True:
            adapted = adapted_body(body, refused=refused)
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
                if name is None or (name == "temperature" and body["temperature"]):  # a value that a client chose
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
        """Send the request once, and count its outcome. Raises EndpointError."""
        outcome, counted = "cancelled", Piece()
        try:
            async with aclosing(self._response(body, streaming=streaming)) as pieces:
                async for piece in pieces:
                    if piece.input_tokens is not None:  # some endpoints repeat the tokens up to here in each event
                        counted = piece
                    yield piece
            outcome = "ok"
        except EndpointError as error:
            outcome = request_error(error, body=body).type
            self._warn(outcome, str(error))
            raise
        finally:
            self._count(counted)
            self._meter.count(ENDPOINT_REQUESTS, self._version.name, self._version.version, outcome)

    async def _response(self, body: Body, *, streaming: bool) -> AsyncGenerator[Piece, None]:
        connection, url = self._connection, self._connection.url
        content = json.dumps({**body, **(STREAMED if streaming else {})}).encode()  # ASCII, also for lone surrogates
        try:
            async with connection.client.stream("POST", url, content=content) as response:
                if streaming and response.status_code == 200:
                    async with aclosing(streamed_pieces(response, url=url)) as pieces:
                        async for piece in pieces:
                            yield piece
                    return
                async with asyncio.timeout(connection.timeout_s):
                    received = await read_limited(response, url=url)
        except (TimeoutError, httpx2.TimeoutException):
            raise EndpointTimeout(f"{url} did not answer within {connection.timeout_s:g} s") from None
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

    def _count(self, piece: Piece) -> None:
        labels = (self._version.name, self._version.version)
        self._meter.count(ENDPOINT_TOKENS, *labels, "prompt", by=piece.input_tokens or 0)
        self._meter.count(ENDPOINT_TOKENS, *labels, "completion", by=piece.output_tokens or 0)
        spend = self._endpoint.price(input_tokens=piece.input_tokens, output_tokens=piece.output_tokens)
        self._meter.count(ENDPOINT_SPEND, *labels, by=spend or 0)

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
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._connection.client.aclose(), self._loop).result()
