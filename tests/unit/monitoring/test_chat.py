"""Monitoring of chat: scores of answers, audits, and drift of prompts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
from tailorbird.monitoring.label_audit import audited_rows
from tailorbird.monitoring.monitored_tasks import AuditError
from tailorbird.monitoring.quality import ALL, GroupAccuracy
from tailorbird.monitoring.report import Report
from tests.unit.monitoring.log_task import (
    CHALLENGER,
    CHAMPION,
    KNOWN,
    LONG_AGO,
    Task,
    chat_answer,
    feedback,
)

FOREIGN = ("write a poem", "solve x squared plus one", "translate this song", "who won the cup")
SHADOW: dict[str, Any] = {"arm": "shadow", "digest": CHALLENGER.digest}


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    texts = [f"{KNOWN[number % 4]}, {number}" for number in range(400)]
    lengths = np.array(list(map(len, texts)), np.float64)
    reference = DriftReference(
        made_at="2026-02-28",
        sample=TrafficSample(embeddings=hashed_ngrams(texts), lengths=lengths),
        right=np.zeros(0, bool),
        groups={},
    )
    monkeypatch.setattr(daily_report, "read_reference", lambda *_: reference)
    return Task(tmp_path, is_chat=True, groups=(), evaluation={"metric": "token_f1"})


def watch(task: Task, **options: Any) -> Report:
    return task.watch(challenger=CHALLENGER, **options)[-1]


def numbers_of(table: pa.Table) -> list[int]:
    return [int(name.rpartition("-")[2]) for name in table["request_id"].to_pylist()]


def test_feedback_is_scored_by_the_metric_or_has_the_score_of_a_person(task: Task) -> None:
    rows = [chat_answer(number, answer="a cat") for number in range(7)]
    interrupted = chat_answer(7, finish_reason=None)
    completion = chat_answer(8, route="completion")
    task.write(*rows, interrupted, completion, chat_answer(9, answer=None))
    labels: list[dict[str, Any]] = [
        {"correct_answer": "a cat"},
        {"correct_answer": "a dog"},
        {"score": 0.25},
        {"label": "good"},
        {"label": "bad"},
        {"label": "bad", "correct_answer": "a cat"},
        {"label": "other"},
        {"score": 1.0},
        {"score": 1.0},
        {"correct_answer": "yes"},
    ]
    given = [feedback(number, **label) for number, label in enumerate(labels)]
    task.write(*given, kind="feedback")
    report = watch(task)
    by_metric = report.feedback
    assert (by_metric.labelled, by_metric.accuracy) == (2, 0.75)  # token F1 of 1 and 0.5
    assert (report.feedback_scores.labelled, report.feedback_scores.right) == (4, 1.25)
    assert (report.audit.labelled, report.audit_scores.labelled) == (0, 0)
    assert report.notes[0].startswith("2 rows ")


def test_a_correct_answer_scores_champion_and_shadow_and_a_persons_score_only_the_champion(
    task: Task,
) -> None:
    """A missing answer of the shadow counts as the worst one."""
    for number in range(5):
        reason = None if number == 2 else "stop"
        shadow = chat_answer(number, answer="no", finish_reason=reason, **SHADOW)
        task.write(chat_answer(number), shadow)
    table = task.export()
    correct = {0: "yes", 1: "no", 2: "yes"}
    task.fill(table, correct_answer=list(map(correct.get, numbers_of(table))))
    task.fill(task.export(with_answers=True), score=[1.0, 0.5])
    report = watch(task)
    assert (report.audit.labelled, report.audit.right) == (3, 2)
    assert (report.audit_scores.labelled, report.audit_scores.right) == (2, 1.5)
    assert report.challenger is not None
    compared = sorted((each.gain, each.missing) for each in report.challenger.outcomes)
    assert compared == [(-1, 0), (-1, 1), (1, 0)]


def test_failed_and_interrupted_answers_are_excluded_in_each_arm_and_counted_for_a_shadow(
    task: Task,
) -> None:
    for arm in ({}, SHADOW):
        task.write(chat_answer(0, **arm), chat_answer(1, **arm | {"finish_reason": None}))
    task.write(*(feedback(number, score=1.0) for number in range(2)), kind="feedback")
    report = watch(task)
    assert report.feedback_scores.labelled == 1
    assert report.challenger is not None
    assert (report.challenger.mirrored, report.challenger.unanswered) == (2, 1)
    assert numbers_of(task.export()) == [0]


def test_a_proven_loss_of_the_mean_score_or_of_a_group_is_an_alarm(task: Task) -> None:
    task.groups = ("language",)
    attributes = [json.dumps({"language": language}) for language in ("en", "de")]
    rows = [chat_answer(number, attributes=attributes[number % 2]) for number in range(199)]
    shadow = chat_answer(1, answer="no", attributes=attributes[1], **SHADOW)
    task.write(*rows, chat_answer(199), shadow)
    table = task.export(200)
    is_german = [number % 2 == 1 for number in numbers_of(table)]
    task.fill(table, correct_answer=np.where(is_german, "no", "yes").tolist())
    audited = audited_rows(task.recipe, since=LONG_AGO).groups["language"]
    assert [audited.count(value) for value in ("de", "en", NO_GROUP)] == [99, 100, 1]

    def accuracy(n: int, right: float) -> GroupAccuracy:
        return GroupAccuracy(n=n, right=right, effective=n)

    half = accuracy(250, 125)
    tested = {ALL: accuracy(500, 250), "language = en": half, "language = de": half}
    report = watch(task, tested=tested)
    assert [(bound.what, bound.n, bound.state) for bound in report.groups.bounds] == [
        (f"change for {ALL}", 200, "not assessable"),
        ("change for language = de", 99, "fails"),
        ("change for language = en", 100, "passes"),
    ]
    assert "1 of language = (others)" in report.groups.note
    assert list(report.failures) == ["change for language = de"]
    assert report.challenger is not None
    assert report.challenger.groups == ("language = de", "language = en")
    assert [outcome.groups for outcome in report.challenger.outcomes] == [("language = de",)]
    # Other results of the test change the stored report.
    lower = tested | {"language = de": accuracy(250, 1)}
    assert watch(task, tested=lower).failures == {}
    higher = lower | {ALL: accuracy(500, 440)}
    assert list(watch(task, tested=higher).failures) == [f"change for {ALL}"]


def test_a_stored_report_is_made_again_if_the_metric_changed(task: Task) -> None:
    task.write(*(chat_answer(number, answer="2 of 3") for number in range(10)))
    task.fill(task.export(), correct_answer=["2.02 of 3.02"] * 10)
    right = []
    for absolute in (0.01, 0.1):
        task.evaluation = {"metric": "numeric", "answers": {"numeric": {"absolute": absolute}}}
        right.append(watch(task).audit.right)
    assert right == [0, 10]


def test_drift_of_prompts_is_found_and_traffic_like_the_reference_raises_no_alarm(
    task: Task,
) -> None:
    task.write(*(chat_answer(3 * number) for number in range(100)))
    report = watch(task)
    assert [statistic.name for statistic in report.drift] == ["unfamiliar", "length"]
    assert report.drift_alarms == ()
    texts = [f"{FOREIGN[number % 4]}, {number}" for number in range(60)]
    task.write(*(chat_answer(number, text=text) for number, text in enumerate(texts, 500)))
    assert "unfamiliar" in [each.name for each in watch(task).drift if each.alarm]


def test_without_texts_only_the_known_lengths_are_compared(task: Task) -> None:
    rows = [chat_answer(number, text=None, text_chars=500) for number in range(100)]
    task.write(*rows, chat_answer(100, text=None, text_chars=None))
    drift = watch(task).drift
    assert [(each.name, each.n, each.alarm) for each in drift] == [("length", 100, True)]


def test_a_blind_audit_has_no_answers_and_its_correct_answers_are_rows_of_data(
    task: Task,
) -> None:
    context = '[["user", "hello"], ["assistant", "hi"]]'
    task.write(chat_answer(0, context=context, text="abc"), chat_answer(1, text=None))
    table = task.export()
    assert len(table) == 1
    assert not {"answer", "score", "digest", "arm", "label"} & set(table.column_names)
    task.fill(table, correct_answer=["write to ann@example.org"])
    rows = audited_rows(task.recipe, since=LONG_AGO)
    assert rows.conversations == ((("user", "hello"), ("assistant", "hi"), ("user", "abc")),)
    assert (rows.texts, rows.labels) == (("hello\nhi\nabc",), ("write to [email]",))


def test_correct_answers_of_scored_rows_are_no_random_sample(task: Task) -> None:
    task.write(*map(chat_answer, range(3)))
    table = task.export(with_answers=True)
    assert table["answer"].to_pylist() == ["yes"] * 3
    stored, num = task.fill(table, score=["1", "0.5", ""], correct_answer=[None, "no", None])
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
def test_an_unusable_chat_audit_is_rejected(task: Task, with_answers: bool, columns: Any) -> None:
    task.evaluation = {"metric": "numeric", "answers": {"numeric": {}}}
    task.write(chat_answer(0), chat_answer(1))
    table = task.export(with_answers=with_answers)
    with pytest.raises(AuditError, match=r"filled\.parquet"):
        task.fill(table, **columns)


def test_conversations_without_texts_are_not_exported(task: Task) -> None:
    task.logs_texts = False
    with pytest.raises(AuditError, match="log_texts"):
        task.export()


def test_a_redacted_correct_answer_scores_no_answer_and_is_counted(task: Task) -> None:
    task.write(*(chat_answer(number, answer="call [number]") for number in range(3)))
    task.fill(task.export(), correct_answer=["call 555 123 4567", "call nobody", None])
    report = watch(task)
    assert (report.audit.labelled, report.audit.right, report.redacted) == (1, 0.5, 1)
    assert report.all_notes[-1].startswith("1 labelled answers are not scored")


def test_feedback_of_a_key_is_not_read_after_a_correct_answer_that_takes_too_long(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PATTERN_SECONDS", 0.05)
    task.evaluation = {"metric": "regex", "answers": {"regex": {"pattern": r"((?:(a|aa)+)+)$"}}}
    callers = ["slow"] * 3 + ["calm"] * 2
    correct = ["aa", "a" * 60 + "!", "aa", "aa", "aaa"]
    for number, caller in enumerate(callers):
        task.write(chat_answer(number, answer="aa", caller=caller))
        given = feedback(number, correct_answer=correct[number], caller=caller)
        task.write(given, kind="feedback")
    report = watch(task)
    assert (report.feedback.labelled, report.feedback.right) == (3, 2)


def test_the_reference_has_the_lengths_and_embeddings_of_the_redacted_last_messages(
    task: Task,
) -> None:
    texts = [f"order {number}0000000 is late" for number in range(60)]
    path = task.folder / "rows.parquet"
    pq.write_table(pa.table({"prompt": texts, "completion": ["yes"] * 60}), path)
    splits = dict.fromkeys(("train", "validation", "test"), path.as_uri())
    data = task.recipe.data.model_copy(update=splits)
    recipe = task.recipe.model_copy(update={"data": data})
    ensure_reference(recipe, CHAMPION, made_at="2026-03-01")
    stored = read_reference(recipe.task_uri, CHAMPION)
    np.testing.assert_array_equal(stored.sample.lengths, list(map(len, texts)))
    redacted = hashed_ngrams(["order [number] is late"] * 60)
    np.testing.assert_array_equal(stored.sample.embeddings, redacted)
