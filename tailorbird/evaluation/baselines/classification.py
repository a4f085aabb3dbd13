"""Baselines for classification: majority, and linear heads on embeddings, on a bag of words, and on both."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from safetensors.numpy import save

from cluster.progress import current_progress
from tailorbird import storage
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.rows import Rows
from tailorbird.data.tokenize import encode_texts, label_indices, labels_of, load_tokenizer
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.baselines.linear_head import LOGISTIC, SVM, Fit, Head, HeadData, best_of, fit_linear
from tailorbird.evaluation.baselines.linear_solver import FloatArray, IntArray
from tailorbird.evaluation.gates.calibration import fit_temperature
from tailorbird.evaluation.statistics.scoring import score_of
from tailorbird.models.bag_of_words import BagOfWords, bag_files, fit_vectorizers, stack_blocks
from tailorbird.models.classifier import Classifier, embed_rows, zero_head
from tailorbird.models.pooling.declared import read_pooling
from tailorbird.models.pretrained import default_device, dtype_name, inference_dtype, load_encoder
from tailorbird.registry.pooling import Pooling
from tailorbird.registry.versions import Dtype, Kind, VersionConfig, write_artifact_config
from tailorbird.storage.node_cache import local_copy

PROBE_C = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Inverse regularisation strengths that are tried on validation, on embeddings whose mean length is 1."""
BAG_C = {LOGISTIC: (3.0, 10.0, 30.0), SVM: (0.3, 1.0)}  # the same on a bag of words, by kind of linear model
EMBEDDING_WEIGHTS = (0.5, 1.0, 2.0)  # factors of the embedding next to a bag of words
COSINE_SCALE = 20.0  # factor from cosine similarities to the logits of zero-shot and centroid


@dataclass(frozen=True)
class BaselineResults:
    """Fitted baselines, before they are stored. They have no URIs."""

    baselines: tuple[Baseline, ...]
    heads: dict[str, Head]  # heads on the embedding by kind
    bags: dict[str, BagOfWords]  # bags of words by kind
    temperatures: dict[str, float]  # temperatures of the servable baselines by kind, fitted on validation
    dtype: Dtype  # precision of the encoder in this process
    pooling: Pooling  # that the encoder declares


def fit_baselines(
    base_model: str, *, train: Rows, validation: Rows, max_length: int, config: EvaluationConfig, seed: int
) -> BaselineResults:
    """Fit all baselines on the training rows, and select their settings on validation by `config.metric`.

    Each text is embedded once. Raises ValueError if train has a single class or no text with a word or a character, or
    if validation is empty.
    """
    classes, metric = labels_of(train.labels), config.metric
    if len(classes) < 2:
        raise ValueError(f"a classifier needs two classes, but train has {list(classes)}; check data.label")
    if not len(validation):
        raise ValueError("validation has no rows; the baselines need validation rows to select their settings")
    progress = current_progress()
    most_frequent, _ = majority(train.labels)
    always = score_of(metric, labels=validation.labels, outputs=[most_frequent] * len(validation))
    baselines = {"majority": Baseline("majority", None, always, False, f"always {most_frequent}")}
    progress.score("majority", always, baselines["majority"].note)
    labels, truth = (label_indices(rows.labels, classes=classes) for rows in (train, validation))
    logits: dict[str, FloatArray] = {}

    def add(kind: Kind, values: FloatArray, note: str) -> None:
        """Add a servable baseline with its logits [N, L] for the held-out rows, and report its score."""
        logits[kind] = values
        score = score_of(metric, labels=truth, outputs=values.argmax(1))
        baselines[kind] = Baseline(kind, None, score, True, note)
        progress.score(kind, score, note)

    progress.activity("embedding the training and validation rows")
    features, held_out, names = embed_texts(base_model, train.texts, validation.texts, classes, max_length=max_length)
    directions = centroids(features, labels, shots=config.centroid_shots, seed=seed)
    zero_shot, centroid = (cosine_head(vectors, features) for vectors in (names, directions))
    add("zero_shot", zero_shot.logits(held_out), "label names")
    add("centroid", centroid.logits(held_out), f"{config.centroid_shots} examples per class")
    progress.activity("fitting linear heads")
    vectorizers, terms = fit_vectorizers(train.texts, num_classes=len(classes))
    held_out_terms = stack_blocks(vectorizer.transform(list(validation.texts)) for vectorizer in vectorizers.values())
    data = HeadData((terms,), labels, (held_out_terms,), truth, metric)
    bag = fit_bag(data)
    add("bag_of_words", bag.logits, bag.note())
    probe = fit_probe(features, labels, held_out=held_out, truth=truth, metric=metric)
    add("probe", probe.logits, probe.note())
    both = fit_with_embeddings(data, embeddings=unit(features), held_out_embeddings=unit(held_out), alone=bag)
    add("probe_bag", both.logits, both.note())
    heads = {
        "zero_shot": zero_shot,
        "centroid": centroid,
        "probe": Head(probe.weights[0].T, probe.bias),
        "probe_bag": Head(both.weights[0].T * np.float32(both.embedding_weight), both.bias),
    }
    bags = {
        "bag_of_words": BagOfWords(vectorizers, bag.weights[0], bag.bias),
        "probe_bag": BagOfWords(vectorizers, both.weights[1], np.zeros_like(both.bias)),
    }
    temperatures = {kind: fit_temperature(values, labels=truth) for kind, values in logits.items()}
    pooling = read_pooling(base_model, purpose="classification")
    return BaselineResults(tuple(baselines.values()), heads, bags, temperatures, dtype_name(), pooling)


