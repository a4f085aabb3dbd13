"""Predict rows with an external endpoint."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tailorbird.data.rows import Rows
from tailorbird.evaluation.inference.chat_answers import Answer
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits, fetch_answers
from tailorbird.evaluation.inference.row_predictions import label_predictions, text_predictions
from tailorbird.evaluation.inference.suite_answers import generated_positions, suite_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.models.endpoint.client import Body
from tailorbird.models.endpoint.completion import EndpointAnswer
from tailorbird.models.endpoint.prompts import label_of, request_body
from tailorbird.models.loading import load_retrieval_index
from tailorbird.registry.versions import VersionConfig, read_artifact_config
from tailorbird.storage.node_cache import local_copy
from tailorbird.storage.paths import task_of_artifact

if TYPE_CHECKING:
    from tailorbird.models.retrieval.index import RetrievalIndex

NO_LABEL = ""
"""Output for an answer that names no class. No class is empty (see `baselines.endpoint`), so it is
never right."""


def answer_rows_of_endpoint(
    uri: str, *, rows: Rows, limits: RequestLimits
) -> tuple[EndpointAnswer, ...]:
    """Return the answer of the endpoint version or artifact at `uri` to each row; see
    `fetch_answers`."""
    config = read_artifact_config(uri)
    assert config.endpoint is not None
    assert config.prompting is not None
    folder = local_copy(uri)
    index = load_retrieval_index(folder, retrieval=config.prompting.retrieval, device="cpu")
    bodies = request_bodies(rows, version=config, index=index)
    task_uri = task_of_artifact(uri).task_uri
    return fetch_answers(bodies, endpoint=config.endpoint, parent=task_uri, limits=limits)


def predict_endpoint(uri: str, *, rows: Rows, limits: RequestLimits) -> Predictions:
    """Return the predictions of the endpoint version or artifact at `uri`; see `fetch_answers` for
    errors.

    An endpoint returns no log-likelihoods of given texts, so rows of a suite that need them have no
    score. It does not continue the start of an answer, so it gets only the prompt.
    """
    if rows.suite is not None:
        return _suite_predictions(uri, rows=rows, limits=limits)
    answers = answer_rows_of_endpoint(uri, rows=rows, limits=limits)
    return endpoint_predictions(answers, rows=rows, version=read_artifact_config(uri))


def _suite_predictions(uri: str, *, rows: Rows, limits: RequestLimits) -> Predictions:
    positions = generated_positions(rows)
    completions: tuple[EndpointAnswer, ...] = ()
    if positions:
        completions = answer_rows_of_endpoint(uri, rows=rows.take(positions), limits=limits)
    texts = [answer.text for answer in completions]
    confidences = _known([answer.confidence for answer in completions], outputs=texts)
    answers = dict(zip(positions, map(Answer, texts, confidences.tolist()), strict=True))
    return suite_predictions(read_artifact_config(uri).kind, rows=rows, answers=answers)


def request_bodies(
    rows: Rows, *, version: VersionConfig, index: "RetrievalIndex | None"
) -> list[Body]:
    """Return the request of a version for each row, without its response format for rows of a
    suite."""
    if rows.suite is not None and version.prompting is not None:
        free = version.prompting.model_copy(update={"response_format": None})
        version = version.model_copy(update={"prompting": free})
    return [request_body(conversation, version=version, index=index) for conversation in rows.turns]


def endpoint_predictions(
    answers: Sequence[EndpointAnswer], *, rows: Rows, version: VersionConfig
) -> Predictions:
    """Return the predictions of an endpoint from its answers; one without a label or text is wrong.

    Confidences are 0 for such answers without log-probabilities, and NaN for all rows if another
    answer has none. They are not calibrated.
    """
    if version.classes:
        labels = [label_of(answer.text, classes=version.classes) for answer in answers]
        outputs = tuple(label or NO_LABEL for label in labels)
        confidences = _known([answer.probability for answer in answers], outputs=outputs)
        return label_predictions(
            version.kind,
            rows=rows,
            outputs=outputs,
            confidences=confidences,
            calibrated=confidences,
        )
    texts = [answer.text for answer in answers]
    confidences = _known([answer.confidence for answer in answers], outputs=texts)
    return text_predictions(version.kind, rows=rows, outputs=texts, confidences=confidences)


def _known(confidences: Sequence[float | None], *, outputs: Sequence[str]) -> np.ndarray:
    """Return confidences [N], 0 for an empty output without one; NaN for all if another output has
    none."""
    pairs = zip(confidences, outputs, strict=True)
    known = [0.0 if value is None and not output else value for value, output in pairs]
    if None in known:
        return np.full(len(known), np.nan)
    return np.array(known, dtype=np.float64)
