"""A task with a request log, labels and reports in a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.request_log.schema import FeedbackEntry, LogEntry, arrow_schema
from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.monitoring.daily_report import make_reports
from tailorbird.monitoring.label_audit import export_answers, import_labels
from tailorbird.monitoring.quality import GroupAccuracy
from tailorbird.monitoring.report import Report
from tailorbird.monitoring.report_window import ServedVersions
from tailorbird.monitoring.traffic import ARMS, Outcomes
from tailorbird.registry.draws import DrawSecret
from tailorbird.registry.versions import ModelVersion
from tailorbird.storage.paths import TaskPaths
from tests.progress import ProgressRecorder
from tests.unit.pipeline.contexts import recipe_at

FIRST = date(2026, 3, 1)
DIGEST = "champion-digest"
SECRET = b"s" * 32  # of the draws
CHAMPION = ModelVersion.model_construct(
    version="v1", digest=DIGEST, base_model="b", max_length=8, uri="u"
)
CHALLENGER = ModelVersion.model_construct(version="v2", digest="challenger-digest")
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
KNOWN = (
    "where is my order",
    "how do I return a shirt",
    "the parcel has not arrived",
    "can I pay by invoice",
)
Row = dict[str, Any]


def days_from(first: date, num: int) -> list[date]:
    return [first + timedelta(days=number) for number in range(num)]


def time_on(day: date, hour: int = 12, minute: int = 0) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)


def answer(number: int, day: date = FIRST, **fields: Any) -> Row:
    """Return a row of the log of a classifier."""
    row = {"request_id": f"{day}-{number}", "row": 0, "at": time_on(day), "digest": DIGEST}
    row |= {"arm": "champion", "label": "a", "score": 0.75, "attributes": '{"sex": "f"}'}
    return row | {"text": f"a request with private text, {number}"} | fields


def chat_answer(number: int, day: date = FIRST, **fields: Any) -> Row:
    """Return a row of the log of a chat service."""
    text = f"{KNOWN[number % 4]}, {number}"
    row = answer(number, day, label=None, score=None, attributes=None, text=text, answer="yes")
    return row | {"route": "chat", "finish_reason": "stop", "text_chars": len(text)} | fields


def shadow(number: int, **fields: Any) -> Row:
    """Return the fields of an answer of the challenger to the same text."""
    return answer(number) | {"arm": "shadow", "digest": CHALLENGER.digest} | fields


def feedback(number: int, day: date = FIRST, **fields: Any) -> Row:
    """Return feedback on an answer of the day."""
    return {"request_id": f"{day}-{number}", "row": 0, "at": time_on(day, 13)} | fields


def write(log: Path, kind: str, rows: Sequence[Row], *, day: date = FIRST) -> str:
    """Write a file of `answers` or `feedback`; return its URI."""
    folder = log / kind / f"day={day}"
    folder.mkdir(parents=True, exist_ok=True)
    schema = arrow_schema(LogEntry if kind == "answers" else FeedbackEntry)
    path = folder / f"{len(list(folder.iterdir()))}.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    return path.as_uri()


@dataclass
class Task:
    """A task, by default of classification. Tests record which texts were embedded and which files
    were read."""

    folder: Path
    is_chat: bool = False
    groups: tuple[str, ...] = ("sex",)
    evaluation: dict[str, Any] = field(default_factory=dict)
    logs_texts: bool = True
    embedded: list[tuple[str, ...]] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    recorder: ProgressRecorder = field(default_factory=ProgressRecorder)

    def __post_init__(self) -> None:
        self.store_secret(SECRET)

    def store_secret(self, secret: bytes) -> None:
        stored = DrawSecret(key=secret.hex()).model_dump_json()
        storage.write_bytes(TaskPaths(self.recipe.task_uri).draw_secret, stored.encode())

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def recipe(self) -> Recipe:
        serving: dict[str, Any] = {"request_log": self.log.as_uri(), "log_texts": self.logs_texts}
        return recipe_at(
            self.folder / "models",
            task="chat" if self.is_chat else "classification",
            data={"train": "s3://lake/train", "groups": self.groups},
            serving=serving,
            evaluation=self.evaluation,
        )

    def write(self, *rows: Row, kind: str = "answers", day: date = FIRST) -> None:
        write(self.log, kind, rows, day=day)

    def watch(
        self,
        days: int = 1,
        *,
        challenger: ModelVersion | None = None,
        tested: Mapping[str, GroupAccuracy] | None = None,
    ) -> list[Report]:
        """Return the reports of the first days."""
        served = ServedVersions(
            champion=CHAMPION,
            baseline=None,
            challenger=challenger,
            since=FIRST,
            tested=tested or {},
        )
        today = FIRST + timedelta(days=days)
        return make_reports(self.recipe, served, today=today, progress=self.recorder)

    def export(self, num_rows: int = 100, **options: Any) -> pa.Table:
        """Draw answers of the champion, by default of the first day."""
        to = self.folder / "audit.parquet"
        drawn = {"digest": DIGEST, "days": [FIRST]} | options
        export_answers(self.recipe, num_rows=num_rows, to=to.as_uri(), **drawn)
        return pq.read_table(to)

    def fill(self, table: pa.Table, **columns: list[Any]) -> tuple[str, int]:
        """Import the audit with these values of columns."""
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        path = self.folder / "filled.parquet"
        pq.write_table(table, path)
        return import_labels(self.recipe, path.as_uri(), classes=("a", "b"))

    def files(self) -> dict[str, bytes]:
        """Return the stored reports by name."""
        folder = self.folder / "models/task/monitoring"
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def outcomes(
    arms: Sequence[str],
    right: Sequence[bool],
    *,
    keys: Sequence[int] | None = None,
    requests: Sequence[int] | None = None,
    audits: Sequence[int] = (1,),
    sexes: str | Sequence[str] = "f",
) -> Outcomes:
    """Return labelled answers; `audits` and `sexes` have one value, or one per row."""
    num = len(right)
    numbers = range(num)
    values = np.broadcast_to(list(sexes), num)
    return Outcomes(
        keys=np.array(numbers if keys is None else keys, np.uint64),
        arms=np.array([ARMS.index(arm) for arm in arms], np.uint8),
        at=np.zeros(num, np.int64),
        scores=np.array(right, float),
        audits=np.broadcast_to(np.array(audits, np.int32), num),
        groups=tuple((value,) for value in values.tolist()),
        requests=np.array(numbers if requests is None else requests, np.uint64),
        by_person=np.zeros(num, bool),
        missing=np.zeros(num, bool),
    )
