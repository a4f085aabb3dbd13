"""Seconds until the console has made a page of a registry with 1,000 runs, from a cold and from a
warm cache.

    python -m benchmarks.monitoring.console
    python -m benchmarks.monitoring.console s3://models/console-benchmark

The registry has 20 tasks: one with 620 runs and 120 versions, and 19 with 20 runs each. Each run
has the evidence of a simulated test with gates (1,800 rows). Each task has a champion, 30 daily
reports and a watch, and one run is under way. The registry is a temporary folder, or is written to
an empty folder on S3 that is given as the argument, and is deleted afterwards. A time includes the
listings, the checks of tags, the parsing and the rendering, without HTTP. A cold cache holds no
record. The CPU time is that of all threads of the process.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.rounds import finish, medians, print_table, take_turns
from tailorbird import storage
from tailorbird.console.site import Site, page_at, utc_now
from tailorbird.storage.listing import list_folder
from tailorbird.storage.paths import TaskPaths
from tests import console_registry as made

NUM_TASKS, NUM_RUNS_OF_FIRST, NUM_RUNS_OF_OTHERS, NUM_VERSIONS, NUM_DAYS = 20, 620, 20, 120, 30
NUM_ROUNDS, NUM_ROWS = 5, 1800
PAGES = {"first_page": None, "task_page": "task-00", "versions_page": "task-00/versions"}
BOUNDS = {"first_page_warm_seconds": "<= 0.3"}


def main() -> None:
    """Print the rounds, then one line of JSON."""
    with _registry(sys.argv[1] if len(sys.argv) > 1 else None) as registry:
        num_runs = _write(registry)
        variants = {name: lambda path=path: _times(registry, path) for name, path in PAGES.items()}
        rounds = take_turns(variants, rounds=NUM_ROUNDS)
    results = {name: medians(figures) for name, figures in rounds.items()}
    print_table(
        f"{num_runs:,} runs in {registry.partition(':')[0]}:// (medians of {NUM_ROUNDS} rounds)",
        results,
    )
    figures = {
        f"{page}_{name}": value for page, each in results.items() for name, value in each.items()
    }
    finish("console", figures | {"runs": num_runs}, bounds=BOUNDS)


@contextmanager
def _registry(uri: str | None) -> Iterator[str]:
    if uri is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder).as_uri()
        return
    if list_folder(uri):
        raise SystemExit(f"{uri} is not empty; give an empty folder")
    try:
        yield uri.rstrip("/")
    finally:
        storage.delete_folder(uri)


def _times(registry: str, path: str | None) -> dict[str, float]:
    """Return the seconds of a page with an empty cache, then again with the cache that this
    leaves."""
    site, figures = Site(registry), dict[str, float]()
    for name in ("cold", "warm"):
        started, cpu = time.perf_counter(), time.process_time()
        status, html = page_at(site, path, now=utc_now())
        figures |= {
            f"{name}_seconds": time.perf_counter() - started,
            f"{name}_cpu_seconds": time.process_time() - cpu,
        }
        if status != 200:
            raise SystemExit(f"{path} has the status {status}")
    return figures | {"kib": len(html) / 1024}


def _write(registry: str) -> int:
    """Write the registry and return its number of runs."""
    now = datetime.now(UTC).replace(microsecond=0)
    evidence, num_runs = made.simulated(num_rows=NUM_ROWS), 0
    for task in range(NUM_TASKS):
        paths, looks = TaskPaths(f"{registry}/task-{task:02}"), []
        for number in range(NUM_RUNS_OF_OTHERS if task else NUM_RUNS_OF_FIRST):
            at = now - timedelta(hours=5 * number)
            looks.append(made.add_run(paths, f"{task:04x}{number:012x}", at=at, evidence=evidence))
            if number < (NUM_VERSIONS if task == 0 else 1):
                uri = made.add_version(
                    paths, f"full-{number:012x}", kind="bag_of_words", at=at, evidence=looks[-1]
                )
            if number == 0:
                made.add_champion(paths, uri, at=now - timedelta(days=NUM_DAYS), evidence=looks[-1])
        num_runs += len(looks)
        made.add_looks(paths, *looks)
        made.add_reports(paths, until=now, num_days=NUM_DAYS)
        made.add_watch(paths, at=now, challenger_days=NUM_DAYS, expires=now + timedelta(days=300))
    made.add_progress(TaskPaths(f"{registry}/task-00"), "f" * 16, started=now, updated=now)
    return num_runs


if __name__ == "__main__":
    main()
