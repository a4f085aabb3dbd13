"""Latency of the champion with and without a challenger.

    python -m benchmarks.serving.shadow_cost

One replica on a separate stack serves a champion and a challenger, both MiniLM with a random head.
Clients send one text per request: `paced` is 4 clients with a pause after each answer, so that the
champion is idle about half of the time; `busy` is 32 clients without a pause. The variants
alternate: `off`, `shadow` (mirrors every request) and `canary` (gets half of the requests). Each is
switched on and off in the running replica, and no request may fail. Latency is measured by the
client. The benchmark stops the stack at the end.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import requests

from benchmarks.rounds import Figures, finish, medians, print_table, take_turns
from benchmarks.serving.serving_overhead import own_stack, random_version
from serving.deploy import application, rollout
from tailorbird.config.serving import ServingConfig
from tailorbird.registry.versions import ModelVersion

TASK_URI = "s3://models/experiment"
LOADS = {"paced": (4, 0.05), "busy": (32, 0.0)}
NUM_ROUNDS, SECONDS = 3, 6
SHARES: dict[str, dict[str, float]] = {
    "off": {},
    "shadow": {"shadow": 1.0},
    "canary": {"canary": 0.5},
}
BOUNDS = {
    "failed": "<= 0",
    "paced_p50_shadow_to_off": "<= 1.25",
    "busy_p99_shadow_to_off": "<= 1.25",
}


def main() -> None:
    """Print the rounds, then one line of JSON."""
    with (
        tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as temporary,
        own_stack(Path(temporary), 2),
    ):
        versions = [
            random_version(Path(temporary) / f"version-{seed}", task_uri=TASK_URI, seed=seed)
            for seed in (0, 1)
        ]
        log = Path(temporary) / "requests"
        variants: dict[str, Callable[[], Figures]] = {
            name: partial(measure, versions, share=share, log=log) for name, share in SHARES.items()
        }
        measure(versions, share={}, log=log)  # the first answers are slower
        measured = take_turns(variants, rounds=NUM_ROUNDS)
        rollout.undeploy(application.application_name(TASK_URI))
        arms = [
            arm for file in log.rglob("*.parquet") for arm in pq.read_table(file)["arm"].to_pylist()
        ]
    middle = {name: medians(rounds) for name, rounds in measured.items()}
    print_table("Milliseconds until an answer", middle)
    figures = {
        f"{figure}_{name}_to_off": middle[name][figure] / middle["off"][figure]
        for name in ("shadow", "canary")
        for figure in ("paced_p50", "paced_p99", "busy_p50", "busy_p99")
    }
    figures |= {f"{arm}_rows": float(arms.count(arm)) for arm in ("champion", "canary", "shadow")}
    figures["failed"] = sum(turn["failed"] for rounds in measured.values() for turn in rounds)
    finish("shadow_cost", figures, bounds=BOUNDS)


def measure(versions: list[ModelVersion], *, share: dict[str, float], log: Path) -> Figures:
    """Return the latencies in milliseconds under each load, and the failed requests; versions[0] is
    the champion."""
    challenger = {"version": versions[1].version, **share} if share else None
    config = ServingConfig.model_validate({"request_log": log.as_uri(), "challenger": challenger})
    additional = application.AdditionalVersions(challenger=versions[1] if share else None)
    url = rollout.deploy(config, task_uri=TASK_URI, version=versions[0], additional=additional)
    figures: dict[str, float] = {"failed": 0}
    for name, (num_clients, pause_s) in LOADS.items():
        with ThreadPoolExecutor(num_clients) as clients:
            results = list(
                clients.map(
                    lambda _, pause_s=pause_s: client(url, pause_s=pause_s), range(num_clients)
                )
            )
        times = np.concatenate([times for times, _ in results])
        figures[f"{name}_p50"], figures[f"{name}_p99"] = 1000 * np.quantile(times, (0.5, 0.99))
        figures["failed"] += sum(failed for _, failed in results)
    return figures


def client(url: str, *, pause_s: float) -> tuple[list[float], int]:
    """Return the latency of each answer in seconds, and the number of failed requests, of one
    client."""
    times, failed, end = [], 0, time.monotonic() + SECONDS
    with requests.Session() as session:
        while time.monotonic() < end:
            begin = time.perf_counter()
            answer = session.post(
                f"{url}/v1/classify", json={"input": "Fracture of femur"}, timeout=60
            )
            times.append(time.perf_counter() - begin)
            failed += answer.status_code != 200
            time.sleep(pause_s)
    return times, failed


if __name__ == "__main__":
    main()
