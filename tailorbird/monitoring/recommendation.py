"""From reports to what is to be done: nothing, look at the verdict again, or end a trial. It decides; others act."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from tailorbird.monitoring.report import Report, TrialPairs
from tailorbird.monitoring.sequential_test import Judgement, Pairs, judge_trial


@dataclass(frozen=True)
class Advice:
    """What the reports call for."""

    reevaluate: bool
    """Whether the verdict should be made again, on newly labelled rows."""
    reasons: tuple[str, ...]
    """Why."""
    trial: Judgement | None
    """Of the version on trial, where there is one."""


def advise(
    reports: Sequence[Report],
    *,
    expires: str | None,
    today: date,
    trial: str | None,
    alpha: float,
    since: str | None = None,
) -> Advice:
    """What the reports of a champion's present term say, and all of the trial's days.

    `expires` is when the champion's verdict ends, `since` when it was last made again, both ISO 8601. The verdict is
    called for by its expiry, by drift of the latest window in which the champion answered anything, and by a gate that
    fails in that window or in any whose labels are still waited for: what an audit finds, it finds of days gone by.
    What was reported before `since` was looked at then. Feedback, and estimates without labels, call for nothing.
    """
    reasons = []
    if expires is not None and datetime.fromisoformat(expires).date() <= today:
        reasons.append(f"the champion's verdict expired on {expires[:10]}")
    failed = set[str]()
    for place, report in enumerate(_latest_first(reports)):
        if since is not None and datetime.fromisoformat(report.made_at) <= datetime.fromisoformat(since):
            continue
        if place == 0:
            reasons += [f"{report.day}: {alarm}" for alarm in report.drifted]
        elif not report.awaits_labels(today):
            continue
        reasons += [f"{report.day}: {said}" for what, said in report.failed.items() if what not in failed]
        failed |= set(report.failed)
    return Advice(
        bool(reasons), tuple(reasons), judged(reports, digest=trial, alpha=alpha, today=today) if trial else None
    )


def judged(reports: Sequence[Report], *, digest: str, alpha: float, today: date) -> Judgement:
    """The trial over all of its days; a day counts once, by its last report.

    A pair that counted counts ever after, and a label that comes late adds one: looks at a shadow are looks at one
    course. A canary's pairs of a day are made anew with each label, so the day counts once no label is waited for.
    """
    days = {report.day: report for report in sorted(reports, key=lambda report: report.made_at)}
    found = [
        report.trial
        for report in days.values()
        if report.trial is not None and report.trial.digest == digest and _counts(report, report.trial, today=today)
    ]
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


def _counts(report: Report, trial: TrialPairs, *, today: date) -> bool:
    return trial.by_feedback is not None and not (trial.by_order and report.awaits_labels(today))


def _latest_first(reports: Sequence[Report]) -> list[Report]:
    """Those in which the champion answered anything."""
    return sorted((one for one in reports if one.feedback.answers), key=lambda one: one.day, reverse=True)
