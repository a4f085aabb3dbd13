"""Limit what the requests to an endpoint cost, those that run included."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tailorbird.models.endpoint.client import Body
from tailorbird.models.endpoint.completion import EndpointAnswer
from tailorbird.models.endpoint.errors import EndpointAnswerInvalid, EndpointSpendExceeded
from tailorbird.registry.endpoint import Endpoint

ROUNDING = 1 + 1e-9  # so that a sum of prices that equals the limit does not exceed it


class SpendLimit:
    """The limit of what the answers of an endpoint cost. A request that runs counts with its
    largest possible price."""

    def __init__(self, endpoint: Endpoint, *, spent: float) -> None:
        """Make the limit `endpoint.max_spend`; `spent` is the price of the stored answers.

        Raises ValueError if the spend is limited and the endpoint has no prices, and
        EndpointAnswerInvalid if it is limited and `spent` is NaN.
        """
        if endpoint.max_spend is not None and endpoint.prices is None:
            raise ValueError(
                f"{endpoint.model!r} at {endpoint.url} was registered without prices, and the "
                "recipe names no endpoint with this URL and model that has prices, so the spend "
                "cannot be limited; remove max_spend of the endpoint"
            )
        if endpoint.max_spend is not None and math.isnan(spent):
            raise spend_unknown(endpoint)
        self.endpoint = endpoint
        self.spent = spent
        self._reserved = 0.0
        self._num_running = 0
        self._refused = 0.0
        self._factor = 1.0
        """The largest price of an answer divided by `largest_price`, if that is above 1."""
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def reserved(self, body: Body) -> AsyncIterator[Callable[[EndpointAnswer], None] | None]:
        """Yield a function that counts the answer to a request, or None if the request could exceed
        the limit.

        The block waits for other requests if only their reservations prevent this one. The function
        raises EndpointAnswerInvalid if an answer has no known price.
        """
        max_spend = self.endpoint.max_spend
        if max_spend is None:
            yield lambda _: None
            return
        bound = largest_price(body, endpoint=self.endpoint)
        largest = self._factor * bound

        def is_allowed() -> bool:
            return self.spent + self._reserved + largest <= max_spend * ROUNDING

        async with self._changed:
            await self._changed.wait_for(lambda: self._num_running == 0 or is_allowed())
            granted = is_allowed()
            if granted:
                self._num_running += 1
                self._reserved += largest
            else:
                self._refused = largest
        if not granted:
            yield None
            return

        def count(answer: EndpointAnswer) -> None:
            price = self.endpoint.price(
                input_tokens=answer.input_tokens, output_tokens=answer.output_tokens
            )
            if price is None:
                raise spend_unknown(self.endpoint)
            self.spent += price
            if price > bound:
                self._factor = max(self._factor, price / bound)

        try:
            yield count
        finally:
            async with self._changed:
                self._num_running -= 1
                self._reserved -= largest
                self._changed.notify_all()

    def exceeded(self, *, num_left: int) -> EndpointSpendExceeded:
        """Return the error for requests that were not sent because of the limit."""
        return EndpointSpendExceeded(
            f"the stored answers of {self.endpoint.model!r} at {self.endpoint.url} cost "
            f"{self.spent:.6g}, and the next request can cost up to {self._refused:.3g}, but "
            f"max_spend of the endpoint is {self.endpoint.max_spend:g}; {num_left:,} requests "
            "of this stage or part of a batch remain. Raise max_spend and start again: stored "
            "answers are used. If the recipe does not name this endpoint, the limit is that of its "
            "version; name it in evaluation.contenders with a higher one"
        )


def largest_price(body: Body, *, endpoint: Endpoint) -> float:
    """Return an upper bound of the price of a request: each byte is an input token, and
    `max_tokens` are the output.

    A token has at least one byte. The endpoint must have prices.
    """
    num_bytes = len(json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    max_tokens = body["max_tokens"]
    assert isinstance(max_tokens, int)
    price = endpoint.price(input_tokens=num_bytes, output_tokens=max_tokens)
    assert price is not None
    return price


def spend_unknown(endpoint: Endpoint) -> EndpointAnswerInvalid:
    """Return the error for answers without a known price."""
    return EndpointAnswerInvalid(
        f"{endpoint.url} does not report the tokens of some answers (`usage`), so the spend cannot "
        "be limited; remove max_spend of the endpoint"
    )
