"""Memory of streaming for ten thousand to ten million training rows.

    python -m benchmarks.training.streaming_memory [most rows]

The benchmark generates Parquet files (four made-up words per row, 21 classes, row groups of 131,072
rows) on a separate S3 server. For each size, two separate processes run:

1. Load the rows as a run does: Ray tasks check them and tokenize them into shards, and 5,000 rows
   stay in memory.
2. Read and collate a whole epoch from the shards as a worker does, without the model, whose memory
   does not depend on the number of rows.

The table has the peak memory of the loading process, of the largest Ray task and of the reading
process (sampled ten times per second, without shared pages), and the rates. The bounds limit the
difference between the largest size and 100,000 rows, which fill a shard and a window. The memory of
the tokens of the added rows is printed for comparison.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.material import ROOT, own_stack
from benchmarks.rounds import finish, print_table
from tailorbird.config.data import DataConfig
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.config.recipe import Recipe
from tailorbird.config.training import TrainingConfig
from tailorbird.storage.s3 import filesystem

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
COMPARED = 100_000
IN_MEMORY, NUM_LATER, NUM_CLASSES = 5_000, 1_000, 21
MIB = 1 << 20
GROUP_ROWS = 1 << 17
TRAINING = TrainingConfig(batch_size=32)
BOUNDS = {"gather_growth_mib": "<= 64", "task_growth_mib": "<= 64", "draw_growth_mib": "<= 64"}


def main() -> None:
    """Print the peaks of each size, then one line of JSON."""
    parts: dict[str, Callable[..., dict[str, Any]]] = {"--gather": _gather, "--draw": _draw}
    if sys.argv[1:2] and sys.argv[1] in parts:
        print(json.dumps(parts[sys.argv[1]](*sys.argv[2:])), flush=True)
        return
    most = int(sys.argv[1]) if sys.argv[1:] else SIZES[-1]
    if most <= COMPARED:
        sys.exit(
            f"{most} rows cannot be compared with {COMPARED:,}; give one of "
            f"{', '.join(map(str, SIZES[2:]))}"
        )
    os.environ["OMP_NUM_THREADS"] = "1"
    peaks: dict[int, dict[str, float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="tailorbird-") as folder,
        own_stack(Path(folder), num_cpus=2) as base_model,
    ):
        for num_rows in [size for size in SIZES if size <= most]:
            uri = f"s3://lake/rows-{num_rows}"
            for name, size in (("train", num_rows), ("validation", NUM_LATER), ("test", NUM_LATER)):
                _generate(f"{uri}/{name}.parquet", size, seed=len(name))
            gathered = _in_process("--gather", uri, base_model)
            shards = gathered.pop("shards")
            peaks[num_rows] = gathered | _in_process("--draw", json.dumps(shards))
            print(f"{num_rows:,} rows: {peaks[num_rows]}", flush=True)
    print_table("Streaming", {f"{size:,} rows": figures for size, figures in peaks.items()})
    largest, compared = peaks[max(peaks)], peaks[COMPARED]
    growth = {
        f"{part}_growth_mib": largest[f"{part} MiB"] - compared[f"{part} MiB"]
        for part in ("gather", "task", "draw")
    }
    tokens = largest["token MiB"] - compared["token MiB"]
    finish(
        "streaming_memory",
        growth | {"added_token_mib": tokens, "num_rows": max(peaks)},
        bounds=BOUNDS,
    )


def _in_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training.streaming_memory", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _generate(uri: str, num_rows: int, *, seed: int) -> None:
    """Write random rows."""
    generator = np.random.default_rng(seed)
    words = np.array(
        ["".join(word) for word in generator.choice(list("abcdefghijklmnopqrst"), size=(5000, 5))]
    )
    store, path = filesystem(uri)
    schema = pa.schema({"text": pa.string(), "label": pa.string()})
    with store.open_output_stream(path) as sink, pq.ParquetWriter(sink, schema) as writer:
        for start in range(0, num_rows, GROUP_ROWS):
            size = min(GROUP_ROWS, num_rows - start)
            drawn = words[generator.integers(0, len(words), size=(size, 4))]
            texts = [" ".join(row) for row in drawn.tolist()]
            labels = [f"class {label}" for label in generator.integers(0, NUM_CLASSES, size=size)]
            writer.write_table(pa.table({"text": texts, "label": labels}, schema=schema))


def _gather(uri: str, base_model: str) -> dict[str, Any]:
    """Return the peak memory of this process and of the tasks in MiB, the rate, and the shards."""
    import ray

    from cluster.connection import connect
    from cluster.remote import map_remote
    from tailorbird.data.sharding.loading import load_sharded
    from tailorbird.data.task_data import CLASSIFICATION

    data = DataConfig(
        train=f"{uri}/train.parquet",
        validation=f"{uri}/validation.parquet",
        test=f"{uri}/test.parquet",
        stream_above_rows=IN_MEMORY,
    )
    recipe = Recipe(name="task", base_model=parse_model_uri(base_model), data=data, registry=uri)
    with connect():
        ray.get(ray.remote(lambda: None).remote())
        started = time.perf_counter()
        with peaks(tasks=True) as largest:
            gathered = load_sharded(
                recipe, CLASSIFICATION, base_model=base_model, inputs={}, map_tasks=map_remote
            )
        gathering = time.perf_counter() - started
    assert gathered.shards is not None
    return {
        "shards": asdict(gathered.shards),
        "gather MiB": largest["own"],
        "task MiB": largest["task"],
        "gathered rows/s": len(gathered.shards) / gathering,
    }


def _draw(shards: str) -> dict[str, float]:
    """Return the peak memory in MiB of this process while it reads an epoch, and the rate."""
    from tailorbird.data.sharding.shards import Shards
    from tailorbird.data.tokenize import collate
    from training.dataset import steps

    fields = json.loads(shards)
    tuples = {name: tuple(fields[name]) for name in ("sizes", "classes")}
    rows = Shards(**fields | tuples)
    started, drawn, tokens = time.perf_counter(), 0, 0
    with peaks() as largest:
        for window, batch in steps(rows, TRAINING, epoch=0, start=0):
            collate(window.tokens(batch), pad_id=0)
            drawn, tokens = drawn + len(batch), tokens + int(window.lengths[batch].sum())
    assert drawn == len(rows)
    return {
        "draw MiB": largest["own"],
        "token MiB": tokens * 4 / MIB,
        "drawn rows/s": drawn / (time.perf_counter() - started),
    }


@contextmanager
def peaks(*, tasks: bool = False) -> Iterator[dict[str, float]]:
    """Yield the peak memory, in MiB without shared pages, of this process and of any Ray worker
    that its parent started.

    The values are updated while the block runs.
    """
    peak: dict[str, float] = {"own": 0.0, "task": 0.0}
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.1):
            peak["own"] = max(peak["own"], _own_mib(psutil.Process()))
            workers = psutil.Process(os.getppid()).children(recursive=True) if tasks else []
            peak["task"] = max(
                [peak["task"], *(_own_mib(process) for process in workers if _is_worker(process))]
            )

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    yield peak
    over.set()
    watcher.join()


def _is_worker(process: Any) -> bool:
    try:
        return bool(process.name().startswith("ray::"))
    except psutil.Error:
        return False


def _own_mib(process: Any) -> float:
    try:
        return float(process.memory_full_info().uss) / MIB
    except psutil.Error:
        return 0.0


if __name__ == "__main__":
    main()
