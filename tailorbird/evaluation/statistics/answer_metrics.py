"""Scores of answers against references, in a metric of texts or of structured answers."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.answers import AnswersConfig
from tailorbird.data.answers import answer_metrics
from tailorbird.evaluation.statistics.text_metrics import TEXT_METRICS


def scorer(metric: str, *, config: AnswersConfig | None = None) -> Callable[[str, str], float]:
    """Return the function that scores an answer against a reference, from 0 to 1; it raises
    ValueError as per_row."""
    return (TEXT_METRICS | answer_metrics(config))[metric]


def per_row(
    metric: str,
    *,
    outputs: Sequence[str],
    references: Sequence[str],
    config: AnswersConfig | None = None,
) -> NDArray[np.float64]:
    """Return the score of each answer [N] against its reference [N], in a metric of `TEXT_METRICS`
    or of `config`."""
    score = scorer(metric, config=config)
    return np.array(
        [score(output, reference) for output, reference in zip(outputs, references, strict=True)],
        dtype=np.float64,
    )
