"""False improvements in repeated tests on known rows, and the time of the test-set ledger on the
embedded S3 server.

    python -m benchmarks.evaluation.known_rows

Repeated tests: twelve equal candidates are tested on the same rows, or on rows of which a share is
in all tests. Each test changes the known rows as a user might: another punctuation, a zero-width
space, another system prompt and class. One equal candidate is tested again after each of ten
additions of rows. A figure is the share of these series with any false improvement. It is at most
the sum of half of the levels, because each level is two-sided. "Uncorrected" is the share if every
test has the full alpha. "Best again" is the share of false improvements if the last test does not
compare a new candidate but the one with the largest gain in the tests before.

Ledger: 100 accesses of each of 100 tasks, whose test sets have 1,000 to 3,000 rows. "Same": a task
always has the same test set. "Refreshed": it has new rows after each 10 accesses. "Fresh": no
access has a row of another, so there are 20 million rows. "Read" is `next_access` of a test set,
"recount" is that of `tailorbird verify`.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.repeated_tests import proven
from benchmarks.rounds import finish, medians, print_table, take_turns
from cluster.local import stack
from tailorbird import storage
from tailorbird.data.fingerprints import fingerprints, user_texts
from tailorbird.data.rows import Rows, text_of
from tailorbird.registry.test_set_ledger import (
    Hashes,
    digest_of_rows,
    next_access,
    record_test_access,
    recount_access,
    short_id,
)
from tailorbird.storage.paths import TaskPaths

NUM_TASKS, NUM_ACCESSES, SIZES = 100, 100, (1_000, 3_000)
ACCESSES_TO_A_SET = {"same": NUM_ACCESSES, "refreshed": 10, "fresh": 1}
NUM_ROUNDS = 5
ALPHA, NUM_SERIES, CHUNK, NUM_CANDIDATES = 0.05, 4_000, 100, 12
NUM_ROWS, MORE_ROWS, NUM_ADDITIONS = 1_500, 500, 10
SHARES = (1.0, 0.5, 0.3, 0.06, 0.04)
EDITS = ("{}", "{}.", "\u200b{}", "  {} !")
BOUNDS = {
    "rate_in_12_tests_of_the_same_rows": f"<= {ALPHA}",
    "largest_rate_above_the_sum_of_half_of_the_levels": "<= 0",
    "largest_rate_if_the_best_candidate_is_tested_again": f"<= {ALPHA}",
    "rate_of_an_equal_candidate_after_10_additions": f"<= {ALPHA}",
    "same_read_seconds": "<= 2",
    "refreshed_read_seconds": "<= 20",
}
Indices = NDArray[np.int64]


def main() -> None:
    """Print the tables, then one line of JSON."""
    shared = {f"{share:.0%} known": _shared_rows(share) for share in SHARES}
    appended = _additions()
    print_table(
        f"Any false improvement in {NUM_CANDIDATES} tests ({NUM_SERIES:,} series)",
        shared | {"10 additions": appended},
    )
    times = _ledger_times()
    print_table(f"{NUM_TASKS * NUM_ACCESSES:,} accesses (medians of {NUM_ROUNDS} rounds)", times)
    rates = shared.values()
    figures = {
        "rate_in_12_tests_of_the_same_rows": shared["100% known"]["any"],
        "uncorrected_rate_in_12_tests_of_the_same_rows": shared["100% known"]["uncorrected"],
        "largest_rate_above_the_sum_of_half_of_the_levels": max(
            row["any"] - row["half of levels"] for row in rates
        ),
        "largest_rate_if_the_best_candidate_is_tested_again": max(
            row["best again"] for row in rates
        ),
        "rate_of_an_equal_candidate_after_10_additions": appended["any"],
        "uncorrected_rate_of_an_equal_candidate_after_10_additions": appended["uncorrected"],
    }
    figures |= {
        f"{name}_{what}": value for name, each in times.items() for what, value in each.items()
    }
    finish("known_rows", figures, bounds=BOUNDS)


def _shared_rows(share: float) -> dict[str, float]:
    """Return shares of series of tests of equal candidates, if a share of the rows is in all
    tests."""
    num_known = round(share * NUM_ROWS)
    levels = _levels([_edited_rows(test, num_known=num_known) for test in range(NUM_CANDIDATES)])
    generator = np.random.default_rng(num_known)
    chunks = [_tests(generator, num_known=num_known) for _ in range(NUM_SERIES // CHUNK)]
    *tables, again = np.concatenate(chunks, axis=1)
    best = {
        "best again": float(proven(again, alpha=levels[-1]).mean()),
        "half of level": levels[-1] / 2,
    }
    return _rates(tables, levels=levels) | best


def _tests(generator: np.random.Generator, *, num_known: int) -> Indices:
    """Return the paired counts [tests, series, 4] of each candidate, and of the best one in the
    last test."""
    right = _right(generator, num_rows=num_known, num_models=1 + NUM_CANDIDATES)
    known = np.stack([_cells(right, model=1 + test) for test in range(NUM_CANDIDATES)])
    fresh_rows = [
        _right(generator, num_rows=NUM_ROWS - num_known, num_models=2)
        for _ in range(NUM_CANDIDATES)
    ]
    fresh = np.stack([_cells(right, model=1) for right in fresh_rows])
    tables = known + fresh
    best = (tables[:-1, :, 1] - tables[:-1, :, 2]).argmax(axis=0)
    again = known[best, np.arange(CHUNK)] + fresh[-1]
    return np.concatenate([tables, again[None]])


def _additions() -> dict[str, float]:
    """Return shares of series of tests of an equal candidate, if each test has more rows."""
    sizes = [NUM_ROWS + MORE_ROWS * test for test in range(NUM_ADDITIONS)]
    generator = np.random.default_rng(len(sizes))
    chunks = []
    for _ in range(NUM_SERIES // CHUNK):
        right = _right(generator, num_rows=max(sizes), num_models=2)
        chunks.append(np.stack([_cells(right[:, :size], model=1) for size in sizes]))
    levels = _levels([np.arange(size, dtype=np.uint64) for size in sizes])
    return _rates(np.concatenate(chunks, axis=1), levels=levels)


def _rates(tables: Sequence[Indices] | Indices, *, levels: Sequence[float]) -> dict[str, float]:
    """Return the shares of series with a false improvement in any test, from tables [tests, series,
    4]."""
    any_proven = np.any(
        [proven(cells, alpha=level) for cells, level in zip(tables, levels, strict=True)], axis=0
    )
    rate = float(any_proven.mean())
    return {
        "any": rate,
        "±": float(np.sqrt(rate * (1 - rate) / NUM_SERIES)),
        "half of levels": sum(levels) / 2,
        "uncorrected": float(
            np.any([proven(cells, alpha=ALPHA) for cells in tables], axis=0).mean()
        ),
    }


def _edited_rows(test: int, *, num_known: int) -> Hashes:
    """Return the fingerprints of the rows of a test; the known rows have another form in each
    test."""
    edit = EDITS[test % len(EDITS)]
    known = [edit.format(f"Question {number}") for number in range(num_known)]
    texts = known + [f"Question {number} of test {test}" for number in range(num_known, NUM_ROWS)]
    conversations = tuple((("system", f"Prompt {test}"), ("user", text)) for text in texts)
    ids = tuple(map(str, range(NUM_ROWS)))
    rows = Rows(
        ids,
        tuple(map(text_of, conversations)),
        (f"class {test}",) * NUM_ROWS,
        conversations=conversations,
    )
    return fingerprints(user_texts(rows))


def _levels(sets: Sequence[Hashes]) -> list[float]:
    """Return the level of each test, from the hashes of its rows."""
    with tempfile.TemporaryDirectory() as folder:
        record = partial(record_test_access, f"{Path(folder).as_uri()}/task", protocol="p", run="r")
        return [
            ALPHA * record(rows=rows, models=[f"{test}"]).alpha_share
            for test, rows in enumerate(sets)
        ]


def _right(generator: np.random.Generator, *, num_rows: int, num_models: int) -> NDArray[np.bool_]:
    """Return which model is right [series, rows, models]; the first is the incumbent, with an
    accuracy of about 0.75.

    A row has a difficulty that all models share, and each model also has independent errors: a
    discordance of 0.15.
    """
    shared = generator.standard_normal((CHUNK, num_rows, 1), dtype=np.float32)
    own = generator.standard_normal((CHUNK, num_rows, num_models), dtype=np.float32)
    return np.asarray(np.sqrt(0.8) * shared + np.sqrt(0.2) * own > -0.6745)


def _cells(right: NDArray[np.bool_], *, model: int) -> Indices:
    """Return the four paired counts [series, 4] in the order of `PairedCounts`."""
    ours, theirs = right[..., model], right[..., 0]
    cells = (ours & theirs, ours & ~theirs, ~ours & theirs, ~ours & ~theirs)
    return np.stack([cell.sum(axis=1) for cell in cells], axis=-1)


def _ledger_times() -> dict[str, dict[str, float]]:
    """Return the median times by registry."""
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as name:
        folder = Path(name)
        try:
            os.environ.update(stack.up(folder, num_cpus=1).environment())
            written = {
                name: _write(f"s3://models/{name}", number)
                for name, number in ACCESSES_TO_A_SET.items()
            }
            variants = {name: _timed(f"s3://models/{name}", rows) for name, rows in written.items()}
            return {
                name: medians(figures)
                for name, figures in take_turns(variants, rounds=NUM_ROUNDS).items()
            }
        finally:
            stack.down(folder)


def _write(registry: str, accesses_to_a_set: int) -> Hashes:
    """Write the ledger of a registry and return a test set."""
    generator = np.random.default_rng(accesses_to_a_set)
    sets = {
        (task, number): np.unique(
            generator.integers(2**64, size=generator.integers(*SIZES), dtype=np.uint64)
        )
        for task, number in product(range(NUM_TASKS), range(NUM_ACCESSES // accesses_to_a_set))
    }
    digests = {key: digest_of_rows(rows) for key, rows in sets.items()}
    accesses = product(range(NUM_ACCESSES), range(NUM_TASKS))
    order = [
        (
            generator.integers(2**64, dtype=np.uint64),
            short_id(digests[task, access // accesses_to_a_set]),
        )
        for access, task in accesses
    ]
    paths = TaskPaths(f"{registry}/task")
    storage.write_bytes(paths.test_set_order, np.array(order, "<u8").tobytes())
    for key, rows in sets.items():
        storage.write_bytes(paths.test_rows(digests[key][:16]), rows.astype("<u8").tobytes())
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
        access = record_test_access(
            task_uri, rows=rows, models=[f"model {number}"], protocol="p", run="r"
        )
        times.append(time.perf_counter())
        if recount_access(task_uri, access=access) != access:
            raise SystemExit("the recounted access differs from the recorded one")
        times.append(time.perf_counter())
        names = ("read_seconds", "record_seconds", "recount_seconds")
        return dict(zip(names, np.diff(times).tolist(), strict=True))

    return measure


if __name__ == "__main__":
    main()
