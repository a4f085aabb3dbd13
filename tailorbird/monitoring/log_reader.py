"""From the request log's Parquet to counts, outcomes and a sample: each file is read once, each row touched once."""

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tailorbird import storage
from tailorbird.data.arrow_safety import made_by_code
from tailorbird.data.rows import NO_GROUP

if TYPE_CHECKING:
    import pyarrow as pa

ANSWERS = ("request_id", "row", "at", "digest", "arm", "label", "score", "attributes", "text", "subject")
FEEDBACK = ("request_id", "row", "at", "label")
CHAMPION, CANARY, SHADOW = ARMS = ("champion", "canary", "shadow")
SAMPLE_ROWS = 5_000
"""Of a window, on which drift is looked at: those with the smallest hashes, so that any reader draws the same."""
DAY = re.compile(r"/day(?:=|%3D)(\d{4}-\d\d-\d\d)/")
OUTCOME_ARRAYS = ("keys", "arms", "at", "right", "audited", "told", "of_subject")
FILES_A_TASK = 64
DAY_US = 86_400_000_000


class TrafficError(ValueError):
    """A request log that cannot be read as one; the message names the file."""


@dataclass(frozen=True, eq=False)
class Labels:
    """What was said to be right, by request and row; of two words on one, the later."""

    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """[F] sorted."""
    codes: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """[F] places in `names`."""
    names: tuple[str, ...] = ()
    audited: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """[F] whether the text was drawn by lot to be labelled, and not told of by whoever cared to."""
    told: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """[F] when, in microseconds since 1970, UTC; of an audit, when the text was answered."""
    words: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """[F] how many times the text was told of."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def told_again(self) -> int:
        """Words on a text of which another was said before."""
        return int(self.words.sum()) - len(self.words)


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Labelled answers: whose they are, and whether they were right."""

    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    arms: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    """Places in `ARMS`."""
    at: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Microseconds since 1970, UTC."""
    right: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    audited: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    groups: tuple[tuple[str, ...], ...] = ()
    """One tuple a row, a value a column."""
    told: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """When the label was told, microseconds since 1970, UTC."""
    of_subject: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """Whether the request named a subject, who is in the same arm at each request."""

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, mask: NDArray[np.bool_]) -> "Outcomes":
        """The rows [F] of a mask."""
        groups = tuple(values for values, here in zip(self.groups, mask, strict=True) if here)
        return replace(self, groups=groups, **{name: getattr(self, name)[mask] for name in OUTCOME_ARRAYS})


@dataclass(frozen=True, eq=False)
class Sample:
    """Some of the champion's answers."""

    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Sorted."""
    labels: tuple[str, ...] = ()
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    texts: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, eq=False)
class Traffic:
    """What a part of the log holds of one champion and the version on trial beside it."""

    num_rows: int = 0
    rows: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """By arm and digest; arm `` of a model that was asked for by name."""
    without_class: int = 0
    """Answers without a class or a score: of a chat model, or refused."""
    outcomes: Outcomes = Outcomes()
    sample: Sample = Sample()
    misplaced: int = 0
    """Rows whose own clock says another day than the folder they lie in."""
    known: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """Places of the labels whose text was answered here, whoever answered; sorted."""

    def num_of(self, arm: str, digest: str) -> int:
        """Rows that this version answered in this arm."""
        return self.rows.get((arm, digest), 0)


@dataclass(frozen=True)
class Watched:
    """Which versions' answers are read, and what of them."""

    champion: str
    """Digest."""
    trial: str | None
    """Digest of the version in the canary's or the shadow's arm."""
    groups: tuple[str, ...]
    """Attributes by which outcomes are told apart."""


def by_day(log: str, kind: str) -> dict[str, list[str]]:
    """The Parquet files of `answers` or `feedback` by day, `YYYY-MM-DD`, both in order."""
    found: dict[str, list[str]] = {}
    if storage.exists(f"{log}/{kind}"):
        for uri in storage.list_files(f"{log}/{kind}"):
            if uri.endswith(".parquet") and (day := day_of(uri)):
                found.setdefault(day, []).append(uri)
    return {day: sorted(found[day]) for day in sorted(found)}


def day_of(uri: str) -> str | None:
    """The day in the name of a file of the log."""
    found = DAY.search(uri)
    return found and found[1]


def files_of(log: str, kind: str, days: Iterable[str]) -> list[str]:
    """The Parquet files of some days, of `answers` or `feedback`, in order."""
    found: list[str] = []
    for day in days:
        prefix = f"{log}/{kind}/day={day}"
        if storage.exists(prefix):
            found += [uri for uri in storage.list_files(prefix) if uri.endswith(".parquet")]
    return sorted(found)


