"""Read records of a registry through a cache; records that cannot be read are reported on the
page."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
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
    """Parsed records, and the threads that read them."""

    def __init__(self) -> None:
        self.record = lru_cache(MAX_CACHED)(_parse)
        self.pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="console")


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
        return self.read_fixed(entry.uri, model, tag=entry.tag)

    def read_fixed(self, uri: str, model: type[M], *, tag: str = "") -> M | None:
        """Return a record whose content with this tag never changes, such as the evidence of a
        champion, without a look at S3. A sentence about a problem has no content of the record."""
        try:
            record: M = self.cache.record(uri, model, tag)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "its content"
            self.problems.append(f"{uri} is not a valid record: {where}: {first['msg']}")
            return None
        except StorageError as error:
            self.problems.append(str(error))
            return None
        return record

    def entries(self, uri: str) -> tuple[Entry, ...]:
        """Return the files and folders of a folder; nothing if it does not exist or cannot be
        listed."""
        try:
            return list_folder(uri)
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
        items = tuple(item for item in results if item is not None)
        return ListPage(items, number=number, num_pages=num_pages, total=len(values))


def _parse(uri: str, model: type[M], _tag: str) -> M:
    """Return the record at a URI. The tag names its content in the cache."""
    return model.model_validate_json(read_bytes(uri))
