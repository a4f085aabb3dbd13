"""Monitoring of each task: the columns and labels of its audits, and what is compared for drift."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailorbird.config.answers import THUMBS
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TaskName
from tailorbird.data.pii import is_redacted
from tailorbird.evaluation.statistics.answer_metrics import unreadable

COLUMNS = ("request_id", "row", "caller", "at", "subject", "text", "attributes", "label")
CHAT_COLUMNS = ("request_id", "row", "caller", "at", "subject", "attributes", "context", "text", "correct_answer")
SCORED_COLUMNS = (*CHAT_COLUMNS[:-1], "answer", "score", "correct_answer")
Row = dict[str, Any]  # a row of the request log or an audit, by column


class AuditError(ValueError):
    """Raised if an audit cannot be exported or imported."""


@dataclass(frozen=True)
class MonitoredTask:
    """Monitoring of one task."""

    columns: tuple[str, ...]  # of an audit to import
    label: str  # column with the correct answer
    has_corrections: bool  # people and clients write correct answers, which the metric compares with the model's
    has_conversations: bool
    compares_answers: bool  # drift compares the champion's answers with those to the reference rows
    audited: str  # column without which an answer is not audited
    sampled: str  # column without which an answer is not in the sample for drift
    export_columns: Callable[[Recipe, bool], tuple[str, ...]]
    """Return the columns of an audit to export, with or without the model's answers; raise AuditError if the task or
    the recipe does not allow it."""
    filled_in: Callable[[str, Sequence[Row]], list[Row]]
    """Return the rows of the audit at a URI that people filled in; raise AuditError for a score outside 0 to 1."""
    require_labels: Callable[[str, Sequence[Row], Recipe, Sequence[str]], None]
    """Raise AuditError if a label cannot be used, or if there is none. The last argument are the classes."""
    label_of: Callable[[str | None, float | None, str | None], tuple[str | None, float | None]]
    """Return the correct answer and the score, either may be None, in a label, score and correct answer of a log."""


def _class_columns(_: Recipe, with_answers: bool) -> tuple[str, ...]:
    if with_answers:
        raise AuditError("--with-answers is for chat: labels of classes are given without seeing the model's answer")
    return COLUMNS


def _chat_columns(recipe: Recipe, with_answers: bool) -> tuple[str, ...]:
    if not recipe.serving.log_texts:
        raise AuditError("serving.log_texts is not set, so there are no conversations to audit; set it and serve again")
    return SCORED_COLUMNS if with_answers else CHAT_COLUMNS


def _labelled(_: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["label"] is not None and str(row["label"]).strip()]


def _scored(uri: str, rows: Sequence[Row]) -> list[Row]:
    """Return the rows with a score, as a float, or a correct answer."""
    kept = []
    for number, row in enumerate(rows):
        stated, correct = row["score"], str(row["correct_answer"] or "").strip()
        try:
            score = None if stated is None or not str(stated).strip() else float(stated)
        except ValueError:
            score = math.nan
        if score is not None and not 0 <= score <= 1:
            raise AuditError(f"{uri} has the score {stated!r} in row {number}; give a number from 0 to 1")
        if score is not None or correct:
            kept.append(row | {"score": score, "correct_answer": correct or None})
    return kept


def _require_classes(uri: str, rows: Sequence[Row], _: Recipe, classes: Sequence[str]) -> None:
    unknown = sorted({str(row["label"]) for row in rows} - set(classes))
    if unknown or not rows:
        fault = f"labels that are not classes: {', '.join(unknown[:5])}" if unknown else "no labels"
        known = f"{', '.join(classes[:10])}{' ...' * (len(classes) > 10)}"
        raise AuditError(f"{uri} has {fault}; the classes are {known}")


def _require_chat_labels(uri: str, rows: Sequence[Row], recipe: Recipe, _: Sequence[str]) -> None:
    """Raise AuditError for a file without labels, for mixed ones, and for a correct answer that the metric cannot read.

    A file has either scores or correct answers, because the two are not comparable. If people saw the model's answers,
    each row with a correct answer needs a score: people correct wrong answers, which are no random sample.
    Correct answers from which personal data are removed are stored, but neither compared nor trained on.
    """
    if not rows:
        raise AuditError(f"{uri} has no scores and no correct answers; fill in `score` or `correct_answer`")
    num_scores = sum(row["score"] is not None for row in rows)
    if any(row["answer"] for row in rows) and num_scores < len(rows):
        raise AuditError(
            f"{uri} has {len(rows) - num_scores} correct answers without a score, but shows the model's answers; "
            "fill in `score` too"
        )
    if 0 < num_scores < len(rows):
        raise AuditError(f"{uri} has {num_scores} scores for {len(rows)} rows; give a score for each row, or for none")
    corrected = [row["correct_answer"] for row in rows if row["correct_answer"]]
    corrected = [answer for answer in corrected if not is_redacted(answer)]
    fault = unreadable(corrected, config=recipe.evaluation.answers)
    if fault is not None:
        raise AuditError(f"{uri} has the correct answer {corrected[fault[0]][:80]!r}, which has no {fault[1]}")


def _chat_label(label: str | None, score: float | None, correct_answer: str | None) -> tuple[str | None, float | None]:
    return correct_answer, THUMBS.get(label or "") if score is None else score


MONITORED_TASKS: Mapping[TaskName, MonitoredTask] = {
    "classification": MonitoredTask(
        columns=COLUMNS,
        label="label",
        has_corrections=False,
        has_conversations=False,
        compares_answers=True,
        audited="label",
        sampled="label",
        export_columns=_class_columns,
        filled_in=_labelled,
        require_labels=_require_classes,
        label_of=lambda label, *_: (label, None),
    ),
    "chat": MonitoredTask(
        columns=SCORED_COLUMNS,
        label="correct_answer",
        has_corrections=True,
        has_conversations=True,
        compares_answers=False,
        audited="text",
        sampled="text_chars",
        export_columns=_chat_columns,
        filled_in=_scored,
        require_labels=_require_chat_labels,
        label_of=_chat_label,
    ),
}