def key_of(request_id: str, row: int) -> int:
    """What a text of a request is joined by."""
    return int.from_bytes(hashlib.blake2b(f"{request_id}|{row}".encode(), digest_size=8).digest(), "big")


def read_labels(files: Sequence[str], *, audits: Sequence[str] = ()) -> Labels:
    """The feedback of these files, and what audits found, which stands before feedback.

    Files are read one at a time; a word takes 25 bytes when they were read, and some 80 while words are sorted.
    """
    places: dict[str, int] = {}
    keys, codes, told, audited = (array(kind) for kind in "QiqB")
    for uris, drawn in ((files, 0), (audits, 1)):
        for uri in uris:
            table = read_columns(uri, FEEDBACK)
            at = _microseconds(table).tolist()
            columns = (table[name].to_pylist() for name in ("request_id", "row", "label"))
            for when, request_id, row, label in zip(at, *columns, strict=True):
                if request_id is None or row is None or label is None:
                    continue
                keys.append(key_of(request_id, row))
                codes.append(places.setdefault(label, len(places)))
                told.append(when)
                audited.append(drawn)
    given = (np.frombuffer(keys, np.uint64), np.frombuffer(codes, np.int32))
    return _latest(*given, np.frombuffer(audited, np.bool_), np.frombuffer(told, np.int64), names=tuple(places))


def _latest(
    keys: NDArray[np.uint64],
    codes: NDArray[np.int32],
    audited: NDArray[np.bool_],
    told: NDArray[np.int64],
    *,
    names: tuple[str, ...],
) -> Labels:
    """Of the words on one text, an audit's before others, the later, and of one time the one that was read last."""
    order = np.lexsort((told, audited, keys))
    keys = keys[order]
    last = np.flatnonzero(np.append(keys[1:] != keys[:-1], np.ones(min(len(keys), 1), bool)))
    stands = order[last]
    words = np.diff(last, prepend=-1).astype(np.int32)
    return Labels(keys[last], codes[stands], names, audited[stands], told[stands], words)


