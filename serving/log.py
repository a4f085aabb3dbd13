"""Behind an answer: what was asked and answered, as Parquet on S3 by day, written in batches off the request path."""

import asyncio
import hashlib
import hmac
import json
import logging
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from sys import getsizeof
from typing import Any, Generic, TypeVar

import numpy as np

from cluster.storage import write_bytes
from data.redact import redacted
from serving.journal import open_journal

FLUSH_S = 10.0
MAX_BYTES = 64 << 20
"""What waits for a store that is away; of more, the oldest is given up and counted."""
FILE_ROWS = 10_000
FILE_BYTES = 16 << 20
"""Of the rows of a file, which lie in memory together once more when it is written."""
ROW_BYTES = 1400
"""What a row holds in memory beside its texts, by tracemalloc: 1,310 with three scores, 340 without."""
CLOSE_S = 4.0
"""What is left must be written in: Serve ends a replica a few seconds after its last answer."""
TOP = 3
ANSWERS = {
    "request_id": "string",
    "at": "time",
    "model": "string",
    "version": "string",
    "digest": "string",
    "row": "int",
    "latency_ms": "float",
    "subject": "string",
    "attributes": "string",
    "label": "string",
    "score": "float",
    "answered_by": "string",
    "top": "scored",
    "prompt_tokens": "int",
    "completion_tokens": "int",
    "text": "string",
    "answer": "string",
    "finish_reason": "string",
    "route": "string",
    "asker": "string",
    "arm": "string",
}
FEEDBACK = {"request_id": "string", "at": "time", "row": "int", "label": "string", "asker": "string"}

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Entry:
    """One text's answer, as it comes from the request path."""

    request_id: str
    at: datetime
    """When the answer was ready, UTC."""
    model: str
    version: str
    digest: str
    row: int
    """Its place in the request, which feedback names."""
    latency_s: float
    """From the request's body to the answer."""
    subject: str | None = None
    attributes: Mapping[str, str] | None = None
    label: str | None = None
    score: float | None = None
    answered_by: str | None = None
    classes: Sequence[str] = ()
    scores: Any = None
    """Probabilities of the classes, [L]."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    text: str | None = None
    """What was asked; of a conversation, its last message."""
    answer: str | None = None
    """What a chat model said."""
    finish_reason: str | None = None
    """Of a chat model; None where the answer broke off."""
    route: str = "classify"
    """`classify`, `compare`, `chat` or `completion`."""
    asker: str | None = None
    """Name of the key it was asked with."""
    arm: str | None = None
    """`champion`, or `canary` where the version on trial answered instead; `shadow` of that version's answer to what
    the champion answered under the same request id. None where a model was asked for by another name."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """What was right, of one text of an earlier request."""

    request_id: str
    at: datetime
    """When it was told, UTC."""
    row: int
    """The text's place in the request."""
    label: str
    asker: str | None = None
    """Name of the key it was told with."""


EntryT = TypeVar("EntryT", bound=Entry | Feedback)


@dataclass
class _Batch:
    """Rows of one file a day, each with about the bytes that it holds in memory."""

    number: int
    rows: deque[tuple[int, dict[str, Any]]] = field(default_factory=deque)
    num_bytes: int = 0
    """Of all its rows, those on disk too."""
    on_disk: bool = False
    """Whether some of them are in the journal alone."""


