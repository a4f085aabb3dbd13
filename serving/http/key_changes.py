"""Changes of API keys in the security log of a replica."""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from serving.http.api_keys import ApiKey
from serving.security_log import log_event


def log_key_change(previous: Sequence[ApiKey] | None, new: Sequence[ApiKey], *, task: str) -> None:
    """Log a change of the keys or, if `previous` is None, those at the start.

    The event has the options of each changed key by its name, without hashes.
    """
    unchanged = set(previous or ()) & set(new)
    log_event(
        "keys",
        task=task,
        at_start=previous is None,
        before=_options(previous or (), unchanged),
        after=_options(new, unchanged),
    )


def _options(keys: Iterable[ApiKey], unchanged: AbstractSet[ApiKey]) -> dict[str, list[str]]:
    """Return the options of the other keys, by the name of the key."""
    options: dict[str, list[str]] = {}
    for key in keys:
        if key not in unchanged:
            options.setdefault(key.name, []).append(str(key.options))
    return {name: sorted(values) for name, values in options.items()}
