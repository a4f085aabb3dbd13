"""The desk between Tune and the worker groups, without Ray: no trial is lost, repeated to Tune, or waits for ever."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from tuning.trial_broker import MAX_FAILURES, Journal, SweepFailed, TrialBroker, TrialRecord

T = TypeVar("T")
LIMIT_S = 20  # a hang is a failure, not a long wait


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, LIMIT_S))


def epoch(number: int, *, last: bool = False, score: float = 0.5) -> dict[str, Any]:
    return {"epoch": number, "score": score, "last": last}


def a_desk(*, known: tuple[TrialRecord, ...] = (), kept: list[Journal] | None = None) -> TrialBroker:
    return TrialBroker(keep=(kept if kept is not None else []).append, known=known)


def record(desk: TrialBroker, trial: str) -> dict[str, Any]:
    """What the journal says of a trial."""
    found: dict[str, Any] = next(value for value in desk.journal()["trials"] if value["trial"] == trial)
    return found


async def settle() -> None:
    """Lets every task that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_trial_goes_from_tune_to_a_group_and_its_epochs_back() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("a", {"learning_rate": 1})
        assert await desk.take("group-0") == ("a", {"learning_rate": 1}, None)
        first = asyncio.create_task(desk.next_report("a"))
        told = asyncio.create_task(desk.report("a", epoch(0)))
        assert (await first)["epoch"] == 0
        await settle()
        assert not told.done()  # the group waits for Tune's word
        second = asyncio.create_task(desk.next_report("a"))
        assert await told is True
        assert await desk.report("a", epoch(1, last=True)) is False
        assert (await second)["last"]
        await desk.finish("group-0", "a", {"weights": "s3://here", "score": 0.5})
        assert desk.journal() == {
            "trials": [
                {
                    "trial": "a",
                    "config": {"learning_rate": 1},
                    "epochs": [epoch(0), epoch(1, last=True)],
                    "checkpoint": None,
                    "outcome": {"weights": "s3://here", "score": 0.5},
                    "failure": None,
                    "by_workers": False,
                    "with_sweep": False,
                }
            ],
            "ended": None,
        }

    run(story())


def test_trials_are_taken_in_the_order_they_came_and_a_group_waits_for_the_next() -> None:
    async def story() -> None:
        desk = a_desk()
        waiting = asyncio.create_task(desk.take("group-0"))
        await settle()
        assert not waiting.done()
        for name in ("a", "b"):
            await desk.submit(name, {})
        assert [(await waiting or ("",))[0], (await desk.take("group-1") or ("",))[0]] == ["a", "b"]

    run(story())


def test_a_trial_called_off_ends_after_the_epoch_it_reports() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("a", {})
        await desk.take("group-0")
        first = asyncio.create_task(desk.next_report("a"))
        told = asyncio.create_task(desk.report("a", epoch(0)))
        await first
        await desk.call_off("a")
        assert await told is False

    run(story())


def test_closing_sends_waiting_groups_home_and_ends_what_nobody_asks_on_for() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("a", {})
        await desk.take("group-0")
        idle = asyncio.create_task(desk.take("group-1"))
        asked = asyncio.create_task(desk.next_report("a"))
        told = asyncio.create_task(desk.report("a", epoch(0)))
        await asked
        await desk.close()
        assert await idle is None
        assert await told is False
        assert await desk.take("group-2") is None

    run(story())


def test_a_group_that_died_gets_its_trial_again_and_tune_hears_each_epoch_once() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("a", {"x": 1})
        await desk.submit("b", {})
        await desk.take("group-0")
        first = asyncio.create_task(desk.next_report("a"))
        told = asyncio.create_task(desk.report("a", epoch(0)))
        await first
        second = asyncio.create_task(desk.next_report("a"))
        await told
        # Here the group dies; what comes back has the same name, and starts the trial from its first epoch.
        assert await desk.take("group-0") == ("a", {"x": 1}, None)
        assert await desk.report("a", epoch(0, score=0.9)) is True  # at once: Tune has this one
        assert not second.done()
        assert await desk.report("a", epoch(1, last=True)) is False
        assert (await second)["epoch"] == 1
        assert [report["epoch"] for report in record(desk, "a")["epochs"]] == [0, 1]
        assert record(desk, "a")["epochs"][0]["score"] == 0.5

    run(story())


