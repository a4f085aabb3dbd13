from datetime import date
from typing import Any

import pytest

from tailorbird.evaluation.gates.base import Gate, at_most, gate
from tailorbird.monitoring.drift import DriftStatistic
from tailorbird.monitoring.quality import Quality
from tailorbird.monitoring.recommendation import challenger_decision, recommend
from tailorbird.monitoring.render import render_metrics, render_page
from tailorbird.monitoring.report import ChallengerPairs, Report
from tailorbird.monitoring.sequential_test import Decision, Pairs

TODAY = date(2026, 3, 9)
ALARM = DriftStatistic("unfamiliar", "texts far from all", 0.12, 0.02, 0.0025, 500)
USUAL = DriftStatistic("unfamiliar", "texts far from all", 0.01, 0.02, 0.0025, 500)
NOTHING, NO_PAIRS = gate("groups", ()), Pairs(0, 0, 0)
FIELDS: dict[str, Any] = {
    "day": "2026-03-08",
    "days": 1,
    "made_at": "2026-03-09T01:00:00+00:00",
    "inputs": "0" * 64,
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
        "feedback": Quality(1000, 100, 80, (0.71, 0.87), 0.9),
        "audit": Quality(1000, 0, 0, (0.0, 1.0), 0.9),
        "drift": (USUAL,),
        "groups": NOTHING,
        "groups_by_feedback": NOTHING,
        "counterfactual": None,
    }
    return Report(**FIELDS | defaults | fields)


def paired(
    pairs: Pairs,
    *,
    digest: str = "t",
    groups: dict[str, Pairs] | None = None,
    by_order: bool = False,
    by_feedback: Pairs = NO_PAIRS,
) -> ChallengerPairs:
    return ChallengerPairs(
        digest=digest, pairs=pairs, groups=groups or {}, group_gate=NOTHING, by_order=by_order, by_feedback=by_feedback
    )


def failing(estimate: float = 0.1, *, what: str = "change in sex = f") -> Gate:
    interval = (estimate - 0.05, estimate + 0.05)
    return gate("groups", (at_most(0.0, what=what, estimate=estimate, interval=interval, n=100),))


def reasons(*reports: Report, expires: str | None = None, since: str | None = None) -> tuple[str, ...]:
    result = recommend(reports, expires=expires, today=TODAY, challenger=None, alpha=0.05, since=since)
    assert result.reevaluate == bool(result.reasons)
    return result.reasons


def test_a_report_is_read_back_as_it_was_written() -> None:
    pairs = ChallengerPairs(
        digest="t",
        pairs=Pairs(3, 1, 10),
        groups={"sex = f": Pairs(1, 1, 4)},
        group_gate=NOTHING,
        by_order=True,
        by_feedback=Pairs(1, 0, 2),
    )
    made = report(drift=(ALARM,), groups=failing(), groups_by_feedback=failing(), challenger=pairs)
    assert Report.model_validate_json(made.model_dump_json()) == made


def test_drift_and_a_failed_group_call_for_the_verdict_and_say_by_what() -> None:
    result = reasons(report(drift=(ALARM,), groups=failing()))
    assert result == (
        "2026-03-08: texts far from all: 0.120, a clean window stays at or under 0.020 99.75 times in 100 (n = 500)",
        "2026-03-08: change in sex = f: +10.0 points (+5.0 to +15.0, n = 100)",
    )


def test_the_latest_window_with_answers_decides() -> None:
    assert reasons(report(drift=(ALARM,), day="2026-03-07"), report()) == ()
    quiet = Report(**FIELDS | {"day": "2026-03-08", "rows": 0})
    assert len(reasons(report(drift=(ALARM,), day="2026-03-07"), quiet)) == 1
    assert reasons(quiet) == ()
    assert reasons() == ()


def test_what_audits_find_of_days_gone_by_calls_for_the_verdict_while_labels_are_waited_for() -> None:
    result = reasons(
        report(day="2026-02-20", groups=failing(0.2), labels_until="2026-03-08"),
        report(day="2026-02-21", groups=failing(), counterfactual=failing(what="flipped"), drift=(ALARM,)),
        report(),
    )
    assert result == (
        "2026-02-21: change in sex = f: +10.0 points (+5.0 to +15.0, n = 100)",  # once, by the latest
        "2026-02-21: flipped: +10.0 points (+5.0 to +15.0, n = 100)",
    )
    late = report(day="2026-02-20", groups=failing(), labels_until="2026-03-08")
    assert len(reasons(late, report())) == 1
    assert reasons(report(day="2026-02-19", groups=failing(), labels_until="2026-03-07"), report()) == ()


def test_what_was_reported_before_the_verdict_was_made_again_does_not_call_for_it_anew() -> None:
    before = report(day="2026-03-01", groups=failing()), report(drift=(ALARM,), groups=failing())
    assert len(reasons(*before, since="2026-03-09T00:59:59+00:00")) == 2
    assert reasons(*before, since="2026-03-09T01:00:00+00:00") == ()
    made_anew = report(day="2026-03-01", groups=failing(), made_at="2026-03-10T01:00:00+00:00")
    assert len(reasons(made_anew, *before[1:], since="2026-03-09T12:00:00+00:00")) == 1


