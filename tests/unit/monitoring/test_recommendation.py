from datetime import date
from typing import Any

import pytest

from tailorbird.evaluation.gates.base import Gate, at_most, gate
from tailorbird.monitoring.drift import Sign
from tailorbird.monitoring.quality import Quality
from tailorbird.monitoring.recommendation import advise, judged
from tailorbird.monitoring.render import gauges, page
from tailorbird.monitoring.report import Report, TrialPairs, without_traffic
from tailorbird.monitoring.sequential_test import Decision, Pairs

TODAY = date(2026, 3, 9)
ALARM = Sign("unfamiliar", "texts far from all", 0.12, 0.02, 0.0025, 500)
USUAL = Sign("unfamiliar", "texts far from all", 0.01, 0.02, 0.0025, 500)
NOTHING, NO_PAIRS = gate("groups", ()), Pairs(0, 0, 0)
FIELDS: dict[str, Any] = {
    "day": "2026-03-08",
    "days": 1,
    "made_at": "2026-03-09T01:00:00+00:00",
    "inputs": "0" * 64,
    "version": "full-1",
    "digest": "d",
    "rows": 1000,
    "counted": (),
    "trial": None,
    "notes": (),
    "labels_until": "2026-04-07",
}


def report(**fields: Any) -> Report:
    given = {
        "feedback": Quality(1000, 100, 80, (0.71, 0.87), 0.9),
        "audit": Quality(1000, 0, 0, (0.0, 1.0), 0.9),
        "signs": (USUAL,),
        "groups": NOTHING,
        "groups_by_feedback": NOTHING,
        "counterfactual": None,
    }
    return Report(**FIELDS | given | fields)


def tried(
    pairs: Pairs,
    *,
    digest: str = "t",
    groups: dict[str, Pairs] | None = None,
    by_order: bool = False,
    by_feedback: Pairs = NO_PAIRS,
) -> TrialPairs:
    return TrialPairs(
        digest=digest, pairs=pairs, groups=groups or {}, reading=NOTHING, by_order=by_order, by_feedback=by_feedback
    )


def failing(estimate: float = 0.1, *, what: str = "change in sex = f") -> Gate:
    interval = (estimate - 0.05, estimate + 0.05)
    return gate("groups", (at_most(0.0, what=what, estimate=estimate, interval=interval, n=100),))


def reasons(*reports: Report, expires: str | None = None, since: str | None = None) -> tuple[str, ...]:
    found = advise(reports, expires=expires, today=TODAY, trial=None, alpha=0.05, since=since)
    assert found.reevaluate == bool(found.reasons)
    return found.reasons


def test_a_report_is_read_back_as_it_was_written() -> None:
    pairs = TrialPairs(
        digest="t",
        pairs=Pairs(3, 1, 10),
        groups={"sex = f": Pairs(1, 1, 4)},
        reading=NOTHING,
        by_order=True,
        by_feedback=Pairs(1, 0, 2),
    )
    made = report(signs=(ALARM,), groups=failing(), groups_by_feedback=failing(), trial=pairs)
    assert Report.model_validate_json(made.to_json()) == made


def test_drift_and_a_failed_group_call_for_the_verdict_and_say_by_what() -> None:
    found = reasons(report(signs=(ALARM,), groups=failing()))
    assert found == (
        "2026-03-08: texts far from all: 0.120, a clean window stays at or under 0.020 99.75 times in 100 (n = 500)",
        "2026-03-08: change in sex = f: +10.0 points (+5.0 to +15.0, n = 100)",
    )


def test_the_latest_window_with_answers_decides() -> None:
    assert reasons(report(signs=(ALARM,), day="2026-03-07"), report()) == ()
    quiet = without_traffic(**FIELDS | {"day": "2026-03-08", "rows": 0})
    assert len(reasons(report(signs=(ALARM,), day="2026-03-07"), quiet)) == 1
    assert reasons(quiet) == ()
    assert reasons() == ()


def test_what_audits_find_of_days_gone_by_calls_for_the_verdict_while_labels_are_waited_for() -> None:
    found = reasons(
        report(day="2026-02-20", groups=failing(0.2), labels_until="2026-03-08"),
        report(day="2026-02-21", groups=failing(), counterfactual=failing(what="flipped"), signs=(ALARM,)),
        report(),
    )
    assert found == (
        "2026-02-21: change in sex = f: +10.0 points (+5.0 to +15.0, n = 100)",  # once, by the latest
        "2026-02-21: flipped: +10.0 points (+5.0 to +15.0, n = 100)",
    )
    late = report(day="2026-02-20", groups=failing(), labels_until="2026-03-08")
    assert len(reasons(late, report())) == 1
    assert reasons(report(day="2026-02-19", groups=failing(), labels_until="2026-03-07"), report()) == ()
    assert reasons(report(day="2026-02-19", groups=failing(), labels_until=None), report()) == ()


def test_what_was_reported_before_the_verdict_was_made_again_does_not_call_for_it_anew() -> None:
    before = report(day="2026-03-01", groups=failing()), report(signs=(ALARM,), groups=failing())
    assert len(reasons(*before, since="2026-03-09T00:59:59+00:00")) == 2
    assert reasons(*before, since="2026-03-09T01:00:00+00:00") == ()
    made_anew = report(day="2026-03-01", groups=failing(), made_at="2026-03-10T01:00:00+00:00")
    assert len(reasons(made_anew, *before[1:], since="2026-03-09T12:00:00+00:00")) == 1


