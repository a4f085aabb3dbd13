"""The queue of a hybrid classifier: each text goes to the part that answers it or, on failure, to
the other part."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.engines.classify import Prediction
from serving.engines.ref_counted import RefCounted
from serving.http.schemas import RequestError, error_of_text, is_client_error, no_part_answers
from serving.hybrid.part_state import PartState
from tailorbird.registry.hybrid_routing import PARTS, PartName, Routing, routes_to_second


class Submit(Protocol):
    """A queue of texts. Returns their predictions, in order; `client` is the name by which the
    queue is fair."""

    def __call__(self, rows: Sequence[Any], *, client: str) -> Awaitable[list[Prediction]]: ...


class SubmitEach(Protocol):
    """A queue whose texts can fail one by one. Returns the prediction or the error of each text, in
    order.

    `timeout_s` is the time for the texts that the part answers at the same time. Raises an error of
    all texts.
    """

    def __call__(
        self, rows: Sequence[str], *, client: str, timeout_s: float
    ) -> Awaitable[Sequence[Prediction | RequestError]]: ...


def failing_together(submit: Submit) -> SubmitEach:
    """Return a queue whose texts are answered or fail together. It raises TimeoutError after
    `timeout_s`."""

    async def submit_each(
        rows: Sequence[str], *, client: str, timeout_s: float
    ) -> list[Prediction]:
        async with asyncio.timeout(timeout_s):
            return await submit(rows, client=client)

    return submit_each


class HybridQueue:
    """The queues of a hybrid's parts.

    If a part fails, or does not answer within `timeout_s`, the other part answers. If only some
    texts fail, the other part answers these. After several time-outs in a row, a part is skipped
    for some time while the other one answers. If both parts fail, an error of a text itself or
    RequestError 503 is raised. An error of the whole request (status 4xx) is raised unchanged.
    """

    def __init__(
        self,
        first: SubmitEach,
        second: SubmitEach,
        *,
        version: str,
        routing: Routing,
        timeout_s: float,
        unload_parts: Callable[[], None] = lambda: None,
    ) -> None:
        self._queues: dict[PartName, SubmitEach] = {"first": first, "second": second}
        self._states = {name: PartState(name, version=version) for name in PARTS}
        self._routing = routing
        self._timeout_s = timeout_s
        self._uses = RefCounted(unload_parts)

    def unload(self) -> None:
        """Unload the parts after the last request."""
        self._uses.unload()

    async def submit(
        self, rows: Sequence[tuple[str, str | None]], *, client: str
    ) -> list[Prediction]:
        """Return the predictions of the rows of `classify.hybrid_rows`, in order."""
        answers = _Answers([text for text, _ in rows], client)
        with self._uses.use():
            if self._routing.by == "group":
                groups = [value for _, value in rows]
                routed = routes_to_second(self._routing, groups=groups)
                await self._answer_available("first", answers, ~routed)
            else:
                await self._answer_available("first", answers, answers.missing)
                routed = self._routed(answers)
            await self._answer_available("second", answers, routed)
            missing = answers.missing
            await self._answer("second", answers, missing & ~routed)
            await self._answer("first", answers, missing & routed)
        answers.mark_fallback(missing | (routed & answers.answered_by("first")))
        return answers.complete()

    def _routed(self, answers: "_Answers") -> NDArray[np.bool_]:
        """Return the mask of the texts of a cascade for which the first part is not confident."""
        missing = answers.missing
        routed = np.zeros_like(missing)
        confidences = [answer.score for answer in answers.results if answer is not None]
        if confidences:
            routed[~missing] = routes_to_second(self._routing, confidences=confidences)
        return routed

    async def _answer_available(
        self, name: PartName, answers: "_Answers", rows: NDArray[np.bool_]
    ) -> None:
        if not self._is_skipped(name):
            await self._answer(name, answers, rows)

    def _is_skipped(self, name: PartName) -> bool:
        """Return True if a part has timed out repeatedly, and the other one has not."""
        other: PartName = "second" if name == "first" else "first"
        return self._states[name].is_away and not self._states[other].is_away

    async def _answer(self, name: PartName, answers: "_Answers", rows: NDArray[np.bool_]) -> None:
        """Store a part's answers to the rows of a mask. Rows that fail keep a previous answer."""
        indices = np.flatnonzero(rows).tolist()
        state = self._states[name]
        if not indices:
            return
        texts = [answers.texts[index] for index in indices]
        try:
            results = await self._queues[name](
                texts, client=answers.client, timeout_s=self._timeout_s
            )
        except Exception as error:
            if is_client_error(error):
                raise
            state.failed(error)
            return
        failures = []
        for index, result in zip(indices, results, strict=True):
            if not isinstance(result, RequestError):
                answers.results[index] = result._replace(answered_by=name)
            elif is_client_error(result):
                answers.refusals[index] = result
            else:
                failures.append(result)
        if failures:
            state.failed(failures[0])
        if len(failures) < len(results):
            state.answered()


class _Answers:
    """The texts of a request, with the predictions and the errors of single texts so far."""

    def __init__(self, texts: Sequence[str], client: str) -> None:
        self.texts = texts
        self.client = client
        self.results: list[Prediction | None] = [None] * len(texts)
        self.refusals: dict[
            int, RequestError
        ] = {}  # errors of texts themselves (status 4xx), by row

    @property
    def missing(self) -> NDArray[np.bool_]:
        """The mask of the texts without a prediction."""
        return np.array([result is None for result in self.results], dtype=np.bool_)

    def answered_by(self, name: PartName) -> NDArray[np.bool_]:
        """Return the mask of the texts with a prediction of a part."""
        answered = [result is not None and result.answered_by == name for result in self.results]
        return np.array(answered, dtype=np.bool_)

    def mark_fallback(self, rows: NDArray[np.bool_]) -> None:
        """Mark the predictions of the rows of a mask as those of a part that should not have
        answered."""
        for index in np.flatnonzero(rows).tolist():
            result = self.results[index]
            if result is not None:
                self.results[index] = result._replace(is_fallback=True)

    def complete(self) -> list[Prediction]:
        """Return all predictions. If one is missing, raise the error of the text, or RequestError
        503."""
        for index, refusal in self.refusals.items():
            if self.results[index] is None:
                raise error_of_text(refusal, index=index)
        present = [result for result in self.results if result is not None]
        if len(present) < len(self.results):
            raise no_part_answers()
        return present
