"""The report of a window of days, stored as `monitoring/<day>.json`."""

from datetime import date, timedelta
from typing import Any

from tailorbird.evaluation.gates.base import Gate, gate
from tailorbird.monitoring.drift import DriftStatistic
from tailorbird.monitoring.quality import NO_ANSWERS, Quality
from tailorbird.monitoring.shadow_pairs import PairedOutcome
from tailorbird.registry.versions import Frozen
from tailorbird.storage.stored_model import StoredModel

NO_GROUPS = gate("groups", (), note="no labelled answer")


class ArmCount(Frozen):
    """The number of logged rows that one version answered in one arm."""

    arm: str  # `champion`, `shadow`; empty if the request named the model
    digest: str
    rows: int


class ChallengerDay(Frozen):
    """The audited answers of one day for the comparison of champion and challenger."""

    digest: str  # digest of the challenger
    groups: tuple[str, ...]  # all groups of the reference, including those without answers
    outcomes: tuple[PairedOutcome, ...]
    mirrored: int = 0  # rows of the shadow
    unanswered: int = 0  # of these, rows without an answer


class Report(StoredModel):
    """A report of the `days` days up to `day`; quality, drift and gates are empty without answers
    of the champion."""

    day: str
    days: int
    made_at: str  # ISO 8601
    answers_fingerprint: str
    """Hash of what the whole report depends on but labels and the challenger."""
    labels_fingerprint: str
    version: str
    digest: str  # digest of the champion; answers of other versions are only counted
    rows: int
    counts: tuple[ArmCount, ...]
    labels_until: str  # the last day whose labels are included
    challenger: ChallengerDay | None
    notes: tuple[str, ...]  # statistics that could not be computed, irregularities of the log
    drift: tuple[DriftStatistic, ...] = ()
    counterfactual: Gate | None = None  # None if the log has no texts
    feedback: Quality = NO_ANSWERS
    audit: Quality = NO_ANSWERS
    feedback_scores: Quality = NO_ANSWERS
    """(chat) Scores that people gave; `feedback` has scores by the metric."""
    audit_scores: Quality = NO_ANSWERS
    groups: Gate = NO_GROUPS  # from audits
    redacted: int = 0
    """Labelled answers that are not scored, because personal data in the label were redacted."""

    @property
    def content(self) -> dict[str, Any]:
        """All but the time of the report and the hashes of its inputs."""
        return self.model_dump(exclude={"made_at", "answers_fingerprint", "labels_fingerprint"})

    @property
    def qualities(self) -> dict[str, Quality]:
        """The quality by source of the labels, without scores by people if there are none."""
        scores = {"audit_scores": self.audit_scores, "feedback_scores": self.feedback_scores}
        return {"audit": self.audit, "feedback": self.feedback} | {
            name: quality for name, quality in scores.items() if quality.labelled
        }

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes, and the number of labelled answers that are not scored."""
        if not self.redacted:
            return self.notes
        return (
            *self.notes,
            f"{self.redacted:,} labelled answers are not scored: personal data were redacted in "
            "the correct answer",
        )

    @property
    def scored(self) -> bool:
        """True if people gave scores to answers."""
        return bool(self.audit_scores.labelled or self.feedback_scores.labelled)

    @property
    def num_labelled(self) -> int:
        return sum(quality.labelled for quality in self.qualities.values())

    def awaits_labels(self, today: date) -> bool:
        """True if labels may still change the report; the labels of a day are complete on the next
        day."""
        return today <= date.fromisoformat(self.labels_until) + timedelta(days=1)

    @property
    def alarms(self) -> tuple[str, ...]:
        """Drift alarms and failed gates, each as a sentence."""
        return (*self.drift_alarms, *self.failures.values())

    @property
    def drift_alarms(self) -> tuple[str, ...]:
        return tuple(
            f"{statistic.description}: {statistic.value:.3f}, above the threshold "
            f"{statistic.threshold:.3f} (false alarms per year: {statistic.per_year:.3g}, n = "
            f"{statistic.n:,})"
            for statistic in self.drift
            if statistic.alarm
        )

    @property
    def failures(self) -> dict[str, str]:
        """Failed bounds of gates as sentences, by the bounded quantity."""
        bounds = list(self.groups.bounds)
        if self.counterfactual is not None:
            bounds += self.counterfactual.bounds
        failures = {}
        for bound in bounds:
            if bound.state == "fails":
                low, high = bound.interval
                failures[bound.what] = (
                    f"{bound.what}: {100 * bound.estimate:+.1f} points "
                    f"({100 * low:+.1f} to {100 * high:+.1f}, n = {bound.n:,})"
                )
        return failures
