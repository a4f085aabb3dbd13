"""The ladder: what the pretrained model can do untouched, each rung judged on validation."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from tailorbird.data.rows import Rows
from tailorbird.data.tokenize import encode_texts, label_indices, load_tokenizer
from tailorbird.evaluation.baselines.tfidf import fit_reference, majority
from tailorbird.evaluation.gates.calibration import fit_temperature
from tailorbird.evaluation.statistics.scoring import score_of
from tailorbird.models.classifier import Classifier, embed_rows, zero_head
from tailorbird.models.loading import default_device, inference_dtype, load_encoder
from tailorbird.storage.node_cache import local_copy

PROBE_C = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Inverse regularisation strengths tried on validation."""
COSINE_SCALE = 20.0
"""Cosine similarities, at most 1, times this are the logits of zero-shot and centroid."""


@dataclass(frozen=True)
class Rung:
    """A baseline and its score on the validation rows, by the recipe's metric."""

    kind: str
    validation: float
    servable: bool
    note: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Head:
    """Weight [L, D] and bias [L] of a linear head on the mean-pooled embedding."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __post_init__(self) -> None:
        for name in (
            "weight",
            "bias",
        ):  # safetensors writes memory as it lies; scikit-learn's is by column
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float32))

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, D] -> [N, L]."""
        return np.asarray(embeddings @ self.weight.T + self.bias, dtype=np.float32)

    def score(self, embeddings: NDArray[np.float32], labels: NDArray[np.int64], *, metric: str) -> float:
        return score_of(metric, labels=labels, outputs=self.logits(embeddings).argmax(1))


@dataclass(frozen=True)
class Ladder:
    """Every rung, and the heads of the servable ones by kind, with the temperature that validation gives each."""

    rungs: tuple[Rung, ...]
    heads: dict[str, Head]
    temperatures: dict[str, float]


def climb(
    base_model: str,
    *,
    train: Rows,
    validation: Rows,
    classes: tuple[str, ...],
    max_length: int,
    shots: int,
    seed: int,
    metric: str,
) -> Ladder:
    """Fits the ladder on the training rows; what has to be chosen is chosen on validation, by the metric.

    `base_model` is the URI of the staged base model, `shots` the examples a class of the centroid.
    """
    base = local_copy(base_model)
    tokenizer = load_tokenizer(base)
    encoder = load_encoder(base, dtype=inference_dtype()).to(default_device())
    width = int(encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]
    model = Classifier(encoder, zero_head(width, 1).to(default_device()))

    def embedded(texts: tuple[str, ...]) -> NDArray[np.float32]:
        tokens = encode_texts(texts, tokenizer=tokenizer, max_length=max_length)
        return embed_rows(model, tokens, pad_id=int(tokenizer.pad_token_id))

    features, labels = embedded(train.texts), label_indices(train.labels, classes=classes)
    held_out, truth = embedded(validation.texts), label_indices(validation.labels, classes=classes)
    probe, probe_note = fit_probe(features, labels, held_out=held_out, truth=truth, metric=metric)
    heads = {
        "zero_shot": cosine_head(embedded(classes), features),
        "centroid": cosine_head(centroids(features, labels, shots=shots, seed=seed), features),
        "probe": probe,
    }
    notes = {"zero_shot": "label names", "centroid": f"{shots} examples a class", "probe": probe_note}
    reference = fit_reference(
        train.texts,
        train.labels,
        validation_texts=validation.texts,
        validation_labels=validation.labels,
        metric=metric,
    )
    most, _ = majority(train.labels)
    always = score_of(metric, labels=validation.labels, outputs=[most] * len(validation))
    rungs = [Rung("majority", always, False, f"always {most}")]
    rungs += [Rung(kind, head.score(held_out, truth, metric=metric), True, notes[kind]) for kind, head in heads.items()]
    said, _ = reference.predict(validation.texts)
    right = score_of(metric, labels=validation.labels, outputs=said)
    rungs.append(Rung("tf_idf", right, False, "bag of words, no neural model"))
    temperatures = {kind: fit_temperature(head.logits(held_out), labels=truth) for kind, head in heads.items()}
    return Ladder(tuple(rungs), heads, temperatures)


def cosine_head(directions: NDArray[np.float32], features: NDArray[np.float32]) -> Head:
    """A head whose logits are cosine similarities to `directions` [L, D], scaled by the mean length of `features`."""
    length = float(np.linalg.norm(features, axis=1).mean())
    return Head(unit(directions) * np.float32(COSINE_SCALE / length), np.zeros(len(directions), dtype=np.float32))


def centroids(
    features: NDArray[np.float32], labels: NDArray[np.int64], *, shots: int, seed: int
) -> NDArray[np.float32]:
    """Mean direction [L, D] of up to `shots` random examples of each class."""
    generator = np.random.default_rng(seed)
    picked = [
        generator.permutation(np.flatnonzero(labels == number))[:shots] for number in range(int(labels.max()) + 1)
    ]
    return np.stack([unit(features[rows]).mean(0) for rows in picked]).astype(np.float32)


def fit_probe(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    held_out: NDArray[np.float32],
    truth: NDArray[np.int64],
    metric: str = "accuracy",
) -> tuple[Head, str]:
    """Logistic regression on frozen embeddings, its regularisation chosen on the held-out rows."""
    best: tuple[float, Head, str] | None = None
    for strength in PROBE_C:
        fitted = LogisticRegression(C=strength, max_iter=1000).fit(features, labels)
        head = _as_head(fitted, num_classes=int(labels.max()) + 1)
        score = head.score(held_out, truth, metric=metric)
        if best is None or score > best[0]:
            best = score, head, f"C = {strength:g}"
    assert best is not None  # PROBE_C is not empty
    return best[1], best[2]


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _as_head(fitted: LogisticRegression, *, num_classes: int) -> Head:
    weight, bias = fitted.coef_, fitted.intercept_
    if num_classes == 2:  # scikit-learn keeps one row for two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Head(weight, bias)
