"""CPU time of a verdict on one core, from stored predictions of 100,000 test rows with 77 classes to an outcome.

    python -m benchmarks.evaluation.verdict_speed

The two metrics alternate in several rounds. Each verdict assesses every gate on predictions: 100,000 rows with typing
errors, 20,000 rows with a swapped name, sex or age, and six groups. The time includes reading Parquet and the
bootstraps. Wrong predictions are spread evenly over the classes, which gives the bootstrap more distinct cells than
real confusions. The memory is the peak of the whole process, with libraries.
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported

import numpy as np
import pyarrow.parquet as pq

from benchmarks.rounds import finish, medians, print_table, take_turns
from tailorbird.config.evaluation import GatesConfig
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.protocol import TestProtocol

NUM_ROWS, NUM_CLASSES, NUM_GROUPS, NUM_SWAPPED = 100_000, 77, 6, 20_000
ACCURACIES = {"incumbent": 0.86, "candidate": 0.88}
NUM_ROUNDS = 3
BOUNDS = {"accuracy_seconds": "<= 10", "macro_f1_seconds": "<= 10", "peak_memory_mib": "<= 1024"}


def main() -> None:
    """Print the rounds, then one line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        _write_tables(Path(folder))
        variants = {metric: _timed(Path(folder), metric) for metric in ("accuracy", "macro_f1")}
        rounds = take_turns(variants, rounds=NUM_ROUNDS)
    results = {name: medians(figures) for name, figures in rounds.items()}
    print_table(f"{NUM_ROWS:,} rows of {NUM_CLASSES} classes (medians of {NUM_ROUNDS} rounds)", results)
    figures = {f"{name}_seconds": each["seconds"] for name, each in results.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    finish("verdict_speed", figures | {"peak_memory_mib": peak}, bounds=BOUNDS)


def _timed(folder: Path, metric: str) -> Callable[[], dict[str, float]]:
    protocol = TestProtocol(
        metric=metric,
        minimum_gain=0.01,
        non_inferiority_margin=0.01,
        expected_gain=0.02,
        alpha=0.05,
        test_sha256="simulated",
        num_test_rows=NUM_ROWS,
        gates=GatesConfig(),
    )

    def seconds() -> dict[str, float]:
        begun = time.process_time()
        tables = {path.stem: Predictions.from_table(pq.read_table(path)) for path in folder.glob("*.parquet")}
        incumbent, candidate = (
            ModelPredictions(tables[role], {name: tables[f"{role}_{name}"] for name in ("counterfactual", "noise")})
            for role in ("incumbent", "candidate")
        )
        decide(VerdictInputs(incumbent, candidate, "simulated"), protocol=protocol)
        return {"seconds": time.process_time() - begun}

    return seconds


def _write_tables(folder: Path) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, NUM_CLASSES, NUM_ROWS)
    groups = tuple(f"group {number}" for number in generator.integers(0, NUM_GROUPS, NUM_ROWS))
    for role, accuracy in ACCURACIES.items():
        clean = _table(generator, labels, accuracy=accuracy, row_ids=tuple(map(str, range(NUM_ROWS))))
        pq.write_table(replace(clean, groups={"group": groups}).to_table(), folder / f"{role}.parquet")
        for name, num_rows, kind in (("noise", NUM_ROWS, "noise"), ("counterfactual", NUM_SWAPPED, "sex")):
            row_ids = tuple(f"{row}|{kind}" for row in range(num_rows))
            changed = _table(generator, labels[:num_rows], accuracy=accuracy - 0.02, row_ids=row_ids)
            pq.write_table(changed.to_table(), folder / f"{role}_{name}.parquet")


def _table(
    generator: np.random.Generator, labels: np.ndarray, *, accuracy: float, row_ids: tuple[str, ...]
) -> Predictions:
    n = len(labels)
    names = np.array([f"class {number}" for number in range(NUM_CLASSES)])
    outputs = np.where(generator.random(n) < accuracy, labels, generator.integers(0, NUM_CLASSES, n))
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