def test_feedback_calls_for_nothing() -> None:
    assert reasons(report(groups_by_feedback=failing())) == ()
    assert reasons(report(groups=failing(), groups_by_feedback=None)) == ()  # groups of both kinds


def test_an_expired_verdict_is_made_again_without_any_traffic() -> None:
    assert reasons(expires="2026-03-09T23:00:00+00:00") == ("the champion's verdict expired on 2026-03-09",)
    assert reasons(expires="2026-03-10T00:00:00+00:00") == ()


def test_low_confidence_alone_which_is_an_estimate_calls_for_nothing() -> None:
    assert reasons(report(feedback=Quality(1000, 0, 0, (0.0, 1.0), 0.2))) == ()


def test_a_trials_days_add_up_and_each_counts_once_by_its_last_report() -> None:
    def day(name: str, wins: int, *, made_at: str = "2026-03-09T01:00:00+00:00", digest: str = "t") -> Report:
        return report(day=name, made_at=made_at, trial=tried(Pairs(wins, 2, 30), digest=digest))

    found = judged(
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
    assert found.pairs == Pairs(16, 4, 60)
    assert found.decision is Decision.GO_ON
    assert judged([], digest="t", alpha=0.05, today=TODAY).pairs == Pairs(0, 0, 0)


def test_a_trial_has_one_alpha_however_few_of_its_groups_were_seen() -> None:
    def decided(groups: dict[str, Pairs]) -> Decision:
        days = [report(trial=tried(Pairs(3, 17, 20), groups=groups))]
        return judged(days, digest="t", alpha=0.05, today=TODAY).decision

    assert decided({}) is Decision.STOP
    assert decided({f"sex = {sex}": Pairs(0, 0, 0) for sex in "fm"}) is Decision.GO_ON


def test_a_canarys_day_counts_once_no_label_is_waited_for() -> None:
    days = [
        report(day="2026-02-05", labels_until="2026-03-07", trial=tried(Pairs(5, 1, 9), by_order=True)),
        report(day="2026-02-06", labels_until="2026-03-08", trial=tried(Pairs(7, 1, 9), by_order=True)),
        report(day="2026-02-07", labels_until="2026-03-09", trial=tried(Pairs(9, 1, 10))),
    ]
    assert judged(days, digest="t", alpha=0.05, today=TODAY).pairs == Pairs(14, 2, 19)
    assert judged(days, digest="t", alpha=0.05, today=date(2026, 3, 10)).pairs == Pairs(21, 3, 28)


def test_pairs_in_which_feedback_was_mixed_decide_nothing() -> None:
    mixed = tried(Pairs(90, 1, 100)).model_copy(update={"by_feedback": None})
    assert judged([report(trial=mixed)], digest="t", alpha=0.05, today=TODAY).decision is Decision.GO_ON


def test_the_page_shows_alarms_labels_and_a_trial_with_everything_escaped() -> None:
    pairs = tried(Pairs(60, 10, 100), by_feedback=Pairs(3, 2, 9))
    reports = [
        report(day="2026-03-07", trial=pairs.model_copy(update={"pairs": Pairs(0, 0, 0)})),
        report(signs=(ALARM,), trial=pairs, groups_by_feedback=failing(), notes=("<b>odd</b>",)),
    ]
    advice = advise(reports, expires=None, today=TODAY, trial="t", alpha=0.05)
    shown = page("my <task>", reports, advice=advice)
    for wanted in (
        "my &lt;task&gt;",
        "Make the verdict again",
        "On trial: promote. proven better: of 70 pairs that differ the trial alone is right in 60",
        "80.0 %",
        "Groups by feedback, which nothing acts on",
        "Of 10 pairs that differ the trial alone is right in 6.",
        "71.0 to 87.0",
        "90.0 % of the answers would be right if their confidences were true. An estimate, which nothing acts on.",
        "&lt;b&gt;odd&lt;/b&gt;",
        '<span class="fails">alarm</span>',
    ):
        assert wanted in shown
    assert "<script" not in shown


def test_gauges_are_what_a_prometheus_reads() -> None:
    reports = [report(signs=(ALARM,))]
    advice = advise(reports, expires=None, today=TODAY, trial=None, alpha=0.05)
    told = gauges('my "task"', reports, advice=advice)
    assert 'tailorbird_watch_reevaluation_wanted{model="my \\"task\\""} 1\n' in told
    assert 'tailorbird_watch_drift{model="my \\"task\\"",sign="unfamiliar"} 0.12\n' in told
    assert 'tailorbird_watch_accuracy{model="my \\"task\\"",by="feedback"} 0.8\n' in told
    assert 'by="audit"} 0.8' not in told  # without labels there is no accuracy
    names = [line.split("{")[0] for line in told.splitlines() if not line.startswith("#")]
    assert all(told.count(f"# TYPE {name} gauge\n") == 1 for name in names)


@pytest.mark.parametrize("given", [("answers", 0), ("answers", 10)])
def test_what_was_never_labelled_has_no_accuracy(given: tuple[str, int]) -> None:
    found = Quality(given[1], 0, 0, (0.0, 1.0), None)
    assert (found.accuracy, found.coverage) == (None, 0.0)