def test_a_trial_that_its_group_finished_is_not_handed_out_again() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("a", {})
        await desk.take("group-0")
        await desk.finish("group-0", "a", {"weights": ""})
        await desk.close()
        assert await desk.take("group-0") is None

    run(story())


def test_a_trial_called_off_while_its_group_was_dead_is_not_handed_out_again() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("a", {})
        await desk.take("group-0")
        await desk.call_off("a")
        await desk.submit("b", {})
        assert (await desk.take("group-0") or ("",))[0] == "b"

    run(story())


def test_a_trial_that_kills_its_group_each_time_is_given_up_and_the_next_one_runs() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("deadly", {})
        await desk.submit("good", {})
        asked = asyncio.create_task(desk.next_report("deadly"))
        for _ in range(MAX_FAILURES):
            assert (await desk.take("group-0") or ("",))[0] == "deadly"
            await desk.put_back("group-0", "out of memory")
        assert (await desk.take("group-0") or ("",))[0] == "good"
        with pytest.raises(SweepFailed, match=f"deadly was given up after {MAX_FAILURES} failures: out of memory"):
            await asked

    run(story())


def test_a_trial_that_failed_by_itself_is_not_handed_out_again() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("diverged", {})
        await desk.submit("next", {})
        assert await desk.take("group") == ("diverged", {}, None)
        asked = asyncio.create_task(desk.next_report("diverged"))
        await desk.give_up("group", "diverged", "the loss is nan")
        with pytest.raises(SweepFailed, match="the loss is nan"):
            await asked
        assert await desk.take("group") == ("next", {}, None)
        assert record(desk, "diverged")["failure"] == "the loss is nan"

    run(story())


def test_when_the_groups_are_gone_tune_is_told_why() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("a", {})
        asked = asyncio.create_task(desk.next_report("a"))
        await settle()
        await desk.lose("group-0", "worker group failed 3 times: out of memory", last=True)
        with pytest.raises(SweepFailed, match="out of memory"):
            await asked

    run(story())


def test_a_trial_that_ran_to_its_end_outranks_a_better_one_that_was_stopped() -> None:
    async def story() -> None:
        desk = a_desk()
        await exported(desk, "stopped", score=0.8, completed=False)
        assert not desk.is_best(score=0.7, completed=False)
        assert desk.is_best(score=0.6, completed=True)
        await exported(desk, "completed", score=0.6, completed=True)
        assert not desk.is_best(score=0.9, completed=False)
        assert not desk.is_best(score=0.6, completed=True)
        assert desk.is_best(score=0.65, completed=True)

    run(story())


def test_the_best_is_claimed_by_weights_that_are_there_and_not_by_a_wish_to_export() -> None:
    async def story() -> None:
        desk = a_desk()
        assert desk.is_best(score=0.8, completed=True)
        assert desk.is_best(score=0.8, completed=True)  # its group died while it exported: it may try again
        await desk.submit("diverged", {})
        await desk.finish("group-0", "diverged", {"weights": "", "score": 0.9})
        assert desk.is_best(score=0.1, completed=False)

    run(story())


def test_a_lost_groups_trial_goes_to_another_group() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("a", {})
        assert (await desk.take("group-0") or ("",))[0] == "a"
        await desk.lose("group-0", "no node", last=False)
        assert (await desk.take("group-1") or ("",))[0] == "a"

    run(story())


