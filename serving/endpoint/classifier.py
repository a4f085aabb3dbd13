"""Classification by an endpoint: one request for each text, whose answer is constrained to the classes."""

import asyncio
import math
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from serving.endpoint.events import Piece
from serving.endpoint.upstream import Upstream
from serving.engines.classify import Prediction
from serving.engines.fair_slots import FairSlots
from serving.engines.text_rows import num_bytes
from serving.http.schemas import RequestError
from tailorbird.models.endpoint.prompts import label_of, request_body

if TYPE_CHECKING:
    from tailorbird.models.retrieval.index import RetrievalIndex
    from tailorbird.registry.versions import ModelVersion

UNKNOWN_SCORES = np.empty(0)  # an endpoint does not return the probabilities of other classes


@dataclass(frozen=True)
class EndpointVersion:
    """A version whose endpoint answers. It has no model in memory."""

    version: "ModelVersion"
    index: "RetrievalIndex | None" = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.version.classes


class EndpointClassifier:
    """A classifier that sends texts to the version's endpoint, with the prompt of the evaluation.

    Clients take turns for the slots of requests to the endpoint.
    """

    def __init__(self, loaded: EndpointVersion, *, upstream: Upstream, concurrency: int) -> None:
        self._loaded = loaded
        self._upstream = upstream
        self._slots = FairSlots(concurrency)
        self._num_active = 0
        self._unloaded = False

    async def submit(self, rows: Sequence[str], *, client: str) -> list[Prediction]:
        """Return the predictions of texts, in order. If one of them fails, the requests of the others are cancelled.

        Raises the errors of `Upstream.pieces`, and RequestError 502 for an answer that names no class.
        """
        self._num_active += 1
        tasks = [asyncio.create_task(self._predict(text, client=client)) for text in rows]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._num_active -= 1
            self._close_if_unused()

    async def _predict(self, text: str, *, client: str) -> Prediction:
        version, index = self._loaded.version, self._loaded.index
        async with self._slots.held(client, cost=max(1, num_bytes(text))):
            conversation = (("user", text),)
            body = await asyncio.to_thread(request_body, conversation, version=version, index=index)
            answer = Piece()
            async with aclosing(self._upstream.pieces(body, streaming=False)) as pieces:
                async for piece in pieces:
                    answer = piece
        self._upstream.check_model(answer.model)
        label = label_of(answer.text, classes=version.classes)
        if label is None:
            message = "the endpoint's answer to a text names none of the classes; omit the text, or use another version"
            raise RequestError(502, "endpoint_failed", message)
        score = math.nan if answer.probability is None else answer.probability
        return Prediction(label, score, UNKNOWN_SCORES, reported_model=answer.model)

    def unload(self) -> None:
        """Close the connections after the last request."""
        self._unloaded = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._unloaded and not self._num_active:
            asyncio.get_running_loop().run_in_executor(None, self._upstream.close)
