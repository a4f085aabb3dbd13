"""Recommend a re-evaluation, and decide on the challenger, from reports. This module does not act
on either."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from itertools import chain

from tailorbird.monitoring.paired_decision import ChallengerDecision, decide_challenger
from tailorbird.monitoring.report import ChallengerDay, Report
from tailorbird.monitoring.shadow_pairs import PairedOutcome, paired_differences
from tailorbird.registry.watch_record import ChallengerPoint

MAX_UNANSWERED = 0.02
"""Share of mirrored requests without an answer of the shadow, above which its answers of later days
are not compared. Missing answers count as the worst ones, so more of them leave no proof of a gain.
"""


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
    since: str | None = None,
    challenger: ChallengerDecision | None = None,
) -> Recommendation:
    """Return the recommendation for the reports since the champion's promotion, with the decision
    on the challenger.

    `expires` is the expiry of the champion's verdict, `since` the time of its last re-evaluation,
    both ISO 8601. A re-evaluation is recommended if the verdict expired, if the latest window with
    answers of the champion has drift, or if a gate fails in that window or in an earlier one whose
    labels are incomplete (audits are about past days). Reports made before `since` are ignored.
    Feedback and estimates without labels never lead to a recommendation.
    """
    reasons = []
    if expires is not None and datetime.fromisoformat(expires).date() <= today:
        reasons.append(f"the champion's verdict expired on {expires[:10]}")
    named = set[str]()
    answered = [report for report in reports if report.feedback.answers]
    newest_first = sorted(answered, key=lambda report: report.day, reverse=True)
    start = datetime.min.replace(tzinfo=UTC) if since is None else datetime.fromisoformat(since)
    for report in newest_first:
        is_latest = report is newest_first[0]
        if datetime.fromisoformat(report.made_at) <= start:
            continue
        if is_latest:
            reasons += [f"{report.day}: {alarm}" for alarm in report.drift_alarms]
        if is_latest or report.awaits_labels(today):
            for quantity, failure in report.failures.items():
                if quantity not in named:
                    reasons.append(f"{report.day}: {failure}")
            named |= set(report.failures)
    return Recommendation(bool(reasons), tuple(reasons), challenger)


def challenger_decision(
    reports: Sequence[Report], *, digest: str, alpha: float
) -> ChallengerDecision:
    """Return the decision on the challenger over all of its days.

    A shadow's answers that are missing are no random sample: long ones are interrupted more often.
    They count as the worst ones. After the days with more than `MAX_UNANSWERED`, the shadow's
    answers are not compared.
    """
    days = _challenger_days(reports, digest=digest)
    outcomes = list(chain.from_iterable(_compared(days).values()))
    names = set(chain.from_iterable(day.groups for day in days.values()))
    groups = {name: paired_differences(outcomes, group=name) for name in sorted(names)}
    decision = decide_challenger(paired_differences(outcomes), groups=groups, alpha=alpha)

    mirrored = sum(day.mirrored for day in days.values())
    unanswered = sum(day.unanswered for day in days.values())
    if unanswered <= MAX_UNANSWERED * mirrored:
        return decision
    return replace(
        decision,
        reason=f"{decision.reason}; the shadow has no answer to {unanswered:,} of {mirrored:,} "
        f"mirrored requests, more than {MAX_UNANSWERED:.0%}, so its next answers are not "
        "compared",
    )


def _compared(days: Mapping[str, ChallengerDay]) -> dict[str, Sequence[PairedOutcome]]:
    """Return the compared outcomes by day.

    Only earlier days decide whether a shadow's answers are compared, so the choice does not depend
    on their scores.
    """
    compared: dict[str, Sequence[PairedOutcome]] = {}
    mirrored = 0
    unanswered = 0
    for name, day in days.items():
        is_compared = unanswered <= MAX_UNANSWERED * mirrored
        compared[name] = day.outcomes if is_compared else ()
        mirrored += day.mirrored
        unanswered += day.unanswered
    return compared


def challenger_course(
    reports: Sequence[Report], *, digest: str, alpha: float
) -> tuple[ChallengerPoint, ...]:
    """Return the comparison of the challenger with the champion after each of its days, in
    order."""
    outcomes: list[PairedOutcome] = []
    points = []
    for day, new_outcomes in _compared(_challenger_days(reports, digest=digest)).items():
        outcomes += new_outcomes
        differences = paired_differences(outcomes)
        points.append(
            ChallengerPoint(
                day=day,
                requests=len(differences),
                gain=differences.mean,
                interval=differences.interval(alpha=alpha),
            )
        )
    return tuple(points)


def _challenger_days(reports: Sequence[Report], *, digest: str) -> dict[str, ChallengerDay]:
    """Return the challenger's days by date, in order; a day counts once, with its last report."""
    latest = {report.day: report for report in sorted(reports, key=lambda report: report.made_at)}
    days = {}
    for name in sorted(latest):
        day = latest[name].challenger
        if day is not None and day.digest == digest:
            days[name] = day
    return days
