"""The TrialBroker after failures of worker groups, and after an interrupted sweep."""

import asyncio

import pytest

from tests.unit.tuning.broker import (
    epoch,
    in_training,
    new_broker,
    record,
    result,
    run,
    save,
    settle,
    submitted,
    take,
)
from tuning.trial_broker import MAX_FAILURES, SweepFailed, TrialAssignment
from tuning.trial_record import SampledValues, SweepJournal, TrialRecord


@run
async def test_a_restarted_group_gets_its_trial_again_and_tune_gets_each_epoch_once() -> None:
    broker = await in_training("a", "b")
    first = asyncio.create_task(broker.next_report("a"))
    reported = asyncio.create_task(broker.report("a", epoch(0), last=False))
    await first
    second = asyncio.create_task(broker.next_report("a"))
    await reported
    # The group dies here. The restarted group has the same name, and starts the trial from its
    # first epoch.
    assert await broker.take("group-0") == TrialAssignment("a", {}, None)
    # This report returns at once, because Tune has the epoch.
    assert await broker.report("a", epoch(0, score=0.9), last=False) is True
    assert not second.done()
    assert await broker.report("a", epoch(1), last=True) is False
    assert (await second).done
    assert [report.epoch for report in record(broker, "a").epochs] == [0, 1]
    assert record(broker, "a").epochs[0].score == 0.5


@run
async def test_tune_gets_the_error_of_the_last_group() -> None:
    broker = await submitted("a")
    requested = asyncio.create_task(broker.next_report("a"))
    await settle()
    await broker.group_lost("group-0", "worker group failed: out of memory", last=True)
    with pytest.raises(SweepFailed, match="out of memory"):
        await requested


@run
async def test_a_requeued_trial_goes_to_a_waiting_group_and_the_restarted_group_gets_the_next_trial() -> (
    None
):
    broker = await in_training("a")
    await save(broker, "a", "s3://a/1")
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


@run
async def test_changes_of_the_number_of_workers_do_not_count_as_failures() -> None:
    broker = await submitted("a")
    for _ in range(3 * MAX_FAILURES):
        assert await take(broker) == "a"
    await broker.requeue("group-0", "out of memory")  # one failure
    assert await take(broker) == "a"


@run
async def test_a_trial_that_fails_in_different_groups_is_not_retried() -> None:
    broker = await submitted("a")
    for number in range(MAX_FAILURES):
        assert await broker.take(f"group-{number}") == TrialAssignment("a", {}, None)
        await broker.requeue(f"group-{number}", "out of memory")
    failure = f"trial a failed {MAX_FAILURES} times and is not retried: out of memory"
    assert record(broker, "a").failure == failure
    await broker.requeue("group-0", "out of memory")  # does nothing, because the group has no trial


@run
async def test_reports_about_a_finished_trial_are_ignored() -> None:
    broker = await in_training("a")
    await broker.requeue("group-0", "out of memory")
    await broker.take("group-1")
    finished = result("s3://here")
    await broker.finish("group-0", "a", finished)
    await broker.finish("group-1", "a", result())
    await broker.give_up("group-1", "a", "diverged")
    assert (record(broker, "a").result, record(broker, "a").failure) == (finished, None)


@run
async def test_a_trial_resumes_from_its_newest_checkpoint_and_saved_returns_the_previous_one() -> (
    None
):
    broker = await in_training("a")
    assert await save(broker, "a", "s3://first") is None
    assert await save(broker, "a", "s3://second") == "s3://first"
    # The group restarts.
    assert await broker.take("group-0") == TrialAssignment("a", {}, "s3://second")
    await broker.group_lost("group-0", "no node", last=False)
    assert await broker.take("group-1") == TrialAssignment("a", {}, "s3://second")


@run
async def test_a_checkpoint_is_recorded_after_the_last_rank_has_stored_its_part() -> None:
    broker = await in_training("a")
    await save(broker, "a", "s3://first")
    assert await broker.saved("group-0", "a", "s3://second", num_ranks=2) is None
    assert record(broker, "a").checkpoint == "s3://first"
    await broker.requeue("group-0", "worker 0 was killed during its upload")
    assert await broker.take("group-1") == TrialAssignment("a", {}, "s3://first")
    # An upload of the failed group that ends late does not replace the checkpoint that the new
    # group resumes from.
    assert await broker.saved("group-0", "a", "s3://second", num_ranks=2) is None
    assert record(broker, "a").checkpoint == "s3://first"


