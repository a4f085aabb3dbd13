"""Turn the outputs of a model for rows into predictions."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from tailorbird.data.answers import answer_metrics
from tailorbird.data.copies import documents
from tailorbird.data.rows import Rows
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.answer_metrics import per_row
from tailorbird.evaluation.statistics.text_metrics import TEXT_METRICS, words_sha256


def label_predictions(
    model: str,
    *,
    rows: Rows,
    outputs: tuple[str, ...],
    confidences: np.ndarray,
    calibrated: np.ndarray,
) -> Predictions:
    """Return a classifier's outputs as predictions; the score is 1 if the output equals the label,
    else 0."""
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
        clusters=documents(rows),
    )


def text_predictions(
    model: str,
    *,
    rows: Rows,
    outputs: Sequence[str],
    confidences: np.ndarray,
    logprobs: tuple[tuple[float, ...], ...] | None = None,
) -> Predictions:
    """Return the answers of a chat model as scores and hashes, because the evidence must not
    contain texts.

    The scores are those of `TEXT_METRICS` and of the metrics that `rows.answers` configures, whose
    errors are those of `AnswerMetric`. `logprobs` are those of the tokens of each answer, if the
    model has them.
    """
    score = partial(per_row, outputs=outputs, references=rows.labels, config=rows.answers)
    names = (*TEXT_METRICS, *answer_metrics(rows.answers))
    measures = {name: score(name) for name in names if name != "exact_match"}
    return Predictions(
        model=model,
        row_ids=rows.row_ids,
        labels=tuple(words_sha256(text) for text in rows.labels),
        outputs=tuple(words_sha256(text) for text in outputs),
        scores=score("exact_match"),
        confidences=confidences,
        calibrated=confidences,
        groups=rows.groups,
        measures=measures,
        clusters=documents(rows),
        logprobs=logprobs,
    )
