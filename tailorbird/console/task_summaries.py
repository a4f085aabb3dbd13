"""The tasks of a registry: champion, verdict, health and traffic of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeVar

from pydantic import BaseModel

from tailorbird.config.metrics import METRICS
from tailorbird.config.task_rules import TASKS
from tailorbird.console.reader import Reader
from tailorbird.console.runs import Run, read_active
from tailorbird.console.times import parse_time, relative_text
from tailorbird.evaluation.report.evidence import EVIDENCE_FILE, Evidence
from tailorbird.monitoring.report import Report
from tailorbird.registry.champion import Champion
from tailorbird.registry.watch_record import WatchRecord
from tailorbird.storage.listing import Entry
from tailorbird.storage.paths import TaskPaths

DAYS_SHOWN = 30  # reports of a task that the pages show
M = TypeVar("M", bound=BaseModel)
MAX_WATCH_AGE = timedelta(days=2)  # `watch` runs every day


@dataclass(frozen=True)
class Health:
    """The health of a task's champion, with sentences about what needs attention."""

    state: Literal["healthy", "attention", "unknown"]
    text: str
    reasons: tuple[str, ...] = ()

    @property
    def tone(self) -> str:
        """The CSS class of the state."""
        return {"healthy": "passes", "attention": "fails", "unknown": "open"}[self.state]


@dataclass(frozen=True)
class TaskSummary:
    """What the first page shows of a task."""

    name: str
    champion: Champion | None
    evidence: Evidence | None  # of the run that selected the champion
    watch: WatchRecord | None  # of this champion
    reports: tuple[Report, ...]  # of this champion, oldest first
    active: tuple[Run, ...]
    health: Health

    @property
    def sentence(self) -> str:
        """The sentence of the verdict that selected the champion."""
        if self.champion is None:
            return "No version was promoted."
        if self.champion.verdict is not None:
            return self.champion.verdict.sentence
        if self.evidence:
            return self.evidence.verdict.sentence()
        return "It was promoted without a verdict."

    @property
    def outcome(self) -> str:
        """The outcome of this verdict; empty if there is none."""
        if self.champion and self.champion.verdict:
            return self.champion.verdict.outcome
        return ""

    @property
    def quality_name(self) -> str:
        """What the reports measure on answers with a correct answer."""
        task = "classification"
        if self.evidence:
            task = METRICS[self.evidence.verdict.metric].task
        return TASKS[task].quality

    @property
    def since(self) -> datetime | None:
        if self.champion:
            return parse_time(self.champion.since)
        return None

    @property
    def expires(self) -> datetime | None:
        """The expiry of the verdict, also if a re-evaluation has renewed it."""
        return expiry_of(self.evidence, self.watch)

    @property
    def latest(self) -> Report | None:
        """The latest report with answers."""
        return next((report for report in reversed(self.reports) if report.rows), None)


def task_names(reader: Reader, registry: str) -> list[str]:
    """Return the names of the tasks of a registry, and `<folder>/<name>` of those in a registry
    that is a folder of it, such as the demo's."""
    names = []
    folders = [entry.name for entry in reader.entries(registry) if entry.is_folder]
    contents = reader.map(lambda folder: reader.entries(f"{registry}/{folder}"), folders)
    for folder, content in zip(folders, contents, strict=True):
        inner = [entry.name for entry in content if entry.is_folder]
        if folder.startswith("_"):
            continue  # data that all tasks share
        if any(name.startswith("_") for name in inner):
            names += [f"{folder}/{name}" for name in inner if not name.startswith("_")]
        else:
            names.append(folder)
    return names


def read_tasks(
    reader: Reader, registry: str, *, names: Sequence[str], now: datetime
) -> list[TaskSummary]:
    """Return the tasks, those that need attention first, then by name."""
    order = ("attention", "unknown", "healthy")
    tasks = reader.map(
        lambda name: read_task(reader, TaskPaths(f"{registry}/{name}"), name=name, now=now), names
    )
    return sorted(tasks, key=lambda task: (order.index(task.health.state), task.name))


def read_task(reader: Reader, paths: TaskPaths, *, name: str, now: datetime) -> TaskSummary:
    """Return the summary of a task; `name` is its name in the console."""
    stored = {entry.uri: entry for entry in reader.entries(paths.task_uri)}

    def read(uri: str, model: type[M]) -> M | None:
        if uri not in stored:
            return None
        return reader.read_entry(stored[uri], model)

    evidence = None
    reports: tuple[Report, ...] = ()
    champion = read(paths.champion, Champion)
    watch = read(paths.watch, WatchRecord)
    if champion is None or (watch is not None and watch.digest != champion.digest):
        watch = None  # of an earlier champion
    if champion is not None and champion.run:
        evidence = reader.read_fixed(f"{champion.run}/{EVIDENCE_FILE}", Evidence)
    if champion is not None:
        reports = read_reports(reader, reader.entries(paths.monitoring), champion=champion)
    return TaskSummary(
        name=name,
        champion=champion,
        evidence=evidence,
        watch=watch,
        reports=reports,
        active=read_active(reader, paths, now=now),
        health=health_of(champion, evidence=evidence, watch=watch, reports=reports, now=now),
    )


def read_reports(
    reader: Reader, entries: Sequence[Entry], *, champion: Champion
) -> tuple[Report, ...]:
    """Return the latest `DAYS_SHOWN` reports of a champion since its promotion, oldest first."""
    since = []
    for entry in entries:
        day, is_json, _ = entry.name.partition(".json")
        if is_json and day >= champion.since[:10]:
            since.append(entry)
    reports = [reader.read_entry(entry, Report) for entry in since[-DAYS_SHOWN:]]
    return tuple(
        report for report in reports if report is not None and report.digest == champion.digest
    )


def expiry_of(evidence: Evidence | None, watch: WatchRecord | None) -> datetime | None:
    """Return when the verdict expires; None if that is not known."""
    times = [record.expires_at for record in (evidence, watch) if record is not None]
    return max(map(parse_time, filter(None, times)), default=None)


def health_of(
    champion: Champion | None,
    *,
    evidence: Evidence | None,
    watch: WatchRecord | None,
    reports: Sequence[Report],
    now: datetime,
) -> Health:
    """Return the health of a champion. Without a recent watch, it is not known, unless something
    needs attention."""
    if champion is None:
        return Health("unknown", "no champion")
    reasons = list(watch.reasons) if watch else []
    expires = expiry_of(evidence, watch)
    if expires is not None and expires <= now:
        is_known = any("expired" in reason for reason in reasons)
        if not is_known:
            reasons.insert(0, f"the champion's verdict expired {relative_text(expires, now=now)}")
    challenger = watch.challenger if watch else None
    if challenger is not None and challenger.decision != "continue":
        reasons.append(f"{challenger.decision} the challenger: {challenger.reason}")
    if reasons:
        return Health("attention", "needs attention", tuple(reasons))

    if watch is None:
        return Health("unknown", "not watched", ("no watch has reported on this champion",))
    last = parse_time(watch.at)
    if now - last > MAX_WATCH_AGE:
        reason = f"the last watch was {relative_text(last, now=now)}"
        return Health("unknown", "not watched", (reason,))
    if not any(report.rows for report in reports):
        return Health("unknown", "no traffic", ("no answer of this champion was logged",))
    return Health("healthy", "healthy")
