"""The request log: inputs and answers as Parquet files on S3, by day. Writing does not delay
requests."""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

from serving.request_log.schema import FeedbackEntry, LogEntry, Row
from serving.request_log.writer import LogWriter
from tailorbird.data.pii import redact


class RequestLog:
    """The request log of a replica, with answers under `<uri>/answers` and feedback under
    `<uri>/feedback`.

    Texts are stored only if `texts` is True. `wal_folder` is the folder of the write-ahead log on
    the node's disk.
    """

    def __init__(self, uri: str, *, texts: bool, wal_folder: Path) -> None:
        self._texts = texts
        root = uri.rstrip("/")
        self.answers: LogWriter[LogEntry] = LogWriter(
            f"{root}/answers", entry_type=LogEntry, to_row=self._row, wal_folder=wal_folder
        )
        self.feedback: LogWriter[FeedbackEntry] = LogWriter(
            f"{root}/feedback", entry_type=FeedbackEntry, to_row=asdict, wal_folder=wal_folder
        )

    def loggable(self, text: str) -> str | None:
        """Return the text with personal data redacted by patterns, or None if texts are not logged.

        Call this before making a LogEntry, so that text which must not be stored is not kept in
        memory either.
        """
        if self._texts:
            return redact(text)
        return None

    async def keep_writing(self) -> None:
        """Write answers and feedback periodically until cancelled."""
        await asyncio.gather(self.answers.keep_writing(), self.feedback.keep_writing())

    async def close(self) -> None:
        """Write the remaining answers and feedback."""
        await asyncio.gather(self.answers.close(), self.feedback.close())

    def _row(self, entry: LogEntry) -> Row:
        row = asdict(entry)
        row["attributes"] = None
        if entry.attributes:
            row["attributes"] = json.dumps(entry.attributes, sort_keys=True, ensure_ascii=False)
        return row
