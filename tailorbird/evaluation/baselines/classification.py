"""Baselines for classification: majority, and linear heads on embeddings, on a bag of words, and on
both."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from cluster.progress import current_progress
from tailorbird import storage
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.copies import documents
from tailorbird.data.rows import Rows
from tailorbird.data.splits import classes_first
from tailorbird.data.tokenize import encode_texts, label_indices, labels_of, load_tokenizer
from tailorbird.evaluation.baselines.baseline import EMBEDDING_S, MAJORITY, Baseline
from tailorbird.evaluation.baselines.linear_head import (
    LOGISTIC,
    SVM,
    Fit,
    Head,
    HeadData,
    HeldOut,
    best_class_weights,
    best_of,
    fit_linear,
    refit,
)
from tailorbird.evaluation.baselines.linear_solver import FloatArray, IntArray
from tailorbird.evaluation.gates.calibration import fit_temperature
from tailorbird.evaluation.mix_weight import select_weight
from tailorbird.evaluation.offsets import OffsetFit
from tailorbird.evaluation.statistics.scoring import score_of
from tailorbird.models.bag_of_words import BagOfWords, bag_files, fit_vectorizers, stack_blocks
from tailorbird.models.classifier import Classifier, embed_rows, zero_head
from tailorbird.models.pooling.declared import read_pooling
from tailorbird.models.pretrained import default_device, dtype_name, inference_dtype, load_encoder
from tailorbird.registry.kinds import Kind, spec_of
from tailorbird.registry.pooling import Pooling
from tailorbird.registry.versions import Dtype, VersionConfig, write_artifact_config
from tailorbird.storage.node_cache import local_copy

MAX_SELECTION_ROWS = 100_000  # training rows on which the settings of a bag of words are selected
FIRST_EMBEDDED = 64  # rows; each further part has twice as many, up to `EMBEDDED_AT_ONCE`
EMBEDDED_AT_ONCE = 2048
CENTROID_SHOTS = 10  # rows per class
PROBE_C = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Inverse regularisation strengths that are tried on validation, on embeddings whose mean length is
1."""
BAG_C = {LOGISTIC: (3.0, 10.0, 30.0), SVM: (0.3, 1.0)}
"""The same on a bag of words, by kind of linear model."""
EMBEDDING_WEIGHTS = (0.5, 1.0, 2.0)  # factors of the embedding next to a bag of words
COSINE_SCALE = 20.0  # factor from cosine similarities to the logits of zero-shot and centroid


@dataclass(frozen=True)
class FittedBaseline:
    """A baseline before it is stored, so it has no URI.

    Temperature and offsets are fitted on validation.
    """

    baseline: Baseline
    head: Head | None = None  # on the embedding
    bag: BagOfWords | None = None
    temperature: float = 1.0
    offsets: tuple[float, ...] = ()
    decisions: IntArray | None = None  # class index of each validation row [N]


@dataclass(frozen=True)
class BaselineResults:
    """Fitted baselines, with the precision of the encoder in this process and its pooling."""

    fitted: tuple[FittedBaseline, ...]
    dtype: Dtype
    pooling: Pooling


