"""The security log of a registry: changes of champions, keys and configurations.

Each event is an object of its own, which a conditional write creates. Nothing here changes or
deletes an event; docs/security.md describes how S3 prevents it.
"""

import getpass
import os
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from typing import Annotated, Literal

from pydantic import AwareDatetime, BeforeValidator, Field, JsonValue, ValidationError

from tailorbird.storage import (
    PreconditionFailed,
    StorageError,
    list_files,
    read_bytes,
    write_if_match,
)
from tailorbird.storage.objects import NUM_TRANSFERS
from tailorbird.storage.paths import security_log
from tailorbird.storage.s3 import require_bucket
from tailorbird.storage.stored_model import StoredModel

MAX_TEXT = 2000
"""Maximum characters of a text in an event. It may contain text of a client, for example the name
of a key."""


def current_user() -> str:
    """Return the name of this process's user, or `uid N` if the user has no name, as in some
    containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # Python 3.13 and later raise OSError
        return f"uid {os.getuid()}"


def caller() -> str:
    """Return the user and the host of this process, as `user@host`."""
    return f"{current_user()}@{socket.gethostname()}"


def _one_line(value: object) -> object:
    """Return a text without control characters, which a terminal would obey, and cut to `MAX_TEXT`
    characters."""
    if not isinstance(value, str):
        return value
    line = "".join(character if character.isprintable() else " " for character in value)
    if len(line) <= MAX_TEXT:
        return line
    return f"{line[: MAX_TEXT - 1]}…"


Line = Annotated[str, BeforeValidator(_one_line)]


class SecurityEvent(StoredModel):
    """An entry of the security log."""

    at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    who: Line = Field(default_factory=caller)
    """Who caused it: `user@host` for commands. It is not authenticated by the log."""
    kind: Literal["champion", "key", "configuration"]
    what: Line
    before: JsonValue = None
    """The value before the change; None if there was none, or if nothing changed."""
    after: JsonValue = None
    """The value after the change; None if it was removed, or if nothing changed."""

    def line(self) -> str:
        """Return the event for a terminal, without its values."""
        return f"{self.at.isoformat(timespec='seconds')}  {self.kind:<13}  {self.who}  {self.what}"


@dataclass(frozen=True)
class SecurityLog:
    """The events of some days, oldest first."""

    events: tuple[SecurityEvent, ...]
    unreadable: tuple[str, ...]  # URIs of files that are not events


def append(event: SecurityEvent, *, registry: str, name: str | None = None) -> str:
    """Write the event as a new object of the registry's security log, and return its URI.

    Several processes that notice the same change give the same `name`, so the log contains the
    change once. Raises StorageError if the event cannot be written. An existing object is never
    replaced.
    """
    at = event.at.astimezone(UTC)
    uri = f"{security_log(registry, at.date())}/{name or f'{at:%H%M%S.%f}-{uuid.uuid4().hex}'}.json"
    content = event.model_dump_json(indent=1).encode()
    try:
        write_if_match(uri, content, etag=None)
    except (
        PreconditionFailed
    ):  # without a name, the client repeated a write whose response was lost
        if name is None and read_bytes(uri) != content:
            raise
    return uri


@contextmanager
def recorded(event: SecurityEvent, *, registry: str) -> Iterator[None]:
    """Append the event before the change in the block, and a second event if the block fails.

    So no change is without an event: if the event cannot be written, the block does not run.
    """
    append(event, registry=registry)
    try:
        yield
    except BaseException as error:
        failed = f"failed: {event.what}: {error or type(error).__name__}"
        with suppress(StorageError):  # report the first error
            append(SecurityEvent(who=event.who, kind=event.kind, what=failed), registry=registry)
        raise


def read(registry: str, *, since: date, until: date) -> SecurityLog:
    """Return the events from the day `since` to the day `until`, both included, in UTC."""
    require_bucket(registry)
    days = [since + timedelta(days=number) for number in range((until - since).days + 1)]
    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        files = pool.map(lambda day: list_files(security_log(registry, day), missing_ok=True), days)
        uris = list(chain.from_iterable(files))
        events = []
        unreadable = []
        for uri, content in zip(uris, pool.map(read_bytes, uris), strict=True):
            try:
                events.append(SecurityEvent.model_validate_json(content))
            except ValidationError:
                unreadable.append(uri)
    events.sort(key=lambda event: event.at)
    return SecurityLog(tuple(events), tuple(unreadable))
