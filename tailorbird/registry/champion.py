"""The champion of a task: the version that serves, and its history."""

import uuid
from typing import Any

from tailorbird.registry.versions import Frozen, ModelVersion, Part, RegistryError, now, read_version
from tailorbird.storage import read_versioned, write_if_match, write_json

WAY_BACK = "rolled back from"
"""Begins the reason of a champion that no verdict chose anew, and that no test row is asked of."""


class Parity(Frozen):
    """What a deployed version answered over HTTP to test rows, beside what it was evaluated by."""

    asked: int
    """Rows."""
    same: int
    """Of these, answered as evaluated."""
    ties: int = 0
    """Of the same, answered by the other of two classes with as good as equal probabilities: another batch decides."""
    largest_difference: float | None = None
    """Of a probability, over the rows; a chat model has none."""
    mean_difference: float | None = None
    """The same, on average."""
    at: str

    def sentence(self) -> str:
        """For people."""
        ties = f" ({self.ties} by the other of two equal classes)" if self.ties else ""
        return f"{self.same} of {self.asked} test rows answered over HTTP as evaluated{ties}"


class Former(Frozen):
    """A version that was the champion."""

    uri: str
    digest: str
    run: str
    """URI of the run whose verdict chose it; empty where none did."""
    verdict: str | None = None
    """That verdict in a sentence."""
    pretrained: Part | None = None
    """The untouched model that it was compared with, or that it is."""
    parity: Parity | None = None
    """None where it was promoted while nothing was served: `serve` asks then."""


class Champion(Former):
    """The version that serves now, and why."""

    version: str
    reason: str
    since: str
    before: tuple[Former, ...] = ()
    """What served before, the latest last; what was rolled back is not among them."""
    rolled_back: tuple[str, ...] = ()
    """Digests of those."""


def read_champion(task_uri: str) -> tuple[Champion, str] | None:
    """The champion and the ETag to change it with; None where nothing serves yet."""
    found = read_versioned(f"{task_uri}/champion.json")
    if found is None:
        return None
    content, etag = found
    return Champion.model_validate_json(content), etag


def champion_version(champion: Champion) -> ModelVersion:
    """The version that serves; raises RegistryError where it is not there, or not the one that was promoted."""
    version = read_version(champion.uri)
    if version.digest != champion.digest:
        raise RegistryError(
            f"{champion.uri} was changed after its promotion: its manifest has the digest {version.digest}, "
            f"champion.json names {champion.digest}; restore it (`tailorbird verify` of it names the files)"
        )
    return version


def set_champion(
    task_uri: str, version: ModelVersion, *, etag: str | None, reason: str, run: str, **more: Any
) -> Champion:
    """Makes a version the champion if nobody else changed it since `etag` was read (None: there was none).

    `more` are further fields of `Champion`. Raises storage.PreconditionFailed where somebody changed it. Every change is kept
    under `history/`.
    """
    named: dict[str, Any] = {"version": version.version, "uri": version.uri, "digest": version.digest}
    champion = Champion(**named, reason=reason, run=run, since=now(), **more)
    change_champion(task_uri, champion, etag=etag)
    return champion


def change_champion(task_uri: str, champion: Champion, *, etag: str | None) -> None:
    """Writes the champion as it is given, on the terms of `set_champion`."""
    write_if_match(f"{task_uri}/champion.json", champion.model_dump_json(indent=2).encode(), etag=etag)
    name = f"{champion.since.replace(':', '')}-{champion.version}-{uuid.uuid4().hex[:6]}"
    write_json(f"{task_uri}/history/{name}.json", champion.model_dump(mode="json"))