class Spool(Generic[EntryT]):
    """Rows for `<uri>/day=YYYY-MM-DD/<replica>-<number>.parquet`, by day, UTC.

    What a file holds is written whole or not at all; what could not be written waits, up to `MAX_BYTES`, and `close`
    writes what is left. With a folder for a journal it waits on disk too, and whoever opens a spool there next writes
    what a killed replica left. `to_row` makes a row of `schema`. Lives in one event loop.
    """

    def __init__(
        self,
        uri: str,
        *,
        schema: Mapping[str, str],
        to_row: Callable[[EntryT], dict[str, Any]],
        journal: Path | None = None,
    ) -> None:
        self._uri = uri.rstrip("/")
        self._schema = schema
        self._to_row = to_row
        place = hashlib.sha256(self._uri.encode()).hexdigest()[:16]
        self._journal = open_journal(journal / place) if journal else None
        self._name = self._journal.name if self._journal else uuid.uuid4().hex[:12]
        self._open = _Batch(0)
        self._sealed: deque[_Batch] = deque()
        self._num_bytes = 0
        self._writing = asyncio.Lock()
        self._fault = ""
        self._num_told = 0
        self.num_dropped = 0

    def add(self, entries: Sequence[EntryT]) -> None:
        """Takes rows, without waiting for the store."""
        taken: list[dict[str, Any]] = []
        for row in map(self._to_row, entries):
            num_bytes = _size(row)
            begun = self._open.num_bytes
            if len(self._open.rows) >= FILE_ROWS or (begun and begun + num_bytes > FILE_BYTES):
                self._note(taken)
                taken = []
                self._seal()
            self._open.rows.append((num_bytes, row))
            self._open.num_bytes += num_bytes
            self._num_bytes += num_bytes
            taken.append(row)
        self._note(taken)
        self._give_up()

    def _note(self, rows: Sequence[dict[str, Any]]) -> None:
        """Puts rows of the open batch on disk."""
        if self._journal and rows:
            self._journal.add(self._open.number, rows)

    def _seal(self) -> None:
        self._sealed.append(self._open)
        self._open = _Batch(self._open.number + 1)

    def _give_up(self) -> None:
        """Of what is too much, the oldest: to the journal, or where that does not hold it, for good."""
        while self._num_bytes > MAX_BYTES:
            oldest = next((batch for batch in self._sealed if batch.rows), self._open)
            if not oldest.rows:  # all of it is being written now
                return
            if not oldest.on_disk and self._journal and self._journal.holds(oldest.number):
                oldest.on_disk = True
            self._num_bytes -= oldest.rows.popleft()[0]
            self.num_dropped += not oldest.on_disk

    async def keep_writing(self) -> None:
        """Writes what waits every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()
            await self._adopt()

    async def flush(self) -> None:
        """Writes what waits now; where that fails it waits on, and the replica's log says so once."""
        async with self._writing:
            if self._open.rows or self._open.on_disk:
                self._seal()
            while self._sealed:
                batch = self._sealed.popleft()
                try:
                    await asyncio.to_thread(self._write_batch, batch)
                except BaseException as error:  # whatever the store says, requests are answered on
                    self._sealed.appendleft(batch)
                    self._give_up()
                    if not isinstance(error, Exception):
                        raise
                    self._tell(error)
                    return
                if self._journal:
                    self._journal.written(batch.number)
                self._num_bytes -= sum(num_bytes for num_bytes, _ in batch.rows)
                self._fault = ""

    def _write_batch(self, batch: _Batch) -> None:
        on_disk = self._journal.rows(batch.number) if batch.on_disk and self._journal else None
        self._write(self._name, batch.number, on_disk or [row for _, row in batch.rows])

    async def _adopt(self) -> None:
        """Writes what replicas of this node left that ended before the store had it."""
        if self._journal is None:
            return
        journal = self._journal

        def write() -> None:
            for left in journal.orphans():
                try:
                    self._write(left.name, left.number, left.rows)
                    left.forget()
                except Exception as error:  # of the store, or of one damaged file: the others come too
                    self._tell(error)
                    continue
                _log.warning("%d rows of %s were left by a replica that ended, and are kept", len(left.rows), self._uri)

        async with self._writing:
            await asyncio.to_thread(write)

    def _tell(self, error: Exception) -> None:
        if str(error) != self._fault:
            _log.error("%s waits, it cannot be written: %s", self._uri, error)
        if self.num_dropped > self._num_told:
            _log.error("%d rows of %s are lost", self.num_dropped - self._num_told, self._uri)
        self._fault, self._num_told = str(error), self.num_dropped

    async def close(self) -> None:
        """Writes what is left; what cannot be written waits in the journal, or is counted in the replica's log."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        left = [batch for batch in (*self._sealed, self._open) if batch.rows or batch.on_disk]
        kept = [batch for batch in left if self._journal and self._journal.holds(batch.number)]
        lost = self.num_dropped - self._num_told + sum(len(batch.rows) for batch in left if batch not in kept)
        if self._journal:
            self._journal.close()
        if kept:
            _log.error("rows of %s wait on this node's disk for the next replica", self._uri)
        if lost:
            _log.error("%d rows of %s are lost", lost, self._uri)

    def _write(self, name: str, number: int, rows: Sequence[dict[str, Any]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        by_day: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_day.setdefault(row["at"].date().isoformat(), []).append(row)
        for day, of_day in by_day.items():
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(of_day, schema=_arrow(self._schema)), sink)
            # One number a day: a part that was written before a failure is written over, not twice.
            write_bytes(f"{self._uri}/day={day}/{name}-{number:06d}.parquet", sink.getvalue().to_pybytes())


class RequestLog:
    """What was answered, under `<uri>/answers`, and what was right, under `<uri>/feedback`.

    Of `subject` only HMAC-SHA256 is written, on this node's disk (`journal`, a folder) too; texts only where `texts`
    says so.
    """

    def __init__(self, uri: str, *, subject_key: bytes | None, texts: bool, journal: Path | None = None) -> None:
        self._subject_key = subject_key
        self._texts = texts
        self._attributes: tuple[Mapping[str, str], str] = ({}, "")
        root = uri.rstrip("/")
        answers, feedback = f"{root}/answers", f"{root}/feedback"
        self.answers: Spool[Entry] = Spool(answers, schema=ANSWERS, to_row=self._row, journal=journal)
        self.feedback: Spool[Feedback] = Spool(feedback, schema=FEEDBACK, to_row=asdict, journal=journal)

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

    def _row(self, entry: Entry) -> dict[str, Any]:
        subject = None
        if entry.subject is not None and self._subject_key is not None:
            subject = hmac.new(self._subject_key, entry.subject.encode(), hashlib.sha256).hexdigest()
        top: list[dict[str, Any]] = []
        if entry.scores is not None:
            order = np.argsort(-np.asarray(entry.scores), kind="stable")[:TOP]
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
            "asker": entry.asker,
            "arm": entry.arm,
        }


def _size(row: Mapping[str, Any]) -> int:
    """About what a row holds in memory: as if it shared its texts with no other, for so it is written."""
    return ROW_BYTES + sum(getsizeof(value) for value in row.values() if isinstance(value, str))


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def _arrow(columns: Mapping[str, str]) -> Any:
    import pyarrow as pa

    scored = pa.list_(pa.struct({"label": pa.string(), "score": pa.float32()}))
    types = {"string": pa.string(), "time": pa.timestamp("us", tz="UTC"), "int": pa.int32(), "float": pa.float32()}
    return pa.schema({name: (types | {"scored": scored})[kind] for name, kind in columns.items()})
