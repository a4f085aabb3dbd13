"""Baselines for classification: heads on the pretrained encoder, majority and TF-IDF."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from sklearn.linear_model import LogisticRegression

from tailorbird import storage
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.rows import Rows
from tailorbird.data.tokenize import encode_texts, label_indices, labels_of, load_tokenizer
from tailorbird.evaluation.baselines import tfidf
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.gates.calibration import fit_temperature
from tailorbird.evaluation.statistics.scoring import score_of
from tailorbird.models.classifier import Classifier, embed_rows, zero_head
from tailorbird.models.loading import default_device, inference_dtype, load_encoder
from tailorbird.registry.versions import VersionConfig, write_artifact_config
from tailorbird.storage.node_cache import local_copy

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

PROBE_C = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # inverse regularisation strengths that are tried on validation
COSINE_SCALE = 20.0  # factor from cosine similarities to the logits of zero-shot and centroid


@dataclass(frozen=True)
class Head:
    """The weight [L, D] and bias [L] of a linear head on the mean-pooled embedding."""

    weight: FloatArray
    bias: FloatArray

    def __post_init__(self) -> None:
        for name in ("weight", "bias"):  # safetensors stores raw memory, but scikit-learn's arrays are column-major
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float32))

    def logits(self, embeddings: FloatArray) -> FloatArray:
        """Return logits [N, L] of embeddings [N, D]."""
        return np.asarray(embeddings @ self.weight.T + self.bias, dtype=np.float32)

    def score(self, embeddings: FloatArray, labels: IntArray, *, metric: str) -> float:
        return score_of(metric, labels=labels, outputs=self.logits(embeddings).argmax(1))


@dataclass(frozen=True)
class BaselineResults:
    """Fitted baselines before they are stored, so without URIs."""

    baselines: tuple[Baseline, ...]
    heads: dict[str, Head]  # heads of the servable baselines by kind
    temperatures: dict[str, float]  # temperatures of these heads by kind, fitted on validation
    tfidf: tfidf.TfidfBaseline


def fit_baselines(
    base_model: str, *, train: Rows, validation: Rows, max_length: int, config: EvaluationConfig, seed: int
) -> BaselineResults:
    """Fit all baselines on the training rows; select their settings on validation by `config.metric`."""
    base, classes, metric = local_copy(base_model), labels_of(train.labels), config.metric
    tokenizer = load_tokenizer(base)
    encoder = load_encoder(base, dtype=inference_dtype()).to(default_device())
    width = int(encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]
    model = Classifier(encoder, zero_head(width, 1).to(default_device()))

    def embed(texts: tuple[str, ...]) -> FloatArray:
        tokens = encode_texts(texts, tokenizer=tokenizer, max_length=max_length)
        return embed_rows(model, tokens, pad_id=int(tokenizer.pad_token_id))

    features, labels = embed(train.texts), label_indices(train.labels, classes=classes)
    held_out, truth = embed(validation.texts), label_indices(validation.labels, classes=classes)
    probe, probe_note = fit_probe(features, labels, held_out=held_out, truth=truth, metric=metric)
    directions = centroids(features, labels, shots=config.centroid_shots, seed=seed)
    zero_shot, centroid = (cosine_head(vectors, features) for vectors in (embed(classes), directions))
    heads = {"zero_shot": zero_shot, "centroid": centroid, "probe": probe}
    notes = {"zero_shot": "label names", "centroid": f"{config.centroid_shots} examples per class", "probe": probe_note}
    bag_of_words = tfidf.fit_tfidf(train, validation=validation, metric=metric)
    most_frequent, _ = tfidf.majority(train.labels)

    def score(outputs: Sequence[str]) -> float:
        return score_of(metric, labels=validation.labels, outputs=outputs)

    scores = {kind: head.score(held_out, truth, metric=metric) for kind, head in heads.items()}
    baselines = (
        Baseline("majority", None, score([most_frequent] * len(validation)), False, f"always {most_frequent}"),
        *(Baseline(kind, None, scores[kind], True, notes[kind]) for kind in heads),
        Baseline(tfidf.KIND, None, score(bag_of_words.predict(validation.texts)[0]), False, tfidf.NOTE),
    )
    temperatures = {kind: fit_temperature(head.logits(held_out), labels=truth) for kind, head in heads.items()}
    return BaselineResults(baselines, heads, temperatures, bag_of_words)


def store_baselines(uri: str, results: BaselineResults, *, config: VersionConfig) -> tuple[Baseline, ...]:
    """Write each baseline with weights to `uri`/<kind>; return all baselines with their URIs.

    Servable baselines become loadable artifacts; `config` supplies all fields except kind and temperature.
    """
    for kind, head in results.heads.items():
        named = config.model_copy(update={"kind": kind, "temperature": results.temperatures[kind]})
        storage.write_bytes(f"{uri}/{kind}/head.safetensors", save({"weight": head.weight, "bias": head.bias}))
        write_artifact_config(f"{uri}/{kind}", named)
    tfidf.save_tfidf(f"{uri}/{tfidf.KIND}", results.tfidf)
    uris = {kind: f"{uri}/{kind}" for kind in (*results.heads, tfidf.KIND)}
    return tuple(replace(baseline, uri=uris.get(baseline.kind)) for baseline in results.baselines)


def cosine_head(directions: FloatArray, features: FloatArray) -> Head:
    """Return a head of cosine similarities to `directions` [L, D], scaled by the mean length of `features`."""
    length = float(np.linalg.norm(features, axis=1).mean())
    return Head(unit(directions) * np.float32(COSINE_SCALE / length), np.zeros(len(directions), dtype=np.float32))


def centroids(features: FloatArray, labels: IntArray, *, shots: int, seed: int) -> FloatArray:
    """Return the mean direction [L, D] of up to `shots` random examples of each class."""
    generator = np.random.default_rng(seed)
    examples = [generator.permutation(np.flatnonzero(labels == label))[:shots] for label in range(labels.max() + 1)]
    return np.stack([unit(features[rows]).mean(0) for rows in examples]).astype(np.float32)


def fit_probe(
    features: FloatArray, labels: IntArray, *, held_out: FloatArray, truth: IntArray, metric: str = "accuracy"
) -> tuple[Head, str]:
    """Fit logistic regression on frozen embeddings and select C on the held-out rows; return the head and a note."""
    best: tuple[float, Head, str] | None = None
    for strength in PROBE_C:
        fitted = LogisticRegression(C=strength, max_iter=1000).fit(features, labels)
        weight, bias = fitted.coef_, fitted.intercept_
        if len(bias) == 1:  # scikit-learn has a single row for two classes
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        head = Head(weight, bias)
        score = head.score(held_out, truth, metric=metric)
        if best is None or score > best[0]:
            best = score, head, f"C = {strength:g}"
    assert best is not None  # PROBE_C is not empty
    return best[1], best[2]


def unit(vectors: FloatArray) -> FloatArray:
    """Return the rows scaled to length 1."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)
