"""What a window of days looked like, as a value: what is written under `monitoring/<day>.json`, and read back."""

from datetime import date, timedelta
from typing import Any

from tailorbird.evaluation.gates.base import Gate
from tailorbird.monitoring.drift import Sign
from tailorbird.monitoring.quality import Quality
from tailorbird.monitoring.sequential_test import Pairs
from tailorbird.registry.versions import Frozen


class Counted(Frozen):
    """Rows of the log by who answered."""

    arm: str
    """`champion`, `canary`, `shadow`, or empty of a model that was asked for by name."""
    digest: str
    rows: int


class TrialPairs(Frozen):
    """Of one day alone, so that days can be added up, by audits alone."""

    digest: str
    """Of the version on trial."""
    pairs: Pairs
    groups: dict[str, Pairs]
    """Every group of the reference's, one without pairs included."""
    reading: Gate
    """The verdict's own reading of the groups, on the whole window's pairs."""
    by_order: bool = False
    """Whether answers to different texts were paired by their order, as a canary's are: a label that comes late changes
    such pairs."""
    by_feedback: Pairs | None = None
    """Those that feedback tells of, to be shown alone; None of reports in which pairs were of both kinds, whose pairs
    decide nothing either."""


class Report(Frozen):
    """The last `days` days up to `day`."""

    day: str
    days: int
    made_at: str
    """ISO 8601."""
    inputs: str
    """sha256 of the answers, the files and the labels it was made from, as `a:b:c`; a report whose inputs changed, for
    feedback came late, is made anew."""
    version: str
    digest: str
    """Of the champion that is watched: answers of others are counted alone."""
    rows: int
    counted: tuple[Counted, ...]
    feedback: Quality
    audit: Quality
    signs: tuple[Sign, ...]
    groups: Gate
    """By audits alone."""
    counterfactual: Gate | None
    """None where no texts are kept."""
    trial: TrialPairs | None
    notes: tuple[str, ...]
    """What could not be looked at, and what is odd about the log."""
    labels_until: str | None = None
    """Last day whose labels are waited for; None where that was not noted, and none is waited for."""
    groups_by_feedback: Gate | None = None
    """What feedback tells of the groups, to be shown alone; None of reports in which `groups` is of both kinds, and
    calls for nothing either."""

    def to_json(self) -> bytes:
        """As it lies on S3."""
        return self.model_dump_json(indent=1).encode()

    def awaits_labels(self, today: date) -> bool:
        """Whether it may still be made anew: of the labels of a day one learns on the next."""
        return self.labels_until is not None and today <= date.fromisoformat(self.labels_until) + timedelta(days=1)

    @property
    def alarms(self) -> tuple[str, ...]:
        """What a clean window would hardly show, each as a sentence."""
        return (*self.drifted, *self.failed.values())

    @property
    def drifted(self) -> tuple[str, ...]:
        """The signs of drift that alarm."""
        return tuple(
            f"{sign.what}: {sign.value:.3f}, a clean window stays at or under {sign.threshold:.3f} "
            f"{100 * (1 - sign.rate):.4g} times in 100 (n = {sign.n:,})"
            for sign in self.signs
            if sign.alarm
        )

    @property
    def failed(self) -> dict[str, str]:
        """The bounds of gates that fail, by what they are about."""
        audited = self.groups if self.groups_by_feedback is not None else None
        return {
            bound.what: f"{bound.what}: {100 * bound.estimate:+.1f} points ({100 * bound.interval[0]:+.1f} to "
            f"{100 * bound.interval[1]:+.1f}, n = {bound.n:,})"
            for gate in (audited, self.counterfactual)
            for bound in (gate.bounds if gate else ())
            if bound.state == "fails"
        }


def without_traffic(**fields: Any) -> Report:
    """The report of a window in which the champion answered nothing: no alarm, for nothing is known."""
    nothing = Quality(0, 0, 0, (0.0, 1.0), None)
    empty = Gate.from_dict({"name": "groups", "state": "not assessable", "bounds": [], "note": "no labelled answer"})
    given: dict[str, Any] = {"feedback": nothing, "audit": nothing, "signs": (), "groups": empty}
    return Report(**given | {"groups_by_feedback": empty, "counterfactual": None, "trial": None} | fields)
