"""Behind an answer: what was asked and answered, as Parquet on S3 by day, written in batches off the request path."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from serving.request_log.schema import ANSWERS, FEEDBACK, NUM_TOP_CLASSES, FeedbackEntry, LogEntry
from serving.request_log.writer import BufferedParquetWriter
from tailorbird.data.pii import redacted


class RequestLog:
    """What was answered, under `<uri>/answers`, and what was right, under `<uri>/feedback`.

    Of `subject` only HMAC-SHA256 is written, on this node's disk (`journal`, a folder) too; texts only where `texts`
    says so.
    """

    def __init__(self, uri: str, *, subject_key: bytes | None, texts: bool, wal_folder: Path | None = None) -> None:
        self._subject_key = subject_key
        self._texts = texts
        self._attributes: tuple[Mapping[str, str], str] = ({}, "")
        root = uri.rstrip("/")
        answers, feedback = f"{root}/answers", f"{root}/feedback"
        self.answers: BufferedParquetWriter[LogEntry] = BufferedParquetWriter(
            answers, schema=ANSWERS, to_row=self._row, wal_folder=wal_folder
        )
        self.feedback: BufferedParquetWriter[FeedbackEntry] = BufferedParquetWriter(
            feedback, schema=FEEDBACK, to_row=asdict, wal_folder=wal_folder
        )

    @property
    def takes_subjects(self) -> bool:
        """Whether there is a key for them."""
        return self._subject_key is not None

    def kept(self, text: str) -> str | None:
        """The text without what leads to a person by patterns, where the recipe lets it be kept: what may not be
        written is not held either."""
        return redacted(text) if self._texts else None

    async def keep_writing(self) -> None:
        """Both, until cancelled."""
        await asyncio.gather(self.answers.keep_writing(), self.feedback.keep_writing())

    async def close(self) -> None:
        """Writes what is left of both."""
        await asyncio.gather(self.answers.close(), self.feedback.close())

    def _dumped(self, attributes: Mapping[str, str]) -> str:
        """The attributes as JSON: of the same object, as a request has one for all its texts, the same text."""
        if self._attributes[0] is not attributes:
            self._attributes = attributes, json.dumps(attributes, sort_keys=True, ensure_ascii=False)
        return self._attributes[1]

    def _row(self, entry: LogEntry) -> dict[str, Any]:
        subject = None
        if entry.subject is not None and self._subject_key is not None:
            subject = hmac.new(self._subject_key, entry.subject.encode(), hashlib.sha256).hexdigest()
        top: list[dict[str, Any]] = []
        if entry.scores is not None:
            order = np.argsort(-np.asarray(entry.scores), kind="stable")[:NUM_TOP_CLASSES]
            top = [{"label": entry.classes[place], "score": float(entry.scores[place])} for place in order]
        return {
            "request_id": entry.request_id,
            "at": entry.at,
            "model": entry.model,
            "version": entry.version,
            "digest": entry.digest,
            "row": entry.row,
            "latency_ms": 1000 * entry.latency_s,
            "subject": subject,
            "attributes": self._dumped(entry.attributes) if entry.attributes else None,
            "label": entry.label,
            "score": entry.score,
            "answered_by": entry.answered_by,
            "top": top,
            "prompt_tokens": entry.prompt_tokens,
            "completion_tokens": entry.completion_tokens,
            "text": entry.text,
            "answer": entry.answer,
            "finish_reason": entry.finish_reason,
            "route": entry.route,
            "caller": entry.caller,
            "arm": entry.arm,
        }
