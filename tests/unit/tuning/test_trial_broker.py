"""The TrialBroker without Ray: no trial is lost, repeated, or waits forever."""

import asyncio

import pytest

from tests.unit.tuning.broker import (
    epoch,
    in_training,
    new_broker,
    record,
    result,
    run,
    settle,
    submitted,
    take,
)
from tuning.trial_broker import SweepFailed, TrialAssignment, TrialBroker


@run
async def test_close_ends_waiting_groups_and_reports() -> None:
    broker = await in_training("a")
    idle = asyncio.create_task(broker.take("group-1"))
    requested = asyncio.create_task(broker.next_report("a"))
    reported = asyncio.create_task(broker.report("a", epoch(0), last=False))
    await requested
    await broker.close()
    assert await idle is None
    assert await reported is False
    assert await broker.take("group-2") is None


@run
async def test_a_group_without_a_trial_left_ends_while_another_group_trains() -> None:
    broker = new_broker(num_trials=2)
    await broker.submit("a", {})
    assert await take(broker, "group-0") == "a"
    idle = asyncio.create_task(broker.take("group-1"))
    await settle()
    assert not idle.done()  # Tune has not submitted the second trial
    await broker.submit("b", {})
    assert getattr(await idle, "trial", None) == "b"
    await broker.finish("group-1", "b", result())
    assert await broker.take("group-1") is None
    await broker.requeue("group-0", "its node was lost")
    assert (
        await take(broker, "group-0") == "a"
    )  # the group restarts with the resources of the other one


@run
async def test_a_failed_trial_is_not_assigned_again() -> None:
    broker = await submitted("diverged", "next")
    assert await broker.take("group") == TrialAssignment("diverged", {}, None)
    requested = asyncio.create_task(broker.next_report("diverged"))
    await broker.give_up("group", "diverged", "the loss is nan")
    with pytest.raises(SweepFailed, match="the loss is nan"):
        await requested
    await broker.requeue(
        "group", "out of memory"
    )  # if a trial exceeds a GPU, the workers of the group fail next
    assert await broker.take("group") == TrialAssignment("next", {}, None)
    assert record(broker, "diverged").failure == "the loss is nan"


@run
async def test_a_completed_trial_ranks_above_a_stopped_trial_with_a_higher_score() -> None:
    broker = new_broker()
    await exported(broker, "stopped", score=0.8, completed=False)
    assert not broker.is_best(score=0.7, completed=False)
    assert broker.is_best(score=0.6, completed=True)
    await exported(broker, "completed", score=0.6, completed=True)
    assert not broker.is_best(score=0.9, completed=False)
    assert not broker.is_best(score=0.6, completed=True)
    assert broker.is_best(score=0.65, completed=True)


@run
async def test_a_trial_is_the_best_only_after_its_weights_are_exported() -> None:
    broker = new_broker()
    assert broker.is_best(score=0.8, completed=True)
    assert broker.is_best(
        score=0.8, completed=True
    )  # a group that died during the export may try again
    await broker.submit("diverged", {})
    await broker.finish("group-0", "diverged", result(score=0.9))
    assert broker.is_best(score=0.1, completed=False)


@run
async def test_a_trial_cancelled_while_it_waits_is_not_assigned() -> None:
    broker = await submitted("a", "b")
    await broker.cancel("a")
    assert await take(broker) == "b"


async def exported(broker: TrialBroker, trial_id: str, *, score: float, completed: bool) -> None:
    await broker.submit(trial_id, {})
    if completed:
        await broker.report(trial_id, epoch(0, score=score), last=True)
    await broker.finish("group-0", trial_id, result(f"s3://{trial_id}", score=score))