def fit_baselines(
    base_model: str,
    *,
    train: Rows,
    validation: Rows,
    descriptions: Mapping[str, str],
    max_length: int,
    config: EvaluationConfig,
    seed: int,
    embedding_s: float = EMBEDDING_S,
) -> BaselineResults:
    """Fit all baselines on the training rows, and select their settings on validation by
    `config.metric`.

    Bags of words learn from all training rows, heads on embeddings from as many as are embedded
    within `embedding_s`. Each text is embedded once. `descriptions` has those of some labels.
    Raises ValueError if train has a single class or no text with a word or a character, or if
    validation is empty.
    """
    classes = labels_of(train.labels)
    if len(classes) < 2:
        raise ValueError(
            f"a classifier needs two classes, but train has {list(classes)}; check data.label"
        )
    if not len(validation):
        raise ValueError(
            "validation has no rows; the baselines need validation rows to select their settings"
        )
    progress = current_progress()
    progress.activity("fitting linear heads on bags of words")
    vectorizers, data = bag_data(train, validation=validation, metric=config.metric)
    labels = data.labels
    held_out = data.held_out
    truth = held_out.truth

    most_frequent = majority(train.labels)
    always = [most_frequent] * len(validation)
    score = score_of(config.metric, labels=validation.labels, outputs=always)
    not_servable = Baseline(MAJORITY, None, score, servable=False, note=f"always {most_frequent}")
    progress.score(MAJORITY, score, not_servable.note)
    results = [FittedBaseline(not_servable)]

    def add(
        kind: Kind,
        fit: Fit | OffsetFit,
        note: str,
        *,
        logits: FloatArray,
        head: Head | None = None,
        bag: BagOfWords | None = None,
    ) -> None:
        """Add a servable baseline with its logits [N, L] for the validation rows, and report its
        score."""
        note += offsets_note(fit.offsets, classes=classes)
        assert fit.held_out_logits is not None  # offsets are fitted
        temperature = fit_temperature(fit.held_out_logits, labels=truth)
        baseline = Baseline(kind, None, fit.score, servable=True, note=note)
        decided = logits
        if fit.offsets:
            decided = logits + np.array(fit.offsets)
        results.append(
            FittedBaseline(
                baseline,
                head=head,
                bag=bag,
                temperature=temperature,
                offsets=fit.offsets,
                decisions=decided.argmax(1),
            )
        )
        progress.score(kind, fit.score, note)

    alone = fit_bag(data, seed=seed)
    bag = BagOfWords(vectorizers, alone.weights[0], alone.bias)
    add("bag_of_words", alone, alone.note(), logits=alone.logits, bag=bag)

    progress.activity("embedding the training and validation rows")
    embed = text_embedder(base_model, max_length=max_length)
    held_out_features = embed(validation.texts)
    rows, features = embed_in_time(train, embed=embed, seconds=embedding_s, seed=seed)
    directions = centroids(features, labels[rows], shots=CENTROID_SHOTS, seed=seed)
    label_vectors = {
        note: embed(texts) for note, texts in label_texts(classes, descriptions).items()
    }
    tried: dict[Kind, Mapping[str, FloatArray]] = {
        "zero_shot": label_vectors,
        "centroid": {f"{CENTROID_SHOTS} examples per class": directions},
    }
    for kind, vectors in tried.items():
        heads = {note: cosine_head(vector, features) for note, vector in vectors.items()}
        logits = {note: head.logits(held_out_features) for note, head in heads.items()}
        fits = {note: held_out.fit_offsets(values) for note, values in logits.items()}
        best = max(fits, key=lambda note: fits[note].score)
        add(kind, fits[best], best, logits=logits[best], head=heads[best])

    progress.activity("fitting linear heads on embeddings")
    embedded_only = ""
    if len(rows) < len(train):
        embedded_only = f" on {len(rows):,} of {len(train):,} rows"
    probe = fit_probe(
        HeadData((features,), labels[rows], features=(held_out_features,), held_out=held_out)
    )
    head = Head(probe.weights[0].T, probe.bias)
    add("probe", probe, f"{probe.note()}{embedded_only}", logits=probe.logits, head=head)

    units = HeadData(
        (unit(features),), labels[rows], features=(unit(held_out_features),), held_out=held_out
    )
    both = fit_with_embeddings(data.take(rows), embeddings=units, alone=alone)
    if embedded_only:
        both = best_of([both, mix_fits(fit_probe(units), bag=alone, held_out=held_out)])
    head = Head(both.weights[0].T, both.bias)
    bag = BagOfWords(vectorizers, both.weights[1], np.zeros_like(both.bias))
    add("probe_bag", both, f"{both.note()}{embedded_only}", logits=both.logits, head=head, bag=bag)

    pooling = read_pooling(base_model, purpose="classification")
    return BaselineResults(tuple(results), dtype_name(), pooling)


def bag_data(
    train: Rows, *, validation: Rows, metric: str
) -> tuple[dict[str, TfidfVectorizer], HeadData]:
    """Return the vectorizers of a bag of words by name, and the features of both splits.

    Raises ValueError if no training text has a word or a character.
    """
    classes = labels_of(train.labels)
    vectorizers, terms = fit_vectorizers(train.texts, num_classes=len(classes))
    held_out_terms = stack_blocks(
        vectorizer.transform(list(validation.texts)) for vectorizer in vectorizers.values()
    )
    truth = label_indices(validation.labels, classes=classes)
    held_out = HeldOut(truth, metric, documents(validation))
    labels = label_indices(train.labels, classes=classes)
    return vectorizers, HeadData((terms,), labels, features=(held_out_terms,), held_out=held_out)


