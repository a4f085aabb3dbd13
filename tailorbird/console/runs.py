"""The runs of a task: their order, their states and their records."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from tailorbird.console.reader import ListPage, Reader
from tailorbird.console.times import parse_time
from tailorbird.evaluation.report.evidence import EVIDENCE_FILE, Evidence
from tailorbird.evaluation.report.preregistration import PROTOCOL_FILE, Preregistration
from tailorbird.registry.run_progress import RunProgress
from tailorbird.registry.test_set_ledger import Ledger, TestSetAccess
from tailorbird.storage.paths import TaskPaths, parse_run_uri

RUNS_PER_PAGE = 15
STALE_AFTER = timedelta(minutes=5)  # a driver writes its progress every minute


class RunState(StrEnum):
    """State of a run."""

    RUNNING = "running"
    FINISHED = "finished"
    EXPIRED = "expired"  # finished, but its verdict may no longer promote a version
    FAILED = "failed"
    STALE = "no news"  # under way according to its last record, which is old
    REGISTERED = "registered"  # its test protocol is registered, and nothing else is known


TONES = {
    RunState.RUNNING: "active",
    RunState.FINISHED: "passes",
    RunState.EXPIRED: "open",
    RunState.FAILED: "fails",
    RunState.STALE: "open",
    RunState.REGISTERED: "open",
}
"""CSS class of each state."""


@dataclass(frozen=True)
class Run:
    """A run with its state. A finished run has evidence, unless it cannot be read."""

    name: str
    state: RunState
    evidence: Evidence | None = None
    progress: RunProgress | None = None
    registration: Preregistration | None = None

    @property
    def tone(self) -> str:
        return TONES[self.state]

    @property
    def at(self) -> datetime | None:
        """The time of its verdict, or else of its start."""
        if self.evidence is not None:
            return parse_time(self.evidence.created_at)
        if self.progress is not None:
            return parse_time(self.progress.started_at)
        if self.registration:
            return parse_time(self.registration.requested_at)
        return None


def state_of(evidence: Evidence | None, progress: RunProgress | None, *, now: datetime) -> RunState:
    """Return the state of a run from its records."""
    if evidence is not None:
        if parse_time(evidence.expires_at) <= now:
            return RunState.EXPIRED
        return RunState.FINISHED
    if progress is None:
        return RunState.REGISTERED
    if progress.status == "failed":
        return RunState.FAILED
    if progress.status != "running":
        return RunState.FINISHED
    if now - parse_time(progress.updated_at) > STALE_AFTER:
        return RunState.STALE
    return RunState.RUNNING


def newest_first(names: Iterable[str], *, times: Mapping[str, datetime]) -> list[str]:
    """Return the names by their times, the newest first; names without a time are last."""
    names = set(names)
    timed = names & times.keys()
    newest = sorted(timed, key=lambda name: (times[name], name), reverse=True)
    return newest + sorted(names - timed)


def read_runs(reader: Reader, paths: TaskPaths, *, page: int, now: datetime) -> ListPage[Run]:
    """Return a page of the runs. Only the records of this page are read.

    The order is by the last news: the time of a run's access to the test rows, or of its last
    progress if that is later.
    """
    names = {entry.name for entry in reader.entries(paths.runs) if entry.is_folder}
    times: dict[str, datetime] = {}
    for entry in reader.entries(paths.all_progress):
        name = entry.name.removesuffix(".json")
        names.add(name)
        if entry.changed_at is not None:
            times[name] = entry.changed_at
    for access in read_looks(reader, paths).entries:
        name = access.run.rpartition("/")[2]
        at = parse_time(access.at)
        times[name] = max(at, times.get(name, at))
    return reader.page(
        lambda name: read_run(reader, paths, name, now=now),
        newest_first(names, times=times),
        number=page,
        size=RUNS_PER_PAGE,
    )


def read_run(reader: Reader, paths: TaskPaths, name: str, *, now: datetime) -> Run | None:
    """Return a run; None if nothing is stored under its name."""
    evidence = reader.read(f"{paths.run(name)}/{EVIDENCE_FILE}", Evidence)
    progress = reader.read(paths.progress(name), RunProgress)
    registration = None
    if evidence is None and progress is None:
        registration = reader.read(f"{paths.run(name)}/{PROTOCOL_FILE}", Preregistration)
        if registration is None:
            return None
    state = state_of(evidence, progress, now=now)
    return Run(name, state, evidence=evidence, progress=progress, registration=registration)


def read_active(reader: Reader, paths: TaskPaths, *, now: datetime) -> tuple[Run, ...]:
    """Return the runs that are under way, the newest first; only records with recent news are
    read."""
    records = []
    for entry in reader.entries(paths.all_progress):
        if entry.changed_at is not None and now - entry.changed_at <= STALE_AFTER:
            record = reader.read_entry(entry, RunProgress)
            if record is not None and state_of(None, record, now=now) is RunState.RUNNING:
                records.append(record)
    records.sort(key=lambda record: record.started_at, reverse=True)
    return tuple(
        Run(parse_run_uri(record.run)[1], RunState.RUNNING, progress=record) for record in records
    )


@dataclass(frozen=True)
class Looks:
    """The accesses of a task to test rows, oldest first, or the reason why the ledger cannot be
    read."""

    entries: tuple[TestSetAccess, ...] = ()
    problem: str = ""


def read_looks(reader: Reader, paths: TaskPaths) -> Looks:
    """Return the task's accesses. The ledger belongs to the registry: the role of a service may not
    read it."""
    ledger_reader = Reader(reader.cache)
    ledger = ledger_reader.read(paths.test_set_ledger, Ledger)
    return Looks(ledger.entries if ledger else (), "; ".join(ledger_reader.problems))
