"""Batches of a version whose endpoint answers, and of a hybrid with such a part.

One worker sends the requests of a batch, so that the limits hold for the whole batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.engines.classify import Prediction
from tailorbird.config.serving import ServingConfig
from tailorbird.data.rows import Conversation, DataError
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits, StoredAnswers, fetch_answers
from tailorbird.models.endpoint.completion import EndpointAnswer
from tailorbird.models.endpoint.errors import EndpointError
from tailorbird.models.endpoint.prompts import USER, label_of, request_body
from tailorbird.registry.versions import ModelVersion, read_parts
from tailorbird.storage import s3

if TYPE_CHECKING:
    from tailorbird.models.loading import LoadedHybrid
    from tailorbird.models.retrieval.index import RetrievalIndex

PART_ROWS = 1 << 8
"""Maximum number of rows of a part: about a minute of requests, after which the progress is reported."""


@dataclass(frozen=True)
class LoadedEndpoint:
    """A version whose endpoint answers. It has no model in memory."""

    version: ModelVersion
    index: "RetrievalIndex | None"
    limits: RequestLimits
    output: str
    """URI of the batch's output. Answers are stored in it, so that a resumed batch sends no request twice."""
    _kept: dict[str, StoredAnswers] = field(default_factory=dict, repr=False, compare=False)  # see `fetch_answers`

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the version; empty for chat."""
        return self.version.classes

    def answers(self, conversations: Sequence[Conversation]) -> tuple[EndpointAnswer, ...]:
        """Return the answer to each conversation; see `fetch_answers` for errors of the endpoint.

        Raises DataError if the spend is limited and a price is missing.
        """
        version, endpoint = self.version, self.version.endpoint
        assert endpoint is not None
        bodies = [request_body(conversation, version=version, index=self.index) for conversation in conversations]
        try:
            return fetch_answers(bodies, endpoint=endpoint, parent=self.output, limits=self.limits, kept=self._kept)
        except (EndpointError, s3.StorageError):
            raise
        except ValueError as error:
            raise DataError(str(error)) from None

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Return the prediction of each text, with the label `NO_LABEL` if the endpoint refuses it or names no class.

        An endpoint does not return the probabilities of other classes.
        """
        # Replicas may not need torch, which this imports.
        from tailorbird.evaluation.inference.endpoint_predictions import NO_LABEL

        return [
            Prediction(
                label_of(answer.text, classes=self.classes) or NO_LABEL,
                math.nan if answer.probability is None else answer.probability,
                np.empty(0),
                reported_model=answer.model or None,
            )
            for answer in self.answers([((USER, text),) for text in texts])
        ]


def request_limits(config: ServingConfig) -> RequestLimits:
    """Return the limits of a batch that a service starts. Its spend has the limit of the version, if it has one."""
    return RequestLimits(timeout_s=config.endpoint_timeout_s, max_concurrency=config.endpoint_concurrency)


def load_version(version: ModelVersion, *, limits: RequestLimits, output: str) -> "LoadedEndpoint | LoadedHybrid":
    """Load a version whose endpoint answers, or a hybrid with such a part. No request is sent.

    Raises RegistryError if a file of the version or a part is missing or was changed.
    """
    from tailorbird.models.loading import LoadedHybrid, checked_copy, load_model, load_retrieval_index

    folder = checked_copy(version.pinned)
    if version.hybrid is None:
        retrieval = version.prompting.retrieval if version.prompting else None
        index = load_retrieval_index(folder, retrieval=retrieval, device="cpu")
        return LoadedEndpoint(version, index, limits, output)

    def load(part: ModelVersion) -> Any:
        return load_model(part.uri) if part.endpoint is None else load_version(part, limits=limits, output=output)

    first, second = map(load, read_parts(version.hybrid))
    return LoadedHybrid(first, second, version.hybrid.routing, version.classes, version)