def store_baselines(
    uri: str, results: BaselineResults, *, config: VersionConfig
) -> tuple[Baseline, ...]:
    """Write each servable baseline as a loadable artifact to `uri`/<kind>; return all baselines
    with their URIs.

    `config` supplies all fields except kind, temperature, offsets, pooling and the dtype of kinds
    without an encoder.
    """
    stored = []
    for fitted in results.fitted:
        baseline = fitted.baseline
        if baseline.servable:
            baseline = replace(baseline, uri=f"{uri}/{baseline.kind}")
            _store(f"{uri}/{baseline.kind}", fitted, pooling=results.pooling, config=config)
        stored.append(baseline)
    return tuple(stored)


def _store(uri: str, fitted: FittedBaseline, *, pooling: Pooling, config: VersionConfig) -> None:
    files: dict[str, bytes] = {}
    if fitted.bag is not None:
        files |= bag_files(fitted.bag)
    if fitted.head is not None:
        files["head.safetensors"] = fitted.head.to_bytes()
    for name, content in files.items():
        storage.write_bytes(f"{uri}/{name}", content)

    changes: dict[str, object] = {
        "kind": fitted.baseline.kind,
        "temperature": fitted.temperature,
        "offsets": fitted.offsets,
        "pooling": pooling,
    }
    if not spec_of(fitted.baseline.kind).uses_base:
        changes["dtype"] = "float32"  # on every device, the head of a bag of words is in float32
    write_artifact_config(uri, config.model_copy(update=changes))


def text_embedder(base_model: str, *, max_length: int) -> Callable[[Sequence[str]], FloatArray]:
    """Return a function that returns the embeddings [N, D] of texts by the pretrained encoder, with
    its own pooling."""
    base = local_copy(base_model)
    pooling = read_pooling(base.as_uri(), purpose="classification")
    tokenizer = load_tokenizer(base)
    encoder = load_encoder(base, dtype=inference_dtype()).to(default_device())
    width = int(encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]
    model = Classifier(encoder, zero_head(width, 1).to(default_device()), pooling=pooling)

    def embed(texts: Sequence[str]) -> FloatArray:
        tokens = encode_texts(
            texts, tokenizer=tokenizer, max_length=max_length, prompt=pooling.prompt
        )
        return embed_rows(model, tokens, pad_id=int(tokenizer.pad_token_id))

    return embed


def embed_in_time(
    train: Rows, *, embed: Callable[[Sequence[str]], FloatArray], seconds: float, seed: int
) -> tuple[IntArray, FloatArray]:
    """Return the positions [M] and embeddings [M, D] of training rows, in order.

    They are all rows, or a random part with each class if `seconds` are over.
    """
    deadline = time.monotonic() + seconds
    order = classes_first(train.labels, seed=seed)
    num_classes = len(set(train.labels))
    parts = []
    start = 0
    size = FIRST_EMBEDDED
    while start < len(train) and (start < num_classes or time.monotonic() < deadline):
        parts.append(embed([train.texts[row] for row in order[start : start + size]]))
        start += size
        size = min(2 * size, EMBEDDED_AT_ONCE)
    features = np.concatenate(parts)
    rows = order[: len(features)]
    in_order = np.argsort(rows)
    return rows[in_order], features[in_order]


def offsets_note(offsets: Sequence[float], *, classes: Sequence[str]) -> str:
    """Return the offsets for reports."""
    changed = {label: offset for label, offset in zip(classes, offsets, strict=False) if offset}
    if not changed:
        return ""
    if len(changed) == 1:
        [(label, offset)] = changed.items()
        return f", offset of {label} {offset:+.2f}"
    return f", offsets of {len(changed)} classes"


def majority(train_labels: Sequence[str]) -> str:
    """Return the most frequent training label. In a tie, the first label in the alphabet wins."""
    counts = Counter(train_labels)
    return min(counts, key=lambda name: (-counts[name], name))


