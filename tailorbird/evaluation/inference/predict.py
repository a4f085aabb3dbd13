"""Predict rows with a stored model, using the same forward pass as serving."""

from collections.abc import Sequence

import numpy as np

from tailorbird.data.rows import Rows
from tailorbird.data.splits import normalise
from tailorbird.data.tokenize import encode_texts, label_indices
from tailorbird.evaluation.gates.calibration import fit_temperature
from tailorbird.evaluation.hybrid import apply_routing
from tailorbird.evaluation.inference.chat_answers import answer_texts, reference_likelihoods
from tailorbird.evaluation.inference.device import evaluation_device
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.statistics.text_metrics import TEXT_METRICS, per_row, words_sha256
from tailorbird.models.classifier import logits_rows
from tailorbird.models.loading import LoadedChat, LoadedClassifier, LoadedNearest, load_artifact
from tailorbird.models.temperature import temperature_softmax
from tailorbird.registry.versions import VersionConfig, read_artifact_config, read_parts


def predict_rows(uri: str, *, rows: Rows, on_gpu: bool = False) -> Predictions:
    """Return the predictions of the artifact or version at `uri`, with its kind as `model`.

    They are computed in the dtype of the version. `on_gpu` is true if replicas have GPUs. Raises DeviceError if
    this process then has none.
    """
    device = evaluation_device(on_gpu=on_gpu)
    hybrid = read_artifact_config(uri).hybrid
    if hybrid is not None:
        parts = [ModelPredictions(predict_rows(part.uri, rows=rows, on_gpu=on_gpu)) for part in read_parts(hybrid)]
        return apply_routing(hybrid.routing, incumbent=parts[0], candidate=parts[1]).clean
    loaded = load_artifact(uri, device=device)
    return _predict_labels(loaded, rows) if isinstance(loaded, LoadedClassifier) else _predict_answers(loaded, rows)


def calibrate(uri: str, *, rows: Rows) -> float:
    """Return the temperature that calibrates the classifier at `uri` on validation rows."""
    loaded = load_artifact(uri)
    assert isinstance(loaded, LoadedClassifier), f"{uri} is not a classifier"
    return fit_temperature(class_logits(loaded, rows), labels=label_indices(rows.labels, classes=loaded.classes))


def label_predictions(
    model: str, *, rows: Rows, outputs: tuple[str, ...], confidences: np.ndarray, calibrated: np.ndarray
) -> Predictions:
    """Return a classifier's outputs as predictions; the score is 1 if the output equals the label, else 0."""
    scores = np.array([a == b for a, b in zip(outputs, rows.labels, strict=True)], dtype=np.float64)
    return Predictions(
        model=model,
        row_ids=rows.row_ids,
        labels=rows.labels,
        outputs=outputs,
        scores=scores,
        confidences=confidences.astype(np.float64),
        calibrated=calibrated.astype(np.float64),
        groups=rows.groups,
        clusters=_documents(rows),
    )


def _predict_labels(loaded: LoadedClassifier[VersionConfig], rows: Rows) -> Predictions:
    logits = class_logits(loaded, rows)
    before, after = (
        temperature_softmax(logits, temperature=temperature) for temperature in (1.0, loaded.version.temperature)
    )
    outputs = tuple(loaded.classes[index] for index in logits.argmax(1))
    kind = loaded.version.kind
    return label_predictions(kind, rows=rows, outputs=outputs, confidences=before.max(1), calibrated=after.max(1))


def _predict_answers(loaded: LoadedChat[VersionConfig] | LoadedNearest[VersionConfig], rows: Rows) -> Predictions:
    """Return a chat version's answers as scores and hashes, because the evidence must not contain texts.

    The kind `nearest` has no log-likelihoods, because it has no language model.
    """
    answers = answer_texts(loaded, rows)
    outputs = [answer.text for answer in answers]
    scores = {name: per_row(name, outputs=outputs, references=rows.labels) for name in TEXT_METRICS}
    measures = {name: values for name, values in scores.items() if name != "exact_match"}
    if isinstance(loaded, LoadedChat):
        measures["log_likelihood"] = np.array(reference_likelihoods(loaded, rows), dtype=np.float64)
    confidences = np.array([answer.confidence for answer in answers], dtype=np.float64)
    return Predictions(
        model=loaded.version.kind,
        row_ids=rows.row_ids,
        labels=tuple(words_sha256(text) for text in rows.labels),
        outputs=tuple(words_sha256(text) for text in outputs),
        scores=scores["exact_match"],
        confidences=confidences,
        calibrated=confidences,
        groups=rows.groups,
        measures=measures,
        clusters=_documents(rows),
        logprobs=tuple(answer.logprobs for answer in answers) if isinstance(loaded, LoadedChat) else None,
    )


def _documents(rows: Rows) -> tuple[str, ...] | None:
    """Return the document number of each row; rows with the same `split_by` value share a document.

    Without `split_by`, rows with the same text share a document; the result is None if all texts differ. Documents are
    numbered because `split_by` values may identify a person.
    """
    keys: Sequence[str] | None = rows.split_keys
    if keys is None:
        keys = [normalise(text) for text in rows.texts]
        if len(set(keys)) == len(keys):
            return None
    numbers = {key: str(number) for number, key in enumerate(dict.fromkeys(keys))}
    return tuple(numbers[key] for key in keys)


def class_logits(loaded: LoadedClassifier[VersionConfig], rows: Rows) -> np.ndarray:
    """Return the classifier's logits [N, L] for rows."""
    logits = np.zeros((len(rows), len(loaded.classes)), dtype=np.float32)
    if loaded.model is not None and loaded.tokenizer is not None:
        tokens = encode_texts(rows.texts, tokenizer=loaded.tokenizer, max_length=loaded.max_length)
        logits += logits_rows(loaded.model, tokens, pad_id=int(loaded.tokenizer.pad_token_id))
    if loaded.bag is not None:
        logits += loaded.bag.logits(rows.texts)
    return logits
