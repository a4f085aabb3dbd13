"""CPU time of a verdict on one core, from stored predictions to the sentences, with the simulated
power.

    python -m benchmarks.evaluation.verdict_speed

Five models on 3,000 rows of 20 classes, without gates: by accuracy, by macro-F1, and by accuracy
over documents of five rows. Two models on 100,000 rows of 77 classes, with every gate on
predictions: 100,000 rows with typing errors, 20,000 rows with a swapped name, sex or age, and six
groups. The variants alternate in several rounds. The time includes reading Parquet. Wrong
predictions are spread evenly over the classes, which gives more distinct jackknife values than with
real confusions. The memory is the peak of the whole process, with libraries.
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = (
    "1"  # read when numpy is imported
)

import numpy as np
import pyarrow.parquet as pq

from benchmarks.rounds import finish, medians, print_table, take_turns
from tailorbird.config.evaluation import GatesConfig
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.verdict.inputs import VerdictInputs, model_predictions
from tailorbird.evaluation.verdict.protocol import NO_GATES, TestProtocol
from tailorbird.evaluation.verdict.reach import reach_verdict

FIVE = {"incumbent": 0.86, "candidate": 0.88, "probe": 0.85, "bag_of_words": 0.84, "centroid": 0.75}
TWO = {"incumbent": 0.86, "candidate": 0.88}
NUM_GROUPS = 6
NUM_SWAPPED = 20_000
NUM_ROUNDS = 3
BOUNDS = {
    "accuracy, 3,000 rows": "<= 1",
    "accuracy, 100,000 rows": "<= 10",
    "macro-F1, 100,000 rows": "<= 10",
    "peak memory in MiB": "<= 1024",
}


@dataclass(frozen=True)
class Variant:
    """A verdict that is timed."""

    accuracies: dict[str, float]  # by role
    num_rows: int = 3_000
    num_classes: int = 20
    metric: str = "accuracy"
    rows_of_document: int = 1
    has_gates: bool = False


VARIANTS = {
    "accuracy, 3,000 rows": Variant(FIVE),
    "macro-F1, 3,000 rows": Variant(FIVE, metric="macro_f1"),
    "accuracy, 600 documents of 5 rows": Variant(FIVE, rows_of_document=5),
    "accuracy, 100,000 rows": Variant(TWO, 100_000, 77, has_gates=True),
    "macro-F1, 100,000 rows": Variant(TWO, 100_000, 77, metric="macro_f1", has_gates=True),
}


def main() -> None:
    """Print the rounds, then one line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        timed = {name: _timed(Path(folder) / name, variant) for name, variant in VARIANTS.items()}
        rounds = take_turns(timed, rounds=NUM_ROUNDS)
    results = {name: medians(figures) for name, figures in rounds.items()}
    print_table(f"Seconds for a verdict (medians of {NUM_ROUNDS} rounds)", results)
    figures = {name: each["seconds"] for name, each in results.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    finish("verdict_speed", figures | {"peak memory in MiB": peak}, bounds=BOUNDS)


def _timed(folder: Path, variant: Variant) -> Callable[[], dict[str, float]]:
    _write_tables(folder, variant)
    protocol = TestProtocol(
        metric=variant.metric,
        minimum_gain=0.01,
        non_inferiority_margin=0.01,
        expected_gain=0.02,
        alpha=0.05,
        test_sha256="simulated",
        num_test_rows=variant.num_rows,
        gates=GatesConfig() if variant.has_gates else NO_GATES,
    )
    others = tuple(role for role in variant.accuracies if role not in ("incumbent", "candidate"))

    def seconds() -> dict[str, float]:
        begun = time.process_time()
        tables = {
            path.stem: Predictions.from_table(pq.read_table(path))
            for path in folder.glob("*.parquet")
        }
        models = {role: model_predictions(role, tables) for role in variant.accuracies}
        reach_verdict(VerdictInputs(models, "simulated", replacing=others), protocol=protocol)
        return {"seconds": time.process_time() - begun}

    return seconds


def _write_tables(folder: Path, variant: Variant) -> None:
    folder.mkdir()
    generator = np.random.default_rng(0)
    labels = generator.integers(0, variant.num_classes, variant.num_rows)
    rows = range(variant.num_rows)
    groups = tuple(
        f"group {number}" for number in generator.integers(0, NUM_GROUPS, variant.num_rows)
    )
    documents = None
    if variant.rows_of_document > 1:
        documents = tuple(str(row // variant.rows_of_document) for row in rows)
    sets = {"noise": rows, "counterfactual": range(NUM_SWAPPED)} if variant.has_gates else {}
    for role, accuracy in variant.accuracies.items():
        clean = _table(generator, labels, accuracy=accuracy, row_ids=tuple(map(str, rows)))
        clean = replace(clean, groups={"group": groups}, clusters=documents)
        pq.write_table(clean.to_table(), folder / f"{role}.parquet")
        for name, of_set in sets.items():
            row_ids = tuple(
                f"{row}|sex" for row in of_set
            )  # a counterfactual row names what was swapped
            changed = _table(
                generator, labels[: len(of_set)], accuracy=accuracy - 0.02, row_ids=row_ids
            )
            pq.write_table(changed.to_table(), folder / f"{role}_{name}.parquet")


def _table(
    generator: np.random.Generator, labels: np.ndarray, *, accuracy: float, row_ids: tuple[str, ...]
) -> Predictions:
    n = len(labels)
    names = np.array([f"class {number}" for number in range(labels.max() + 1)])
    outputs = np.where(generator.random(n) < accuracy, labels, generator.integers(0, len(names), n))
    confidences = generator.uniform(0.5, 1.0, n)
    return Predictions(
        model="simulated",
        row_ids=row_ids,
        labels=tuple(names[labels].tolist()),
        outputs=tuple(names[outputs].tolist()),
        scores=(outputs == labels).astype(np.float64),
        confidences=confidences,
        calibrated=confidences,
    )


if __name__ == "__main__":
    main()
