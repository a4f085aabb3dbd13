"""The queue of a hybrid classifier: each text goes to the part that answers it or, on failure, to the other part."""

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.engines.classify import Prediction
from serving.http.schemas import is_client_error, no_part_answers
from tailorbird.registry.routing import PartName, Routing, routes_to_second

_log = logging.getLogger("ray.serve")


class Submit(Protocol):
    """A queue of texts. Returns their predictions, in order; `client` is the name by which the queue is fair."""

    def __call__(self, rows: Sequence[Any], *, client: str) -> Awaitable[list[Prediction]]: ...


class HybridQueue:
    """The queues of a hybrid's parts.

    If a part fails, or does not answer within `timeout_s`, the other part answers. If both fail, RequestError 503 is
    raised. An error of the request itself (status 4xx) is raised unchanged.
    """

    def __init__(self, first: Submit, second: Submit, *, routing: Routing, timeout_s: float) -> None:
        self._queues: dict[PartName, Submit] = {"first": first, "second": second}
        self._routing = routing
        self._timeout_s = timeout_s

    async def submit(self, rows: Sequence[tuple[str, str | None]], *, client: str) -> list[Prediction]:
        """Return the predictions of the rows of `classify.hybrid_rows`, in order."""
        answers = _Answers([text for text, _ in rows], client, [None] * len(rows))
        if self._routing.by == "group":
            routed = routes_to_second(self._routing, groups=[value for _, value in rows])
            await asyncio.gather(self._answer("first", answers, ~routed), self._answer("second", answers, routed))
            missing = answers.missing
            await self._answer("second", answers, missing & ~routed, is_fallback=True)
            await self._answer("first", answers, missing & routed, is_fallback=True)
        elif await self._answer("first", answers, answers.missing):
            routed = routes_to_second(self._routing, confidences=[answer.score for answer in answers.complete()])
            if not await self._answer("second", answers, routed):
                answers.mark_fallback(routed)
        else:
            await self._answer("second", answers, answers.missing, is_fallback=True)
        return answers.complete()

    async def _answer(
        self, name: PartName, answers: "_Answers", rows: NDArray[np.bool_], *, is_fallback: bool = False
    ) -> bool:
        """Store a part's answers to the rows of a mask; return False if it fails."""
        indices = np.flatnonzero(rows).tolist()
        if not indices:
            return True
        texts = [answers.texts[index] for index in indices]
        try:
            async with asyncio.timeout(self._timeout_s):
                predictions = await self._queues[name](texts, client=answers.client)
        except Exception as error:
            if is_client_error(error):
                raise
            _log.exception("the %s part of the hybrid did not answer", name)
            return False
        for index, prediction in zip(indices, predictions, strict=True):
            answers.results[index] = prediction._replace(answered_by=name, is_fallback=is_fallback)
        return True


class _Answers:
    """The texts of a request and the predictions so far."""

    def __init__(self, texts: Sequence[str], client: str, results: list[Prediction | None]) -> None:
        self.texts = texts
        self.client = client
        self.results = results

    @property
    def missing(self) -> NDArray[np.bool_]:
        """The mask of the texts without a prediction."""
        return np.array([result is None for result in self.results], dtype=np.bool_)

    def mark_fallback(self, rows: NDArray[np.bool_]) -> None:
        """Mark the predictions of the rows of a mask as those of a part that should not have answered."""
        for index in np.flatnonzero(rows).tolist():
            result = self.results[index]
            assert result is not None
            self.results[index] = result._replace(is_fallback=True)

    def complete(self) -> list[Prediction]:
        """Return all predictions; raise RequestError 503 if one is missing, because no part answers."""
        present = [result for result in self.results if result is not None]
        if len(present) < len(self.results):
            raise no_part_answers()
        return present
