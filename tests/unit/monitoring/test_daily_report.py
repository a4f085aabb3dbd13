import json
from collections.abc import Sequence
from datetime import date, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.progress import NoteEvent
from tailorbird.data.rows import NO_GROUP
from tailorbird.monitoring import daily_report, drift_reference, log_windows, report_window
from tailorbird.monitoring.daily_report import report_days
from tailorbird.monitoring.drift import TrafficSample
from tailorbird.monitoring.drift_reference import DriftReference
from tailorbird.monitoring.log_reader import read_traffic
from tests.unit.monitoring.log_task import (
    CHALLENGER,
    FIRST,
    Task,
    answer,
    days_from,
    feedback,
    shadow,
    time_on,
)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    task = Task(tmp_path)
    chance = np.random.default_rng(3)
    numbers = count()

    def embed(_: str, texts: tuple[str, ...], **__: Any) -> Any:
        task.embedded.append(texts)
        return chance.normal(size=(len(texts), 8)).astype(np.float32)

    def read(files: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        task.read += files
        return read_traffic(files, *args, **kwargs)

    reference = DriftReference(
        made_at="2026-02-28",
        sample=TrafficSample(["a"] * 100, embed("", ("",) * 100)),
        right=np.ones(100, bool),
        groups={"sex": ("f",) * 50 + ("m",) * 50},
        encoder="encoder",
    )
    task.embedded.clear()
    monkeypatch.setattr(daily_report, "read_reference", lambda *_: reference)
    monkeypatch.setattr(drift_reference, "embed_texts", embed)
    monkeypatch.setattr(drift_reference, "run_remote", lambda function, **_: function)
    monkeypatch.setattr(log_windows, "read_traffic", read)
    monkeypatch.setattr(report_window, "now", lambda: f"report {next(numbers)}")
    return task


def log_days(task: Task, num: int, *, rows: int = 30) -> None:
    for day in days_from(FIRST, num):
        task.write(*(answer(number, day) for number in range(rows)), day=day)


def test_reports_cover_all_days_from_the_champions_first_day_with_answers() -> None:
    answered = ["2026-03-01", "2026-03-04", "2026-03-06", "2026-03-07"]
    for since, before, days in (
        (date(2026, 3, 3), date(2026, 3, 10), [4, 5, 6, 7, 8, 9]),
        (date(2026, 4, 1), date(2026, 4, 4), [1, 2, 3]),
    ):
        assert [day.day for day in report_days(answered, since=since, before=before)] == days


def test_days_without_traffic_are_reported_and_final_reports_do_not_change(task: Task) -> None:
    log_days(task, 2, rows=20)
    reports = task.watch(12)
    assert [report.day for report in reports] == [str(day) for day in days_from(FIRST, 12)]
    assert [report.rows for report in reports] == [20, *[40] * 6, 20, *[0] * 4]
    assert (len(reports[-1].notes), reports[-1].alarms) == (1, ())

    files = task.files()
    task.write(answer(99))
    task.watch(60)
    assert files.items() <= task.files().items()


def test_late_labels_change_only_the_reports_of_their_answers(task: Task) -> None:
    log_days(task, 10)
    before = task.watch(10)
    assert len(task.embedded) == 9  # the first window has fewer than 50 texts
    files = task.files()
    task.embedded.clear()
    task.read.clear()

    today = FIRST + timedelta(days=10)
    at = time_on(today)
    labels = [feedback(3, label="b", at=at), feedback(4, label="a", at=at)]
    task.write(*labels, kind="feedback", day=today)
    after = task.watch(11)
    assert len(task.embedded) == 1  # the new day
    assert [report.feedback.labelled for report in after] == [2] * 7 + [0] * 4
    assert [report.feedback.right for report in after[:7]] == [1] * 7
    assert [report.drift for report in after[:10]] == [report.drift for report in before]
    assert (after[0].notes, after[-1].notes) == (before[0].notes, ())
    is_same_time = [new.made_at == old.made_at for new, old in zip(after, before, strict=False)]
    assert is_same_time == [False] * 7 + [True] * 3
    assert len(task.read) == len(set(task.read)) == 10
    changed = [name for name, content in task.files().items() if files.get(name) != content]
    assert len(changed) == 11

    files = task.files()
    task.read.clear()
    task.recorder.events.clear()
    assert task.watch(11) == after
    assert (task.read, task.recorder.events, task.files()) == ([], [], files)


def test_an_audit_a_challenger_and_late_answers_change_the_reports(task: Task) -> None:
    log_days(task, 2)
    task.write(*(shadow(number, label="b") for number in range(30)))
    assert task.watch(2)[-1].audit.labelled == 0
    task.fill(task.export(10), label=["a"] * 9 + ["b"])
    audited = task.watch(2)
    assert (audited[-1].audit.labelled, audited[-1].audit.right) == (10, 9)
    compared = task.watch(2, challenger=CHALLENGER)[0].challenger
    assert compared is not None
    assert sorted(outcome.gain for outcome in compared.outcomes) == [*[-1] * 9, 1]
    assert len(task.embedded) == 1

    task.write(answer(99))
    assert [report.rows for report in task.watch(2)] == [61, 91]
    assert len(task.embedded) == 2


def test_feedback_after_label_days_does_not_count(task: Task) -> None:
    log_days(task, 1)
    num_days = task.recipe.monitoring.label_days
    for number, day in enumerate(days_from(FIRST + timedelta(days=num_days), 2)):
        late = feedback(number, label="a", at=time_on(day))
        task.write(late, kind="feedback", day=day)
    reports = task.watch(num_days + 10)
    assert [report.feedback.labelled for report in reports[:2]] == [1, 2]


def test_a_report_contains_no_text_and_no_unknown_group_value(task: Task) -> None:
    attributes = json.dumps({"sex": "stated-by-jane-doe"})
    task.write(*(answer(number, attributes=attributes) for number in range(60)))
    task.write(*(feedback(number, label="a") for number in range(60)), kind="feedback")
    task.watch()
    notes = " ".join(event.text for event in task.recorder.of_kind(NoteEvent))
    content = b"".join(task.files().values()).decode() + notes
    assert '"labelled": 60' in content
    for secret in ("jane-doe", "a request with private text", f"{FIRST}-1", NO_GROUP):
        assert secret not in content
