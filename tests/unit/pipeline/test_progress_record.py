"""The progress of a run on S3: its content, its bounds, and its last state."""

from contextlib import suppress
from pathlib import Path

import pytest

from cluster.progress import (
    EpochEvent,
    NoteEvent,
    PlanEvent,
    PlannedStage,
    RowsEvent,
    ScoreEvent,
    StageEvent,
    TrialEvent,
)
from tailorbird import storage
from tailorbird.pipeline.progress_record import (
    MAX_CONTENDERS,
    MAX_NOTES,
    MAX_POINTS,
    ProgressRecord,
    recorded,
)
from tailorbird.registry.run_progress import RunProgress
from tailorbird.storage import StorageError
from tailorbird.storage.paths import TaskPaths
from tests.progress import ProgressRecorder


def first(paths: TaskPaths) -> RunProgress:
    time = "2026-11-28T12:00:00+00:00"
    return RunProgress(
        run=paths.run("r"),
        name="task",
        requested_by="me",
        base_model="s3://m/base",
        status="running",
        started_at=time,
        updated_at=time,
    )


@pytest.fixture
def paths(tmp_path: Path) -> TaskPaths:
    return TaskPaths(f"{tmp_path.as_uri()}/task")


def stored(paths: TaskPaths) -> RunProgress:
    return RunProgress.model_validate_json(storage.read_bytes(paths.progress("r")))


def test_the_record_has_stages_scores_curves_and_the_current_activity(paths: TaskPaths) -> None:
    clock = iter(range(1000))
    record = ProgressRecord(first(paths), clock=lambda: float(next(clock)))
    planned = (PlannedStage("sweep", 90.0, "1 trial"), PlannedStage("test", 8.0, "rows"))
    for event in (
        PlanEvent(planned, "measured"),
        StageEvent("baselines: models that need no fine-tuning", "baselines"),
        ScoreEvent("probe", 0.7, "C = 1"),
        StageEvent("sweep: 1 trial", "sweep"),
        TrialEvent("trial_00001", {"learning_rate": 0.001}, "training"),
        EpochEvent(0, 0.6, 1.0, 10.0, trial="trial_00001"),
        EpochEvent(1, 0.65, 0.9, 10.0, trial="trial_00001"),
        NoteEvent("a\nnote"),
        RowsEvent(10, 40, 5.0),
    ):
        record.report(event)
    current = record.current()
    assert [(stage.name, stage.state, stage.expected_s) for stage in current.stages] == [
        ("baselines", "finished", None),
        ("sweep", "running", 90.0),
        ("test", "planned", 8.0),
    ]
    probe, trial = current.contenders
    assert (probe.name, probe.score, probe.text, probe.curve) == ("probe", 0.7, "C = 1", ())
    assert (trial.name, trial.status, trial.curve) == (
        "trial 00001",
        "training",
        ((1, 0.6), (2, 0.65)),
    )
    assert (current.rows, current.seconds_left, current.notes) == ((10, 40), 6.0, ("a note",))


def test_the_record_stays_small_however_many_trials_epochs_and_notes_there_are(
    paths: TaskPaths,
) -> None:
    record = ProgressRecord(first(paths))
    record.report(StageEvent("sweep: many", "sweep"))
    for trial in range(3 * MAX_CONTENDERS):
        for epoch in range(3):
            record.report(EpochEvent(epoch, trial / 1000, 1.0, 1.0, trial=f"trial_{trial:05}"))
        record.report(NoteEvent("long " * 1000))
    for epoch in range(1000):
        record.report(EpochEvent(epoch, 0.5, 1.0, 1.0, trial="trial_00000"))
    current = record.current()
    assert len(current.contenders) == MAX_CONTENDERS
    assert (
        current.contenders[-MAX_CONTENDERS // 2].name == f"trial {3 * MAX_CONTENDERS - 1:05}"
    )  # the best of the rest
    assert len(current.contenders[0].curve) == MAX_POINTS
    assert current.contenders[0].curve[-1] == (1000, 0.5)
    assert len(current.notes) == MAX_NOTES
    assert len(current.model_dump_json()) < 64 << 10


STOPPED = "the driver was stopped (Ctrl-C or SIGTERM)"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (None, "finished", None),
        (ValueError("too few\nrows"), "failed", "ValueError: too few rows"),
        (KeyboardInterrupt(), "failed", STOPPED),
        (SystemExit(143), "failed", STOPPED),
    ],
)
def test_a_run_is_recorded_as_running_and_then_with_its_end(
    paths: TaskPaths, error: BaseException | None, status: str, text: str | None
) -> None:
    with suppress(BaseException), recorded(ProgressRecorder(), first=first(paths)):
        assert stored(paths).status == "running"
        if error is not None:
            raise error
    assert (stored(paths).status, stored(paths).error) == (status, text)


def test_progress_that_cannot_be_stored_is_reported_once_and_does_not_end_the_run(
    paths: TaskPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("no space")

    monkeypatch.setattr(storage, "write_bytes", refuse)
    shown = ProgressRecorder()
    with recorded(shown, first=first(paths)) as progress:
        progress.note("a note")
    assert [event.text for event in shown.of_kind(NoteEvent)] == [
        "the progress cannot be stored, and the console does not show it: no space",
        "a note",
    ]


def test_the_record_is_written_when_it_changes_and_once_a_minute(
    paths: TaskPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = [0.0], list[float]()
    record = ProgressRecord(first(paths), clock=lambda: now[0])
    monkeypatch.setattr(record, "write", lambda _: written.append(now[0]))
    for second in range(200):
        now[0] = float(second)
        if second == 7:
            record.report(NoteEvent("x"))
        if second == 9:
            record.report(NoteEvent("y"))
        record.write_if_due()
    assert written == [0.0, 7.0, 12.0, 72.0, 132.0, 192.0]