@run
async def test_a_trial_with_a_new_checkpoint_before_each_failure_is_retried() -> None:
    broker = await submitted("long")
    for number in range(3 * MAX_FAILURES):
        assert await take(broker) == "long"
        await save(broker, "long", f"s3://{number}")
        await broker.requeue("group-0", "out of memory")
    assert await take(broker) == "long"


@run
async def test_a_finished_trial_of_an_interrupted_sweep_is_reported_again_and_not_assigned() -> (
    None
):
    done = TrialRecord(
        trial="old", config={"x": 1}, epochs=[epoch(0), epoch(1)], result=result("s3://old")
    )
    broker = new_broker(known=(done,))
    assert not broker.is_best(score=0.5, completed=False)
    await broker.submit("new", {"x": 1})
    await broker.submit("other", {"x": 2})
    assert [(await broker.next_report("new")).done for _ in range(2)] == [False, True]
    assert await broker.take("group-0") == TrialAssignment("other", {"x": 2}, None)
    assert [record.trial for record in broker.journal().trials] == ["old", "other"]


@run
async def test_an_unfinished_trial_of_an_interrupted_sweep_resumes_under_its_former_name() -> None:
    unfinished = TrialRecord(
        trial="old", config={"x": 1}, epochs=[epoch(0)], checkpoint="s3://saved"
    )
    broker = new_broker(known=(unfinished,))
    await broker.submit("new", {"x": 1})
    assert await broker.take("group-0") == TrialAssignment("old", {"x": 1}, "s3://saved")
    assert not (await broker.next_report("new")).done
    second = asyncio.create_task(broker.next_report("new"))
    assert await broker.report("old", epoch(1), last=True) is False
    assert (await second).done


@run
async def test_a_trial_that_failed_in_an_interrupted_sweep_fails_again_without_a_group() -> None:
    broker = new_broker(known=(TrialRecord(trial="old", config={}, failure="the loss is nan"),))
    await broker.submit("new", {})
    with pytest.raises(SweepFailed, match="the loss is nan"):
        await broker.next_report("new")
    await broker.close()
    assert await broker.take("group-0") is None


@run
async def test_each_trial_continues_another_known_trial_of_the_same_configuration() -> None:
    finished = TrialRecord(trial="first", config={}, result=result(score=0.1))
    broker = new_broker(known=(finished, TrialRecord(trial="second", config={})))
    for name in ("a", "b", "c"):
        await broker.submit(name, {})
    assert [record.trial for record in broker.journal().trials] == ["first", "second", "c"]
    assert await take(broker) == "second"


@run
async def test_the_journal_is_written_after_each_change() -> None:
    journals: list[SweepJournal] = []
    broker = new_broker(journals=journals)
    await broker.submit("a", {"x": 1})
    await broker.take("group-0")
    assert await broker.report("a", epoch(0), last=True) is False
    await save(broker, "a", "s3://kept")
    await broker.finish("group-0", "a", result())
    assert [journal.trials[0].checkpoint for journal in journals] == [
        None,
        "s3://kept",
        "s3://kept",
    ]
    assert journals[-1] == broker.journal()
    assert [record.over for record in journals[-1].trials] == [True]


@run
async def test_a_lack_of_memory_limits_the_micro_batches_of_this_and_later_trials() -> None:
    broker = new_broker()
    for name in ("a", "b"):
        await broker.submit(name, {"epochs": 2})
    assert await take(broker) == "a"
    limited: SampledValues = {"epochs": 2, "batch_tokens": 512}
    for limit in (512, *[1024] * MAX_FAILURES):  # not counted as failures of the trial
        await broker.requeue("group-0", "out of memory", batch_tokens=limit)
        assert await broker.take("group-0") == TrialAssignment("a", limited, None)
    assert await broker.take("group-1") == TrialAssignment("b", limited, None)
    assert record(broker, "a").batch_tokens == 512
    # as Tune has sampled it
    assert record(broker, "a").config == {"epochs": 2}
