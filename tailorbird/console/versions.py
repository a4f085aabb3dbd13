"""The versions of a task, and how each came from data and led to a champion."""

from dataclasses import dataclass
from datetime import datetime

from tailorbird.console.reader import ListPage, Reader
from tailorbird.console.records import HistoryEntry, ReevaluationRecord
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
    evidence: Evidence | None
    """Of the run that selected it; None if no run did, or for the export of a version."""
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
    infos = reader.map(
        lambda folder: reader.read_fixed(f"{folder.uri}/{CONFIG}", VersionConfig), folders
    )
    versions = [
        (folder, info) for folder, info in zip(folders, infos, strict=True) if info is not None
    ]
    versions.sort(key=lambda version: (version[1].created_at, version[0].name), reverse=True)

    def read(version: tuple[Entry, VersionConfig]) -> Version:
        folder, info = version
        evidence = None
        if not info.exported_from:
            evidence = reader.read(f"{folder.uri}/{EVIDENCE_FILE}", Evidence)
        return Version(folder.name, info, evidence, role=role_of(folder.uri, champion))

    return reader.page(read, versions, number=page, size=VERSIONS_PER_PAGE)


def role_of(uri: str, champion: Champion | None) -> str:
    """Return what a version is or was for the task."""
    if champion is None:
        return ""
    if champion.uri == uri:
        return "champion"
    if any(digest.startswith(uri.rpartition("-")[2]) for digest in champion.rolled_back):
        return "rolled back"
    if uri in (earlier.uri for earlier in champion.former):
        return "former champion"
    return ""


def read_history(reader: Reader, paths: TaskPaths) -> list[Change]:
    """Return the changes of the champion and its re-evaluations, newest first."""
    entries = [entry for entry in reader.entries(paths.history) if entry.name.endswith(".json")]
    records = reader.map(lambda entry: reader.read_entry(entry, HistoryEntry), entries)
    changes = [_change(record.root) for record in records if record is not None]
    # `serve` adds the result of the parity gate to a champion, which writes a second record of it
    return sorted(dict.fromkeys(changes), key=lambda change: change.at, reverse=True)


def _change(record: Champion | ReevaluationRecord) -> Change:
    if isinstance(record, Champion):
        run = record.run.rpartition("/")[2]
        return Change(
            parse_time(record.since), record.version, reason=record.reason.sentence(), run=run
        )
    results = {True: "the verdict holds", False: "the verdict is withdrawn", None: "not decided"}
    reason = "; ".join((results[record.verdict.holds], *record.verdict.reasons))
    return Change(parse_time(record.at), "re-evaluation", reason)
