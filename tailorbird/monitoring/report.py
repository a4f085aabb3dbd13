"""The report of a window of days, stored as `monitoring/<day>.json`."""

from datetime import date, timedelta

from tailorbird.evaluation.gates.base import Gate, gate
from tailorbird.monitoring.drift import DriftStatistic
from tailorbird.monitoring.quality import NO_ANSWERS, Quality
from tailorbird.monitoring.sequential_test import Pairs
from tailorbird.registry.versions import Frozen
from tailorbird.storage.stored_model import StoredModel

NO_GROUPS = gate("groups", (), note="no labelled answer")


class ArmCount(Frozen):
    """Rows of the log that one version answered in one arm."""

    arm: str  # `champion`, `canary`, `shadow`; empty if the request named the model
    digest: str
    rows: int


class ChallengerPairs(Frozen):
    """Audited pairs of champion and challenger, of one day, so that days can be added up."""

    digest: str  # of the challenger
    pairs: Pairs
    groups: dict[str, Pairs]  # every group of the reference, including those without pairs
    group_gate: Gate  # the verdict's subgroup gate on the whole window's pairs
    by_order: bool = False
    """Whether answers to different texts were paired by their order, as a canary's are: a late label changes them."""
    by_feedback: Pairs  # displayed only


class Report(StoredModel):
    """The last `days` days up to `day`. Without an answer of the champion, quality, drift and gates are empty."""

    day: str
    days: int
    made_at: str  # ISO 8601
    inputs: str
    """Fingerprints of the answers, the label files and the labels, `a:b:c`; the report is made again if they change."""
    version: str
    digest: str  # of the champion; answers of other versions are only counted
    rows: int
    counts: tuple[ArmCount, ...]
    labels_until: str  # the last day whose labels are included
    challenger: ChallengerPairs | None
    notes: tuple[str, ...]  # what could not be computed, and irregularities of the log
    drift: tuple[DriftStatistic, ...] = ()
    counterfactual: Gate | None = None  # None if the log keeps no texts
    feedback: Quality = NO_ANSWERS
    audit: Quality = NO_ANSWERS
    groups: Gate = NO_GROUPS  # by audits
    groups_by_feedback: Gate = NO_GROUPS  # displayed only

    def awaits_labels(self, today: date) -> bool:
        """Return True if labels may still change the report: a day's labels are complete on the next."""
        return today <= date.fromisoformat(self.labels_until) + timedelta(days=1)

    @property
    def alarms(self) -> tuple[str, ...]:
        """Drift alarms and failed gates, each as a sentence."""
        return (*self.drift_alarms, *self.failures.values())

    @property
    def drift_alarms(self) -> tuple[str, ...]:
        return tuple(
            f"{statistic.description}: {statistic.value:.3f}, a clean window stays at or under "
            f"{statistic.threshold:.3f} {100 * (1 - statistic.rate):.4g} times in 100 (n = {statistic.n:,})"
            for statistic in self.drift
            if statistic.alarm
        )

    @property
    def failures(self) -> dict[str, str]:
        """Failed bounds of gates as sentences, by what they bound."""
        return {
            bound.what: f"{bound.what}: {100 * bound.estimate:+.1f} points ({100 * bound.interval[0]:+.1f} to "
            f"{100 * bound.interval[1]:+.1f}, n = {bound.n:,})"
            for checked in (self.groups, self.counterfactual)
            for bound in (checked.bounds if checked else ())
            if bound.state == "fails"
        }
