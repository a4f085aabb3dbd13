"""The cache of the console, and its records compared with the types that write them."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from serving.http.schemas import BatchJob
from tailorbird import storage
from tailorbird.console import reader as console_reader
from tailorbird.console.reader import Cache, Reader
from tailorbird.console.records import HistoryEntry, JobRecord, Part, ReevaluationRecord
from tailorbird.operate.reevaluation_verdict import ReevaluationVerdict
from tailorbird.storage.listing import file_entry, list_folder
from tailorbird.storage.paths import TaskPaths
from tests import console_registry as made

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


class Number(Part):
    value: int


def test_an_unchanged_record_is_read_once_and_a_changed_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, reads = f"{tmp_path.as_uri()}/a.json", list[str]()

    def counted(read: str) -> bytes:
        reads.append(read)
        return storage.read_bytes(read)

    monkeypatch.setattr(console_reader, "read_bytes", counted)
    reader = Reader(Cache())
    for content, expected in (('{"value": 1}', 1), ('{"value": 2}', 2)):  # the same size
        storage.write_bytes(uri, content.encode())
        assert [reader.read(uri, Number), reader.read(uri, Number)] == [Number(value=expected)] * 2
    assert reads == [uri] * 2
    assert reader.problems == []


def test_a_missing_record_is_none_and_a_damaged_one_is_a_problem_without_its_content(
    tmp_path: Path,
) -> None:
    reader, uri = Reader(Cache()), f"{tmp_path.as_uri()}/a.json"
    assert reader.read(uri, Number) is None
    assert reader.problems == []
    storage.write_bytes(uri, b'{"value": "a secret"}')
    assert reader.read(uri, Number) is None
    (problem,) = reader.problems
    assert problem.startswith(f"{uri} is not a valid record: value: ")
    assert "secret" not in problem


def test_a_folder_is_listed_one_level_deep_with_a_tag_per_file(tmp_path: Path) -> None:
    base = tmp_path.as_uri()
    storage.write_bytes(f"{base}/b.json", b"1")
    storage.write_bytes(f"{base}/a/x.json", b"1")
    (tmp_path / ".hidden").touch()
    entries = list_folder(f"{base}/")
    assert [(entry.name, entry.is_folder) for entry in entries] == [("a", True), ("b.json", False)]
    assert entries[1].tag
    assert file_entry(f"{base}/b.json") == entries[1]
    assert file_entry(f"{base}/a") is None
    assert file_entry(f"{base}/none") is None
    assert list_folder(f"{base}/none") == ()


def test_a_batch_job_and_a_reevaluation_have_the_fields_that_the_console_reads() -> None:
    assert JobRecord.model_fields.keys() <= BatchJob.model_fields.keys()
    assert {"holds", "reasons"} <= ReevaluationVerdict.model_fields.keys()
    verdict = {"holds": False, "reasons": ["worse"], "metric": "accuracy"}
    entry = {
        "at": NOW.isoformat(),
        "reevaluation": "s3://m/t/reevaluations/1",
        "versions": {},
        "verdict": verdict,
    }
    record = HistoryEntry.model_validate(entry).root
    assert isinstance(record, ReevaluationRecord)
    assert record.verdict.holds is False


def test_an_entry_of_the_history_with_a_champion_is_a_champion(tmp_path: Path) -> None:
    champion = made.add_champion(
        TaskPaths(f"{tmp_path.as_uri()}/task"), "s3://m/task/versions/full-1", at=NOW
    )
    assert HistoryEntry.model_validate_json(champion.model_dump_json()).root == champion