def label_texts(classes: Sequence[str], descriptions: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the texts of the classes that `zero_shot` tries, by the note of the baseline.

    A class without a description has its name in all of them.
    """
    texts = {"label names": list(classes)}
    if descriptions:
        described = {label: f"{label}: {text}" for label, text in descriptions.items()}
        texts["label descriptions"] = [descriptions.get(label, label) for label in classes]
        texts["label names and descriptions"] = [described.get(label, label) for label in classes]
    return texts


def cosine_head(directions: FloatArray, features: FloatArray) -> Head:
    """Return a head of cosine similarities to `directions` [L, D], scaled by the mean length of
    `features`."""
    scale = np.float32(COSINE_SCALE / _mean_length(features))
    return Head(unit(directions) * scale, np.zeros(len(directions), dtype=np.float32))


def _mean_length(features: FloatArray) -> float:
    """Return the mean length of embeddings [N, D]; 1 if all are zero."""
    return float(np.linalg.norm(features, axis=1).mean()) or 1.0


def centroids(features: FloatArray, labels: IntArray, *, shots: int, seed: int) -> FloatArray:
    """Return the mean direction [L, D] of up to `shots` random examples of each class."""
    generator = np.random.default_rng(seed)
    directions = []
    for label in range(labels.max() + 1):
        examples = generator.permutation(np.flatnonzero(labels == label))[:shots]
        directions.append(unit(features[examples]).mean(0))
    return np.stack(directions).astype(np.float32)


def fit_probe(data: HeadData) -> Fit:
    """Fit logistic regression on frozen embeddings, and select C, class weights and offsets.

    The weights are those of the given embeddings. C does not depend on their scale, which differs
    between encoders.
    """
    [train] = data.train
    [validation] = data.features
    scale = np.float32(1 / _mean_length(train))
    scaled = replace(data, train=(scale * train,), features=(scale * validation,))
    best = best_class_weights(scaled, [best_of(fit_linear(scaled, LOGISTIC, strengths=PROBE_C))])
    return replace(best, weights=(scale * best.weights[0],))


def fit_bag(data: HeadData, *, seed: int = 0) -> Fit:
    """Fit a head on a bag of words, and select the kind of linear model, C, class weights and
    offsets.

    If there are more than `MAX_SELECTION_ROWS` training rows, the settings are selected on as many,
    and the head is then fitted on all rows.
    """
    part = data
    if len(data.labels) > MAX_SELECTION_ROWS:
        part = data.take(classes_first(data.labels.tolist(), seed=seed)[:MAX_SELECTION_ROWS])
    fits = [
        best_of(fit_linear(part, model, strengths=strengths)) for model, strengths in BAG_C.items()
    ]
    selected = best_class_weights(part, fits)
    if part is data:
        return selected
    return data.held_out.with_offsets(refit(data, selected))


def fit_with_embeddings(data: HeadData, *, embeddings: HeadData, alone: Fit) -> Fit:
    """Fit a head on unit embeddings followed by the bag of words, and select the weight of the
    embeddings and offsets.

    C, class weights and the kind of linear model are those of `alone`, the fit on the bag of words.
    The head's weights are those of the given embeddings.
    """

    def fits() -> Iterator[Fit]:
        """Yield a fit for each weight of the embeddings, which starts at the logits of the one
        before."""
        fit = alone
        for weight in EMBEDDING_WEIGHTS:
            factor = np.float32(weight)
            weighted = replace(
                data,
                train=(factor * embeddings.train[0], *data.train),
                features=(factor * embeddings.features[0], *data.features),
            )
            if fit is not alone:
                fit = replace(fit, weights=(fit.weights[0] / factor, fit.weights[1]))
            fit = refit(weighted, fit)
            weights = (factor * fit.weights[0], fit.weights[1])
            fit = replace(fit, weights=weights, embedding_weight=weight)
            yield fit

    return data.held_out.with_offsets(best_of(fits()))


def mix_fits(probe: Fit, *, bag: Fit, held_out: HeldOut) -> Fit:
    """Return the mix of a bag of words and a probe that learned from fewer rows, by a weight
    selected on validation.

    The probe's features are unit embeddings. The mix has the weighted log-probabilities of both.
    """
    temperatures = [fit_temperature(fit.logits, labels=held_out.truth) for fit in (probe, bag)]
    weight = select_weight(
        probe.logits / np.float32(temperatures[0]),
        bag.logits / np.float32(temperatures[1]),
        held_out=held_out,
    ).weight
    probe_factor = np.float32(weight / temperatures[0])
    bag_factor = np.float32((1 - weight) / temperatures[1])
    mixed = replace(
        bag,
        weights=(probe.weights[0] * probe_factor, bag.weights[0] * bag_factor),
        bias=probe.bias * probe_factor + bag.bias * bag_factor,
        logits=probe.logits * probe_factor + bag.logits * bag_factor,
        mixed=weight,
    )
    return held_out.with_offsets(mixed)


def unit(vectors: FloatArray) -> FloatArray:
    """Return the rows scaled to length 1."""
    return np.asarray(
        vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12),
        dtype=np.float32,
    )
