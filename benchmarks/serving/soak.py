"""Soak test: latency, memory and errors of a service with changing load, versions and champions.

    python -m benchmarks.serving.soak [minutes]

The service has two versions with MiniLM's full weights and up to eight LoRA adapters. For 20
minutes, 32 clients send requests for half a minute, then two of them for half a minute, and so on,
so that a second replica starts and stops. Every minute, an adapter is registered and loaded into
the replicas (it replaces the oldest of eight), and the champion is promoted or rolled back, with
the parity gate. Requests and answers are written to a request log.

The benchmark counts failed requests, answers that differ from the label of their version, and
answers missing in the log. It compares latency and memory of the last third of the time with those
of the first third, after a warm-up. It starts a separate stack and stops it.
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.rounds import finish, print_table
from benchmarks.serving.promotion_under_load import clients, recipe_named, two_versions, write_run
from benchmarks.serving.serving_overhead import own_stack, random_adapter
from tailorbird import storage
from tailorbird.config.serving import ServingConfig
from tailorbird.registry import versions as registry
from tailorbird.release.promotion import promote_version, roll_back
from tailorbird.release.serving import serve_champion

MINUTES, WARM_S, PHASE_S, SAMPLE_S = 20, 60.0, 30.0, 2.0
MOST_ADAPTERS = 8
LOG = "s3://lake/soak"
CONFIG = ServingConfig(
    max_replicas=2,
    target_ongoing_requests=8,
    versions=MOST_ADAPTERS,
    request_log=LOG,
    max_batch_workers=1,
)
PARTS = ("replica", "controller", "proxy", "rest")
BOUNDS = {
    "failed_requests": "<= 0",
    "answers_not_their_versions_own": "<= 0",
    "answers_missing_in_the_log": "<= 0",
    "p99_last_to_first": "<= 1.25",
    "replica_memory_last_to_first": "<= 1.1",
}


def main(minutes: float) -> None:
    """Print memory and latency of each third, then one line of JSON."""
    with (
        tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as temporary,
        own_stack(Path(temporary)) as pid,
    ):
        folder = Path(temporary)
        recipe = recipe_named("soak", serving=CONFIG)
        versions = two_versions(folder, task_uri=recipe.task_uri)
        write_run(recipe, versions[0], run="first", champion=None)
        promote_version(recipe.task_uri)
        url, _ = serve_champion(recipe.serving, task_uri=recipe.task_uri)
        write_run(recipe, versions[1], run="second", champion=versions[0])
        with clients(folder, url, versions, phase_s=PHASE_S) as collect, _watched(pid) as samples:
            time.sleep(WARM_S)
            start = time.monotonic()
            num_changes = _keep_changing(
                recipe.task_uri, versions[0], folder=folder, until=start + 60 * minutes
            )
            ended = time.monotonic()
            responses = collect()
        answered = set(responses.request_id[responses.status == 200].tolist())
        logged = _await_rows(answered)
    thirds = np.linspace(start, ended, 4)
    rows = {}
    for number, (since, until) in enumerate(pairwise(thirds), 1):
        memory = {
            f"{part} MiB": _largest(samples, part, since=since, until=until) for part in PARTS
        }
        rows[f"third {number}"] = {"p99 ms": responses.p99_ms(since, until)} | memory
    print_table(f"{minutes:g} minutes, {num_changes} changes", rows)
    first, last = rows["third 1"], rows["third 3"]
    measured = {
        "minutes": minutes,
        "requests": float(len(responses.ended)),
        "changes": float(num_changes),
        "most_replicas": float(max(len(sample["replica"]) for _, sample in samples)),
        "failed_requests": float((responses.fault == 1).sum()),
        "answers_not_their_versions_own": float((responses.fault == 2).sum()),
        "answers_missing_in_the_log": float(len(answered - set(logged))),
        "rows_twice_in_the_log": float(len(logged) - len(set(logged))),
        "p99_last_to_first": last["p99 ms"] / first["p99 ms"],
        **{
            f"{name}_memory_last_to_first": last[f"{name} MiB"] / first[f"{name} MiB"]
            for name in PARTS
        },
    }
    finish("soak", measured, bounds=BOUNDS)


def _keep_changing(
    task_uri: str, like: registry.ModelVersion, *, folder: Path, until: float
) -> int:
    """Add an adapter and change the champion every minute, and return the number of changes."""
    num = 0
    while time.monotonic() + 60 <= until:
        start = time.monotonic()
        random_adapter(folder / f"adapter-{num}", task_uri=task_uri, like=like, seed=num)
        serve_champion(CONFIG, task_uri=task_uri)
        time.sleep(max(0.0, start + 30 - time.monotonic()))
        if num % 2 == 0:
            promote_version(task_uri, override="again")
        else:
            roll_back(task_uri, reason="again")
        num += 1
        time.sleep(max(0.0, start + 60 - time.monotonic()))
    return 2 * num


Sample = dict[str, dict[int, float]]


@contextmanager
def _watched(pid: int) -> Iterator[list[tuple[float, Sample]]]:
    """Sample the memory of the stack's processes, except for the S3 server, every two seconds.

    Yield the samples, each in MiB by part and process id.
    """
    samples: list[tuple[float, Sample]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_S):
            sample: Sample = {part: {} for part in PARTS}
            for process in psutil.Process(pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    part = _part(process.name(), process.cmdline())
                    if part is None:
                        continue
                    sample[part][process.pid] = process.memory_info().rss / (1 << 20)
            samples.append((time.monotonic(), sample))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def _part(name: str, command: list[str]) -> str | None:
    """Return the part to which a process belongs; None for the S3 server."""
    title = command[0] if command else ""
    for sign, part in (("ServeReplica", "replica"), ("ServeController", "controller")):
        if sign in title:
            return part
    return None if name == "weed" else "proxy" if name == "haproxy" else "rest"


def _largest(
    samples: list[tuple[float, Sample]], part: str, *, since: float, until: float
) -> float:
    """Return the memory of the largest process of a part, as the median over the samples of an
    interval."""
    chosen = [
        max(sample[part].values())
        for at, sample in samples
        if since <= at <= until and sample[part]
    ]
    return float(np.median(chosen)) if chosen else float("nan")


def _await_rows(expected: set[str]) -> list[str]:
    """Wait up to a minute until the log has rows for all these requests, and return the clients'
    ids of all rows."""
    deadline, request_ids = time.monotonic() + 60, list[str]()
    while not expected <= set(request_ids) and time.monotonic() < deadline:
        time.sleep(2)
        files = [uri for uri in storage.list_files(f"{LOG}/answers") if uri.endswith(".parquet")]
        tables = [
            pq.read_table(pa.BufferReader(storage.read_bytes(uri)), columns=["x_request_id"])
            for uri in files
        ]
        request_ids = [
            request_id for table in tables for request_id in table["x_request_id"].to_pylist()
        ]
    return request_ids


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(float(sys.argv[1]) if sys.argv[1:] else MINUTES)
