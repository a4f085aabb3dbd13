"""Memory and speed of reading a request log with a hundred thousand to ten million answers.

    python -m benchmarks.evaluation.watching_memory [most rows]

The benchmark generates the answers of one day as serving writes them, ten thousand per file, on a
separate S3 server. 2% of the answers have a label from feedback. For each size, a separate process
reads the log with Ray tasks on two cores, as `tailorbird watch` does before it embeds texts. The
table has the peak memory of the reading process and of the largest task (sampled ten times per
second, without shared pages), and the answers per second. The bounds limit the difference between
the largest size and one million answers.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.material import ROOT, own_stack
from benchmarks.rounds import finish, print_table
from benchmarks.training.streaming_memory import peaks
from cluster.connection import connect
from serving.request_log.schema import ANSWERS, FEEDBACK
from serving.request_log.writer import arrow_schema
from tailorbird import storage
from tailorbird.monitoring.log_reader import by_day, read_labels, read_traffic
from tailorbird.monitoring.traffic import WatchedVersions

SIZES, COMPARED = (100_000, 1_000_000, 10_000_000), 1_000_000
FILE_ROWS, NUM_CLASSES, LABELLED, DAY = 10_000, 21, 50, "2026-03-01"
SECRET = b"s" * 32  # of the draws
BOUNDS = {"reader_growth_mib": "<= 128", "task_growth_mib": "<= 64"}


def main() -> None:
    """Print the peaks of each size, then one line of JSON."""
    if sys.argv[1:2] == ["--read"]:
        print(json.dumps(_read(sys.argv[2])), flush=True)
        return
    most = int(sys.argv[1]) if sys.argv[1:] else SIZES[-1]
    if most <= COMPARED:
        sys.exit(f"{most} rows cannot be compared with {COMPARED:,}; give {SIZES[-1]:,}")
    os.environ["OMP_NUM_THREADS"] = "1"
    peak_sizes: dict[int, dict[str, float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="tailorbird-") as folder,
        own_stack(Path(folder), num_cpus=2),
    ):
        for num_rows in [size for size in SIZES if size <= most]:
            _generate(f"s3://lake/log-{num_rows}", num_rows)
            command = [
                sys.executable,
                "-m",
                "benchmarks.evaluation.watching_memory",
                "--read",
                f"s3://lake/log-{num_rows}",
            ]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            peak_sizes[num_rows] = json.loads(done.stdout.splitlines()[-1])
            print(f"{num_rows:,} answers: {peak_sizes[num_rows]}", flush=True)
    print_table(
        "A day's log", {f"{size:,} answers": figures for size, figures in peak_sizes.items()}
    )
    largest, compared = peak_sizes[max(peak_sizes)], peak_sizes[COMPARED]
    growth = {
        f"{part}_growth_mib": largest[f"{part} MiB"] - compared[f"{part} MiB"]
        for part in ("reader", "task")
    }
    finish(
        "watching_memory",
        growth | {"num_rows": max(peak_sizes), "rows_per_s": largest["rows/s"]},
        bounds=BOUNDS,
    )


def _generate(log: str, num_rows: int) -> None:
    rng, at = np.random.default_rng(7), datetime(2026, 3, 1, 12, tzinfo=UTC)
    for number in range(num_rows // FILE_ROWS):
        ids = [f"{number:06d}-{index:05d}" for index in range(FILE_ROWS)]
        labels = [f"class {label}" for label in rng.integers(0, NUM_CLASSES, FILE_ROWS)]
        columns: dict[str, Any] = {
            "request_id": ids,
            "row": [0] * FILE_ROWS,
            "at": [at] * FILE_ROWS,
            "label": labels,
        }
        columns |= {
            "digest": ["d"] * FILE_ROWS,
            "arm": ["champion"] * FILE_ROWS,
            "score": rng.random(FILE_ROWS),
        }
        columns["attributes"] = [f'{{"sex": "{sex}"}}' for sex in rng.choice(["f", "m"], FILE_ROWS)]
        _write(
            f"{log}/answers/day={DAY}/{number:06d}.parquet", columns, schema=arrow_schema(ANSWERS)
        )
        feedback = {
            name: columns[name][::LABELLED] for name in ("request_id", "row", "at", "label")
        }
        _write(
            f"{log}/feedback/day={DAY}/{number:06d}.parquet",
            feedback,
            schema=arrow_schema(FEEDBACK),
        )


def _write(uri: str, columns: dict[str, Any], *, schema: pa.Schema) -> None:
    num = len(columns["row"])
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(num, field.type)
        for field in schema
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink)
    storage.write_bytes(uri, sink.getvalue())


def _read(log: str) -> dict[str, float]:
    """Return the peak memory of this process and of the tasks in MiB, and the rate."""
    import ray

    # Import Ray after the stack has started, because it reads its token on import.
    from cluster.remote import map_remote

    with connect():
        ray.get(ray.remote(lambda: None).remote())
        begun = time.perf_counter()
        with peaks(tasks=True) as sizes:
            labels = read_labels(by_day(log, "feedback")[DAY], secret=SECRET)
            files = by_day(log, "answers")[DAY]
            versions = WatchedVersions("d", None, ("sex",))
            traffic = read_traffic(
                files, versions, labels=labels, secret=SECRET, map_parts=map_remote
            )
        took = time.perf_counter() - begun
    assert traffic.num_rows == len(files) * FILE_ROWS
    assert len(traffic.outcomes) == traffic.num_rows // LABELLED
    assert traffic.outcomes.scores.all()
    return {
        "reader MiB": sizes["own"],
        "task MiB": sizes["task"],
        "rows/s": traffic.num_rows / took,
    }


if __name__ == "__main__":
    main()
