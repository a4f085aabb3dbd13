"""The TrialBroker between Tune and the worker groups, without Ray: no trial is lost, repeated or waits for ever."""

import asyncio
import subprocess
import sys

import pytest

from tests.unit.tuning.broker import epoch, new_broker, record, result, run, settle, take
from tuning.trial_broker import SweepFailed, TrialAssignment, TrialBroker
from tuning.trial_record import SweepJournal, TrialRecord


def test_a_trial_goes_from_tune_to_a_group_and_its_epochs_back() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("a", {"learning_rate": 1})
        assert await broker.take("group-0") == TrialAssignment("a", {"learning_rate": 1}, None)
        first = asyncio.create_task(broker.next_report("a"))
        reported = asyncio.create_task(broker.report("a", epoch(0), last=False))
        assert (await first).epoch == 0
        await settle()
        assert not reported.done()  # the group waits for Tune's word
        second = asyncio.create_task(broker.next_report("a"))
        assert await reported is True
        assert await broker.report("a", epoch(1), last=True) is False
        assert (await second).done
        await broker.finish("group-0", "a", result("s3://here"))
        assert broker.journal() == SweepJournal(
            trials=(
                TrialRecord(
                    trial="a",
                    config={"learning_rate": 1},
                    epochs=[epoch(0), epoch(1)],
                    completed=True,
                    result=result("s3://here"),
                ),
            ),
        )

    run(story())


def test_trials_are_taken_in_order_of_submission_and_a_group_waits_for_the_next() -> None:
    async def story() -> None:
        broker = new_broker()
        waiting = asyncio.create_task(broker.take("group-0"))
        await settle()
        assert not waiting.done()
        for name in ("a", "b"):
            await broker.submit(name, {})
        assert [getattr(await waiting, "trial", None), await take(broker, "group-1")] == ["a", "b"]

    run(story())


def test_a_cancelled_trial_ends_after_the_epoch_it_reports() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("a", {})
        await broker.take("group-0")
        first = asyncio.create_task(broker.next_report("a"))
        reported = asyncio.create_task(broker.report("a", epoch(0), last=False))
        await first
        await broker.cancel("a")
        assert await reported is False

    run(story())


def test_closing_ends_waiting_groups_and_trials_that_tune_does_not_continue() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("a", {})
        await broker.take("group-0")
        idle = asyncio.create_task(broker.take("group-1"))
        requested = asyncio.create_task(broker.next_report("a"))
        reported = asyncio.create_task(broker.report("a", epoch(0), last=False))
        await requested
        await broker.close()
        assert await idle is None
        assert await reported is False
        assert await broker.take("group-2") is None

    run(story())


def test_a_finished_trial_is_not_assigned_again() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("a", {})
        await broker.take("group-0")
        await broker.finish("group-0", "a", result())
        await broker.close()
        assert await broker.take("group-0") is None

    run(story())


def test_a_trial_that_failed_by_itself_is_not_assigned_again() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("diverged", {})
        await broker.submit("next", {})
        assert await broker.take("group") == TrialAssignment("diverged", {}, None)
        requested = asyncio.create_task(broker.next_report("diverged"))
        await broker.give_up("group", "diverged", "the loss is nan")
        with pytest.raises(SweepFailed, match="the loss is nan"):
            await requested
        assert await broker.take("group") == TrialAssignment("next", {}, None)
        assert record(broker, "diverged").failure == "the loss is nan"

    run(story())


def test_a_completed_trial_outranks_a_better_one_that_was_stopped() -> None:
    async def story() -> None:
        broker = new_broker()
        await exported(broker, "stopped", score=0.8, completed=False)
        assert not broker.is_best(score=0.7, completed=False)
        assert broker.is_best(score=0.6, completed=True)
        await exported(broker, "completed", score=0.6, completed=True)
        assert not broker.is_best(score=0.9, completed=False)
        assert not broker.is_best(score=0.6, completed=True)
        assert broker.is_best(score=0.65, completed=True)

    run(story())


def test_a_trial_is_the_best_once_its_weights_are_exported() -> None:
    async def story() -> None:
        broker = new_broker()
        assert broker.is_best(score=0.8, completed=True)
        assert broker.is_best(score=0.8, completed=True)  # its group died while it exported: it may try again
        await broker.submit("diverged", {})
        await broker.finish("group-0", "diverged", result(score=0.9))
        assert broker.is_best(score=0.1, completed=False)

    run(story())


def test_a_trial_cancelled_before_a_group_took_it_is_not_taken() -> None:
    async def story() -> None:
        broker = new_broker()
        await broker.submit("a", {})
        await broker.submit("b", {})
        await broker.cancel("a")
        assert await take(broker) == "b"

    run(story())


def test_when_the_sweep_ends_itself_the_trials_that_end_with_it_are_marked() -> None:
    async def story() -> None:
        broker = new_broker()
        for name in ("stopped", "completed", "running"):
            await broker.submit(name, {})
        await broker.cancel("stopped")
        await broker.report("completed", epoch(0), last=True)
        await broker.end("out of reach")
        assert broker.journal().ended == "out of reach"
        assert {record.trial for record in broker.journal().trials if record.ended_with_sweep} == {"running"}

    run(story())


async def exported(broker: TrialBroker, trial_id: str, *, score: float, completed: bool) -> None:
    await broker.submit(trial_id, {})
    if completed:
        await broker.report(trial_id, epoch(0, score=score), last=True)
    await broker.finish("group-0", trial_id, result(f"s3://{trial_id}", score=score))


def test_the_actor_s_process_imports_neither_torch_nor_tune() -> None:
    code = "import sys, tuning.trial_broker; sys.exit(bool({'torch', 'ray.tune', 'ray.train'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
