"""The champion of a task: the version that the task serves by default, with its reason and
history."""

import uuid
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from tailorbird.registry.caller import caller
from tailorbird.registry.versions import (
    Frozen,
    ModelVersion,
    PinnedVersion,
    read_pinned,
)
from tailorbird.storage import read_versioned, write_if_match, write_json
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.stored_model import StoredModel


class ParityResult(Frozen):
    """The result of the parity gate: answers of the deployed version over HTTP compared with its
    evaluation."""

    rows: int
    matching: int  # rows with the evaluated answer
    ties: int = 0
    """Matching rows with another class of almost equal probability or, for chat, with an answer
    that diverges at two tokens of almost equal probability. The kernel and the composition of the
    batch affect rounding."""
    largest_difference: float | None = None
    """Largest difference of a probability over the rows or, for chat, of the log-probability of a
    token; None for the kind `nearest`."""
    mean_difference: float | None = None  # the mean of these differences
    requires_equality: bool = True
    """False for an endpoint, whose answers can differ between two requests. The gate then checks
    that it answers, and that it reports the evaluated model."""
    # (hybrids only) further rows that the part that is an endpoint answered, checked like this
    endpoint_rows: int = 0
    at: str  # ISO 8601

    def sentence(self) -> str:
        """Return the result for messages."""
        if not self.requires_equality:
            return (
                f"the endpoint answered {self.rows} test rows over HTTP with the evaluated model; "
                f"{self.matching} answers equal those of the evaluation, which is not required"
            )
        ties = f" ({self.ties} are ties)" if self.ties else ""
        text = (
            f"{self.matching} of {self.rows} test rows have the same answer over HTTP as in the "
            f"evaluation{ties}"
        )
        if self.endpoint_rows:
            text += (
                f", and the endpoint answered {self.endpoint_rows} others with the evaluated model"
            )
        return text


class ChosenBy(Frozen):
    """The verdict that selected a version."""

    outcome: str
    sentence: str
    costs: Mapping[str, str] = Field(default_factory=dict)
    """Measured cost of serving the versions that were compared, in words, by digest; empty if it
    was not measured."""


class ChangeReason(Frozen):
    """The reason why a version became the champion."""

    change: Literal["promotion", "rollback"]
    text: str
    override: str | None = None
    """Reason given with `--override`, if the version was rolled back before."""

    def sentence(self) -> str:
        """Return the reason for messages."""
        text = self.text
        if self.override:
            text += f"; override: {self.override}"
        return text


class PreviousChampion(Frozen):
    """A previous champion of the task."""

    uri: str
    digest: str
    run: str  # URI of the run whose verdict selected it; empty if there is none
    verdict: ChosenBy | None = None
    anchor: PinnedVersion | None = None
    """The last champion that was proven better than its predecessor; None if that is this
    version."""
    baseline: PinnedVersion | None = None  # selected by `model: baseline`; may be this version
    parity: ParityResult | None = None
    """None if nothing was served at its promotion; `serve` then checks parity."""

    @property
    def pinned(self) -> PinnedVersion:
        return PinnedVersion(uri=self.uri, digest=self.digest)


class Champion(StoredModel, PreviousChampion):
    """The champion of a task, stored as `champion.json`."""

    version: str
    reason: ChangeReason
    since: str  # ISO 8601
    by: str = ""
    """In the history: user and host of the process that made the change, as it reports them."""
    previous: tuple[PreviousChampion, ...] = ()
    """Latest last, without versions that were rolled back."""
    rolled_back: tuple[str, ...] = ()  # digests of versions that were rolled back

    @property
    def needs_parity(self) -> bool:
        """True if the parity gate must pass before serving. A rollback does not require it."""
        return self.parity is None and self.reason.change != "rollback"

    @property
    def as_previous(self) -> PreviousChampion:
        """This champion as an entry of `previous`."""
        return PreviousChampion.model_validate(
            self.model_dump(include=set(PreviousChampion.model_fields))
        )


def read_champion(task_uri: str) -> tuple[Champion, str] | None:
    """Return the champion and its ETag for `write_champion`; None if the task has no champion."""
    stored = read_versioned(TaskPaths(task_uri).champion)
    if stored is None:
        return None
    return (Champion.model_validate_json(stored[0]), stored[1])


def champion_version(champion: Champion) -> ModelVersion:
    """Return the version of the champion; raise RegistryError if it is missing or was changed after
    its promotion."""
    return read_pinned(champion.pinned)


def write_champion(task_uri: str, champion: Champion, *, etag: str | None) -> None:
    """Write the champion with compare-and-swap, and an entry in `history/`.

    `etag` is None if the task had no champion. Raises PreconditionFailed if the champion changed
    since `etag` was read.
    """
    paths = TaskPaths(task_uri)
    write_if_match(paths.champion, champion.model_dump_json(indent=2).encode(), etag=etag)
    name = f"{champion.since.replace(':', '')}-{champion.version}-{uuid.uuid4().hex[:6]}"
    entry = champion.model_copy(update={"by": caller()})
    write_json(paths.history_entry(name), entry.model_dump(mode="json"))
