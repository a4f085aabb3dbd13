"""Compare the classification baselines with what a sceptic builds in a minute, and measure their
time.

Run it with `OMP_NUM_THREADS=2 python -m benchmarks.evaluation.baselines [NAME ...]`, with
TAILORBIRD_DATA set to the folder of the data sets. The sceptic's model is scikit-learn's
`LinearSVC(class_weight="balanced")` on TF-IDF of words and characters, with one offset of one class
that is best on validation. Bounds:

- the best baseline on validation is not worse on test than the sceptic's model by more than chance
  (95%);
- in `million`, a bag of words learns from 1,000,000 short texts within 900 CPU-seconds and
  8 GiB.
"""

import os
import resource
import sys
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

from benchmarks.harness import ENCODER, finish, print_table, stage
from tailorbird.config.data import DataConfig
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.loader import read_splits
from tailorbird.data.quality import clean
from tailorbird.data.rows import SPLIT_NAMES, Rows, Splits
from tailorbird.data.tokenize import labels_of
from tailorbird.evaluation.baselines import classification
from tailorbird.evaluation.baselines.linear_head import HeadData, HeldOut
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.inference.row_predictions import label_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.paired import compare
from tailorbird.evaluation.statistics.scoring import score_of, score_table
from tailorbird.models.bag_of_words import fit_vectorizers, stack_blocks
from tests.build import version_config

OUT_OF_SCOPE = "out of scope"
OFFSETS = np.linspace(-2, 2, 81)  # that the sceptic tries


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
    labels = np.where(np.array(rows.labels) == rare, "this type", "rest")
    return Rows(rows.row_ids, rows.texts, tuple(labels.tolist()))


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
    uris = {split: (folder / f"{split}.parquet").as_uri() for split in SPLIT_NAMES}
    splits = read_splits(DataConfig.model_validate(uris))
    return clean(Splits(*(case.change(name, getattr(splits, name)) for name in SPLIT_NAMES)))[0]


def measure(name: str, *, base: str) -> dict[str, float]:
    """Print the scores of all baselines of a case; return the gain of the best one on validation
    over the sceptic's model."""
    case = CASES[name]
    splits = load_splits(case)
    results = classification.fit_baselines(
        base,
        train=splits.train,
        validation=splits.validation,
        descriptions={},
        max_length=case.max_length,
        config=EvaluationConfig(metric=case.metric),  # type: ignore[arg-type]
        seed=0,
    )
    classes = labels_of(splits.train.labels)
    config = version_config(classes=classes, base_model=base, max_length=case.max_length)
    rows = {}
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        stored = classification.store_baselines(Path(folder).as_uri(), results, config=config)
        for baseline in stored:
            rows[baseline.kind] = {"validation": baseline.validation}
            if baseline.uri is not None:
                table = predict_rows(baseline.uri, rows=splits.test)
                tables[baseline.kind] = table
                rows[baseline.kind]["test"] = score_table(case.metric, table)
    print_table(f"{name}: {case.metric}, {len(splits.test):,} test rows", rows)
    best = max(tables, key=lambda kind: rows[kind]["validation"])
    sceptic = _sceptic(splits, metric=case.metric)
    difference = compare(tables[best], other=sceptic, metric=case.metric, alpha=0.05)
    low, high = difference.interval
    return {
        f"{name}: sceptic": difference.other_score,
        f"{name}: gain": difference.gain,
        f"{name}: gain, lower end": low,
        f"{name}: gain, upper end": high,
    }


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


def measure_million() -> dict[str, float]:
    """Return time and memory of a bag of words on a million short texts."""
    texts, labels = _million_texts(1_000_000, seed=0)
    held_out, truth = _million_texts(5_000, seed=1)
    start = time.process_time()
    vectorizers, terms = fit_vectorizers(texts, num_classes=20)
    vectorized = time.process_time() - start
    features = stack_blocks(vectorizer.transform(held_out) for vectorizer in vectorizers.values())
    held = HeldOut(truth, "macro_f1")
    fit = classification.fit_bag(HeadData((terms,), labels, (features,), held))
    return {
        "million: score": fit.score,
        "million: CPU-seconds for features": vectorized,
        "million: CPU-seconds": time.process_time() - start,
        "million: GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


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


def main() -> None:
    """Measure the cases, and print one line of JSON."""
    base = stage(ENCODER, registry=(Path.home() / ".cache" / "tailorbird-bench").as_uri())
    figures: dict[str, float] = {}
    for name in sys.argv[1:] or (*CASES, "million"):
        if name == "million":
            figures |= measure_million()
        else:
            figures |= measure(name, base=base)
    bounds = {f"{name}: gain, upper end": ">= 0" for name in CASES}
    bounds |= {"million: CPU-seconds": "<= 900", "million: GiB": "<= 8"}
    finish("baselines", figures, bounds=bounds)


if __name__ == "__main__":
    main()
