"""Throughput of `tailorbird score` on Parquet files, in rows per second, compared with the model
alone.

    python -m benchmarks.serving.score_throughput

Both variants tokenize and classify the same ICD-10-CM terms on all cores of the machine, with one
torch thread per core.

- `raw`: one process per core sorts its share by length and runs it in batches of 64, without
  storage.
- `score`: one Ray Data worker per core reads Parquet from S3 and writes Parquet to S3. `rows_per_s`
  counts from the start of the first part to the end of the last part. `whole_rows_per_s` includes
  the start of the workers and the loading of the model, so it grows with the number of rows.

The model is MiniLM with a random head, in the dtype of its evaluation. The variants alternate. A
figure is the median over the rounds, and a ratio compares variants within a round. The benchmark
starts a separate stack and stops it.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.material import own_stack
from benchmarks.rounds import finish, medians, print_table, take_turns
from benchmarks.serving.serving_overhead import random_version
from serving.batch_jobs.scoring import new_batch, score_batch
from tailorbird import storage
from tailorbird.config.serving import ServingConfig
from tailorbird.data.datasets import icd10
from tailorbird.models import loading
from tailorbird.registry import versions

RAW_BATCH = 64
TASK_URI, INPUT = "s3://models/score-throughput", "s3://lake/score-throughput/in"
NUM_ROWS, NUM_FILES, NUM_ROUNDS = 24_576, 3, 3


def main() -> None:
    """Print the rounds, then one line of JSON."""
    cores = len(os.sched_getaffinity(0))
    # By default, Ray gives its workers a lower priority than the raw processes have.
    os.environ.update({"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"})
    terms = icd10.build()["train"]["text"].to_pylist()
    texts = (terms * (NUM_ROWS // len(terms) + 1))[:NUM_ROWS]
    with (
        tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as temporary,
        own_stack(Path(temporary)),
    ):
        version = random_version(Path(temporary) / "version", task_uri=TASK_URI)
        _write(texts)
        variants = {
            "raw": lambda: _raw(version.uri, texts, cores),
            "score": lambda: _score(version),
        }
        measured = take_turns(variants, rounds=NUM_ROUNDS)
    rows = {name: medians(rounds) for name, rounds in measured.items()}
    print_table(f"{NUM_ROWS:,} terms on {cores} cores, medians of {NUM_ROUNDS} rounds", rows)
    pairs = zip(measured["score"], measured["raw"], strict=True)
    ratios = [
        (score["rows_per_s"] / raw["rows_per_s"], score["whole_rows_per_s"] / raw["rows_per_s"])
        for score, raw in pairs
    ]
    figures = {
        "raw_rows_per_s": rows["raw"]["rows_per_s"],
        "score_rows_per_s": rows["score"]["rows_per_s"],
        "score_whole_rows_per_s": rows["score"]["whole_rows_per_s"],
        "score_to_raw": median(ratio for ratio, _ in ratios),
        "score_whole_to_raw": median(ratio for _, ratio in ratios),
    }
    finish("score_throughput", figures, bounds={"score_to_raw": ">= 0.8"})


def _write(texts: list[str]) -> None:
    size = -(-len(texts) // NUM_FILES)
    for number in range(NUM_FILES):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": texts[number * size : (number + 1) * size]}), sink)
        storage.write_bytes(f"{INPUT}/part-{number}.parquet", sink.getvalue().to_pybytes())


def _score(version: versions.ModelVersion) -> Mapping[str, float]:
    output = f"s3://lake/score-throughput/out-{time.monotonic_ns()}"
    batch = new_batch(version, input=INPUT, output=output)
    begin = time.perf_counter()
    done = score_batch(
        batch, ServingConfig(), version=version, on_progress=lambda _done, _total: None
    )
    return {
        "rows_per_s": NUM_ROWS / done.busy_s,
        "whole_rows_per_s": NUM_ROWS / (time.perf_counter() - begin),
    }


def _raw(uri: str, texts: list[str], num_processes: int) -> Mapping[str, float]:
    """Run processes that start together, each with its share of the texts, and return their joint
    rate."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(num_processes)
    results: Any = context.SimpleQueue()
    processes = [
        context.Process(
            target=raw_forward, args=(uri, texts[number::num_processes], together, results)
        )
        for number in range(num_processes)
    ]
    for process in processes:
        process.start()
    measured = [results.get() for _ in processes]
    for process in processes:
        process.join()
    begins, ends = zip(*measured, strict=True)
    return {"rows_per_s": len(texts) / (max(ends) - min(begins))}


def raw_forward(uri: str, texts: list[str], together: Any, results: Any) -> None:
    """Run a process of the raw variant: tokenize, sort and classify its texts once."""
    from tailorbird.models.classifier import logits_rows

    torch.set_num_threads(1)
    loaded: Any = loading.load_artifact(uri)
    model, tokenizer = loaded.model, loaded.tokenizer
    assert model is not None
    assert tokenizer is not None

    def forward(rows: list[str]) -> None:
        tokens = loaded.encode(rows)
        logits_rows(model, tokens, pad_id=tokenizer.pad_token_id, batch_size=RAW_BATCH)

    forward(texts[:512])
    together.wait()
    begin = time.time()
    forward(texts)
    results.put((begin, time.time()))


if __name__ == "__main__":
    main()
