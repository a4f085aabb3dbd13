"""Compare calibrators of the confidence of the answer that a classifier gives, on test rows.

Run it with `OMP_NUM_THREADS=2 python -m benchmarks.evaluation.confidence [NAME ...]`, with
TAILORBIRD_DATA set to the folder of the data sets. The models are the baselines of
`benchmarks.evaluation.baselines`, decided by accuracy and by macro-F1. Calibrators, all fitted on
validation:

- unshifted: a temperature, and the probability of the answer from logits without the offsets;
- shifted: the offsets are added first, and the temperature is fitted on rows whose offsets come
  from other folds (what the product does);
- platt, isotonic: a function from the confidence of `shifted` to that of the answer alone.

Bound: the mean ECE of `shifted` is at most that of `unshifted`, and at most one point above the
best. `not highest` is the share of answers whose label does not have the highest probability.
"""

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from benchmarks.evaluation.baselines import CASES, load_splits
from benchmarks.harness import ENCODER, finish, print_table, stage
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.config.metrics import MetricName
from tailorbird.data.copies import documents
from tailorbird.data.rows import Splits
from tailorbird.data.tokenize import label_indices, labels_of
from tailorbird.evaluation.baselines import classification
from tailorbird.evaluation.gates.calibration import bins_of, fit_temperature
from tailorbird.evaluation.offsets import fit_offsets
from tailorbird.models.decision import at_index, temperature_softmax
from tailorbird.models.loading import LoadedClassifier, load_artifact
from tests.build import version_config

FloatArray = NDArray[np.float64]
METRICS: tuple[MetricName, ...] = ("accuracy", "macro_f1")
LEAST = 1e-6


def main() -> None:
    """Measure the cases, and print one line of JSON."""
    base = stage(ENCODER, registry=(Path.home() / ".cache" / "tailorbird-bench").as_uri())
    measured: dict[str, list[dict[str, float]]] = defaultdict(list)
    for name in sys.argv[1:] or CASES:
        splits = load_splits(CASES[name])
        for metric in METRICS:
            rows = {}
            for kind, by_calibrator in measure(splits, metric=metric, name=name, base=base):
                for calibrator, figures in by_calibrator.items():
                    rows[f"{kind}, {calibrator}"] = figures
                    measured[calibrator].append(figures)
            print_table(f"{name}, {metric}: {len(splits.test):,} test rows", rows)
    means = {}
    for calibrator, all_figures in measured.items():
        for key in all_figures[0]:
            values = [figures[key] for figures in all_figures]
            means[f"{calibrator}: {key}"] = float(np.mean(values))
    best = min(means[f"{name}: ECE"] for name in measured)
    bounds = {
        "shifted: ECE": f"<= {min(means['unshifted: ECE'], best + 0.01):.4f}",
        "shifted: not highest": "<= 0",
    }
    finish("confidence", means, bounds=bounds)


def measure(
    splits: Splits, *, metric: MetricName, name: str, base: str
) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Yield the kind of each servable baseline, and its figures by calibrator."""
    max_length = CASES[name].max_length
    results = classification.fit_baselines(
        base,
        train=splits.train,
        validation=splits.validation,
        descriptions={},
        max_length=max_length,
        config=EvaluationConfig(metric=metric),
        seed=0,
    )
    classes = labels_of(splits.train.labels)
    config = version_config(classes=classes, base_model=base, max_length=max_length)
    truth = label_indices(splits.validation.labels, classes=classes)
    labels = label_indices(splits.test.labels, classes=classes)
    with tempfile.TemporaryDirectory() as folder:
        stored = classification.store_baselines(Path(folder).as_uri(), results, config=config)
        for baseline in stored:
            if baseline.uri is None:
                continue
            model = load_artifact(baseline.uri)
            assert isinstance(model, LoadedClassifier)
            plain = [
                model.unshifted_logits(rows.texts).astype(np.float64)
                for rows in (splits.validation, splits.test)
            ]
            fit = fit_offsets(
                plain[0], truth=truth, metric=metric, documents=documents(splits.validation)
            )
            test = plain[1] + np.array(fit.offsets or 0.0)
            confidences = calibrated(plain, fit.held_out_logits, test=test, truth=truth)
            yield baseline.kind, figures_of(confidences, plain[1], test=test, labels=labels)


def calibrated(
    plain: list[FloatArray], held_out: FloatArray, *, test: FloatArray, truth: NDArray[np.int64]
) -> dict[str, FloatArray]:
    """Return the confidence of each test answer [N] by calibrator, from logits without offsets of
    both splits, and logits with them."""
    answers = test.argmax(1)
    before = temperature_softmax(plain[1], temperature=fit_temperature(plain[0], truth))
    temperature = fit_temperature(held_out, truth)
    shifted = at_index(temperature_softmax(test, temperature=temperature), answers)
    given = held_out.argmax(1)
    known = at_index(temperature_softmax(held_out, temperature=temperature), given)
    right = (given == truth).astype(np.int64)
    isotonic = IsotonicRegression(out_of_bounds="clip", y_min=0, y_max=1).fit(known, right)
    platt = LogisticRegression(C=1e6).fit(_log_odds(known), right)
    return {
        "unshifted": at_index(before, answers),
        "shifted": shifted,
        "platt": platt.predict_proba(_log_odds(shifted))[:, 1],
        "isotonic": isotonic.predict(shifted),
    }


def figures_of(
    confidences: dict[str, FloatArray],
    plain: FloatArray,
    *,
    test: FloatArray,
    labels: NDArray[np.int64],
) -> dict[str, dict[str, float]]:
    """Return ECE (a share), log loss (nats) and `not highest` by calibrator, from logits [N, L]
    without offsets and with them."""
    answers = test.argmax(1)
    right = (answers == labels).astype(np.float64)
    figures = {}
    for name, confidence in confidences.items():
        excess = np.bincount(bins_of(confidence), confidence - right)
        chance = np.clip(np.where(right == 1, confidence, 1 - confidence), 1e-4, 1.0)
        highest = plain if name == "unshifted" else test
        figures[name] = {
            "ECE": float(np.abs(excess).sum()) / len(right),
            "log loss": float(-np.log(chance).mean()),
            "not highest": float((highest.argmax(1) != answers).mean()),
        }
    return figures


def _log_odds(confidence: FloatArray) -> FloatArray:
    clipped = np.clip(confidence, LEAST, 1 - LEAST)
    return np.log(clipped / (1 - clipped))[:, None]


if __name__ == "__main__":
    main()
