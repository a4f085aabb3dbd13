"""The TrialBroker after failures of worker groups, and after an interrupted sweep."""

import asyncio

import pytest

from tests.unit.tuning.broker import epoch, new_broker, record, result, run, settle, take
from tuning.trial_broker import MAX_FAILURES, SweepFailed, TrialAssignment
from tuning.trial_record import SweepJournal, TrialRecord


def test_a_group_that_died_gets_its_trial_again_and_tune_gets_each_epoch_once() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("a", {"x": 1})
        await broker.submit("b", {})
        await broker.take("group-0")
        first = asyncio.create_task(broker.next_report("a"))
        reported = asyncio.create_task(broker.report("a", epoch(0), last=False))
        await first
        second = asyncio.create_task(broker.next_report("a"))
        await reported
        # Here the group dies; what comes back has the same name, and starts the trial from its first epoch.
        assert await broker.take("group-0") == TrialAssignment("a", {"x": 1}, None)
        assert await broker.report("a", epoch(0, score=0.9), last=False) is True  # at once: Tune has this one
        assert not second.done()
        assert await broker.report("a", epoch(1), last=True) is False
        assert (await second).epoch == 1
        assert [report.epoch for report in record(broker, "a").epochs] == [0, 1]
        assert record(broker, "a").epochs[0].score == 0.5

    run(story())


def test_a_trial_cancelled_while_its_group_was_dead_is_not_assigned_again() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("a", {})
        await broker.take("group-0")
        await broker.cancel("a")
        await broker.submit("b", {})
        assert await take(broker) == "b"

    run(story())


def test_a_trial_that_kills_its_group_each_time_is_given_up_and_the_next_one_runs() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("deadly", {})
        await broker.submit("good", {})
        requested = asyncio.create_task(broker.next_report("deadly"))
        for _ in range(MAX_FAILURES):
            assert await take(broker) == "deadly"
            await broker.requeue("group-0", "out of memory")
        assert await take(broker) == "good"
        with pytest.raises(SweepFailed, match=f"deadly was given up after {MAX_FAILURES} failures: out of memory"):
            await requested

    run(story())


def test_when_no_group_is_left_tune_gets_the_error() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("a", {})
        requested = asyncio.create_task(broker.next_report("a"))
        await settle()
        await broker.group_lost("group-0", "worker group failed 3 times: out of memory", last=True)
        with pytest.raises(SweepFailed, match="out of memory"):
            await requested

    run(story())


def test_a_lost_groups_trial_goes_to_another_group() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("a", {})
        assert await take(broker) == "a"
        await broker.group_lost("group-0", "no node", last=False)
        assert await take(broker, "group-1") == "a"

    run(story())


def test_a_requeued_trial_goes_to_a_waiting_group_and_its_own_group_gets_the_next() -> None:
    async def story() -> None:
        broker = new_broker()
        for name in ("a", "b"):
            await broker.submit(name, {})
        assert await broker.take("group-0") == TrialAssignment("a", {}, None)
        await broker.saved("a", "s3://a/1")
        assert await broker.take("group-1") == TrialAssignment("b", {}, None)
        await broker.finish("group-1", "b", result(score=0.1))
        waiting = asyncio.create_task(broker.take("group-1"))
        await settle()
        assert not waiting.done()
        await broker.requeue("group-0", "out of memory")
        assert await waiting == TrialAssignment("a", {}, "s3://a/1")
        restarted = asyncio.create_task(broker.take("group-0"))
        await settle()
        assert not restarted.done()
        await broker.submit("c", {})
        assert await restarted == TrialAssignment("c", {}, None)

    run(story())


def test_a_group_whose_number_of_workers_changes_keeps_its_trial_however_often() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("a", {})
        for _ in range(3 * MAX_FAILURES):
            assert await take(broker) == "a"
        await broker.requeue("group-0", "out of memory")  # one failure
        assert await take(broker) == "a"

    run(story())


def test_a_trial_requeued_after_each_attempt_is_given_up() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("a", {})
        for number in range(MAX_FAILURES):
            assert await broker.take(f"group-{number}") == TrialAssignment("a", {}, None)
            await broker.requeue(f"group-{number}", "out of memory")
        assert record(broker, "a").failure == f"trial a was given up after {MAX_FAILURES} failures: out of memory"
        await broker.requeue("group-0", "out of memory")  # which holds nothing now

    run(story())


def test_reports_on_a_trial_that_another_group_has_finished_change_nothing() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("a", {})
        await broker.take("group-0")
        await broker.requeue("group-0", "out of memory")
        await broker.take("group-1")
        finished = result("s3://here")
        await broker.finish("group-0", "a", finished)
        await broker.finish("group-1", "a", result())
        await broker.give_up("group-1", "a", "diverged")
        assert (record(broker, "a").result, record(broker, "a").failure) == (finished, None)

    run(story())


