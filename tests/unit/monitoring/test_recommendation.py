from collections.abc import Sequence
from datetime import date
from typing import Any

import pytest

from tailorbird.evaluation.gates.base import Gate, at_most, gate
from tailorbird.evaluation.statistics.confidence_sequence import confidence_sequence
from tailorbird.monitoring.drift import DriftStatistic
from tailorbird.monitoring.paired_decision import ChallengerDecision, Decision
from tailorbird.monitoring.quality import Quality
from tailorbird.monitoring.recommendation import challenger_course, challenger_decision, recommend
from tailorbird.monitoring.render import render_metrics, render_page
from tailorbird.monitoring.report import ChallengerDay, Report
from tailorbird.monitoring.shadow_pairs import PairedOutcome

TODAY = date(2026, 3, 9)
ALARM = DriftStatistic("unfamiliar", "share of far texts", 0.12, 0.02, 0.25, 500)
USUAL = DriftStatistic("unfamiliar", "share of far texts", 0.01, 0.02, 0.25, 500)
NOTHING = gate("groups", ())
FIELDS: dict[str, Any] = {
    "day": "2026-03-08",
    "days": 1,
    "made_at": "2026-03-09T01:00:00+00:00",
    "answers_fingerprint": "0" * 64,
    "labels_fingerprint": "1" * 64,
    "version": "full-1",
    "digest": "d",
    "rows": 1000,
    "counts": (),
    "challenger": None,
    "notes": (),
    "labels_until": "2026-04-07",
}


def report(**fields: Any) -> Report:
    defaults = {
        "feedback": Quality(1000, 100, 80, (0.71, 0.87)),
        "audit": Quality(1000, 0, 0, (0.0, 1.0)),
        "drift": (USUAL,),
        "groups": NOTHING,
        "counterfactual": None,
    }
    return Report(**FIELDS | defaults | fields)


def day_of(
    name: str,
    *,
    requests: Sequence[int],
    won: int = 1,
    made_at: str = "2026-03-09T01:00:00+00:00",
    digest: str = "t",
) -> Report:
    """Return the report of a day on which the challenger's shadow wins by `won` in each of these
    requests."""
    outcomes = tuple(PairedOutcome(request=request, groups=(), gain=won) for request in requests)
    day = ChallengerDay(digest=digest, groups=("sex = f", "sex = m"), outcomes=outcomes)
    return report(day=name, made_at=made_at, challenger=day)


def failing(estimate: float = 0.1, *, what: str = "change for sex = f") -> Gate:
    interval = (estimate - 0.05, estimate + 0.05)
    return gate("groups", (at_most(0.0, what=what, estimate=estimate, interval=interval, n=100),))


def reasons(
    *reports: Report, expires: str | None = None, since: str | None = None
) -> tuple[str, ...]:
    result = recommend(reports, expires=expires, today=TODAY, since=since)
    assert result.reevaluate == bool(result.reasons)
    return result.reasons


def test_the_latest_window_with_answers_decides() -> None:
    assert reasons(report(drift=(ALARM,), day="2026-03-07"), report()) == ()
    quiet = Report(**FIELDS | {"day": "2026-03-08", "rows": 0})
    assert len(reasons(report(drift=(ALARM,), day="2026-03-07"), quiet)) == 1
    assert reasons(quiet) == ()
    assert len(reasons(expires="2026-03-09T23:00:00+00:00")) == 1
    assert reasons(expires="2026-03-10T00:00:00+00:00") == ()
    bad = Quality(answers=1000, labelled=500, right=0, interval=(0.0, 0.01))
    assert reasons(report(feedback=bad)) == ()  # feedback is no random sample


def test_failed_gates_of_past_days_recommend_a_reevaluation_while_labels_are_incomplete() -> None:
    result = reasons(
        report(day="2026-02-20", groups=failing(0.2), labels_until="2026-03-08"),
        report(
            day="2026-02-21",
            groups=failing(),
            counterfactual=failing(what="flipped"),
            drift=(ALARM,),
        ),
        report(),
    )
    assert result == (
        # once, from the latest report
        "2026-02-21: change for sex = f: +10.0 points (+5.0 to +15.0, n = 100)",
        "2026-02-21: flipped: +10.0 points (+5.0 to +15.0, n = 100)",
    )
    late = report(day="2026-02-20", groups=failing(), labels_until="2026-03-08")
    assert len(reasons(late, report())) == 1
    assert (
        reasons(report(day="2026-02-19", groups=failing(), labels_until="2026-03-07"), report())
        == ()
    )


