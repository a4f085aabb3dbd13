"""Load versions of the endpoint kinds into engines. A load sends no request to the endpoint."""

import math
import sys
from typing import TYPE_CHECKING

from serving.endpoint.chat_engine import EndpointChatEngine
from serving.endpoint.classifier import EndpointClassifier
from serving.endpoint.upstream import Limits, Upstream
from serving.engines.model_pool import ClassifierEngine
from serving.http.metrics import Meter
from tailorbird.config.serving import ANSWER_TIMEOUT_S, ServingConfig

if TYPE_CHECKING:
    from tailorbird.models.retrieval.index import RetrievalIndex
    from tailorbird.registry.versions import ModelVersion


def endpoint_limits(config: ServingConfig) -> Limits:
    """Return the limits of a replica: its part of the requests to an endpoint at the same time, at
    least one."""
    return Limits(max(1, config.endpoint_concurrency // config.max_replicas), ANSWER_TIMEOUT_S)


def load_chat(
    version: "ModelVersion", *, config: ServingConfig, meter: Meter
) -> EndpointChatEngine:
    """Return the engine of a chat version. Raises EndpointKeyMissing if the replica has no API key
    for the endpoint."""
    limits = endpoint_limits(config)
    upstream = Upstream(version, limits=limits, meter=meter)
    return EndpointChatEngine(
        version, upstream=upstream, concurrency=limits.concurrency, index=_index(version)
    )


def load_classifier(version: "ModelVersion", *, limits: Limits, meter: Meter) -> ClassifierEngine:
    """Return the engine of a classifier. Raises EndpointKeyMissing if the replica has no API key
    for the endpoint."""
    upstream = Upstream(version, limits=limits, meter=meter)
    classifier = EndpointClassifier(
        version, index=_index(version), upstream=upstream, concurrency=limits.concurrency
    )
    return ClassifierEngine(
        version,
        classifier.submit,
        idle_s=lambda: math.inf,  # it does not use the cores that shadow passes wait for
        max_length=sys.maxsize,  # texts are not truncated
        unload=classifier.unload,
        submit_each=classifier.submit_each,
    )


def _index(version: "ModelVersion") -> "RetrievalIndex | None":
    from tailorbird.models.loading import checked_copy, load_retrieval_index

    folder = checked_copy(version.pinned)
    assert version.prompting is not None  # `VersionConfig` requires it for an endpoint
    return load_retrieval_index(folder, retrieval=version.prompting.retrieval, device="cpu")
