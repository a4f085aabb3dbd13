"""The records whose types are defined in the layers above the console, with the fields that its
pages show.

A test compares these types with those that write the records.
"""

from pydantic import BaseModel, ConfigDict, RootModel

from tailorbird.registry.champion import Champion


class Part(BaseModel):
    """The fields of a stored record that the console shows; other fields are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ReevaluationOutcome(Part):
    """Whether the verdict holds on audited rows; None if they cannot say."""

    holds: bool | None
    reasons: tuple[str, ...] = ()


class ReevaluationRecord(Part):
    """A re-evaluation of a champion, in the history of the task."""

    at: str
    reevaluation: str
    verdict: ReevaluationOutcome


class HistoryEntry(RootModel[Champion | ReevaluationRecord]):
    """A new champion, or a re-evaluation of the champion."""
