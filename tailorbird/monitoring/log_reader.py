"""Read the Parquet files of the request log into `Traffic`, each file and row once."""

import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
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
from tailorbird.monitoring import traffic
from tailorbird.monitoring.monitored_tasks import MONITORED_TASKS, MonitoredTask
from tailorbird.monitoring.traffic import ARMS, Labels, Outcomes, Traffic, WatchedVersions
from tailorbird.registry.draws import draw_code

ANSWERS = (
    *(
        "request_id",
        "row",
        "caller",
        "at",
        "digest",
        "arm",
        "label",
        "score",
        "attributes",
        "text",
        "subject",
    ),
    *("route", "finish_reason", "answer", "text_chars", "context"),
)
FEEDBACK = ("request_id", "row", "caller", "at", "label", "score", "correct_answer")
OPTIONAL = {
    **dict.fromkeys(
        ("route", "finish_reason", "answer", "context", "correct_answer", "attributes"), pa.string()
    ),
    "text_chars": pa.int32(),
    "score": pa.float32(),
}
"""Columns with their types that older files, and audits of classification, lack."""
DAY = re.compile(r"/day(?:=|%3D)(\d{4}-\d\d-\d\d)/")
FILES_PER_TASK = 64

ReadPart = Callable[[list[str]], Traffic]
MapParts = Callable[
    [ReadPart, Sequence[list[str]]], Iterable[Traffic]
]  # like the built-in `map`; may run on a cluster


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


def unit_of(name: str, *, challenger: str | None, secret: bytes) -> int:
    """Return the code of a unit of the comparison with this challenger: a hashed subject, or a
    request id.

    The code differs from that of the arms, so it draws units independently of their arm. It depends
    on the challenger's digest, so the units of two experiments cannot be linked.
    """
    return draw_code(secret, "unit", str(challenger), name)


def read_labels(
    files: Sequence[str],
    *,
    secret: bytes,
    audits: Sequence[str] = (),
    task: TaskName = "classification",
) -> Labels:
    """Return the labels in these feedback files and audits, one label per text.

    An audit takes precedence over feedback, then the latest label counts, then the one read last.
    Audits are given in order of import. Files are read one at a time. A label needs 32 bytes, and
    about 100 while labels are sorted.
    """
    names: dict[str, int] = {}
    keys, codes, times, numbers = (array(kind) for kind in "Qiqi")
    scores = array("f")
    for number, uri in (*((0, uri) for uri in files), *enumerate(audits, 1)):
        table = read_columns(uri, FEEDBACK)
        columns = (table[name].to_pylist() for name in FEEDBACK if name != "at")
        for time, request_id, row, caller, *given in zip(
            _microseconds(table).tolist(), *columns, strict=True
        ):
            label, score = MONITORED_TASKS[task].label_of(*given)
            if request_id is None or row is None or (label is None and score is None):
                continue
            keys.append(key_of(request_id, row, caller=caller, secret=secret))
            codes.append(-1 if label is None else names.setdefault(label, len(names)))
            scores.append(float("nan") if score is None else score)
            times.append(time)
            numbers.append(number)
    all_keys = np.frombuffer(keys, np.uint64)
    all_codes = np.frombuffer(codes, np.int32)
    all_times = np.frombuffer(times, np.int64)
    all_numbers = np.frombuffer(numbers, np.int32)
    order = np.lexsort((all_times, all_numbers > 0, all_keys))
    last = np.flatnonzero(
        np.append(np.diff(all_keys[order]) != 0, np.ones(min(len(order), 1), bool))
    )
    kept = order[last]
    counts = np.diff(last, prepend=-1).astype(np.int32)
    return Labels(
        all_keys[kept],
        all_codes[kept],
        np.frombuffer(scores, np.float32)[kept],
        tuple(names),
        audits=_first_audits(all_numbers[order], starts=last - counts + 1),
        labelled_at=all_times[kept],
        counts=counts,
    )


