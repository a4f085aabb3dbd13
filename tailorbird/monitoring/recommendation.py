"""Recommend a re-evaluation, and decide on the challenger, from reports. This module does not act on either."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from tailorbird.monitoring.report import Report
from tailorbird.monitoring.sequential_test import ChallengerDecision, Pairs, decide_challenger


@dataclass(frozen=True)
class Recommendation:
    """What `watch` proposes for the champion and the challenger."""

    reevaluate: bool  # True if the champion should be re-evaluated on newly labelled rows
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
    """Return the recommendation for the reports since the champion's promotion; `challenger` is a digest.

    `expires` is the expiry of the champion's verdict, `since` the time of its last re-evaluation, both ISO 8601. A
    re-evaluation is recommended if the verdict expired, if the latest window with answers of the champion has drift,
    or if a gate fails in that window or in an earlier one whose labels are incomplete (audits are about past days).
    Reports made before `since` are ignored. Feedback and estimates without labels never lead to a recommendation.
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
    """Return the decision on the challenger over all of its days; a day counts once, with its last report.

    A late label only adds pairs of a shadow, so all decisions on a shadow are about one growing sequence. A late label
    changes the pairs of a canary, so a canary's day counts only once its labels are complete.
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
    """Return the sum of the pairs of several days."""
    wins, losses = sum(day.only_challenger_right for day in days), sum(day.only_champion_right for day in days)
    return Pairs(wins, losses, sum(day.num_pairs for day in days))
