"""Memory as training rows grow from ten thousand to ten million: what streaming holds does not grow with them.

    python benchmarks/streaming_memory.py [most rows]

Generated Parquet (four made-up words a row, 21 classes, row groups of 131,072) on an S3 server of its own. Of
each size, in a process of its own: the rows are gathered as a run gathers them (Ray Data checks and encodes them into
shards; 5,000 rows stay in memory), then a whole epoch of steps is drawn from the shards and collated as a worker does
it, without the model, whose memory does not hang on the rows. Told are the peaks of the gathering process, of the
largest Ray Data task and of the drawing process (each sampled ten times a second, its own pages only), and the rates.
The bounds compare the most rows with a hundred thousand: ten thousand fill neither a shard nor a window.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.material import ROOT, own_stack
from benchmarks.rounds import finish, show
from cluster.storage import filesystem
from recipes.schema import DataSection, TrainingSection

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
COMPARED = 100_000
IN_MEMORY, NUM_LATER, NUM_CLASSES = 5_000, 1_000, 21
GROUP_ROWS = 1 << 17
TRAINING = TrainingSection(batch_size=32)
BOUNDS = {"gather_ratio": "<= 1.2", "task_ratio": "<= 1.2", "draw_ratio": "<= 1.2"}


def main() -> None:
    """Prints the peaks of each size, then one line of JSON."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(_measure(*sys.argv[2:])), flush=True)
        return
    most = int(sys.argv[1]) if sys.argv[1:] else SIZES[-1]
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder, own_stack(Path(folder), num_cpus=2) as base_model:
        for num_rows in [size for size in SIZES if size <= most]:
            uri = f"s3://lake/rows-{num_rows}"
            for name, size in (("train", num_rows), ("validation", NUM_LATER), ("test", NUM_LATER)):
                _generate(f"{uri}/{name}.parquet", size, seed=len(name))
            asked = [sys.executable, __file__, "--one", uri, base_model]
            done = subprocess.run(asked, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            found[num_rows] = json.loads(done.stdout.splitlines()[-1])
            print(f"{num_rows:,} rows: {found[num_rows]}", flush=True)
    show("Streaming", {f"{size:,} rows": figures for size, figures in found.items()})
    largest, compared = found[max(found)], found[COMPARED]
    ratios = {f"{part}_ratio": largest[f"{part} MiB"] / compared[f"{part} MiB"] for part in ("gather", "task", "draw")}
    finish("streaming_memory", ratios | {"num_rows": max(found), **largest}, bounds=BOUNDS)


def _generate(uri: str, num_rows: int, *, seed: int) -> None:
    """Rows that fit no pattern: memory and speed are asked, not accuracy."""
    generator = np.random.default_rng(seed)
    words = np.array(["".join(word) for word in generator.choice(list("abcdefghijklmnopqrst"), size=(5000, 5))])
    store, path = filesystem(uri)
    schema = pa.schema({"text": pa.string(), "label": pa.string()})
    with store.open_output_stream(path) as sink, pq.ParquetWriter(sink, schema) as writer:
        for start in range(0, num_rows, GROUP_ROWS):
            size = min(GROUP_ROWS, num_rows - start)
            drawn = words[generator.integers(0, len(words), size=(size, 4))]
            texts = [" ".join(row) for row in drawn.tolist()]
            labels = [f"class {label}" for label in generator.integers(0, NUM_CLASSES, size=size)]
            writer.write_table(pa.table({"text": texts, "label": labels}, schema=schema))


def _measure(uri: str, base_model: str) -> dict[str, float]:
    """Peaks in MiB and rates of one size, in this process."""
    import ray

    from cluster.session import connect
    from data.encode import collate
    from data.encoded import Encoding
    from data.stream import gather
    from training.windows import StreamedRows, steps

    section = DataSection(
        train=f"{uri}/train.parquet",
        validation=f"{uri}/validation.parquet",
        test=f"{uri}/test.parquet",
        stream_above_rows=IN_MEMORY,
    )
    with connect():
        ray.get(ray.remote(lambda: None).remote())
        begun = time.perf_counter()
        with _peaks(tasks=True) as peaks:
            gathered = gather(section, Encoding(64), base_model=base_model, home=f"{uri}/home", inputs={}, seed=0)
        gathering = time.perf_counter() - begun
    assert gathered.shards is not None
    begun, rows = time.perf_counter(), StreamedRows(gathered.shards)
    drawn = 0
    with _peaks() as drawing:
        for window, batch in steps(rows, TRAINING, epoch=0, start=0):
            collate([window.tokens[row] for row in batch], pad_id=0)
            drawn += len(batch)
    assert drawn == len(rows)
    return {
        "gather MiB": peaks["own"],
        "task MiB": peaks["task"],
        "draw MiB": drawing["own"],
        "gathered rows/s": len(rows) / gathering,
        "drawn rows/s": drawn / (time.perf_counter() - begun),
    }


@contextmanager
def _peaks(*, tasks: bool = False) -> Iterator[dict[str, float]]:
    """Largest own memory of this process, and of any process of a Ray worker, while the block runs; MiB."""
    found: dict[str, float] = {"own": 0.0, "task": 0.0}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            found["own"] = max(found["own"], _own_mib(psutil.Process()))
            workers = [one for one in psutil.process_iter(["name"]) if one.info["name"].startswith("ray::")]
            found["task"] = max([found["task"], *map(_own_mib, workers if tasks else [])])

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    yield found
    over.set()
    watcher.join()


def _own_mib(process: Any) -> float:
    try:
        return float(process.memory_full_info().uss) / 2**20
    except psutil.Error:
        return 0.0


if __name__ == "__main__":
    main()