def test_a_trial_put_back_goes_to_a_group_that_waits_and_its_own_comes_back_for_the_next() -> None:
    async def story() -> None:
        desk = a_desk()
        for name in ("a", "b"):
            await desk.submit(name, {})
        assert await desk.take("group-0") == ("a", {}, None)
        await desk.saved("a", "s3://a/1")
        assert await desk.take("group-1") == ("b", {}, None)
        await desk.finish("group-1", "b", {"weights": "", "score": 0.1})
        waiting = asyncio.create_task(desk.take("group-1"))
        await settle()
        assert not waiting.done()
        await desk.put_back("group-0", "out of memory")
        assert await waiting == ("a", {}, "s3://a/1")
        again = asyncio.create_task(desk.take("group-0"))
        await settle()
        assert not again.done()
        await desk.submit("c", {})
        assert await again == ("c", {}, None)

    run(story())


def test_a_group_whose_number_of_workers_changes_keeps_its_trial_however_often() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("a", {})
        for _ in range(3 * MAX_FAILURES):
            assert (await desk.take("group-0") or ("",))[0] == "a"
        await desk.put_back("group-0", "out of memory")  # one failure
        assert (await desk.take("group-0") or ("",))[0] == "a"

    run(story())


def test_a_trial_put_back_after_each_attempt_is_given_up() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("a", {})
        for number in range(MAX_FAILURES):
            assert await desk.take(f"group-{number}") == ("a", {}, None)
            await desk.put_back(f"group-{number}", "out of memory")
        assert record(desk, "a")["failure"] == f"trial a was given up after {MAX_FAILURES} failures: out of memory"
        await desk.put_back("group-0", "out of memory")  # which holds nothing now

    run(story())


def test_what_a_group_says_of_a_trial_that_another_has_finished_changes_nothing() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("a", {})
        await desk.take("group-0")
        await desk.put_back("group-0", "out of memory")
        await desk.take("group-1")
        outcome = {"weights": "s3://here", "score": 0.5}
        await desk.finish("group-0", "a", outcome)
        await desk.finish("group-1", "a", {"weights": "", "score": 0.5})
        await desk.give_up("group-1", "a", "diverged")
        found = record(desk, "a")
        assert (found["outcome"], found["failure"]) == (outcome, None)

    run(story())


def test_a_trial_goes_on_from_its_newest_checkpoint_and_the_one_before_is_named_to_be_deleted() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("a", {})
        await desk.take("group-0")
        assert await desk.saved("a", "s3://first") is None
        assert await desk.saved("a", "s3://second") == "s3://first"
        assert await desk.take("group-0") == ("a", {}, "s3://second")  # it died and came back
        await desk.lose("group-0", "no node", last=False)
        assert await desk.take("group-1") == ("a", {}, "s3://second")

    run(story())


def test_a_trial_that_leaves_a_checkpoint_each_time_is_not_given_up() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("long", {})
        for number in range(3 * MAX_FAILURES):
            assert (await desk.take("group-0") or ("",))[0] == "long"
            await desk.saved("long", f"s3://{number}")
            await desk.put_back("group-0", "out of memory")
        assert (await desk.take("group-0") or ("",))[0] == "long"

    run(story())


def test_a_trial_called_off_before_a_group_took_it_is_not_taken() -> None:
    async def story() -> None:
        desk = a_desk()
        await desk.submit("a", {})
        await desk.submit("b", {})
        await desk.call_off("a")
        assert (await desk.take("group-0") or ("",))[0] == "b"

    run(story())


def test_a_finished_trial_of_an_interrupted_sweep_is_told_to_tune_again_and_taken_by_nobody() -> None:
    async def story() -> None:
        done = TrialRecord("old", {"x": 1}, epochs=[epoch(0), epoch(1)], outcome={"weights": "s3://old", "score": 0.5})
        desk = a_desk(known=(done,))
        assert not desk.is_best(score=0.5, completed=False)
        await desk.submit("new", {"x": 1})
        await desk.submit("other", {"x": 2})
        assert [(await desk.next_report("new"))["over"] for _ in range(2)] == [False, True]
        assert await desk.take("group-0") == ("other", {"x": 2}, None)
        assert [trial["trial"] for trial in desk.journal()["trials"]] == ["old", "other"]

    run(story())


