"""From reports to what is to be done: nothing, look at the verdict again, or end a trial. It decides; others act."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from monitoring.betting import Judgement, Pairs, judge_trial
from monitoring.report import Report


@dataclass(frozen=True)
class Advice:
    """What the reports call for."""

    reevaluate: bool
    """Whether the verdict should be made again, on newly labelled rows."""
    reasons: tuple[str, ...]
    """Why."""
    trial: Judgement | None
    """Of the version on trial, where there is one."""


def advise(reports: Sequence[Report], *, expires: str | None, today: date, trial: str | None, alpha: float) -> Advice:
    """What the latest report, and all of the trial's days, say.

    `expires` is when the champion's verdict ends, ISO 8601. The verdict is called for by its expiry, a drift alarm or a
    failed gate of the latest window in which the champion answered anything. Estimates without labels call for nothing.
    """
    reasons = []
    if expires is not None and datetime.fromisoformat(expires).date() <= today:
        reasons.append(f"the champion's verdict expired on {expires[:10]}")
    seen = [report for report in reports if report.feedback.answers]
    if seen:
        latest = max(seen, key=lambda report: report.day)
        reasons += [f"{latest.day}: {alarm}" for alarm in latest.alarms]
    return Advice(bool(reasons), tuple(reasons), judged(reports, digest=trial, alpha=alpha) if trial else None)


def judged(reports: Sequence[Report], *, digest: str, alpha: float) -> Judgement:
    """The trial over all of its days; a day counts once, by its last report."""
    days = {report.day: report.trial for report in sorted(reports, key=lambda report: report.made_at)}
    found = [trial for trial in days.values() if trial is not None and trial.digest == digest]
    names = sorted({name for trial in found for name in trial.groups})
    nothing = Pairs(0, 0, 0)
    groups = {name: added([trial.groups.get(name, nothing) for trial in found]) for name in names}
    return judge_trial(added([trial.pairs for trial in found]), groups=groups, alpha=alpha)


def added(pairs: Sequence[Pairs]) -> Pairs:
    """Pairs of several days as one."""
    return Pairs(
        sum(one.only_trial_right for one in pairs),
        sum(one.only_champion_right for one in pairs),
        sum(one.num_pairs for one in pairs),
    )
