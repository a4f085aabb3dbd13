"""Monitoring of each task: the columns and labels of its audits, and what is compared for drift."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailorbird.config.answers import THUMBS
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TaskName
from tailorbird.data.answers import unreadable
from tailorbird.data.pii import is_redacted, redact

COLUMNS = ("request_id", "row", "caller", "at", "text", "attributes", "label")
CHAT_COLUMNS = (
    "request_id",
    "row",
    "caller",
    "at",
    "attributes",
    "context",
    "text",
    "correct_answer",
)
PEOPLES_TEXTS = {"text", "correct_answer"}
Row = dict[str, Any]  # a row of the request log or an audit, by column


class AuditError(ValueError):
    """Raised if an audit cannot be exported or imported."""


@dataclass(frozen=True)
class MonitoredTask:
    """Monitoring of one task."""

    columns: tuple[str, ...]  # of an audit
    scored_columns: tuple[str, ...] | None
    """Of an audit with the model's answers; None if people must not see them."""
    needs_texts: bool  # an answer whose text is not logged cannot be audited
    label_column: str  # has the correct answer
    compares_answers: bool  # drift compares the champion's answers with those to the reference rows
    required_column: str  # an answer without a value in it is not in the sample for drift
    require_labels: Callable[[str, Sequence[Row], Recipe, Sequence[str]], list[Row]]
    """Return the labelled rows of the audit at a URI, redacted; raise AuditError if a label cannot
    be used, or if there is none. The last argument are the classes."""
    label_of: Callable[[str | None, float | None, str | None], tuple[str | None, float | None]]
    """Return the correct answer and the score, either may be None, in a label, score and correct
    answer of a log."""


def _redacted(row: Row) -> Row:
    return row | {name: row[name] and redact(str(row[name])) for name in PEOPLES_TEXTS & set(row)}


def _class_labels(uri: str, rows: Sequence[Row], _: Recipe, classes: Sequence[str]) -> list[Row]:
    labelled = [
        _redacted(row) for row in rows if row["label"] is not None and str(row["label"]).strip()
    ]
    if not labelled:
        raise AuditError(f"{uri} has no labels; fill in the column `label`")
    unknown = sorted({str(row["label"]) for row in labelled} - set(classes))
    if unknown:
        known = ", ".join(classes[:10])
        if len(classes) > 10:
            known += " ..."
        raise AuditError(
            f"{uri} has labels that are not classes: {', '.join(unknown[:5])}; the classes are "
            f"{known}"
        )
    return labelled


def _scored(uri: str, rows: Sequence[Row]) -> list[Row]:
    """Return the rows with a score, as a float, or a correct answer; raise AuditError for a score
    outside 0 to 1."""
    scored = []
    for number, row in enumerate(rows):
        stated = "" if row["score"] is None else str(row["score"]).strip()
        correct = str(row["correct_answer"] or "").strip()
        try:
            score = float(stated) if stated else None
        except ValueError:
            score = math.nan
        if score is not None and not 0 <= score <= 1:
            raise AuditError(
                f"{uri} has the score {row['score']!r} in row {number}; give a number from 0 to 1"
            )
        if stated or correct:
            scored.append(row | {"score": score, "correct_answer": correct or None})
    return scored


def _chat_labels(uri: str, exported: Sequence[Row], recipe: Recipe, _: Sequence[str]) -> list[Row]:
    """Return the redacted rows of `_scored`. The metric must be able to read their correct answers.

    A file has either scores or correct answers, because the two are not comparable. If people saw
    the model's answers, each row with a correct answer needs a score: people correct wrong answers,
    which are no random sample. Correct answers from which personal data are removed are stored, but
    neither compared nor trained on.
    """
    rows = [_redacted(row) for row in _scored(uri, exported)]
    if not rows:
        raise AuditError(
            f"{uri} has no scores and no correct answers; fill in `score` or `correct_answer`"
        )
    num_scores = len([row for row in rows if row["score"] is not None])
    if any(row["answer"] for row in rows) and num_scores < len(rows):
        raise AuditError(
            f"{uri} has {len(rows) - num_scores} correct answers without a score, but shows the "
            "model's answers; fill in `score` too"
        )
    if 0 < num_scores < len(rows):
        raise AuditError(
            f"{uri} has {num_scores} scores for {len(rows)} rows; give a score for each row, or "
            "for none"
        )
    answers = [row["correct_answer"] for row in rows if row["correct_answer"]]
    corrected = [answer for answer in answers if not is_redacted(answer)]
    fault = unreadable(corrected, config=recipe.evaluation.answers)
    if fault is not None:
        raise AuditError(
            f"{uri} has the correct answer {corrected[fault[0]][:80]!r}, which has no {fault[1]}"
        )
    return rows


MONITORED_TASKS: Mapping[TaskName, MonitoredTask] = {
    "classification": MonitoredTask(
        columns=COLUMNS,
        scored_columns=None,
        needs_texts=False,
        label_column="label",
        compares_answers=True,
        required_column="label",
        require_labels=_class_labels,
        label_of=lambda label, *_: (label, None),
    ),
    "chat": MonitoredTask(
        columns=CHAT_COLUMNS,
        scored_columns=(*CHAT_COLUMNS[:-1], "answer", "score", "correct_answer"),
        needs_texts=True,
        label_column="correct_answer",
        compares_answers=False,
        required_column="text_chars",
        require_labels=_chat_labels,
        label_of=lambda label, score, answer: (
            answer,
            THUMBS.get(label or "") if score is None else score,
        ),
    ),
}
