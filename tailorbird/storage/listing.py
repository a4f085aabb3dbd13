"""List one level of a folder, with a tag that changes with the content of a file, for readers that
keep a cache."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tailorbird.storage import s3
from tailorbird.storage.objects import NUM_TRANSFERS
from tailorbird.storage.s3 import ObjectNotFound, storage_errors


@dataclass(frozen=True)
class Entry:
    """A file or a folder."""

    uri: str
    is_folder: bool
    tag: str = ""
    """Differs for two contents of a file: its ETag on S3, else its time, size and inode; empty for
    a folder."""
    changed_at: datetime | None = None  # UTC; None for a folder on S3
    size_bytes: int = 0  # of a file

    @property
    def name(self) -> str:
        return self.uri.rpartition("/")[2]


def list_folder(uri: str) -> tuple[Entry, ...]:
    """Return the files and folders directly below a folder, by name; nothing if the folder does not
    exist.

    Local names that begin with a dot are omitted: they are files that are being written.
    """
    base = uri.rstrip("/")
    scheme, path = s3.parse(base)
    listed: list[Entry] = []
    with suppress(ObjectNotFound), storage_errors(uri):
        if scheme == "file":
            with os.scandir(path) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        uri_of_entry = f"{base}/{entry.name}"
                        listed.append(_local(uri_of_entry, entry.stat(), is_folder=entry.is_dir()))
        else:
            infos = s3.s3fs_client().ls(path, detail=True, refresh=True)
            # S3 may also list a marker of the folder itself.
            listed = [_on_s3(info) for info in infos if info["name"].strip("/") != path]
    return tuple(sorted(listed, key=lambda each: each.name))


def file_entry(uri: str) -> Entry | None:
    """Return a file with its tag; None if it does not exist."""
    scheme, path = s3.parse(uri)
    with suppress(ObjectNotFound), storage_errors(uri):
        if scheme == "file":
            entry = _local(uri, os.stat(path), is_folder=Path(path).is_dir())
        else:
            entry = _on_s3(s3.s3fs_client().info(path, refresh=True))
        if entry.is_folder:
            return None
        return entry
    return None


def file_entries(uris: Sequence[str]) -> list[Entry | None]:
    """Return `file_entry` of each URI, with concurrent requests."""
    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        return list(pool.map(file_entry, uris))


def _local(uri: str, stat: os.stat_result, *, is_folder: bool) -> Entry:
    tag = "" if is_folder else f"{stat.st_mtime_ns}-{stat.st_size}-{stat.st_ino}"
    return Entry(
        uri,
        is_folder,
        tag=tag,
        changed_at=datetime.fromtimestamp(stat.st_mtime, UTC),
        size_bytes=stat.st_size,
    )


def _on_s3(info: dict[str, Any]) -> Entry:
    uri = f"s3://{info['name'].rstrip('/')}"
    if info["type"] != "file":
        return Entry(uri, is_folder=True)
    return Entry(
        uri,
        is_folder=False,
        tag=str(info["ETag"]),
        changed_at=info["LastModified"].astimezone(UTC),
        size_bytes=int(info["size"]),
    )
