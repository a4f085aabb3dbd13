"""The history of a task: its champions and their re-evaluations."""

from dataclasses import dataclass
from datetime import datetime

from tailorbird.console.reader import Reader
from tailorbird.console.records import HistoryEntry, ReevaluationRecord
from tailorbird.console.times import parse_time
from tailorbird.registry.champion import Champion
from tailorbird.storage.paths import TaskPaths


@dataclass(frozen=True)
class Change:
    """An entry of the history: a new champion, or a re-evaluation of the champion."""

    at: datetime
    what: str
    reason: str
    run: str = ""  # name of the run whose verdict selected the champion


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