def store_baselines(uri: str, results: BaselineResults, *, config: VersionConfig) -> tuple[Baseline, ...]:
    """Write each servable baseline as a loadable artifact to `uri`/<kind>; return all baselines with their URIs.

    `config` supplies all fields except kind, temperature, pooling and the dtype of `bag_of_words`.
    """
    for kind, temperature in results.temperatures.items():
        files = bag_files(results.bags[kind]) if kind in results.bags else {}
        if kind in results.heads:
            head = results.heads[kind]
            files["head.safetensors"] = save({"weight": head.weight, "bias": head.bias})
        for name, content in files.items():
            storage.write_bytes(f"{uri}/{kind}/{name}", content)
        changes: dict[str, object] = {"kind": kind, "temperature": temperature, "pooling": results.pooling}
        if kind == "bag_of_words":
            changes["dtype"] = "float32"  # it has no encoder, and the linear head computes in float32 on every device
        write_artifact_config(f"{uri}/{kind}", config.model_copy(update=changes))
    uris = {kind: f"{uri}/{kind}" for kind in results.temperatures}
    return tuple(replace(baseline, uri=uris.get(baseline.kind)) for baseline in results.baselines)


def embed_texts(base_model: str, *texts: Sequence[str], max_length: int) -> tuple[FloatArray, ...]:
    """Return the embeddings [N, D] of each sequence of texts by the pretrained encoder, with its own pooling."""
    base = local_copy(base_model)
    pooling = read_pooling(base.as_uri(), purpose="classification")
    tokenizer = load_tokenizer(base)
    encoder = load_encoder(base, dtype=inference_dtype()).to(default_device())
    width = int(encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]
    model = Classifier(encoder, zero_head(width, 1).to(default_device()), pooling=pooling)
    tokens = (encode_texts(part, tokenizer=tokenizer, max_length=max_length, prompt=pooling.prompt) for part in texts)
    return tuple(embed_rows(model, part, pad_id=int(tokenizer.pad_token_id)) for part in tokens)


def majority(train_labels: Sequence[str]) -> tuple[str, float]:
    """Return the most frequent training label and its share. In a tie, the first label in the alphabet wins."""
    if not train_labels:
        raise ValueError("there are no training labels; give a training split with rows")
    counts = Counter(train_labels)
    label = min(counts, key=lambda name: (-counts[name], name))
    return label, counts[label] / len(train_labels)


def cosine_head(directions: FloatArray, features: FloatArray) -> Head:
    """Return a head of cosine similarities to `directions` [L, D], scaled by the mean length of `features`."""
    scale = np.float32(COSINE_SCALE / _mean_length(features))
    return Head(unit(directions) * scale, np.zeros(len(directions), dtype=np.float32))


def _mean_length(features: FloatArray) -> float:
    """Return the mean length of embeddings [N, D]; 1 if all are zero."""
    return float(np.linalg.norm(features, axis=1).mean()) or 1.0


def centroids(features: FloatArray, labels: IntArray, *, shots: int, seed: int) -> FloatArray:
    """Return the mean direction [L, D] of up to `shots` random examples of each class."""
    generator = np.random.default_rng(seed)
    examples = [generator.permutation(np.flatnonzero(labels == label))[:shots] for label in range(labels.max() + 1)]
    return np.stack([unit(features[rows]).mean(0) for rows in examples]).astype(np.float32)


def fit_probe(
    features: FloatArray, labels: IntArray, *, held_out: FloatArray, truth: IntArray, metric: str = "accuracy"
) -> Fit:
    """Fit logistic regression on frozen embeddings and select C on the held-out rows.

    The weights are those of the given embeddings. C does not depend on their scale, which differs between encoders.
    """
    scale = np.float32(1 / _mean_length(features))
    data = HeadData((scale * features,), labels, (scale * held_out,), truth, metric)
    best = best_of(fit_linear(data, LOGISTIC, strengths=PROBE_C))
    return replace(best, weights=(scale * best.weights[0],))


def fit_bag(data: HeadData) -> Fit:
    """Fit a head on a bag of words, and select C and the kind of linear model. Of equal scores, the first wins."""
    return best_of(best_of(fit_linear(data, model, strengths=strengths)) for model, strengths in BAG_C.items())


def fit_with_embeddings(data: HeadData, *, embeddings: FloatArray, held_out_embeddings: FloatArray, alone: Fit) -> Fit:
    """Fit a head on unit embeddings followed by the bag of words, and select the weight of the embeddings.

    C and the kind of linear model are those of `alone`, the fit on the bag of words.
    """
    return best_of(_fits_with_embeddings(data, embeddings, held_out_embeddings, start=alone))


def _fits_with_embeddings(data: HeadData, train: FloatArray, held_out: FloatArray, *, start: Fit) -> Iterator[Fit]:
    """Fit heads for each weight of the embedding. Each fit starts from the previous fit, the first from `start`."""
    for weight in EMBEDDING_WEIGHTS:
        factor = np.float32(weight)
        weighted = replace(
            data,
            train=(factor * train, *data.train),
            held_out=(factor * held_out, *data.held_out),
            embedding_weight=weight,
        )
        for fit in fit_linear(weighted, start.model, strengths=(start.c,), start=start):
            yield fit
            start = fit


def unit(vectors: FloatArray) -> FloatArray:
    """Return the rows scaled to length 1."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)
