"""What a window of days looked like, as a value: what is written under `monitoring/<day>.json`, and read back."""

from typing import Any

from evaluation.gates import Gate
from models.registry import Frozen
from monitoring.betting import Pairs
from monitoring.drift import Sign
from monitoring.quality import Quality


class Counted(Frozen):
    """Rows of the log by who answered."""

    arm: str
    """`champion`, `canary`, `shadow`, or empty of a model that was asked for by name."""
    digest: str
    rows: int


class TrialPairs(Frozen):
    """Of one day alone, so that days can be added up."""

    digest: str
    """Of the version on trial."""
    pairs: Pairs
    groups: dict[str, Pairs]
    reading: Gate
    """The verdict's own reading of the groups, on the whole window's pairs."""


class Report(Frozen):
    """The last `days` days up to `day`."""

    day: str
    days: int
    made_at: str
    inputs: str
    """sha256 over what it was made from; a report whose inputs changed, for feedback came late, is made anew."""
    version: str
    digest: str
    """Of the champion that is watched: answers of others are counted alone."""
    rows: int
    counted: tuple[Counted, ...]
    feedback: Quality
    audit: Quality
    signs: tuple[Sign, ...]
    groups: Gate
    counterfactual: Gate | None
    """None where no texts are kept."""
    trial: TrialPairs | None
    notes: tuple[str, ...]
    """What could not be looked at, and what is odd about the log."""

    def to_json(self) -> bytes:
        """As it lies on S3."""
        return self.model_dump_json(indent=1).encode()

    @property
    def alarms(self) -> tuple[str, ...]:
        """What a clean window would hardly show, each as a sentence."""
        drift = [
            f"{sign.what}: {sign.value:.3f}, a clean window stays at or under {sign.threshold:.3f} "
            f"{100 * (1 - sign.rate):.4g} times in 100 (n = {sign.n:,})"
            for sign in self.signs
            if sign.alarm
        ]
        failed = [
            f"{bound.what}: {100 * bound.estimate:+.1f} points ({100 * bound.interval[0]:+.1f} to "
            f"{100 * bound.interval[1]:+.1f}, n = {bound.n:,})"
            for gate in (self.groups, self.counterfactual)
            for bound in (gate.bounds if gate else ())
            if bound.state == "fails"
        ]
        return (*drift, *failed)


def without_traffic(**fields: Any) -> Report:
    """The report of a window in which the champion answered nothing: no alarm, for nothing is known."""
    nothing = Quality(0, 0, 0, (0.0, 1.0), None)
    empty = Gate.from_dict({"name": "groups", "state": "not assessable", "bounds": [], "note": "no labelled answer"})
    given: dict[str, Any] = {"feedback": nothing, "audit": nothing, "signs": (), "groups": empty}
    return Report(**given | {"counterfactual": None, "trial": None} | fields)
