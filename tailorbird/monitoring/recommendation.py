"""What the reports call for: nothing, a re-evaluation, or the end of an experiment. Others act on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from tailorbird.monitoring.report import Report
from tailorbird.monitoring.sequential_test import ChallengerDecision, Pairs, decide_challenger


@dataclass(frozen=True)
class Recommendation:
    """What the reports call for."""

    reevaluate: bool  # whether the verdict should be made again, on newly labelled rows
    reasons: tuple[str, ...]
    challenger: ChallengerDecision | None  # None without a challenger


def recommend(
    reports: Sequence[Report],
    *,
    expires: str | None,
    today: date,
    challenger: str | None,
    alpha: float,
    since: str | None = None,
) -> Recommendation:
    """Return what the reports of the champion's present term call for, and the decision on the challenger (a digest).

    `expires` is when the champion's verdict expires, `since` when it was last re-evaluated, both ISO 8601. A
    re-evaluation is called for by its expiry, by drift of the latest window with answers of the champion, and by a gate
    that fails in that window or in any whose labels are incomplete: an audit is about past days. Reports made before
    `since` are ignored. Feedback, and estimates without labels, call for nothing.
    """
    reasons = []
    if expires is not None and datetime.fromisoformat(expires).date() <= today:
        reasons.append(f"the champion's verdict expired on {expires[:10]}")
    failed = set[str]()
    answered = [report for report in reports if report.feedback.answers]
    for index, report in enumerate(sorted(answered, key=lambda report: report.day, reverse=True)):
        if since is not None and datetime.fromisoformat(report.made_at) <= datetime.fromisoformat(since):
            continue
        if index == 0:
            reasons += [f"{report.day}: {alarm}" for alarm in report.drift_alarms]
        elif not report.awaits_labels(today):
            continue
        reasons += [f"{report.day}: {failure}" for bound, failure in report.failures.items() if bound not in failed]
        failed |= set(report.failures)
    decision = challenger_decision(reports, digest=challenger, alpha=alpha, today=today) if challenger else None
    return Recommendation(bool(reasons), tuple(reasons), decision)


def challenger_decision(reports: Sequence[Report], *, digest: str, alpha: float, today: date) -> ChallengerDecision:
    """Return the decision on the challenger over all of its days; a day counts once, by its last report.

    A shadow's pair that counted keeps counting, and a late label adds one: looks at a shadow are looks at one sequence.
    A canary's pairs of a day change with each label, so the day counts once its labels are complete.
    """
    days = {report.day: report for report in sorted(reports, key=lambda report: report.made_at)}
    challengers = [
        challenger
        for report in days.values()
        if (challenger := report.challenger) is not None
        and challenger.digest == digest
        and not (challenger.by_order and report.awaits_labels(today))
    ]
    names = sorted({name for challenger in challengers for name in challenger.groups})
    no_pairs = Pairs(0, 0, 0)
    groups = {name: sum_pairs([challenger.groups.get(name, no_pairs) for challenger in challengers]) for name in names}
    return decide_challenger(sum_pairs([challenger.pairs for challenger in challengers]), groups=groups, alpha=alpha)


def sum_pairs(days: Sequence[Pairs]) -> Pairs:
    """Add up the pairs of several days."""
    wins, losses = sum(day.only_challenger_right for day in days), sum(day.only_champion_right for day in days)
    return Pairs(wins, losses, sum(day.num_pairs for day in days))
