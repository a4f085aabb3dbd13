"""A task reports its progress to the run that started it."""

import itertools
from types import SimpleNamespace

import pytest

from cluster.progress import (
    ActivityEvent,
    RowsEvent,
    byte_reporter,
    reporting_to,
    tracked,
)
from tests.progress import ProgressRecorder


def test_tracked_batches_report_how_many_rows_are_done_until_all_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = itertools.count(step=2.0)
    monkeypatch.setattr("cluster.progress.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    recorder = ProgressRecorder()
    with reporting_to(recorder):
        assert list(tracked([[1, 2], [3, 4], [5]], total=5)) == [[1, 2], [3, 4], [5]]
    assert recorder.events == [RowsEvent(2, 5, 1.0), RowsEvent(4, 5, 1.0)]


def test_bytes_are_reported_in_mb_after_each_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, clock = ProgressRecorder(), iter([0.0, 0.5, 2.0, 3.0])
    monkeypatch.setattr("cluster.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    report = byte_reporter(recorder)
    for text, done in (
        ("checking a", 1),
        ("checking a", 2 * 10**6),
        ("checking a", 4 * 10**6),
        ("checking b", 1),
    ):
        report(text, done, 8 * 10**6)
    expected = [
        ActivityEvent("checking a"),
        RowsEvent(4, 8, 2.0, unit="MB"),
        ActivityEvent("checking b"),
    ]
    assert recorder.events == expected
