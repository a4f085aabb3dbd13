"""Predict texts with classifiers."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from serving.http.schemas import ClassifyRequest
from tailorbird.models.decision import at_index, temperature_softmax
from tailorbird.registry.hybrid_routing import PartName, Routing

if TYPE_CHECKING:
    from tailorbird.models.loading import LoadedClassifier
    from tailorbird.registry.versions import ModelVersion


TokenLists = Sequence[Sequence[int]]  # token ids of texts


class Prediction(NamedTuple):
    """The prediction of one text."""

    label: str
    score: float
    """Probability of the label, after temperature scaling; NaN if an endpoint does not return
    it."""
    scores: np.ndarray
    """Probabilities of all classes of the model that answered, [L]; empty for an endpoint."""
    answered_by: PartName | None = None
    """The part of a hybrid that answered; None for other versions."""
    is_fallback: bool = False
    """True if the other part of the hybrid should have answered, but failed."""
    reported_model: str | None = None
    """The model that an endpoint reported; None for models of this service."""
    classes: tuple[str, ...] = ()
    """Classes of `scores`: those of the model that answered."""

    @property
    def known_score(self) -> float | None:
        """Return the score, or None if it is not known."""
        if math.isnan(self.score):
            return None
        return self.score


def predict_texts(
    loaded: "LoadedClassifier[ModelVersion]",
    texts: Sequence[str],
    *,
    batch_size: int,
    tokens: TokenLists | None = None,
) -> list[Prediction]:
    """Return the predictions of texts, in order, with the tokenization and the forward pass of the
    evaluation.

    `tokens` are the tokens of the texts, if they are known.
    """
    return _predictions(loaded, loaded.logits(texts, batch_size=batch_size, tokens=tokens))


def _predictions(loaded: "LoadedClassifier[ModelVersion]", logits: np.ndarray) -> list[Prediction]:
    """Return the predictions of one model's logits [N, L]."""
    scores = temperature_softmax(logits, temperature=loaded.version.temperature)
    # Not from `scores`: they can be rounded to ties.
    answers = logits.argmax(axis=-1)
    answer_scores = at_index(scores, answers)
    return [
        Prediction(loaded.classes[index], score, row, classes=loaded.classes)
        for index, score, row in zip(answers.tolist(), answer_scores.tolist(), scores, strict=True)
    ]


def hybrid_rows(routing: Routing, request: ClassifyRequest) -> list[tuple[str, str | None]]:
    """Return each text with the value of its routing attribute; None if it has none, or for a
    cascade."""
    texts = request.texts
    attributes = request.attributes
    if attributes is None or routing.column is None:
        return [(text, None) for text in texts]
    if isinstance(attributes, list):
        by_text = attributes
    else:
        by_text = [attributes] * len(texts)
    return [(text, values.get(routing.column)) for text, values in zip(texts, by_text, strict=True)]


def scores_by_class(prediction: Prediction, *, classes: Sequence[str]) -> dict[str, float]:
    """Return the probability of each of a version's classes. It is 0 for a class that a hybrid's
    part does not have."""
    scores = dict(zip(prediction.classes, prediction.scores.tolist(), strict=True))
    return dict.fromkeys(classes, 0.0) | scores
