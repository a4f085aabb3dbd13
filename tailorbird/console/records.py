"""The records of a registry, with the fields that the console shows.

Parsing a part of a record takes less time than the whole record, and needs no package that computes statistics. A test
compares these types with those that write the records.
"""

from typing import Literal

from tailorbird.console.reader import Part
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.registry.test_set_ledger import TestSetAccess
from tailorbird.registry.versions import PinnedVersion


class DataHashes(Part):
    """The sha256 of each split by name."""

    sha256: dict[str, str]


class Source(Part):
    """A staged base model."""

    source: str


class CodeRecord(Part):
    """The code of a run."""

    sha256: str


class DataUris(Part):
    """Where the rows of a recipe come from."""

    train: str | tuple[str, ...]


class RecipeRecord(Part):
    """The parts of a recipe that a lineage names."""

    data: DataUris


class RunEvidence(Part):
    """The evidence of a finished run."""

    run: str
    created_at: str
    expires_at: str
    requested_by: str
    recipe: RecipeRecord
    verdict: Verdict
    test_access: TestSetAccess
    data: DataHashes
    code: CodeRecord
    base_model: Source


class Registration(Part):
    """The preregistration of a run."""

    requested_by: str
    requested_at: str


class Ledger(Part):
    """The accesses of a task to test rows."""

    entries: tuple[TestSetAccess, ...] = ()


class VersionInfo(Part):
    """The config of a version."""

    kind: str
    engine: str = "torch"
    created_at: str
    exported_from: PinnedVersion | None = None
    hybrid: "HybridParts | None" = None


class HybridParts(Part):
    """The parts of a hybrid."""

    first: PinnedVersion
    second: PinnedVersion


class Statistic(Part):
    """A drift statistic of a window, with its threshold."""

    name: str
    description: str
    value: float
    threshold: float
    n: int

    @property
    def alarm(self) -> bool:
        return self.value > self.threshold


class Labelled(Part):
    """The champion's accuracy, or mean score, on labelled answers."""

    labelled: int = 0
    right: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    @property
    def accuracy(self) -> float | None:
        return self.right / self.labelled if self.labelled else None


class GroupBound(Part):
    """The change of the accuracy in a group."""

    what: str
    estimate: float
    interval: tuple[float, float]
    n: int
    state: str


class GateRecord(Part):
    """A gate of a report."""

    state: str
    bounds: tuple[GroupBound, ...] = ()


class DayReport(Part):
    """The monitoring report of the `days` days up to `day`."""

    day: str
    days: int
    digest: str
    rows: int
    drift: tuple[Statistic, ...] = ()
    audit: Labelled
    audit_scores: Labelled = Labelled()  # (chat) scores that people gave
    feedback_scores: Labelled = Labelled()
    confident: float | None = None
    groups: GateRecord

    @property
    def scored(self) -> bool:
        """True if people gave scores to answers."""
        return bool(self.audit_scores.labelled or self.feedback_scores.labelled)


class ReevaluationRecord(Part):
    """A re-evaluation of a champion, in the history of the task."""

    at: str
    reevaluation: str
    verdict: "ReevaluationOutcome"


class ReevaluationOutcome(Part):
    """Whether the verdict holds on audited rows; None if they cannot say."""

    holds: bool | None
    reasons: tuple[str, ...] = ()


class JobRecord(Part):
    """A batch job of the service."""

    id: str
    status: Literal["queued", "running", "completed", "failed", "cancelled"]
    input: str
    owner: str | None = None
    created_at: str
    rows_done: int = 0
    rows_total: int | None = None
    error: str | None = None
