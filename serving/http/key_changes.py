"""Changes of API keys in the security log of the registry."""

import hashlib
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from pydantic import JsonValue

from serving.http.api_keys import ApiKey
from tailorbird.registry.security_log import SecurityEvent, append


def record_key_change(
    previous: Sequence[ApiKey] | None,
    new: Sequence[ApiKey],
    changed_at: str,
    *,
    registry: str,
    task: str,
) -> None:
    """Record a change of the keys or, if `previous` is None, those at the start.

    `changed_at` is the file's time. Replicas that notice the same change write one object. Raises
    StorageError if it cannot be written.
    """
    event, name = key_change(previous, new, task=task, changed_at=changed_at)
    append(event, registry=registry, name=name)


def key_change(
    previous: Sequence[ApiKey] | None, new: Sequence[ApiKey], *, task: str, changed_at: str
) -> tuple[SecurityEvent, str]:
    """Return the event of a change of keys, with their names and options and without hashes, and
    its name.

    The name is a hash of both states and of the file's time, so it is equal for all replicas that
    notice the change.
    """
    unchanged = set(previous or ()) & set(new)
    before = _options(previous or (), unchanged)
    after = _options(new, unchanged)
    names = ", ".join(sorted({**before, **after}))
    if previous is None:
        what = f"{task}: keys at the start of a replica: {names}"
    else:
        what = f"{task}: keys added, removed or changed: {names}"
    event = SecurityEvent(
        who="unknown, noticed by a replica",
        kind="key",
        what=what,
        before=before or None,
        after=after or None,
    )
    lines = [sorted(map(ApiKey.to_line, keys)) for keys in (previous or (), new)]
    state = repr((task, previous is None, lines, changed_at))
    return event, f"keys-{hashlib.sha256(state.encode()).hexdigest()[:32]}"


def _options(keys: Iterable[ApiKey], unchanged: AbstractSet[ApiKey]) -> dict[str, JsonValue]:
    """Return the options of the other keys, by the name of the key."""
    options: dict[str, list[JsonValue]] = {}
    for key in keys:
        if key not in unchanged:
            options.setdefault(key.name, []).append(str(key.options))
    return {name: sorted(values, key=str) for name, values in options.items()}
