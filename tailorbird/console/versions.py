"""The versions of a task, and how each came from data and led to a champion."""

from dataclasses import dataclass
from datetime import datetime

from tailorbird.console.reader import ListPage, Reader
from tailorbird.console.records import HistoryEntry
from tailorbird.console.times import parse_time
from tailorbird.evaluation.report.evidence import EVIDENCE_FILE, Evidence
from tailorbird.registry.champion import Champion
from tailorbird.registry.versions import CONFIG, VersionConfig
from tailorbird.storage.listing import Entry
from tailorbird.storage.paths import TaskPaths

VERSIONS_PER_PAGE = 25


@dataclass(frozen=True)
class Version:
    """A registered version."""

    name: str
    info: VersionConfig
    evidence: (
        Evidence | None
    )  # of the run that selected it; None if no run did, or for the export of a version
    role: str  # `champion`, `former champion`, `rolled back` or empty


@dataclass(frozen=True)
class Change:
    """An entry of the history: a new champion, or a re-evaluation of the champion."""

    at: datetime
    what: str
    reason: str
    run: str = ""  # name of the run whose verdict selected the champion


def read_versions(
    reader: Reader, paths: TaskPaths, *, champion: Champion | None, page: int
) -> ListPage[Version]:
    """Return a page of the versions. A version's config never changes, so each one is read once."""
    folders = [entry for entry in reader.entries(paths.versions) if entry.is_folder]
    infos = dict(zip(folders, reader.map(lambda entry: _info(reader, entry), folders), strict=True))
    known = [(entry, info) for entry, info in infos.items() if info is not None]
    known.sort(key=lambda each: (each[1].created_at, each[0].name), reverse=True)
    return reader.page(
        lambda each: _version(reader, *each, champion=champion),
        known,
        number=page,
        size=VERSIONS_PER_PAGE,
    )


def _info(reader: Reader, folder: Entry) -> VersionConfig | None:
    return reader.read_fixed(f"{folder.uri}/{CONFIG}", VersionConfig)


def _version(
    reader: Reader, folder: Entry, info: VersionConfig, *, champion: Champion | None
) -> Version:
    if info.exported_from:
        evidence = None
    else:
        evidence = reader.read(f"{folder.uri}/{EVIDENCE_FILE}", Evidence)
    return Version(folder.name, info, evidence, role_of(folder.uri, champion))


def role_of(uri: str, champion: Champion | None) -> str:
    """Return what a version is or was for the task."""
    if champion is None:
        return ""
    if champion.uri == uri:
        return "champion"
    if any(digest.startswith(uri.rpartition("-")[2]) for digest in champion.rolled_back):
        return "rolled back"
    if any(former.uri == uri for former in champion.former):
        return "former champion"
    return ""


def read_history(reader: Reader, paths: TaskPaths) -> list[Change]:
    """Return the changes of the champion and its re-evaluations, newest first."""
    entries = [entry for entry in reader.entries(paths.history) if entry.name.endswith(".json")]
    changes = reader.map(lambda entry: _change(reader, entry), entries)
    return sorted(
        (change for change in changes if change is not None),
        key=lambda change: change.at,
        reverse=True,
    )


def _change(reader: Reader, entry: Entry) -> Change | None:
    history = reader.read_entry(entry, HistoryEntry)
    if history is None:
        return None
    record = history.root
    if isinstance(record, Champion):
        run = record.run.rpartition("/")[2]
        return Change(parse_time(record.since), record.version, record.reason.sentence(), run)
    holds = {True: "the verdict holds", False: "the verdict is withdrawn", None: "not decided"}[
        record.verdict.holds
    ]
    return Change(
        parse_time(record.at), "re-evaluation", "; ".join((holds, *record.verdict.reasons))
    )