def test_reports_made_before_the_last_reevaluation_are_ignored() -> None:
    before = report(day="2026-03-01", groups=failing()), report(drift=(ALARM,), groups=failing())
    assert len(reasons(*before, since="2026-03-09T00:59:59+00:00")) == 2
    assert reasons(*before, since="2026-03-09T01:00:00+00:00") == ()
    remade = report(day="2026-03-01", groups=failing(), made_at="2026-03-10T01:00:00+00:00")
    assert len(reasons(remade, *before[1:], since="2026-03-09T12:00:00+00:00")) == 1


def decided(*reports: Report) -> ChallengerDecision:
    return challenger_decision(reports, digest="t", alpha=0.05)


def test_the_days_of_a_challenger_count_once_and_so_do_its_requests() -> None:
    result = decided(
        day_of("2026-03-06", requests=range(6)),
        day_of("2026-03-07", requests=range(4, 22)),
        day_of("2026-03-06", requests=range(7), made_at="2026-03-10T01:00:00+00:00"),
        day_of("2026-03-08", requests=range(50), digest="another"),
    )
    overall = result.overall
    assert (len(overall), overall.num_answers) == (22, 25)
    assert result.decision is Decision.PROMOTE
    assert set(result.groups) == {"sex = f", "sex = m"}  # they have no answers
    assert decided().overall.num_answers == 0


@pytest.mark.parametrize(("unanswered", "num_requests"), [(2, 60), (3, 40)])
def test_a_shadow_is_not_compared_after_days_with_more_than_two_percent_missing(
    unanswered: int, num_requests: int
) -> None:
    first, second = (
        day_of("2026-03-06", requests=range(40)),
        day_of("2026-03-07", requests=range(40, 60)),
    )
    assert first.challenger is not None
    counted = first.challenger.model_copy(update={"mirrored": 100, "unanswered": unanswered})
    reports = (first.model_copy(update={"challenger": counted}), second)
    result = decided(*reports)
    assert len(result.overall) == num_requests
    assert ("no answer to 3 of 100 mirrored requests" in result.reason) == (num_requests == 40)
    course = challenger_course(reports, digest="t", alpha=0.05)
    assert [point.requests for point in course] == [40, num_requests]


def test_the_page_shows_alarms_labels_and_the_challenger_and_escapes_values() -> None:
    reports = [
        report(day="2026-03-07"),
        report(drift=(ALARM,), groups=failing(), notes=("<b>odd</b>",)),
    ]
    decision = decided(day_of("2026-03-06", requests=range(70)))
    recommendation = recommend(reports, expires=None, today=TODAY, challenger=decision)
    page = render_page("my <task>", reports, recommendation=recommendation)
    for text in (
        "my &lt;task&gt;",
        "Re-evaluation recommended",
        "Challenger: promote. proven better: +100.0 points (95% confidence sequence ",
        "over 70 requests (70 labelled answers)",
        '<th scope="row">sex = f</th>',
        "80.0%",
        "change for sex = f",
        "71.0 to 87.0",
        "&lt;b&gt;odd&lt;/b&gt;",
        '<span class="state fails">alarm</span>',
    ):
        assert text in page
    assert "<script" not in page


def test_gauges_are_in_the_prometheus_text_format() -> None:
    reports = [report(drift=(ALARM,))]
    recommendation = recommend(reports, expires=None, today=TODAY)
    metrics = render_metrics('my "task"', reports, recommendation=recommendation)
    assert 'tailorbird_watch_reevaluation_wanted{model="my \\"task\\""} 1\n' in metrics
    assert 'tailorbird_watch_accuracy{model="my \\"task\\"",by="feedback"} 0.8\n' in metrics
    assert 'by="audit"} 0.8' not in metrics  # without labels there is no accuracy


def test_the_course_of_the_comparison_ends_with_the_interval_of_the_decision() -> None:
    reports = [
        day_of("2026-03-02", requests=range(40, 90)),
        day_of("2026-03-01", requests=range(40)),
    ]
    course = challenger_course(reports, digest="t", alpha=0.05)
    assert [(point.day, point.gain) for point in course] == [("2026-03-01", 1), ("2026-03-02", 1)]
    assert course[-1].interval == confidence_sequence(decided(*reports).overall.values, alpha=0.05)
