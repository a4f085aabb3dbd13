"""Monitoring of chat: scores of answers, audits, and drift of prompts."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.config.recipe import Recipe
from tailorbird.data import answers
from tailorbird.data.rows import NO_GROUP
from tailorbird.monitoring import daily_report
from tailorbird.monitoring.drift import TrafficSample
from tailorbird.monitoring.drift_reference import (
    DriftReference,
    ensure_reference,
    hashed_ngrams,
    read_reference,
)
from tailorbird.monitoring.label_audit import audited_rows, export_answers, import_labels
from tailorbird.monitoring.monitored_tasks import AuditError
from tailorbird.monitoring.quality import ALL, GroupAccuracy
from tailorbird.monitoring.report import Report
from tailorbird.monitoring.report_window import ServedVersions
from tailorbird.registry.versions import ModelVersion
from tests.unit.monitoring import test_daily_report
from tests.unit.monitoring.test_daily_report import CHAMPION, DIGEST, FIRST, days_from, write

TRIAL = ModelVersion.model_construct(version="v2", digest="trial-digest")
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
KNOWN = (
    "where is my order",
    "how do I return a shirt",
    "the parcel has not arrived",
    "can I pay by invoice",
)
FOREIGN = (
    "write a poem about rain",
    "solve x squared plus one",
    "translate this song",
    "who won the cup in 1990",
)


def logged(day: Any, number: int, **fields: Any) -> dict[str, Any]:
    """Return a row of the log of a chat service."""
    texts = {"text": f"{KNOWN[number % 4]}, {number}", "answer": "yes", "context": None}
    row = test_daily_report.answer(day, number, label=None, score=None, attributes=None, **texts)
    return (
        row
        | {"route": "chat", "finish_reason": "stop", "text_chars": len(texts["text"] or "")}
        | fields
    )


def feedback(day: Any, number: int, **fields: Any) -> dict[str, Any]:
    """Return feedback on an answer of the day."""
    at = datetime(day.year, day.month, day.day, 13, tzinfo=UTC)
    row = {"request_id": f"{day}-{number}", "row": 0, "at": at, "caller": None}
    return row | {"label": None, "score": None, "correct_answer": None} | fields


def reference() -> DriftReference:
    texts = [f"{KNOWN[number % 4]}, {number}" for number in range(400)]
    lengths = np.array([len(text) for text in texts], np.float64)
    sample = TrafficSample((), hashed_ngrams(texts), None, lengths)
    return DriftReference("2026-02-28", sample, np.zeros(0, bool), {})


@dataclass
class ChatTask(test_daily_report.Task):
    evaluation: dict[str, Any] = field(default_factory=lambda: {"metric": "token_f1"})
    groups: tuple[str, ...] = ()

    @property
    def recipe(self) -> Recipe:
        content: dict[str, Any] = {
            "name": "task",
            "task": "chat",
            "base_model": "hf://a/b@c",
            "registry": "s3://models",
        }
        content["data"] = {"train": "s3://lake/train", "groups": self.groups}
        content["serving"] = {"request_log": self.log.as_uri(), "log_texts": True}
        content["evaluation"] = self.evaluation
        recipe = Recipe.model_validate(content)
        return recipe.model_copy(update={"registry": (self.folder / "models").as_uri()})

    def watch_chat(
        self, *, days: int = 1, tested: GroupAccuracy | None = None, **groups: GroupAccuracy
    ) -> Report:
        of_test = {ALL: tested} if tested else {}
        of_test |= {f"language = {value}": accuracy for value, accuracy in groups.items()}
        served = ServedVersions(CHAMPION, None, TRIAL, FIRST, of_test)
        today = FIRST + timedelta(days=days)
        return daily_report.make_reports(self.recipe, served, today=today, progress=self.recorder)[
            -1
        ]

    def exported(self, **fields: Any) -> pa.Table:
        to = self.folder / "audit.parquet"
        options = {"num_rows": 100} | fields
        export_answers(self.recipe, digest=DIGEST, days=[FIRST], to=to.as_uri(), **options)
        return pq.read_table(to)

    def imported(self, table: pa.Table, **columns: list[Any]) -> tuple[str, int]:
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        pq.write_table(table, self.folder / "filled.parquet")
        return import_labels(self.recipe, (self.folder / "filled.parquet").as_uri(), classes=())


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChatTask:
    monkeypatch.setattr(daily_report, "read_reference", lambda *_: reference())
    return ChatTask(tmp_path)


def test_feedback_is_scored_by_the_metric_or_has_the_score_of_a_person(task: ChatTask) -> None:
    rows = [logged(FIRST, number, answer="a cat") for number in range(7)]
    odd = [
        logged(FIRST, 7, finish_reason=None),
        logged(FIRST, 8, route="completion"),
        logged(FIRST, 9, answer=None),
    ]
    write(task.log, "answers", FIRST, [*rows, *odd])
    labels = [
        feedback(FIRST, 0, correct_answer="a cat"),
        feedback(FIRST, 1, correct_answer="a dog"),
        feedback(FIRST, 2, score=0.25),
        feedback(FIRST, 3, label="good"),
        feedback(FIRST, 4, label="bad"),
        feedback(FIRST, 5, label="bad", correct_answer="a cat"),
        feedback(FIRST, 6, label="other"),
        feedback(FIRST, 7, score=1.0),
        feedback(FIRST, 8, score=1.0),
        feedback(FIRST, 9, correct_answer="yes"),
    ]
    write(task.log, "feedback", FIRST, labels)
    report = task.watch_chat()
    by_metric = report.feedback
    assert (by_metric.labelled, by_metric.accuracy) == (2, 0.75)  # token F1 of 1 and 0.5
    assert (report.feedback_scores.labelled, report.feedback_scores.accuracy) == (4, 1.25 / 4)
    assert (report.audit.labelled, report.audit_scores.labelled) == (0, 0)
    assert report.notes[0].startswith("2 rows have no class or complete chat answer")


def test_a_correct_answer_scores_champion_and_shadow_and_a_persons_score_only_the_champion(
    task: ChatTask,
) -> None:
    """A missing answer of the shadow counts as the worst one."""
    rows = []
    for number in range(5):
        shadow = logged(FIRST, number, arm="shadow", digest=TRIAL.digest, answer="no")
        if number == 2:
            shadow |= {"answer": None, "finish_reason": None}
        rows += [logged(FIRST, number), shadow]
    write(task.log, "answers", FIRST, rows)
    table = task.exported()
    numbers = [int(name.rpartition("-")[2]) for name in table["request_id"].to_pylist()]
    correct = {0: "yes", 1: "no", 2: "yes"}
    task.imported(table, correct_answer=[correct.get(number) for number in numbers])
    task.imported(task.exported(with_answers=True), score=[1.0, 0.5])
    report = task.watch_chat()
    assert (report.audit.labelled, report.audit.right) == (3, 2)
    assert (report.audit_scores.labelled, report.audit_scores.right) == (2, 1.5)
    assert report.challenger is not None
    compared = sorted((each.right, each.missing) for each in report.challenger.outcomes)
    assert compared == [(-1, 0), (-1, 1), (1, 0)]


def test_failed_and_interrupted_answers_are_excluded_in_each_arm_and_counted_for_a_shadow(
    task: ChatTask,
) -> None:
    arms = [
        (arm, DIGEST if arm == "champion" else TRIAL.digest)
        for arm in ("champion", "canary", "shadow")
    ]
    rows = [
        logged(FIRST, number, arm=arm, digest=digest, finish_reason=reason)
        for arm, digest in arms
        for number, reason in ((0, "stop"), (1, None))
    ]
    write(task.log, "answers", FIRST, rows)
    write(task.log, "feedback", FIRST, [feedback(FIRST, number, score=1.0) for number in range(2)])
    report = task.watch_chat()
    assert report.feedback_scores.labelled == 1
    assert report.challenger is not None
    assert (report.challenger.mirrored, report.challenger.unanswered) == (2, 1)
    exported = task.exported(challenger=TRIAL.digest)
    assert exported["request_id"].to_pylist() == [f"{FIRST}-0"] * 2  # of champion and canary


def test_a_proven_loss_of_the_mean_score_is_an_alarm(task: ChatTask) -> None:
    write(task.log, "answers", FIRST, [logged(FIRST, number) for number in range(100)])
    task.imported(task.exported(), correct_answer=["no"] * 60 + ["yes"] * 40)
    good = GroupAccuracy(500, 440.5, 500)
    report = task.watch_chat(tested=good)
    assert [bound.what for bound in report.groups.bounds] == [f"change for {ALL}"]
    assert f"change for {ALL}: -48.1 points" in report.alarms[-1]
    assert task.watch_chat(tested=GroupAccuracy(500, 200, 500)).failures == {}


def test_a_proven_loss_of_a_group_is_an_alarm(task: ChatTask) -> None:
    task.groups = ("language",)
    languages = ["de" if number % 2 else "en" for number in range(200)]
    rows = [
        logged(FIRST, number, attributes=json.dumps({"language": languages[number]}))
        for number in range(199)
    ]
    shadow = {
        "arm": "shadow",
        "digest": TRIAL.digest,
        "answer": "no",
        "attributes": rows[1]["attributes"],
    }
    write(task.log, "answers", FIRST, [*rows, logged(FIRST, 199), logged(FIRST, 1, **shadow)])
    table = task.exported(num_rows=200)
    german = [int(name.rpartition("-")[2]) % 2 == 1 for name in table["request_id"].to_pylist()]
    task.imported(table, correct_answer=["no" if is_german else "yes" for is_german in german])
    audited = audited_rows(task.recipe, since=LONG_AGO).groups["language"]
    assert [audited.count(value) for value in ("de", "en", NO_GROUP)] == [99, 100, 1]
    everyone, half = GroupAccuracy(500, 250.0, 500), GroupAccuracy(250, 125.0, 250)
    report = task.watch_chat(tested=everyone, en=half, de=half)
    assert [(bound.what, bound.n, bound.state) for bound in report.groups.bounds] == [
        (f"change for {ALL}", 200, "not assessable"),
        ("change for language = de", 99, "fails"),
        ("change for language = en", 100, "passes"),
    ]
    assert "labelled rows that were not compared: 1 of language = (others)" in report.groups.note
    assert list(report.failures) == ["change for language = de"]
    assert report.challenger is not None
    assert report.challenger.groups == ("language = de", "language = en")
    assert [outcome.groups for outcome in report.challenger.outcomes] == [("language = de",)]
    few = GroupAccuracy(250, 1.0, 250)
    assert (
        task.watch_chat(tested=everyone, en=half, de=few).failures == {}
    )  # the report is made again


def test_a_stored_report_is_made_again_if_the_metric_or_the_result_of_the_test_changed(
    task: ChatTask,
) -> None:
    write(
        task.log,
        "answers",
        FIRST,
        [logged(FIRST, number, answer="2 of 3") for number in range(100)],
    )
    task.imported(task.exported(), correct_answer=["2.02 of 3.02"] * 100)
    tested, states = GroupAccuracy(500, 440.0, 500), []
    for absolute in (0.01, 0.1):
        task.evaluation = {"metric": "numeric", "answers": {"numeric": {"absolute": absolute}}}
        states.append(task.watch_chat(tested=tested).audit.right)
    assert states == [0, 100]
    few = GroupAccuracy(500, 440.0, 5)
    assert task.watch_chat(tested=few).groups != task.watch_chat(tested=tested).groups


def test_drift_of_prompts_is_found_and_traffic_like_the_reference_raises_no_alarm(
    task: ChatTask,
) -> None:
    for day in days_from(FIRST, 2):
        write(task.log, "answers", day, [logged(day, 3 * number) for number in range(100)])
    report = task.watch_chat(days=2)
    assert [statistic.name for statistic in report.drift] == ["unfamiliar", "length"]
    assert report.drift_alarms == ()
    for day in days_from(FIRST, 2):
        foreign = [f"{FOREIGN[number % 4]}, {number}" for number in range(60)]
        rows = [
            logged(day, 500 + number, text=text, text_chars=len(text))
            for number, text in enumerate(foreign)
        ]
        write(task.log, "answers", day, rows)
    assert "unfamiliar" in {
        statistic.name for statistic in task.watch_chat(days=2).drift if statistic.alarm
    }


def test_without_texts_only_the_known_lengths_are_compared(task: ChatTask) -> None:
    rows = [logged(FIRST, number, text=None, text_chars=500) for number in range(200)]
    for row in rows[100:]:
        row["text_chars"] = None
    write(task.log, "answers", FIRST, rows[100:])
    assert task.watch_chat().drift == ()
    write(task.log, "answers", FIRST, rows[:100])
    drift = task.watch_chat().drift
    assert [(each.name, each.n, each.alarm) for each in drift] == [("length", 100, True)]


def test_a_blind_audit_has_no_answers_and_its_correct_answers_are_rows_of_data(
    task: ChatTask,
) -> None:
    turns = '[["user", "hello"], ["assistant", "hi"]]'
    write(
        task.log,
        "answers",
        FIRST,
        [logged(FIRST, 0, context=turns, text="abc"), logged(FIRST, 1, text=None)],
    )
    table = task.exported()
    assert (
        len(table),
        {"answer", "score", "digest", "arm", "label"} & set(table.column_names),
    ) == (1, set())
    task.imported(table, correct_answer=["write to ann@example.org"])
    rows = audited_rows(task.recipe, since=LONG_AGO)
    assert rows.conversations == ((("user", "hello"), ("assistant", "hi"), ("user", "abc")),)
    assert (rows.texts, rows.labels) == (("hello\nhi\nabc",), ("write to [email]",))


def test_correct_answers_of_scored_rows_are_no_random_sample(task: ChatTask) -> None:
    write(task.log, "answers", FIRST, [logged(FIRST, number) for number in range(3)])
    table = task.exported(with_answers=True)
    assert table["answer"].to_pylist() == ["yes"] * 3
    stored, num = task.imported(table, score=["1", "0.5", ""], correct_answer=[None, "no", None])
    assert num == 2
    assert "answer" not in pq.read_table(stored.removeprefix("file://")).column_names
    assert len(audited_rows(task.recipe, since=LONG_AGO)) == 0


@pytest.mark.parametrize(
    ("with_answers", "columns"),
    [
        (True, {"score": [1.5, None]}),
        (True, {"score": ["nan", None]}),
        (True, {"score": [1.0, None], "correct_answer": [None, "2"]}),
        (False, {"correct_answer": [None, " "]}),
        (False, {"correct_answer": ["none", "2"]}),  # without a number for the metric
    ],
)
def test_an_unusable_chat_audit_is_rejected(
    task: ChatTask, with_answers: bool, columns: Any
) -> None:
    task.evaluation = {"metric": "numeric", "answers": {"numeric": {}}}
    write(task.log, "answers", FIRST, [logged(FIRST, number) for number in range(2)])
    table = task.exported(with_answers=with_answers)
    with pytest.raises(AuditError, match=r"filled\.parquet"):
        task.imported(table, **columns)
    unlogged = task.recipe.serving.model_copy(update={"log_texts": False})
    recipe = task.recipe.model_copy(update={"serving": unlogged})
    with pytest.raises(AuditError, match="log_texts"):
        export_answers(recipe, digest=DIGEST, days=[FIRST], num_rows=1, to="file:///nowhere")


def test_a_redacted_correct_answer_scores_no_answer_and_is_counted(task: ChatTask) -> None:
    write(
        task.log,
        "answers",
        FIRST,
        [logged(FIRST, number, answer="call [number]") for number in range(3)],
    )
    task.imported(task.exported(), correct_answer=["call 555 123 4567", "call nobody", None])
    report = task.watch_chat()
    assert (report.audit.labelled, report.audit.right) == (1, 0.5)
    assert (
        "1 labelled answers are not scored: personal data were redacted in the correct answer"
        in report.all_notes
    )


def test_feedback_of_a_key_is_not_read_after_a_correct_answer_that_takes_too_long(
    task: ChatTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PATTERN_SECONDS", 0.05)
    task.evaluation = {"metric": "regex", "answers": {"regex": {"pattern": r"((?:(a|aa)+)+)$"}}}
    rows = [
        logged(FIRST, number, answer="aa", caller="slow" if number < 3 else "calm")
        for number in range(5)
    ]
    write(task.log, "answers", FIRST, rows)
    correct = ["aa", "a" * 60 + "!", "aa", "aa", "aaa"]
    given = [feedback(FIRST, number, correct_answer=correct[number]) for number in range(5)]
    labels = [
        row | {"caller": logged_row["caller"]} for row, logged_row in zip(given, rows, strict=True)
    ]
    write(task.log, "feedback", FIRST, labels)
    report = task.watch_chat()
    assert (report.feedback.labelled, report.feedback.right) == (3, 2)


def test_the_reference_has_the_lengths_and_embeddings_of_the_redacted_last_messages(
    tmp_path: Path,
) -> None:
    texts = [f"order {number}0000000 is late" for number in range(60)]
    pq.write_table(
        pa.table({"prompt": texts, "completion": ["yes"] * 60}), tmp_path / "rows.parquet"
    )
    recipe = ChatTask(tmp_path).recipe
    data = recipe.data.model_copy(
        update=dict.fromkeys(("train", "validation", "test"), (tmp_path / "rows.parquet").as_uri())
    )
    recipe = recipe.model_copy(update={"data": data})
    ensure_reference(recipe, CHAMPION, made_at="2026-03-01")
    stored = read_reference(recipe.task_uri, CHAMPION)
    assert stored.sample.lengths is not None
    assert stored.sample.lengths.tolist() == [len(text) for text in texts]
    np.testing.assert_array_equal(
        stored.sample.embeddings, hashed_ngrams(["order [number] is late"] * 60)
    )
    assert (stored.encoder, stored.group_accuracies()) == (None, {})
