"""The champion of a task: the version that serves, why it does, and its history."""

import uuid
from typing import Literal

from tailorbird.registry.versions import Frozen, ModelVersion, PinnedVersion, RegistryError, read_version
from tailorbird.storage import read_versioned, write_if_match, write_json
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.stored_model import StoredModel


class ParityResult(Frozen):
    """How a deployed version answered test rows over HTTP, compared with its evaluation."""

    rows: int
    matching: int  # answered as evaluated
    ties: int = 0
    """Matching rows answered by the other of two classes with almost equal probabilities: another batch decides."""
    largest_difference: float | None = None  # of a probability, over the rows; None for a chat model
    mean_difference: float | None = None
    at: str  # ISO 8601

    def sentence(self) -> str:
        ties = f" ({self.ties} by the other of two equal classes)" if self.ties else ""
        return f"{self.matching} of {self.rows} test rows answered over HTTP as evaluated{ties}"


class ChosenBy(Frozen):
    """The verdict that chose a version."""

    outcome: str
    rule: int
    sentence: str


class ChangeReason(Frozen):
    """Why a version became the champion."""

    change: Literal["promotion", "engine", "rollback"]  # `engine`: the same weights, run by another engine
    text: str
    override: str | None = None
    """Why it was promoted although its verdict is not confirmatory, or it was rolled back before."""
    runtime: str | None = None  # engine and dtype, if it was exported

    def sentence(self) -> str:
        override = f"; override: {self.override}" if self.override else ""
        return f"{self.text}{override}{f'; run by {self.runtime}' if self.runtime else ''}"


class FormerChampion(Frozen):
    """A version that was the champion."""

    uri: str
    digest: str
    run: str  # URI of the run whose verdict chose it; empty if none did
    verdict: ChosenBy | None = None
    pretrained: PinnedVersion | None = None  # the pretrained model that it was compared with, or that it is
    parity: ParityResult | None = None  # None if nothing was served at its promotion: `serve` checks it then


class Champion(StoredModel, FormerChampion):
    """The version that serves."""

    version: str
    reason: ChangeReason
    since: str  # ISO 8601
    former: tuple[FormerChampion, ...] = ()  # the latest last, without those that were rolled back
    rolled_back: tuple[str, ...] = ()  # digests of versions that were rolled back

    @property
    def needs_parity(self) -> bool:
        """True if test rows must be checked before it serves: not after a rollback, which restores what served."""
        return self.parity is None and self.reason.change != "rollback"

    @property
    def as_former(self) -> FormerChampion:
        """This champion as an entry of `former`."""
        return FormerChampion.model_validate(self.model_dump(include=set(FormerChampion.model_fields)))


def read_champion(task_uri: str) -> tuple[Champion, str] | None:
    """Return the champion, and the ETag to change it with; None if nothing serves yet."""
    stored = read_versioned(TaskPaths(task_uri).champion)
    return None if stored is None else (Champion.model_validate_json(stored[0]), stored[1])


def champion_version(champion: Champion) -> ModelVersion:
    """Return the version that serves; raise RegistryError if it is missing or changed since its promotion."""
    version = read_version(champion.uri)
    if version.digest != champion.digest:
        raise RegistryError(
            f"{champion.uri} was changed after its promotion: its manifest has the digest {version.digest}, "
            f"champion.json names {champion.digest}; restore it (`tailorbird verify` of it names the files)"
        )
    return version


def write_champion(task_uri: str, champion: Champion, *, etag: str | None) -> None:
    """Write the champion by compare-and-swap, and an entry of `history/`; raise PreconditionFailed if it was changed
    since `etag` was read (None: there was no champion)."""
    paths = TaskPaths(task_uri)
    write_if_match(paths.champion, champion.model_dump_json(indent=2).encode(), etag=etag)
    name = f"{champion.since.replace(':', '')}-{champion.version}-{uuid.uuid4().hex[:6]}"
    write_json(paths.history_entry(name), champion.model_dump(mode="json"))