def test_an_unfinished_trial_of_an_interrupted_sweep_goes_on_under_its_name_from_its_checkpoint() -> None:
    async def story() -> None:
        desk = a_desk(known=(TrialRecord("old", {"x": 1}, epochs=[epoch(0)], checkpoint="s3://kept"),))
        await desk.submit("new", {"x": 1})
        assert await desk.take("group-0") == ("old", {"x": 1}, "s3://kept")
        assert not (await desk.next_report("new"))["over"]
        second = asyncio.create_task(desk.next_report("new"))
        assert await desk.report("old", epoch(1, last=True)) is False
        assert (await second)["over"]

    run(story())


def test_a_trial_that_failed_in_an_interrupted_sweep_fails_again_without_a_group() -> None:
    async def story() -> None:
        desk = a_desk(known=(TrialRecord("old", {}, failure="the loss is nan"),))
        await desk.submit("new", {})
        with pytest.raises(SweepFailed, match="the loss is nan"):
            await desk.next_report("new")
        await desk.close()
        assert await desk.take("group-0") is None

    run(story())


def test_a_trial_given_up_for_its_groups_failures_is_tried_again_by_a_driver_run_again() -> None:
    async def story() -> None:
        kept: list[Journal] = []
        desk = a_desk(kept=kept)
        await desk.submit("a", {"x": 1})
        assert await desk.take("group-0") == ("a", {"x": 1}, None)
        await desk.saved("a", "s3://kept")
        for _ in range(MAX_FAILURES):  # the first is forgiven: it had left a checkpoint
            await desk.put_back("group-0", "out of memory")
            await desk.take("group-0")
        await desk.put_back("group-0", "out of memory")
        assert "out of memory" in str(record(desk, "a")["failure"])
        again = a_desk(known=tuple(TrialRecord.from_dict(value) for value in kept[-1]["trials"]))
        await again.submit("new", {"x": 1})
        assert await again.take("group-0") == ("a", {"x": 1}, "s3://kept")
        assert record(again, "a")["failure"] is None

    run(story())


def test_trials_of_the_same_configuration_take_up_a_known_one_each() -> None:
    async def story() -> None:
        desk = a_desk(
            known=(TrialRecord("first", {}, outcome={"weights": "", "score": 0.1}), TrialRecord("second", {}))
        )
        for name in ("a", "b", "c"):
            await desk.submit(name, {})
        assert [trial["trial"] for trial in desk.journal()["trials"]] == ["first", "second", "c"]
        assert [(await desk.take("group") or ("",))[0] for _ in range(2)] == ["second", "second"]

    run(story())


def test_what_a_driver_run_again_must_know_is_kept_as_it_happens() -> None:
    async def story() -> None:
        kept: list[Journal] = []
        desk = a_desk(kept=kept)
        await desk.submit("a", {"x": 1})
        await desk.take("group-0")
        assert await desk.report("a", epoch(0, last=True)) is False
        await desk.saved("a", "s3://kept")
        await desk.finish("group-0", "a", {"weights": "", "score": 0.5})
        assert [journal["trials"][0]["checkpoint"] for journal in kept] == [None, "s3://kept", "s3://kept"]
        assert kept[-1] == desk.journal()
        assert [TrialRecord.from_dict(value).over for value in kept[-1]["trials"]] == [True]

    run(story())


def test_when_the_sweep_ends_itself_the_trials_that_end_with_it_are_marked() -> None:
    async def story() -> None:
        desk = a_desk()
        for name in ("stopped", "completed", "running"):
            await desk.submit(name, {})
        await desk.call_off("stopped")
        await desk.report("completed", epoch(0, last=True))
        await desk.end("out of reach")
        assert desk.journal()["ended"] == "out of reach"
        assert {trial["trial"] for trial in desk.journal()["trials"] if trial["with_sweep"]} == {"running"}

    run(story())


async def exported(desk: TrialBroker, trial_id: str, *, score: float, completed: bool) -> None:
    await desk.submit(trial_id, {})
    if completed:
        await desk.report(trial_id, epoch(0, last=True, score=score))
    await desk.finish("group-0", trial_id, {"weights": f"s3://{trial_id}", "score": score})
