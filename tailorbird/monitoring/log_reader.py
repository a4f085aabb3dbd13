"""Read the Parquet files of the request log into `Traffic`, each file and row once."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tailorbird import storage
from tailorbird.config.task_rules import TaskName
from tailorbird.data.answers import PatternTimeout
from tailorbird.data.arrow_safety import extension_columns
from tailorbird.data.pii import is_redacted
from tailorbird.data.rows import NO_GROUP
from tailorbird.evaluation.statistics.answer_metrics import scorer
from tailorbird.monitoring.monitored_tasks import MONITORED_TASKS, Row
from tailorbird.monitoring.traffic import (
    ARMS,
    CHAMPION,
    LABEL,
    SAMPLE,
    SHADOW,
    Labels,
    Outcomes,
    Traffic,
    WatchedVersions,
    merge_traffic,
    smallest_keys,
)
from tailorbird.registry.draws import draw_code

ANSWERS = (
    "request_id",
    "row",
    "caller",
    "at",
    "digest",
    "arm",
    "label",
    "attributes",
    "text",
    "route",
    "finish_reason",
    "answer",
    "text_chars",
    "context",
)
FEEDBACK = ("request_id", "row", "caller", "at", "label", "score", "correct_answer")
OPTIONAL = {
    "route": pa.string(),
    "finish_reason": pa.string(),
    "answer": pa.string(),
    "context": pa.string(),
    "correct_answer": pa.string(),
    "attributes": pa.string(),
    "text_chars": pa.int32(),
    "score": pa.float32(),
}
"""Types of the columns that a file may lack; an audit has only some of them."""
DAY = re.compile(r"/day(?:=|%3D)(\d{4}-\d\d-\d\d)/")
FILES_PER_TASK = 64

ReadPart = Callable[[list[str]], Traffic]
MapParts = Callable[[ReadPart, Sequence[list[str]]], Iterable[Traffic]]
"""Like the built-in `map`; may run on a cluster."""


class TrafficError(ValueError):
    """Raised for a file that does not belong to a request log."""


def by_day(log: str, kind: str) -> dict[str, list[str]]:
    """Return the Parquet files of `answers` or `feedback` by day, `YYYY-MM-DD`; days and files are
    in order."""
    files: dict[str, list[str]] = {}
    for uri in storage.list_files(f"{log}/{kind}", missing_ok=True):
        if uri.endswith(".parquet") and (day := day_of(uri)):
            files.setdefault(day, []).append(uri)
    return {day: sorted(files[day]) for day in sorted(files)}


def day_of(uri: str) -> str | None:
    """Return the day in the URI of a log file, or None."""
    match = DAY.search(uri)
    return match and match[1]


def key_of(request_id: str, row: int, *, caller: str | None, secret: bytes) -> int:
    """Return the code that joins the answers and labels of a text, and draws texts at random.

    `caller` is the name of the API key that made the request. A label that another key gave has
    another code, so it is not joined with the answer.
    """
    return draw_code(secret, "row", str(row), caller or "", request_id)


def request_code(request_id: str, *, secret: bytes) -> int:
    """Return the code of a request, under which reports store it."""
    return draw_code(secret, "request", request_id)


def read_labels(
    files: Sequence[str],
    *,
    secret: bytes,
    audits: Sequence[str] = (),
    task: TaskName = "classification",
) -> Labels:
    """Return the labels in these feedback files and audits, one label per text.

    An audit takes precedence over feedback, then the latest label counts, then the one read last.
    Audits are given in order of import. Files are read one at a time.
    """
    label_of = MONITORED_TASKS[task].label_of
    names: dict[str, int] = {}
    parts = [np.zeros(0, LABEL)]
    numbers = [0] * len(files) + list(range(1, len(audits) + 1))  # 0 is feedback
    for number, uri in zip(numbers, [*files, *audits], strict=True):
        table = read_columns(uri, FEEDBACK)
        part = []
        for row, time in zip(table.to_pylist(), _microseconds(table), strict=True):
            label, score = label_of(row["label"], row["score"], row["correct_answer"])
            if None in (row["request_id"], row["row"]) or (label is None and score is None):
                continue
            code = -1 if label is None else names.setdefault(label, len(names))
            part.append((row_key(row, secret), code, score, number, time))
        parts.append(np.array(part, LABEL))

    labels = np.concatenate(parts)
    # The last key of `lexsort` is the first to sort by: audits first, then the latest.
    latest_first = labels[np.lexsort((labels["at"], labels["audit"] > 0))[::-1]]
    latest = latest_first[np.unique(latest_first["key"], return_index=True)[1]]
    audited = labels[labels["audit"] > 0]  # in order of the audits
    audited_keys, first = np.unique(audited["key"], return_index=True)
    latest["audit"][np.searchsorted(latest["key"], audited_keys)] = audited["audit"][first]
    return Labels(latest, names=tuple(names))


def read_traffic(
    files: Sequence[str],
    versions: WatchedVersions,
    *,
    labels: Labels,
    secret: bytes,
    map_parts: MapParts = map,
) -> Traffic:
    """Return the traffic in these files; memory holds the rows of one part and the results of all
    parts.

    `secret` is that of the task's draws, with which the labels were read.
    """
    parts = [
        list(files[start : start + FILES_PER_TASK])
        for start in range(0, len(files), FILES_PER_TASK)
    ]
    return merge_traffic(map_parts(Reader(versions, labels, secret), parts))


@dataclass(frozen=True, eq=False)
class Reader:
    """A picklable function that reads a part of the log files."""

    versions: WatchedVersions
    labels: Labels
    secret: bytes
    slow: set[str | None] = field(default_factory=set)
    """API keys whose feedback takes too long to read."""

    def __call__(self, files: Sequence[str]) -> Traffic:
        return merge_traffic(self._read_file(uri) for uri in files)

    def _read_file(self, uri: str) -> Traffic:
        table = read_columns(uri, ANSWERS)
        arms = _objects(table, "arm")
        digests = _objects(table, "digest")
        keys = self._keys(table)
        answered = is_answered(table)
        is_champion = (arms == CHAMPION) & (digests == self.versions.champion)
        is_challenger = digests == self.versions.challenger
        missing = is_challenger & (arms == SHADOW) & ~answered
        is_compared = answered & (is_champion | (is_challenger & (arms == SHADOW)))

        start, end = (
            np.searchsorted(self.labels.rows["key"], keys, side=side) for side in ("left", "right")
        )
        rows = np.flatnonzero((is_compared | missing) & (start < end))
        labels = self.labels.rows[start[rows]]
        outcomes = self._outcomes(table.take(rows), labels=labels, missing=missing[rows])
        return Traffic(
            num_rows=len(table),
            rows=_count_versions(arms, digests),
            unanswered=_count_versions(arms[~answered], digests[~answered]),
            outcomes=outcomes.where(~np.isnan(outcomes.scores)),
            redacted=self._num_redacted(labels),
            sample=_sample(
                table,
                keys=keys,
                is_champion=is_champion & answered,
                required_column=MONITORED_TASKS[self.versions.task].required_column,
            ),
        )

    def _keys(self, table: pa.Table) -> NDArray[np.uint64]:
        rows = table.select(["request_id", "row", "caller"]).to_pylist()
        return np.array([row_key(row, self.secret) for row in rows], np.uint64)

    def _outcomes(
        self, table: pa.Table, *, labels: NDArray[np.void], missing: NDArray[np.bool_]
    ) -> Outcomes:
        """Return the rows [N] with their labels [N]; the score is NaN for one that cannot be
        scored."""
        requests = []
        scores = []
        for row, label, is_missing in zip(table.to_pylist(), labels, missing, strict=True):
            requests.append(request_code(row["request_id"], secret=self.secret))
            scores.append(self._score(row, label, is_missing=is_missing))
        return Outcomes(
            keys=labels["key"],
            arms=np.array([ARMS.index(arm) for arm in table["arm"].to_pylist()], np.uint8),
            at=_microseconds(table),
            scores=np.array(scores, np.float64),
            by_person=~np.isnan(labels["score"]),
            audits=labels["audit"],
            groups=tuple(
                _values(text, self.versions.groups) for text in table["attributes"].to_pylist()
            ),
            labelled_at=labels["at"],
            requests=np.array(requests, np.uint64),
            missing=missing,
        )

    def _score(self, row: Row, label: np.void, *, is_missing: bool) -> float:
        """Return the score of an answer; NaN for one whose text was not stored.

        A correct answer scores the answers of all arms; a missing one has the score 0. A person's
        score does not score the shadow's answer, which the person did not see. The score is NaN for
        a correct answer that the metric cannot read, such as a text without a number, and for a
        redacted one, to which a wrong answer may be equal. After a text of feedback on which the
        regular expression takes too long, it is NaN for all further feedback of the API key, so
        that no key delays a report for long.
        """
        if not np.isnan(label["score"]):
            return math.nan if row["arm"] == SHADOW else float(label["score"])
        if is_missing:
            return 0.0
        reference = self.labels.names[label["code"]]
        if self.versions.metric is None:
            return float(row["label"] == reference)
        is_audited = label["audit"] > 0
        is_slow = row["caller"] in self.slow and not is_audited
        if row["answer"] is None or is_redacted(reference) or is_slow:
            return math.nan
        try:
            return self._metric(row["answer"], reference)
        except PatternTimeout:
            if not is_audited:
                self.slow.add(row["caller"])
        except ValueError:
            pass
        return math.nan

    @cached_property
    def _metric(self) -> Callable[[str, str], float]:
        assert self.versions.metric is not None
        return scorer(self.versions.metric, config=self.versions.answers)

    def _num_redacted(self, labels: NDArray[np.void]) -> int:
        """Return the number of labels whose correct answer is redacted."""
        if self.versions.metric is None:
            return 0
        codes = labels["code"][np.isnan(labels["score"])]
        return sum(is_redacted(self.labels.names[code]) for code in codes)


def row_key(row: Row, secret: bytes) -> int:
    return key_of(row["request_id"], row["row"], caller=row["caller"], secret=secret)


def _objects(table: pa.Table, column: str) -> NDArray[np.object_]:
    return np.array(table[column].to_pylist(), dtype=object)


def _count_versions(
    arms: NDArray[np.object_], digests: NDArray[np.object_]
) -> Counter[tuple[str, str]]:
    return Counter((arm or "", digest) for arm, digest in zip(arms, digests, strict=True))


def is_answered(table: pa.Table) -> NDArray[np.bool_]:
    """Return a mask [N] of the rows with a class, or with a complete answer to a conversation."""
    is_complete = pc.and_(
        pc.equal(table["route"], "chat").fill_null(False), table["finish_reason"].is_valid()
    )
    return np.asarray(pc.or_(table["label"].is_valid(), is_complete), bool)


@lru_cache(maxsize=10_000)
def _values(attributes: str | None, groups: tuple[str, ...]) -> tuple[str, ...]:
    """Return the values of the group columns; cached, so rows with equal attributes share one
    object."""
    parsed = json.loads(attributes or "{}")
    return tuple(value_of(parsed, column) for column in groups)


def value_of(attributes: Mapping[str, Any], column: str) -> str:
    """Return the value of a group column, in the form of `tailorbird.data.rows`."""
    value = attributes.get(column)
    if value is None:
        return NO_GROUP
    return str(value)


def _microseconds(table: pa.Table) -> NDArray[np.int64]:
    return np.asarray(table["at"].cast("int64").fill_null(0).to_numpy(), np.int64)


def _sample(
    table: pa.Table,
    *,
    keys: NDArray[np.uint64],
    is_champion: NDArray[np.bool_],
    required_column: str,
) -> pa.Table:
    """Return a sample of the champion's rows that have the required column of the task."""
    sampled = table.append_column("key", pa.array(keys))
    sampled = sampled.append_column("day", table["at"].cast(pa.date32()).cast(pa.int32()))
    is_sampled = is_champion & table[required_column].is_valid().to_numpy()
    sampled = sampled.filter(pa.array(is_sampled)).select(SAMPLE.names)
    return smallest_keys(sampled.cast(SAMPLE))


