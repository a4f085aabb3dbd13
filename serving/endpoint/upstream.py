"""Requests of a replica to the endpoint of a version, with retries, metrics and errors for
clients."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from serving.endpoint.failures import request_error
from serving.http.metrics import (
    ENDPOINT_REQUESTS,
    ENDPOINT_SPEND,
    ENDPOINT_TOKENS,
    OTHER_MODEL,
    Meter,
)
from tailorbird.models.endpoint.client import Body, RetryPolicy, answer_parts, connect
from tailorbird.models.endpoint.completion import EndpointAnswer
from tailorbird.models.endpoint.errors import (
    EndpointAnswerInvalid,
    EndpointConnectTimeout,
    EndpointError,
    EndpointTimeout,
)
from tailorbird.models.endpoint.prompts import BYTES_PER_TOKEN
from tailorbird.registry.versions import ModelVersion

RETRY = RetryPolicy(max_attempts=3, first_delay_s=0.5, max_delay_s=5.0, client_waits=True)
"""A client waits for the answer, so there are fewer attempts than in an evaluation."""
WARN_S = 60.0  # minimum time between two warnings about the same problem

_log = logging.getLogger("ray.serve")


class Limits(NamedTuple):
    """Limits of a replica's requests to an endpoint."""

    concurrency: int  # requests at the same time
    timeout_s: float  # of a complete answer or, in a stream, between two parts of the answer


@dataclass
class _Received:
    """What one attempt received."""

    num_texts: int = 0
    num_bytes: int = 0
    # of the prompt and of the answer; None if the endpoint has not counted them
    tokens: tuple[int, int] | None = None

    def add(self, part: EndpointAnswer) -> None:
        self.num_texts += bool(part.text)
        self.num_bytes += len(part.text.encode(errors="replace"))
        # Some endpoints repeat the tokens up to here in each event.
        if part.input_tokens is not None:
            self.tokens = (part.input_tokens, part.output_tokens or 0)


class Upstream:
    """The endpoint of a version. Use it in one event loop.

    Requests go to the URL of the version only: clients do not choose it, and redirects are not
    followed. Raises EndpointKeyMissing if the environment has no API key for it.
    """

    def __init__(
        self,
        version: ModelVersion,
        *,
        limits: Limits,
        meter: Meter,
        retry: RetryPolicy = RETRY,
    ) -> None:
        assert version.endpoint is not None  # a version of an endpoint kind
        self._version = version
        self._endpoint = version.endpoint
        self._meter = meter
        self._warned_at: dict[str, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection = connect(
            version.endpoint,
            timeout_s=limits.timeout_s,
            max_connections=limits.concurrency,
            retry=retry,
            observe=self._metered,
        )

    async def parts(
        self, body: Body, *, streaming: bool, chosen: Collection[str] = ()
    ) -> AsyncGenerator[EndpointAnswer, None]:
        """Send a request and yield the parts of its answer; see `answer_parts`. Raises
        RequestError."""
        self._loop = asyncio.get_running_loop()
        answer = answer_parts(self._connection, body, streaming=streaming, chosen=chosen)
        try:
            async with aclosing(answer) as parts:
                async for part in parts:
                    yield part
        except EndpointError as error:
            raise request_error(error, body=body) from None

    @contextmanager
    def _metered(self, content: bytes) -> Iterator[Callable[[EndpointAnswer], None]]:
        """Count the outcome and the tokens of an attempt.

        If the endpoint has not counted the tokens of a request that it can charge for, they are
        estimated.
        """
        received = _Received()
        outcome = "cancelled"
        is_charged = True
        try:
            yield received.add
            outcome = "ok"
        except EndpointError as error:
            outcome = request_error(error, body={}).type
            is_charged = received.num_texts > 0 or (
                isinstance(error, EndpointTimeout | EndpointAnswerInvalid)
                and not isinstance(error, EndpointConnectTimeout)
            )
            self._warn(outcome, str(error))
            raise
        finally:
            if received.tokens is not None:
                self._count(*received.tokens, is_estimated=False)
            elif is_charged:
                num_output = max(received.num_texts, -(-received.num_bytes // BYTES_PER_TOKEN))
                self._count(-(-len(content) // BYTES_PER_TOKEN), num_output, is_estimated=True)
            self._meter.count(ENDPOINT_REQUESTS, self._version.name, self._version.version, outcome)

    def _count(self, num_input: int, num_output: int, *, is_estimated: bool) -> None:
        labels = (self._version.name, self._version.version)
        estimated = "yes" if is_estimated else "no"
        self._meter.count(ENDPOINT_TOKENS, *labels, "prompt", estimated, by=num_input)
        self._meter.count(ENDPOINT_TOKENS, *labels, "completion", estimated, by=num_output)
        spend = self._endpoint.price(input_tokens=num_input, output_tokens=num_output)
        self._meter.count(ENDPOINT_SPEND, *labels, estimated, by=spend or 0)

    def check_model(self, reported: str) -> None:
        """Count an answer of another model than the evaluated one, and write a warning to the
        replica's log.

        Call it once for each answer. The service continues: the provider decides which model
        answers.
        """
        expected = self._endpoint.reported_model
        if reported in ("", expected):
            return
        self._meter.count(OTHER_MODEL, self._version.name, self._version.version)
        self._warn(
            "other model",
            f"the endpoint reports the model {reported!r}; the model {expected!r} was evaluated",
        )

    def _warn(self, problem: str, message: str) -> None:
        now = time.monotonic()
        if now - self._warned_at.get(problem, float("-inf")) >= WARN_S:
            self._warned_at[problem] = now
            _log.warning("%s: %s", self._version.version, message)

    def start_close(self) -> None:
        """Start to close the connections, from any thread."""
        if self._loop is not None:  # a request was sent
            asyncio.run_coroutine_threadsafe(self._connection.aclose(), self._loop)
