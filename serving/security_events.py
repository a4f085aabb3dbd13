"""A replica's events in the registry's security log: refused requests and changes of keys."""

import asyncio
import hashlib
import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from serving.http.api_keys import ApiKey
from serving.http.refusals import Refusal, RefusalCounts
from tailorbird.registry import security_log
from tailorbird.registry.security_log import SecurityEvent

WRITE_S = 60.0
MAX_WAITING = 256
"""Maximum number of events in memory while the log cannot be written. Beyond it, the oldest are lost."""
CLOSE_S = 2.0  # time to write the last events; Serve stops a replica a few seconds after its last response

_log = logging.getLogger("ray.serve")


class WaitingEvent(NamedTuple):
    """An event to write. Replicas that notice the same change use the same name, so that it is one object."""

    event: SecurityEvent
    name: str | None = None

    def write(self, *, registry: str) -> None:
        """Write the event; raise StorageError if that fails."""
        if self.name is None:
            security_log.append(self.event, registry=registry)
        else:
            security_log.append_once(self.event, registry=registry, name=self.name)


class SecurityEvents:
    """A writer of security events, in the background. A failed write is repeated, and never fails a request."""

    def __init__(self, registry: str, *, task: str) -> None:
        self.refusals = RefusalCounts()
        self.is_failing = False
        """True after a failed write, until the next successful one."""
        self._registry = registry
        self._task = task
        self._waiting: deque[WaitingEvent] = deque(maxlen=MAX_WAITING)
        self._changing = threading.Lock()  # changes of keys are added in a thread
        self._writing = asyncio.Lock()

    def add_key_change(self, former: Sequence[ApiKey] | None, new: Sequence[ApiKey], changed_at: str) -> None:
        """Add a change of the keys or, if `former` is None, those at the start. `changed_at` is the file's time."""
        waiting = key_change(former, new, task=self._task, changed_at=changed_at)
        with self._changing:
            self._waiting.append(waiting)

    async def keep_writing(self) -> None:
        """Write the events every minute until cancelled."""
        while True:
            await asyncio.sleep(WRITE_S)
            await self.flush()

    async def flush(self) -> None:
        """Write the events now. A failure is logged once, and all events wait for the next call.

        Meanwhile refusals stay counted, so that they do not displace changes of keys among the waiting events.
        """
        async with self._writing:
            if await self._write_waiting():
                refusals = refusal_events(self.refusals.take(), task=self._task)
                with self._changing:
                    self._waiting.extend(WaitingEvent(event) for event in refusals)
                await self._write_waiting()

    async def _write_waiting(self) -> bool:
        """Write the waiting events, and return True unless a write failed."""
        while self._waiting:
            waiting = self._waiting[0]
            try:
                await asyncio.to_thread(waiting.write, registry=self._registry)
            except Exception as error:  # an unwritable log must not stop the responses
                self._report(error)
                return False
            self.is_failing = False
            with self._changing:
                if self._waiting and self._waiting[0] is waiting:  # otherwise a full queue has dropped it
                    self._waiting.popleft()
        return True

    async def close(self) -> None:
        """Write the last events."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.flush()

    def _report(self, error: Exception) -> None:
        if not self.is_failing:
            message = "the security log cannot be written; the role of replicas needs to create objects under it: %s"
            _log.warning(message, error)
        self.is_failing = True


def refusal_events(counts: dict[Refusal, int], *, task: str) -> Iterable[SecurityEvent]:
    """Yield an event for each reason and client."""
    for refusal, count in counts.items():
        what = f"{task}: {count} requests refused with {refusal.status} {refusal.type}"
        yield SecurityEvent(who=refusal.client, kind="refusal", what=what)


def key_change(former: Sequence[ApiKey] | None, new: Sequence[ApiKey], *, task: str, changed_at: str) -> WaitingEvent:
    """Return the event of a change of keys: their names and options, without hashes. `former` is None at the start.

    Its name is a hash of both states and of the file's time, so it is equal for all replicas that notice the change.
    """
    at_start, former = former is None, former or ()
    state = repr((task, at_start, sorted(map(ApiKey.to_line, former)), sorted(map(ApiKey.to_line, new)), changed_at))
    before, after = _options_by_name(former), _options_by_name(new)
    hashes_before, hashes_after = _hashes_by_name(former), _hashes_by_name(new)
    added, removed = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    both = sorted(before.keys() & after.keys())
    changed = [name for name in both if before[name] != after[name]]
    replaced = [name for name in both if before[name] == after[name] and hashes_before[name] != hashes_after[name]]
    groups = {"added": added, "removed": removed, "changed": changed, "replaced": replaced}
    what = "; ".join(f"{verb} {', '.join(names)}" for verb, names in groups.items() if names)
    shown = {*added, *removed, *changed, *replaced}
    event = SecurityEvent(
        who="unknown, noticed by a replica",
        kind="key",
        what=f"{task}: keys at the start of a replica: {', '.join(added)}" if at_start else f"{task}: keys {what}",
        before={name: [*before[name]] for name in before if name in shown} or None,
        after={name: [*after[name]] for name in after if name in shown} or None,
    )
    return WaitingEvent(event, f"keys-{hashlib.sha256(state.encode()).hexdigest()[:32]}")


def _options_by_name(keys: Sequence[ApiKey]) -> dict[str, list[str]]:
    options: dict[str, list[str]] = {}
    for key in keys:
        options.setdefault(key.name, []).append(str(key.options))
    return {name: sorted(values) for name, values in sorted(options.items())}


def _hashes_by_name(keys: Sequence[ApiKey]) -> dict[str, set[str]]:
    hashes: dict[str, set[str]] = {}
    for key in keys:
        hashes.setdefault(key.name, set()).add(key.sha256)
    return hashes
