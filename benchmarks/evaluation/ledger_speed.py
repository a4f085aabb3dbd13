"""Time of the test-set ledger on the embedded S3 server, with 100 accesses of each of 100 tasks.

    python -m benchmarks.evaluation.ledger_speed

The accesses of the tasks alternate. A test set has 1,000 to 3,000 rows. "Same": a task always has the
same test set. "Refreshed": it has new rows after each 10 accesses. "Fresh": no access has a row of another, so there
are 20 million rows. "Read" is `next_access` of a test set, "recount" is that of `tailorbird verify`.
"""

import os
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.rounds import finish, medians, print_table, take_turns
from cluster.local import stack
from tailorbird import storage
from tailorbird.registry.test_set_ledger import (
    Hashes,
    Shard,
    digest_of_rows,
    next_access,
    parts_by_digit,
    record_test_access,
    recount_access,
    short_id,
)
from tailorbird.storage.paths import TaskPaths

NUM_TASKS, NUM_ACCESSES, SIZES = 100, 100, (1_000, 3_000)
ACCESSES_TO_A_SET = {"same": NUM_ACCESSES, "refreshed": 10, "fresh": 1}
NUM_ROUNDS = 5
BOUNDS = {"same_read_seconds": "<= 2", "refreshed_read_seconds": "<= 2"}


def main() -> None:
    """Print the rounds, then one line of JSON."""
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as name:
        folder = Path(name)
        try:
            os.environ.update(stack.up(folder, num_cpus=1).environment())
            written = {name: _write(f"s3://models/{name}", number) for name, number in ACCESSES_TO_A_SET.items()}
            variants = {name: _timed(f"s3://models/{name}", rows) for name, rows in written.items()}
            rounds = take_turns(variants, rounds=NUM_ROUNDS)
        finally:
            stack.down(folder)
    results = {name: medians(figures) for name, figures in rounds.items()}
    print_table(f"{NUM_TASKS * NUM_ACCESSES:,} accesses (medians of {NUM_ROUNDS} rounds)", results)
    figures = {f"{name}_{what}": value for name, each in results.items() for what, value in each.items()}
    finish("ledger_speed", figures, bounds=BOUNDS)


def _write(registry: str, accesses_to_a_set: int) -> Hashes:
    """Write the ledger of a registry and return a test set."""
    generator = np.random.default_rng(accesses_to_a_set)
    sets = {
        (task, number): np.unique(generator.integers(2**64, size=generator.integers(*SIZES), dtype=np.uint64))
        for task, number in product(range(NUM_TASKS), range(NUM_ACCESSES // accesses_to_a_set))
    }
    digests = {key: digest_of_rows(rows) for key, rows in sets.items()}
    accesses = product(range(NUM_ACCESSES), range(NUM_TASKS))
    order = [
        (generator.integers(2**64, dtype=np.uint64), short_id(digests[task, access // accesses_to_a_set]))
        for access, task in accesses
    ]
    paths = TaskPaths(f"{registry}/task")
    storage.write_bytes(paths.test_set_order, np.array(order, "<u8").tobytes())
    rows = np.concatenate(list(sets.values()))
    by_row = np.argsort(rows)
    ids = np.concatenate([np.full(len(sets[key]), short_id(digest)) for key, digest in digests.items()])[by_row]
    start = 0
    for digit, part in parts_by_digit(rows[by_row]).items():
        shard = Shard(part, ids[start : start + len(part)])
        storage.write_bytes(paths.test_rows(digit), shard.to_parquet())
        start += len(part)
    return sets[0, 0]


def _timed(registry: str, rows: Hashes) -> Callable[[], dict[str, float]]:
    number = 0

    def measure() -> dict[str, float]:
        nonlocal number
        number += 1
        task_uri = f"{registry}/task"
        times = [time.perf_counter()]
        next_access(task_uri, rows=rows)
        times.append(time.perf_counter())
        access = record_test_access(task_uri, rows=rows, models=[f"model {number}"], protocol="p", run="r")
        times.append(time.perf_counter())
        if recount_access(task_uri, access=access) != access:
            raise SystemExit("the recounted access differs from the recorded one")
        times.append(time.perf_counter())
        names = ("read_seconds", "record_seconds", "recount_seconds")
        return dict(zip(names, np.diff(times).tolist(), strict=True))

    return measure


if __name__ == "__main__":
    main()
