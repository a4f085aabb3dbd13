"""Changes of API keys in the security log of the registry."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from pydantic import JsonValue

from serving.http.api_keys import ApiKey
from tailorbird.registry.security_log import SecurityEvent, append

OptionsByHash = Mapping[str, str]  # the options of the keys of one name, by the hash of the key


def record_key_change(
    former: Sequence[ApiKey] | None,
    new: Sequence[ApiKey],
    changed_at: str,
    *,
    registry: str,
    task: str,
) -> None:
    """Record a change of the keys or, if `former` is None, those at the start. `changed_at` is the
    file's time.

    Replicas that notice the same change write one object. Raises StorageError if it cannot be
    written.
    """
    event, name = key_change(former, new, task=task, changed_at=changed_at)
    append(event, registry=registry, name=name)


def key_change(
    former: Sequence[ApiKey] | None, new: Sequence[ApiKey], *, task: str, changed_at: str
) -> tuple[SecurityEvent, str]:
    """Return the event of a change of keys, with their names and options and without hashes, and
    its name.

    The name is a hash of both states and of the file's time, so it is equal for all replicas that
    notice the change.
    """
    before = _by_name(former or ())
    after = _by_name(new)
    names = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    changes: dict[str, list[str]] = {}
    for name in names:
        changes.setdefault(_change(before.get(name), after.get(name)), []).append(name)
    what = "; ".join(f"{change} {', '.join(changed)}" for change, changed in changes.items())
    if former is None:
        what = f"at the start of a replica: {', '.join(names)}"
    event = SecurityEvent(
        who="unknown, noticed by a replica",
        kind="key",
        what=f"{task}: keys {what}",
        before=_options(before, names),
        after=_options(after, names),
    )
    lines = [sorted(map(ApiKey.to_line, keys)) for keys in (former or (), new)]
    state = repr((task, former is None, lines, changed_at))
    return event, f"keys-{hashlib.sha256(state.encode()).hexdigest()[:32]}"


def _by_name(keys: Iterable[ApiKey]) -> dict[str, dict[str, str]]:
    by_name: dict[str, dict[str, str]] = {}
    for key in keys:
        by_name.setdefault(key.name, {})[key.sha256] = str(key.options)
    return by_name


def _change(before: OptionsByHash | None, after: OptionsByHash | None) -> str:
    if before is None:
        return "added"
    if after is None:
        return "removed"
    if sorted(before.values()) == sorted(after.values()):
        return "replaced"
    return "changed"


def _options(keys: Mapping[str, OptionsByHash], names: Iterable[str]) -> JsonValue:
    return {
        name: list[JsonValue](sorted(keys[name].values())) for name in names if name in keys
    } or None