def read_columns(uri: str, columns: Sequence[str]) -> pa.Table:
    """Return columns of a file, `at` in microseconds, UTC, and `OPTIONAL` columns that it lacks as
    nulls.

    Raises TrafficError if another column is missing, or if the file cannot be read.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri))) as file:
            known = file.schema_arrow.names
            missing = [name for name in columns if name not in (*known, *OPTIONAL)]
            if missing:
                raise TrafficError(
                    f"{uri} does not belong to a request log: it has no columns "
                    f"{', '.join(missing)}; remove it from the log"
                )
            present = [name for name in columns if name in known]
            unsafe = extension_columns(file.schema_arrow, columns=present)
            if unsafe:
                raise TrafficError(
                    f"{uri} does not belong to a request log: {unsafe[0]} has an extension type; "
                    "remove the file"
                )
            table = file.read(columns=present)
        for name in columns:
            if name not in present:
                table = table.append_column(name, pa.nulls(len(table), OPTIONAL[name]))
        at = table["at"].cast(pa.timestamp("us", tz="UTC"), safe=False)
        return table.set_column(table.column_names.index("at"), "at", at)
    except pa.ArrowException as error:
        raise TrafficError(
            f"{uri} is not a readable Parquet file: {error}; remove it from the log"
        ) from None