def test_feedback_calls_for_nothing() -> None:
    assert reasons(report(groups_by_feedback=failing())) == ()


def test_an_expired_verdict_is_made_again_without_any_traffic() -> None:
    assert reasons(expires="2026-03-09T23:00:00+00:00") == ("the champion's verdict expired on 2026-03-09",)
    assert reasons(expires="2026-03-10T00:00:00+00:00") == ()


def test_low_confidence_alone_which_is_an_estimate_calls_for_nothing() -> None:
    assert reasons(report(feedback=Quality(1000, 0, 0, (0.0, 1.0), 0.2))) == ()


def test_a_challengers_days_add_up_and_each_counts_once_by_its_last_report() -> None:
    def day(name: str, wins: int, *, made_at: str = "2026-03-09T01:00:00+00:00", digest: str = "t") -> Report:
        return report(day=name, made_at=made_at, challenger=paired(Pairs(wins, 2, 30), digest=digest))

    result = challenger_decision(
        [
            day("2026-03-06", 6),
            day("2026-03-07", 9),
            day("2026-03-06", 7, made_at="2026-03-10T01:00:00+00:00"),
            day("2026-03-08", 20, digest="another"),
        ],
        digest="t",
        alpha=0.05,
        today=TODAY,
    )
    assert result.pairs == Pairs(16, 4, 60)
    assert result.decision is Decision.CONTINUE
    assert challenger_decision([], digest="t", alpha=0.05, today=TODAY).pairs == Pairs(0, 0, 0)


def test_a_challenger_has_one_alpha_however_few_of_its_groups_were_seen() -> None:
    def decided(groups: dict[str, Pairs]) -> Decision:
        days = [report(challenger=paired(Pairs(3, 17, 20), groups=groups))]
        return challenger_decision(days, digest="t", alpha=0.05, today=TODAY).decision

    assert decided({}) is Decision.STOP
    assert decided({f"sex = {sex}": Pairs(0, 0, 0) for sex in "fm"}) is Decision.CONTINUE


def test_a_canarys_day_counts_once_no_label_is_waited_for() -> None:
    days = [
        report(day="2026-02-05", labels_until="2026-03-07", challenger=paired(Pairs(5, 1, 9), by_order=True)),
        report(day="2026-02-06", labels_until="2026-03-08", challenger=paired(Pairs(7, 1, 9), by_order=True)),
        report(day="2026-02-07", labels_until="2026-03-09", challenger=paired(Pairs(9, 1, 10))),
    ]
    assert challenger_decision(days, digest="t", alpha=0.05, today=TODAY).pairs == Pairs(14, 2, 19)
    assert challenger_decision(days, digest="t", alpha=0.05, today=date(2026, 3, 10)).pairs == Pairs(21, 3, 28)


def test_the_page_shows_alarms_labels_and_a_challenger_with_everything_escaped() -> None:
    pairs = paired(Pairs(60, 10, 100), by_feedback=Pairs(3, 2, 9))
    reports = [
        report(day="2026-03-07", challenger=pairs.model_copy(update={"pairs": Pairs(0, 0, 0)})),
        report(drift=(ALARM,), challenger=pairs, groups_by_feedback=failing(), notes=("<b>odd</b>",)),
    ]
    recommendation = recommend(reports, expires=None, today=TODAY, challenger="t", alpha=0.05)
    page = render_page("my <task>", reports, recommendation=recommendation)
    for text in (
        "my &lt;task&gt;",
        "Make the verdict again",
        "Challenger: promote. proven better: of 70 pairs that differ the challenger alone is right in 60",
        "80.0 %",
        "Groups by feedback, which nothing acts on",
        "Of 10 pairs that differ the challenger alone is right in 6.",
        "71.0 to 87.0",
        "90.0 % of the answers would be right if their confidences were true. An estimate, which nothing acts on.",
        "&lt;b&gt;odd&lt;/b&gt;",
        '<span class="fails">alarm</span>',
    ):
        assert text in page
    assert "<script" not in page


def test_gauges_are_what_a_prometheus_reads() -> None:
    reports = [report(drift=(ALARM,))]
    recommendation = recommend(reports, expires=None, today=TODAY, challenger=None, alpha=0.05)
    metrics = render_metrics('my "task"', reports, recommendation=recommendation)
    assert 'tailorbird_watch_reevaluation_wanted{model="my \\"task\\""} 1\n' in metrics
    assert 'tailorbird_watch_drift{model="my \\"task\\"",statistic="unfamiliar"} 0.12\n' in metrics
    assert 'tailorbird_watch_accuracy{model="my \\"task\\"",by="feedback"} 0.8\n' in metrics
    assert 'by="audit"} 0.8' not in metrics  # without labels there is no accuracy
    names = [line.split("{")[0] for line in metrics.splitlines() if not line.startswith("#")]
    assert all(metrics.count(f"# TYPE {name} gauge\n") == 1 for name in names)


@pytest.mark.parametrize("answers", [0, 10])
def test_what_was_never_labelled_has_no_accuracy(answers: int) -> None:
    result = Quality(answers, 0, 0, (0.0, 1.0), None)
    assert (result.accuracy, result.coverage) == (None, 0.0)
