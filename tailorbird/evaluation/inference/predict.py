"""Predictions of a model on a split's rows, by the forward pass that serving uses too."""

from collections.abc import Sequence

import numpy as np

from tailorbird import storage
from tailorbird.data.rows import Rows
from tailorbird.data.splits import normalise
from tailorbird.data.tokenize import encode_texts, label_indices
from tailorbird.evaluation.gates.calibration import fit_temperature
from tailorbird.evaluation.hybrid import routed
from tailorbird.evaluation.inference.chat_answers import answer_rows, reference_likelihoods
from tailorbird.evaluation.predictions import Predictions, Side
from tailorbird.evaluation.statistics.text_metrics import TEXT_METRICS, per_row, words_sha256
from tailorbird.models.classifier import logits_rows, probabilities
from tailorbird.models.loading import LoadedModel, load_artifact, load_chat
from tailorbird.models.temperature import softened
from tailorbird.registry.versions import VersionConfig, read_parts


def predict_rows(uri: str, *, rows: Rows) -> Predictions:
    """What the artifact or version at `uri` answers, a hybrid by its routing; `model` is its kind."""
    config = VersionConfig.model_validate(storage.read_json(f"{uri}/config.json"))
    if config.prompting is not None:
        return _predict_chat(uri, rows=rows)
    if config.hybrid is not None:
        parts = [Side(_predict(part.uri, rows=rows)) for part in read_parts(config.hybrid)]
        return routed(config.hybrid.routing, incumbent=parts[0], candidate=parts[1]).clean
    return _predict(uri, rows=rows)


def calibrate(uri: str, *, rows: Rows) -> float:
    """The temperature that the artifact's answers on validation rows ask for."""
    loaded, logits = _logits(uri, rows)
    return fit_temperature(logits, labels=label_indices(rows.labels, classes=loaded.classes))


def predictions(
    model: str, *, rows: Rows, outputs: tuple[str, ...], confidences: np.ndarray, calibrated: np.ndarray
) -> Predictions:
    """The table of a model's outputs on rows, each scored 1 where it is the label."""
    right = np.array([a == b for a, b in zip(outputs, rows.labels, strict=True)], dtype=np.float64)
    return Predictions(
        model=model,
        row_ids=rows.row_ids,
        labels=rows.labels,
        outputs=outputs,
        scores=right,
        confidences=confidences.astype(np.float64),
        calibrated=calibrated.astype(np.float64),
        groups=rows.groups,
        clusters=_documents(rows),
    )


def _predict(uri: str, *, rows: Rows) -> Predictions:
    loaded, logits = _logits(uri, rows)
    before, after = probabilities(logits), softened(logits, temperature=loaded.version.temperature)
    outputs = tuple(loaded.classes[index] for index in logits.argmax(1))
    kind = loaded.version.kind
    return predictions(kind, rows=rows, outputs=outputs, confidences=before.max(1), calibrated=after.max(1))


def _predict_chat(uri: str, *, rows: Rows) -> Predictions:
    """The answers' scores and hashes: what a model said, and was to say, stays out of the evidence."""
    loaded = load_chat(uri)
    answers = answer_rows(loaded.model, rows, tokenizer=loaded.tokenizer, prompting=loaded.prompting)
    outputs = [answer.text for answer in answers]
    likelihoods = reference_likelihoods(loaded.model, rows, tokenizer=loaded.tokenizer, prompting=loaded.prompting)
    scores = {name: per_row(name, outputs=outputs, references=rows.labels) for name in TEXT_METRICS}
    confidences = np.array([answer.confidence for answer in answers], dtype=np.float64)
    return Predictions(
        model=loaded.version.kind,
        row_ids=rows.row_ids,
        labels=tuple(words_sha256(text) for text in rows.labels),
        outputs=tuple(words_sha256(text) for text in outputs),
        scores=scores.pop("exact_match"),
        confidences=confidences,
        calibrated=confidences,
        groups=rows.groups,
        measures=scores | {"log_likelihood": np.array(likelihoods, dtype=np.float64)},
        clusters=_documents(rows),
    )


def _documents(rows: Rows) -> tuple[str, ...] | None:
    """What each row shares with others, by number, for it may be a patient: its `split_by`, or else its text where one
    occurs more than once. None where nothing is shared."""
    keys: Sequence[str] | None = rows.split_keys
    if keys is None:
        keys = [normalise(text) for text in rows.texts]
        if len(set(keys)) == len(keys):
            return None
    numbers = {key: str(number) for number, key in enumerate(dict.fromkeys(keys))}
    return tuple(numbers[key] for key in keys)


def _logits(uri: str, rows: Rows) -> tuple[LoadedModel[VersionConfig], np.ndarray]:
    loaded = load_artifact(uri)
    tokens = encode_texts(rows.texts, tokenizer=loaded.tokenizer, max_length=loaded.max_length)
    return loaded, logits_rows(loaded.model, tokens, pad_id=int(loaded.tokenizer.pad_token_id))