def read_traffic(files: Sequence[str], watched: Watched, *, labels: Labels, each: Callable[..., Any] = map) -> Traffic:
    """All of these files; `each` maps a function over parts of them, as the built-in does, perhaps on a cluster.

    What is held at a time is one part's rows, and of all parts the labelled outcomes and the sample.
    """
    parts = [list(files[start : start + FILES_A_TASK]) for start in range(0, len(files), FILES_A_TASK)]
    return joined(each(Reader(watched, labels), parts))


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads a part of the log's files; what it needs goes with it to other processes."""

    watched: Watched
    labels: Labels

    def __call__(self, files: Sequence[str]) -> Traffic:
        return joined(self._file(uri) for uri in files)

    def _file(self, uri: str) -> Traffic:
        table = read_columns(uri, ANSWERS)
        columns = {name: table[name].to_pylist() for name in ("request_id", "row", "label", "attributes", "text")}
        digests, arms = (np.array(table[name].to_pylist(), dtype=object) for name in ("digest", "arm"))
        scores = table["score"].to_numpy(zero_copy_only=False).astype(np.float64)
        keys = np.fromiter(
            (key_of(a, b) for a, b in zip(columns["request_id"], columns["row"], strict=True)), np.uint64, len(table)
        )
        answered = np.array([label is not None for label in columns["label"]], bool) & np.isfinite(scores)
        ours = answered & (digests == self.watched.champion) & (arms == CHAMPION)
        theirs = answered & (digests == self.watched.trial) & np.isin(arms, (CANARY, SHADOW))
        at = _microseconds(table)
        places, told = self._told(keys)
        of_subject = table["subject"].is_valid().to_numpy()
        return Traffic(
            num_rows=len(table),
            rows=Counter(zip((arm or "" for arm in arms), digests, strict=True)),
            without_class=int((~answered).sum()),
            outcomes=self._outcomes(
                np.flatnonzero((ours | theirs) & told),
                places=places,
                keys=keys,
                arms=arms,
                at=at,
                of_subject=of_subject,
                columns=columns,
            ),
            sample=_smallest(_sample(np.flatnonzero(ours), keys=keys, scores=scores, columns=columns)),
            misplaced=_misplaced(at, day_of(uri)),
            known=np.unique(places[told]).astype(np.int32),
        )

    def _told(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """[N] places of the rows' labels, and [N] whether there is one."""
        if not len(self.labels):
            return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
        places = np.minimum(np.searchsorted(self.labels.keys, keys), len(self.labels) - 1)
        return places, self.labels.keys[places] == keys

    def _outcomes(
        self,
        rows: NDArray[np.int64],
        *,
        places: Any,
        keys: Any,
        arms: Any,
        at: Any,
        of_subject: Any,
        columns: Mapping[str, list[Any]],
    ) -> Outcomes:
        if not len(rows):
            return Outcomes()
        places, names = places[rows], self.labels.names
        right = [
            columns["label"][row] == names[self.labels.codes[place]] for row, place in zip(rows, places, strict=True)
        ]
        return Outcomes(
            keys=keys[rows],
            arms=np.array([ARMS.index(arms[row]) for row in rows], np.uint8),
            at=at[rows],
            right=np.array(right, bool),
            audited=self.labels.audited[places],
            groups=tuple(_values(columns["attributes"][row], self.watched.groups) for row in rows),
            told=self.labels.told[places],
            of_subject=of_subject[rows],
        )


def joined(parts: Iterable[Traffic]) -> Traffic:
    """Parts of the log as one; each is let go once it was read."""
    rows = Counter[tuple[str, str]]()
    num_rows = without_class = misplaced = 0
    sample, outcomes = Sample(), [Outcomes()]
    known = [Traffic().known]
    for part in parts:
        num_rows, without_class = num_rows + part.num_rows, without_class + part.without_class
        misplaced += part.misplaced
        rows.update(part.rows)
        sample = _smallest(_together(sample, part.sample))
        outcomes.append(part.outcomes)
        known.append(part.known)
    arrays = {name: np.concatenate([getattr(one, name) for one in outcomes]) for name in OUTCOME_ARRAYS}
    groups = tuple(values for one in outcomes for values in one.groups)
    return Traffic(
        num_rows=num_rows,
        rows=rows,
        without_class=without_class,
        outcomes=Outcomes(**arrays, groups=groups),
        sample=sample,
        misplaced=misplaced,
        known=np.unique(np.concatenate(known)),
    )


@lru_cache(maxsize=10_000)
def _values(attributes: str | None, groups: tuple[str, ...]) -> tuple[str, ...]:
    """Values of the group columns; the same attributes give the same object, so that rows hold no copies."""
    given = json.loads(attributes) if attributes else {}
    return tuple(value_of(given, column) for column in groups)


def value_of(attributes: Mapping[str, Any], column: str) -> str:
    """A row's value of a group column, as `data.read` has it."""
    value = attributes.get(column)
    return NO_GROUP if value is None else str(value)


def _microseconds(table: "pa.Table") -> NDArray[np.int64]:
    return np.asarray(table["at"].cast("int64").fill_null(0).to_numpy(), np.int64)


def _misplaced(at: NDArray[np.int64], day: str | None) -> int:
    if day is None:
        return 0
    first = np.datetime64(day, "us").astype(np.int64)
    return int(((at < first) | (at >= first + DAY_US)).sum())


def _sample(rows: NDArray[np.int64], *, keys: Any, scores: Any, columns: Mapping[str, list[Any]]) -> Sample:
    if len(rows) > SAMPLE_ROWS:
        rows = rows[np.argpartition(keys[rows], SAMPLE_ROWS)[:SAMPLE_ROWS]]
    picked = {name: tuple(columns[name][row] for row in rows) for name in ("label", "text")}
    return Sample(keys[rows], picked["label"], scores[rows].astype(np.float32), picked["text"])


def _together(first: Sample, second: Sample) -> Sample:
    return Sample(
        np.concatenate([first.keys, second.keys]),
        first.labels + second.labels,
        np.concatenate([first.scores, second.scores]),
        first.texts + second.texts,
    )


def _smallest(sample: Sample) -> Sample:
    """Those with the smallest keys; a row that stands twice in the log stands once here."""
    _, order = np.unique(sample.keys, return_index=True)
    order = order[:SAMPLE_ROWS]
    return replace(
        sample,
        keys=sample.keys[order],
        labels=tuple(sample.labels[place] for place in order),
        scores=sample.scores[order],
        texts=tuple(sample.texts[place] for place in order),
    )


def read_columns(uri: str, columns: Sequence[str]) -> "pa.Table":
    """The columns of a file, `at` in microseconds, UTC; TrafficError for a file that lacks one or cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri))) as file:
            lacking = [name for name in columns if name not in file.schema_arrow.names]
            if lacking:
                raise TrafficError(
                    f"{uri} is no part of a request log: it lacks {', '.join(lacking)}; remove it from the log"
                )
            foreign = made_by_code(file.schema_arrow, columns=columns)
            if foreign:
                raise TrafficError(f"{uri} is no part of a request log: code would make the values of {foreign[0]}")
            table = file.read(columns=list(columns))
        at = table["at"].cast(pa.timestamp("us", tz="UTC"), safe=False)
        return table.set_column(table.column_names.index("at"), "at", at)
    except pa.ArrowException as error:
        raise TrafficError(f"{uri} is no Parquet file that can be read: {error}; remove it from the log") from None
