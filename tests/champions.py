"""Write a champion without a run."""

from typing import Any

from tailorbird.registry.champion import Champion, ChangeReason, write_champion
from tailorbird.registry.versions import ModelVersion, now


def set_champion(
    task_uri: str,
    version: ModelVersion,
    *,
    etag: str | None = None,
    reason: str = "a test",
    **fields: Any,
) -> Champion:
    """Make the version the champion and return its record; `fields` are further fields of
    `Champion`."""
    champion = Champion(
        version=version.version,
        uri=version.uri,
        digest=version.digest,
        reason=ChangeReason(change="promotion", text=reason),
        since=now(),
        **({"run": ""} | fields),
    )
    write_champion(task_uri, champion, etag=etag)
    return champion
