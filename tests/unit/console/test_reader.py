"""The cache of the console, and its records compared with the types that write them."""

from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock

import pytest

from tailorbird import storage
from tailorbird.console import reader as console_reader
from tailorbird.console.reader import Cache, Reader
from tailorbird.console.records import HistoryEntry, Part, ReevaluationRecord
from tailorbird.operate.reevaluation_verdict import ReevaluationVerdict
from tailorbird.storage.listing import file_entry, list_folder

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


class Number(Part):
    value: int


def test_an_unchanged_record_is_read_once_and_a_changed_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{tmp_path.as_uri()}/a.json"
    read_bytes = Mock(wraps=storage.read_bytes)
    monkeypatch.setattr(console_reader, "read_bytes", read_bytes)
    reader = Reader(Cache())
    for value in (1, 2):  # files of the same size
        storage.write_bytes(uri, b'{"value": %d}' % value)
        assert [reader.read(uri, Number) for _ in range(2)] == [Number(value=value)] * 2
    assert read_bytes.call_count == 2


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


def test_a_reevaluation_has_the_fields_that_the_console_reads() -> None:
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
