from datetime import date
from typing import Any

import pytest

from evaluation.gates import at_most, gate
from monitoring.advice import advise, judged
from monitoring.betting import Decision, Pairs
from monitoring.drift import Sign
from monitoring.page import gauges, page
from monitoring.quality import Quality
from monitoring.report import Report, TrialPairs, without_traffic

TODAY = date(2026, 3, 9)
ALARM = Sign("unfamiliar", "texts far from all", 0.12, 0.02, 0.0025, 500)
USUAL = Sign("unfamiliar", "texts far from all", 0.01, 0.02, 0.0025, 500)
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
}


def report(**fields: Any) -> Report:
    given = {
        "feedback": Quality(1000, 100, 80, (0.71, 0.87), 0.9),
        "audit": Quality(1000, 0, 0, (0.0, 1.0), 0.9),
        "signs": (USUAL,),
        "groups": gate("groups", ()),
        "counterfactual": None,
    }
    return Report(**FIELDS | given | fields)


def reasons(*reports: Report, expires: str | None = None) -> tuple[str, ...]:
    found = advise(reports, expires=expires, today=TODAY, trial=None, alpha=0.05)
    assert found.reevaluate == bool(found.reasons)
    return found.reasons


def test_a_report_is_read_back_as_it_was_written() -> None:
    bound = at_most(0.0, what="change in sex = f", estimate=0.1, interval=(0.05, 0.15), n=100)
    pairs = TrialPairs(
        digest="t", pairs=Pairs(3, 1, 10), groups={"sex = f": Pairs(1, 1, 4)}, reading=gate("groups", ())
    )
    made = report(signs=(ALARM,), groups=gate("groups", (bound,)), trial=pairs)
    assert Report.model_validate_json(made.to_json()) == made


def test_drift_and_a_failed_group_call_for_the_verdict_and_say_by_what() -> None:
    bound = at_most(0.0, what="change in sex = f", estimate=0.1, interval=(0.05, 0.15), n=100)
    found = reasons(report(signs=(ALARM,), groups=gate("groups", (bound,))))
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


def test_an_expired_verdict_is_made_again_without_any_traffic() -> None:
    assert reasons(expires="2026-03-09T23:00:00+00:00") == ("the champion's verdict expired on 2026-03-09",)
    assert reasons(expires="2026-03-10T00:00:00+00:00") == ()


def test_low_confidence_alone_which_is_an_estimate_calls_for_nothing() -> None:
    assert reasons(report(feedback=Quality(1000, 0, 0, (0.0, 1.0), 0.2))) == ()


def test_a_trials_days_add_up_and_each_counts_once_by_its_last_report() -> None:
    def day(name: str, wins: int, *, made_at: str = "2026-03-09T01:00:00+00:00", digest: str = "t") -> Report:
        groups = {f"sex = {name[-1]}": Pairs(wins, 0, wins)}
        return report(
            day=name,
            made_at=made_at,
            trial=TrialPairs(digest=digest, pairs=Pairs(wins, 2, 30), groups=groups, reading=gate("groups", ())),
        )

    found = judged(
        [
            day("2026-03-06", 6),
            day("2026-03-07", 9),
            day("2026-03-06", 7, made_at="2026-03-10T01:00:00+00:00"),
            day("2026-03-08", 20, digest="another"),
        ],
        digest="t",
        alpha=0.05,
    )
    assert found.pairs == Pairs(16, 4, 60)
    assert found.decision is Decision.GO_ON
    assert judged([], digest="t", alpha=0.05).pairs == Pairs(0, 0, 0)


def test_the_page_shows_alarms_labels_and_a_trial_with_everything_escaped() -> None:
    pairs = TrialPairs(digest="t", pairs=Pairs(60, 10, 100), groups={}, reading=gate("groups", (), note="no pair"))
    reports = [report(day="2026-03-07"), report(signs=(ALARM,), trial=pairs, notes=("<b>odd</b>",))]
    advice = advise(reports, expires=None, today=TODAY, trial="t", alpha=0.05)
    shown = page("my <task>", reports, advice=advice)
    for wanted in (
        "my &lt;task&gt;",
        "Make the verdict again",
        "On trial: promote. proven better: of 70 pairs that differ the trial alone is right in 60",
        "80.0 %",
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