def test_a_trial_resumes_from_its_newest_checkpoint_and_the_previous_one_is_returned_for_deletion() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("a", {})
        await broker.take("group-0")
        assert await broker.saved("a", "s3://first") is None
        assert await broker.saved("a", "s3://second") == "s3://first"
        assert await broker.take("group-0") == TrialAssignment("a", {}, "s3://second")  # it died and came back
        await broker.group_lost("group-0", "no node", last=False)
        assert await broker.take("group-1") == TrialAssignment("a", {}, "s3://second")

    run(story())


def test_a_trial_that_leaves_a_checkpoint_each_time_is_not_given_up() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("long", {})
        for number in range(3 * MAX_FAILURES):
            assert await take(broker) == "long"
            await broker.saved("long", f"s3://{number}")
            await broker.requeue("group-0", "out of memory")
        assert await take(broker) == "long"

    run(story())


def test_a_finished_trial_of_an_interrupted_sweep_is_reported_to_tune_again_and_not_assigned() -> None:
    async def story() -> None:
        done = TrialRecord(trial="old", config={"x": 1}, epochs=[epoch(0), epoch(1)], result=result("s3://old"))
        broker = new_broker(known=(done,))
        assert not broker.is_best(score=0.5, completed=False)
        await broker.submit("new", {"x": 1})
        await broker.submit("other", {"x": 2})
        assert [(await broker.next_report("new")).done for _ in range(2)] == [False, True]
        assert await broker.take("group-0") == TrialAssignment("other", {"x": 2}, None)
        assert [record.trial for record in broker.journal().trials] == ["old", "other"]

    run(story())


def test_an_unfinished_trial_of_an_interrupted_sweep_resumes_under_its_name_from_its_checkpoint() -> None:
    async def story() -> None:
        broker = new_broker(
            known=(TrialRecord(trial="old", config={"x": 1}, epochs=[epoch(0)], checkpoint="s3://kept"),)
        )
        await broker.submit("new", {"x": 1})
        assert await broker.take("group-0") == TrialAssignment("old", {"x": 1}, "s3://kept")
        assert not (await broker.next_report("new")).done
        second = asyncio.create_task(broker.next_report("new"))
        assert await broker.report("old", epoch(1), last=True) is False
        assert (await second).done

    run(story())


def test_a_trial_that_failed_in_an_interrupted_sweep_fails_again_without_a_group() -> None:
    async def story() -> None:
        broker = new_broker(known=(TrialRecord(trial="old", config={}, failure="the loss is nan"),))
        await broker.submit("new", {})
        with pytest.raises(SweepFailed, match="the loss is nan"):
            await broker.next_report("new")
        await broker.close()
        assert await broker.take("group-0") is None

    run(story())


def test_a_trial_given_up_for_its_groups_failures_is_tried_again_after_a_restart() -> None:
    async def story() -> None:
        journals: list[SweepJournal] = []
        broker = new_broker(journals=journals)
        await broker.submit("a", {"x": 1})
        assert await broker.take("group-0") == TrialAssignment("a", {"x": 1}, None)
        await broker.saved("a", "s3://kept")
        for _ in range(MAX_FAILURES):  # the first is forgiven: it had left a checkpoint
            await broker.requeue("group-0", "out of memory")
            await broker.take("group-0")
        await broker.requeue("group-0", "out of memory")
        assert "out of memory" in str(record(broker, "a").failure)
        restarted = new_broker(known=journals[-1].trials)
        await restarted.submit("new", {"x": 1})
        assert await restarted.take("group-0") == TrialAssignment("a", {"x": 1}, "s3://kept")
        assert record(restarted, "a").failure is None

    run(story())


def test_trials_of_the_same_configuration_take_up_a_known_one_each() -> None:
    async def story() -> None:
        broker = new_broker(
            known=(
                TrialRecord(trial="first", config={}, result=result(score=0.1)),
                TrialRecord(trial="second", config={}),
            )
        )
        for name in ("a", "b", "c"):
            await broker.submit(name, {})
        assert [record.trial for record in broker.journal().trials] == ["first", "second", "c"]
        assert [await take(broker, "group") for _ in range(2)] == ["second", "second"]

    run(story())


def test_what_a_restarted_driver_must_know_is_written_at_once() -> None:
    async def story() -> None:
        journals: list[SweepJournal] = []
        broker = new_broker(journals=journals)
        await broker.submit("a", {"x": 1})
        await broker.take("group-0")
        assert await broker.report("a", epoch(0), last=True) is False
        await broker.saved("a", "s3://kept")
        await broker.finish("group-0", "a", result())
        assert [journal.trials[0].checkpoint for journal in journals] == [None, "s3://kept", "s3://kept"]
        assert journals[-1] == broker.journal()
        assert [record.over for record in journals[-1].trials] == [True]

    run(story())
