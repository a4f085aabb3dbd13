"""Classification by an endpoint: one request for each text, whose answer is constrained to the
classes."""

import asyncio
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from serving.endpoint.upstream import Upstream
from serving.engines.classify import Prediction
from serving.engines.ref_counted import RefCounted
from serving.engines.text_rows import num_bytes
from serving.http.schemas import RequestError, error_of_text, is_client_error
from serving.limits import FairSlots, max_held_alone
from tailorbird.models.endpoint.prompts import label_of, request_body

if TYPE_CHECKING:
    from tailorbird.models.retrieval.index import RetrievalIndex
    from tailorbird.registry.versions import ModelVersion

UNKNOWN_SCORES = np.empty(0)  # an endpoint does not return the probabilities of other classes


class _NoClass(RequestError):
    """An answer that names none of the classes."""

    def __init__(self) -> None:
        message = (
            "the endpoint's answer to a text names none of the classes; omit the text, or use "
            "another version"
        )
        super().__init__(502, "endpoint_failed", message)


class EndpointClassifier:
    """A classifier that sends texts to the version's endpoint, with the prompt of the evaluation.

    Clients take turns for the slots of requests to the endpoint.
    """

    def __init__(
        self,
        version: "ModelVersion",
        *,
        upstream: Upstream,
        concurrency: int,
        index: "RetrievalIndex | None" = None,
    ) -> None:
        self._version = version
        self._index = index
        self._upstream = upstream
        self._slots = FairSlots(concurrency)
        self._num_at_once = max_held_alone(concurrency)
        self._uses = RefCounted(upstream.start_close)

    async def submit(self, rows: Sequence[str], *, client: str) -> list[Prediction]:
        """Return the predictions of texts, in order. After the first failure, no further text is
        sent.

        Raises the errors of `Upstream.parts`, and RequestError 502 for an answer that names no
        class. An error of one of several texts has its index.
        """
        predictions = list[Prediction]()
        for result in await self._results(rows, client=client, timeout_s=math.inf, is_whole=True):
            if isinstance(result, RequestError):
                raise result
            predictions.append(result)
        return predictions

    async def submit_each(
        self, rows: Sequence[str], *, client: str, timeout_s: float
    ) -> list[Prediction | RequestError]:
        """Return the prediction of each text or its error, in order; see `SubmitEach`.

        If a request fails for a reason other than its text, the texts that are not sent yet have
        this error.
        """
        return await self._results(rows, client=client, timeout_s=timeout_s, is_whole=False)

    async def _results(
        self, rows: Sequence[str], *, client: str, timeout_s: float, is_whole: bool
    ) -> list[Prediction | RequestError]:
        """Return the result of each text. If `is_whole` is true, an error of one text is an error
        of all."""
        failures: list[RequestError] = []

        async def result(index: int) -> Prediction | RequestError:
            text = rows[index]
            async with self._slots.held(client, cost=max(1, num_bytes(text))):
                if failures:
                    return failures[0]
                try:
                    async with asyncio.timeout(timeout_s):
                        return await self._predict(text)
                except TimeoutError:
                    error = _timed_out(timeout_s)
                except RequestError as failed:
                    error = failed
                is_of_text = is_client_error(error) or isinstance(error, _NoClass)
                if is_whole and is_of_text and len(rows) > 1:
                    error = error_of_text(error, index=index)
                if is_whole or not is_of_text:
                    failures.append(error)
                return error

        with self._uses.use():
            tasks = [asyncio.create_task(result(index)) for index in range(len(rows))]
            num_rounds = math.ceil(len(rows) / self._num_at_once)
            try:
                await asyncio.wait(tasks, timeout=timeout_s * num_rounds)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return [_timed_out(timeout_s) if task.cancelled() else task.result() for task in tasks]

    async def _predict(self, text: str) -> Prediction:
        version = self._version
        conversation = (("user", text),)
        body = await asyncio.to_thread(
            request_body, conversation, version=version, index=self._index
        )
        [answer] = [part async for part in self._upstream.parts(body, streaming=False)]
        self._upstream.check_model(answer.model)
        label = label_of(answer.text, classes=version.classes)
        if label is None:
            raise _NoClass
        score = math.nan if answer.probability is None else answer.probability
        return Prediction(label, score, UNKNOWN_SCORES, reported_model=answer.model)

    def unload(self) -> None:
        """Close the connections after the last request."""
        self._uses.unload()


def _timed_out(timeout_s: float) -> RequestError:
    return RequestError(
        504, "endpoint_timeout", f"the endpoint did not answer within {timeout_s:g} s; retry later"
    )
