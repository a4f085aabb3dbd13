"""Predict rows with a stored model, using the same forward pass as serving."""

from dataclasses import dataclass

import numpy as np

from tailorbird.data.copies import documents
from tailorbird.data.rows import Rows
from tailorbird.data.tokenize import label_indices
from tailorbird.evaluation.gates.calibration import fit_temperature
from tailorbird.evaluation.inference.chat_answers import answer_texts
from tailorbird.evaluation.inference.device import evaluation_device
from tailorbird.evaluation.inference.endpoint_predictions import predict_endpoint
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.evaluation.inference.hybrid_rows import predict_hybrid
from tailorbird.evaluation.inference.row_predictions import label_predictions, text_predictions
from tailorbird.evaluation.inference.suite_answers import predict_suite
from tailorbird.evaluation.offsets import fit_offsets
from tailorbird.evaluation.predictions import Predictions
from tailorbird.models.decision import at_index, temperature_softmax
from tailorbird.models.loading import LoadedChat, LoadedClassifier, load_artifact
from tailorbird.registry.hybrid_routing import PARTS, PartName
from tailorbird.registry.versions import VersionConfig, read_artifact_config, read_parts


def predict_rows(
    uri: str, *, rows: Rows, on_gpu: bool = False, limits: RequestLimits | None = None
) -> Predictions:
    """Return the predictions of the artifact or version at `uri`, with its kind as `model`.

    They are computed in the dtype of the version. `on_gpu` is true if replicas have GPUs. Raises
    DeviceError if this process then has none. This process sends the requests to an external
    endpoint, within `limits`; see `fetch_answers` for errors.
    """
    config = read_artifact_config(uri)
    if config.endpoint is not None:
        limits = limits or RequestLimits()
        return predict_endpoint(uri, rows=rows, limits=limits)
    device = evaluation_device(on_gpu=on_gpu)
    if config.hybrid is not None:
        parts = dict(zip(PARTS, read_parts(config.hybrid), strict=True))

        def predict(name: PartName, rows: Rows) -> Predictions:
            return predict_rows(parts[name].uri, rows=rows, on_gpu=on_gpu, limits=limits)

        return predict_hybrid(config.hybrid.routing, rows=rows, predict=predict)
    loaded = load_artifact(uri, device=device)
    if isinstance(loaded, LoadedClassifier):
        return _predict_labels(loaded, rows)
    return _predict_answers(loaded, rows)


@dataclass(frozen=True)
class DecisionFit:
    """From the logits of a classifier to its answers, as fitted on validation."""

    temperature: float
    offsets: tuple[float, ...]
    validation: float  # score of the validation rows; see `OffsetFit.score`


def fit_decision(uri: str, *, rows: Rows, metric: str) -> DecisionFit:
    """Return the temperature and the offsets of the classifier at `uri`, fitted on validation
    rows."""
    loaded = load_artifact(uri)
    assert isinstance(loaded, LoadedClassifier), f"{uri} is not a classifier"
    logits = loaded.unshifted_logits(rows.texts)
    truth = label_indices(rows.labels, classes=loaded.classes)
    fitted = fit_offsets(logits, truth=truth, metric=metric, documents=documents(rows))
    temperature = fit_temperature(fitted.held_out_logits, labels=truth)
    return DecisionFit(temperature, fitted.offsets, fitted.score)


def _predict_labels(loaded: LoadedClassifier[VersionConfig], rows: Rows) -> Predictions:
    logits = loaded.logits(rows.texts)
    answers = logits.argmax(axis=-1)
    before = at_index(temperature_softmax(logits, temperature=1.0), answers)
    after = at_index(temperature_softmax(logits, temperature=loaded.version.temperature), answers)
    outputs = tuple(loaded.classes[index] for index in answers)
    return label_predictions(
        loaded.version.kind, rows=rows, outputs=outputs, confidences=before, calibrated=after
    )


def _predict_answers(loaded: LoadedChat[VersionConfig], rows: Rows) -> Predictions:
    """Return a chat version's predictions. The kind `nearest` has no log-probabilities: it has no
    language model."""
    if rows.suite is not None:
        return predict_suite(loaded, rows)
    answers = answer_texts(loaded, rows)
    logprobs = None
    if loaded.model is not None:
        logprobs = tuple(answer.logprobs for answer in answers)
    return text_predictions(
        loaded.version.kind,
        rows=rows,
        outputs=[answer.text for answer in answers],
        confidences=np.array([answer.confidence for answer in answers], dtype=np.float64),
        logprobs=logprobs,
    )