def _first_audits(numbers: NDArray[np.int32], *, starts: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the smallest number above 0 in each run of numbers [F] from its start [K], or 0 if
    there is none."""
    if not len(numbers):
        return np.zeros(0, np.int32)
    never = np.iinfo(np.int32).max
    first = np.minimum.reduceat(np.where(numbers > 0, numbers, never), starts)
    return np.where(first == never, 0, first).astype(np.int32)


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
    return traffic.merge_traffic(map_parts(Reader(versions, labels, secret), parts))


@dataclass(frozen=True, eq=False)
class Reader:
    """A picklable function that reads a part of the log files."""

    versions: WatchedVersions
    labels: Labels
    secret: bytes
    slow: set[str | None] = field(
        default_factory=set
    )  # API keys whose feedback takes too long to read

    def __call__(self, files: Sequence[str]) -> Traffic:
        return traffic.merge_traffic(self._read_file(uri) for uri in files)

    def _read_file(self, uri: str) -> Traffic:
        table = read_columns(uri, ANSWERS)
        ids = zip(
            *(table[name].to_pylist() for name in ("request_id", "row", "caller")), strict=True
        )
        codes = (key_of(id, row, caller=caller, secret=self.secret) for id, row, caller in ids)
        keys = np.fromiter(codes, np.uint64, len(table))
        arms, digests = (
            np.array(table[name].to_pylist(), dtype=object) for name in ("arm", "digest")
        )
        answered = is_answered(table)
        champion = answered & (digests == self.versions.champion) & (arms == traffic.CHAMPION)
        is_arm = np.isin(arms, (traffic.CANARY, traffic.SHADOW))
        challenger = answered & is_arm & (digests == self.versions.challenger)
        missing = ~answered & (arms == traffic.SHADOW) & (digests == self.versions.challenger)
        indices, is_labelled = self._find_labels(keys)
        rows = np.flatnonzero((champion | challenger | missing) & is_labelled)
        outcomes, redacted = self._outcomes(
            table.take(rows), keys=keys[rows], label_indices=indices[rows], missing=missing[rows]
        )
        versions = [(arm or "", digest) for arm, digest in zip(arms, digests, strict=True)]
        return Traffic(
            num_rows=len(table),
            rows=Counter(versions),
            unanswered=Counter(
                version
                for version, is_answer in zip(versions, answered, strict=True)
                if not is_answer
            ),
            outcomes=outcomes,
            redacted=redacted,
            sample=_sample(
                table, keys=keys, is_champion=champion, task=MONITORED_TASKS[self.versions.task]
            ),
            answered=np.unique(indices[is_labelled]).astype(np.int32),
        )

    def _find_labels(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the indices of the rows' labels [N], and a mask [N] of the rows that have a
        label."""
        if not len(self.labels):
            return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
        indices = np.minimum(np.searchsorted(self.labels.keys, keys), len(self.labels) - 1)
        return indices, self.labels.keys[indices] == keys

    def _outcomes(
        self,
        table: pa.Table,
        *,
        keys: NDArray[np.uint64],
        label_indices: NDArray[np.int64],
        missing: NDArray[np.bool_],
    ) -> tuple[Outcomes, int]:
        """Return the rows that can be scored, and the number of rows whose correct answer is
        redacted.

        A correct answer scores the answers of all arms; a `missing` one [N] has the score 0. A
        person's score does not score the shadow's answer, which the person did not see.
        """
        subjects = table["subject"].to_pylist()
        request_ids = table["request_id"].to_pylist()
        names = (
            subject or request_id for subject, request_id in zip(subjects, request_ids, strict=True)
        )
        units = (
            unit_of(name, challenger=self.versions.challenger, secret=self.secret) for name in names
        )
        arms = np.array([ARMS.index(arm) for arm in table["arm"].to_pylist()], np.uint8)
        scores = self.labels.scores[label_indices].astype(np.float64)
        by_person = ~np.isnan(scores)
        scores[by_person & (arms == ARMS.index(traffic.SHADOW))] = np.nan
        unscored = label_indices[~by_person]
        scores[~by_person] = self._metric_scores(
            table.filter(pa.array(~by_person)), indices=unscored
        )
        scores[missing & ~by_person] = 0.0
        if self.versions.metric is None:
            redacted = 0
        else:
            redacted = sum(map(is_redacted, self._references(unscored)))
        outcomes = Outcomes(
            keys=keys,
            arms=arms,
            at=_microseconds(table),
            scores=scores,
            by_person=by_person,
            audits=self.labels.audits[label_indices],
            groups=tuple(
                _values(attributes, self.versions.groups)
                for attributes in table["attributes"].to_pylist()
            ),
            labelled_at=self.labels.labelled_at[label_indices],
            units=np.fromiter(units, np.uint64, len(table)),
            is_subject=table["subject"].is_valid().to_numpy(),
            missing=missing,
        )
        return outcomes if not np.isnan(scores).any() else outcomes.where(
            ~np.isnan(scores)
        ), redacted

    def _references(self, indices: NDArray[np.int64]) -> list[str]:
        return [self.labels.names[code] for code in self.labels.codes[indices]]

    def _metric_scores(self, table: pa.Table, *, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the score [N] of each answer against its label; NaN for one whose text was not
        stored.

        It is also NaN for a correct answer that the metric cannot read, such as a text without a
        number, and for a redacted one, to which a wrong answer may be equal. After a text of
        feedback on which the regular expression takes too long, it is NaN for all further feedback
        of the API key, so that no key delays a report for long.
        """
        labels = self._references(indices)
        if self.versions.metric is None:
            pairs = zip(table["label"].to_pylist(), labels, strict=True)
            return np.array([answer == label for answer, label in pairs], np.float64)
        metric = scorer(self.versions.metric, config=self.versions.answers)

        def score(answer: str | None, reference: str, caller: str | None, audit: int) -> float:
            if answer is None or is_redacted(reference) or (not audit and caller in self.slow):
                return np.nan
            try:
                return metric(answer, reference)
            except PatternTimeout:
                if not audit:
                    self.slow.add(caller)
                return np.nan
            except ValueError:
                return np.nan

        columns = (
            table["answer"].to_pylist(),
            labels,
            table["caller"].to_pylist(),
            self.labels.audits[indices],
        )
        return np.array(list(map(score, *columns)), np.float64)


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
    parsed = json.loads(attributes) if attributes else {}
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
    task: MonitoredTask,
) -> pa.Table:
    """Return a sample of the champion's rows that have the required column of the task."""
    sampled = table.select(["label", "score", "text", "text_chars"])
    if not task.compares_answers:  # only some kinds of chat answers have a confidence
        sampled = sampled.set_column(1, "score", pa.nulls(len(table), pa.float32()))
    sampled = sampled.append_column("key", pa.array(keys))
    sampled = sampled.append_column("day", table["at"].cast(pa.date32()).cast(pa.int32()))
    is_sampled = is_champion & table[task.required_column].is_valid().to_numpy()
    sampled = sampled.filter(pa.array(is_sampled)).select(traffic.SAMPLE.names)
    return traffic.smallest_keys(sampled.cast(traffic.SAMPLE))


def read_columns(uri: str, columns: Sequence[str]) -> pa.Table:
    """Return columns of a file, `at` in microseconds, UTC, and `OPTIONAL` columns that it lacks as
    nulls.

    Raises TrafficError if another column is missing, or if the file cannot be read.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri))) as file:
            known = file.schema_arrow.names
            missing = ", ".join(
                name for name in columns if name not in known and name not in OPTIONAL
            )
            if missing:
                raise TrafficError(
                    f"{uri} does not belong to a request log: it has no columns {missing}; remove "
                    "it from the log"
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
