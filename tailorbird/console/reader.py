"""Read records of a registry through a cache; records that cannot be read are reported on the
page."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from tailorbird.storage import StorageError, read_bytes
from tailorbird.storage.listing import Entry, file_entry, list_folder

MAX_CACHED = 2_000  # parsed records; the evidence of a run takes about 100 kB
NUM_THREADS = 16

M = TypeVar("M", bound=BaseModel)
Value = TypeVar("Value")
Result = TypeVar("Result")


class Cache:
    """Parsed records by URI and type, with the tag of the content that was parsed. The oldest ones
    are removed."""

    def __init__(self, *, max_records: int = MAX_CACHED) -> None:
        self._records: OrderedDict[tuple[str, object], tuple[str, object]] = OrderedDict()
        self._max_records = max_records
        self._lock = threading.Lock()
        self.pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="console")

    def get(self, key: tuple[str, object], tag: str, make: Callable[[], Value]) -> Value:
        """Return the value that was stored with this tag, or make and store it."""
        with self._lock:
            stored = self._records.get(key)
            if stored is not None and stored[0] == tag:
                self._records.move_to_end(key)
                return stored[1]  # type: ignore[return-value]
        value = make()
        with self._lock:
            self._records[key] = (tag, value)
            self._records.move_to_end(key)
            while len(self._records) > self._max_records:
                self._records.popitem(last=False)
        return value


@dataclass(frozen=True)
class ListPage(Generic[Result]):
    """A page of a list, newest first."""

    items: tuple[Result, ...]
    number: int  # from 1
    num_pages: int
    total: int


@dataclass
class Reader:
    """The reads of one page. `problems` are sentences about what could not be read."""

    cache: Cache
    problems: list[str] = field(default_factory=list)

    def read(self, uri: str, model: type[M]) -> M | None:
        """Return the record at a URI; None if it does not exist or cannot be read."""
        try:
            entry = file_entry(uri)
        except StorageError as error:
            self.problems.append(str(error))
            return None
        if entry is None:
            return None
        return self.read_entry(entry, model)

    def read_entry(self, entry: Entry, model: type[M]) -> M | None:
        """Return the record of a listed file; None if it cannot be read. It is read again only if
        its tag changed."""
        return self._checked(
            entry.uri,
            lambda: self.cache.get((entry.uri, model), entry.tag, _parse(entry.uri, model)),
        )

    def read_fixed(self, uri: str, model: type[M]) -> M | None:
        """Return a record that never changes once it exists, such as the config of a version,
        without a look at S3."""
        return self._checked(uri, lambda: self.cache.get((uri, model), "", _parse(uri, model)))

    def _checked(self, uri: str, read: Callable[[], M]) -> M | None:
        """Return the record, or None with a sentence in `problems`. The sentence has no content of
        the record."""
        try:
            return read()
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "its content"
            if error.error_count() > 1:
                more = f" (and {error.error_count() - 1} more)"
            else:
                more = ""
            self.problems.append(f"{uri} is not a valid record: {where}: {first['msg']}{more}")
        except StorageError as error:
            self.problems.append(str(error))
        return None

    def entries(self, uri: str, *, tag: str | None = None) -> tuple[Entry, ...]:
        """Return the files and folders of a folder; nothing if it does not exist or cannot be
        listed.

        With a tag, the folder is listed again only if the tag has changed.
        """
        try:
            if tag is None:
                return list_folder(uri)
            return self.cache.get((uri, Entry), tag, lambda: list_folder(uri))
        except StorageError as error:
            self.problems.append(str(error))
            return ()

    def map(self, function: Callable[[Value], Result], values: Iterable[Value]) -> list[Result]:
        """Return the function's results for the values, with concurrent requests. Do not nest."""
        return list(self.cache.pool.map(function, values))

    def page(
        self,
        read: Callable[[Value], Result | None],
        values: Sequence[Value],
        *,
        number: int,
        size: int,
    ) -> ListPage[Result]:
        """Return the results for the values of a page. A number that is too large gives the last
        page."""
        num_pages = max(1, -(-len(values) // size))
        number = min(max(1, number), num_pages)
        results = self.map(read, values[(number - 1) * size : number * size])
        return ListPage(
            tuple(item for item in results if item is not None), number, num_pages, len(values)
        )


def _parse(uri: str, model: type[M]) -> Callable[[], M]:
    return lambda: model.model_validate_json(read_bytes(uri))
