"""Helpers to test the TrialBroker without Ray."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from training.reports import EpochReport, TrainingResult
from tuning.trial_broker import TrialBroker
from tuning.trial_record import SweepJournal, TrialRecord

LIMIT_S = 20  # a test that hangs fails after this time


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Return a test that pytest can call."""

    @wraps(test)
    def run_in_loop() -> None:
        asyncio.run(asyncio.wait_for(test(), LIMIT_S))

    return run_in_loop


def epoch(number: int, *, score: float = 0.5) -> EpochReport:
    return EpochReport(
        number,
        score,
        loss=1.0,
        rows_per_second=1.0,
        step_seconds=1.0,
        total_seconds=1.0,
        padding_share=0,
    )


def result(weights: str = "", *, score: float = 0.5) -> TrainingResult:
    return TrainingResult(
        weights=weights,
        score=score,
        epochs=1,
        rows_per_second=1.0,
        padding_share=0.0,
        step_seconds=1.0,
        dtype="float32",
    )


def new_broker(
    *,
    num_trials: int = 100,
    known: tuple[TrialRecord, ...] = (),
    journals: list[SweepJournal] | None = None,
) -> TrialBroker:
    return TrialBroker(
        keep=(journals if journals is not None else []).append, num_trials=num_trials, known=known
    )


async def submitted(*names: str) -> TrialBroker:
    """Return a broker with these trials."""
    broker = new_broker()
    for name in names:
        await broker.submit(name, {})
    return broker


async def in_training(*names: str) -> TrialBroker:
    """Return a broker with these trials, of which group-0 trains the first."""
    broker = await submitted(*names)
    await broker.take("group-0")
    return broker


def record(broker: TrialBroker, trial: str) -> TrialRecord:
    """Return a trial's record in the journal."""
    return next(record for record in broker.journal().trials if record.trial == trial)


async def take(broker: TrialBroker, group: str = "group-0") -> str:
    """Return the name of the trial that a group gets."""
    assignment = await broker.take(group)
    assert assignment is not None
    return assignment.trial


async def settle() -> None:
    """Run all tasks until each of them waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def save(broker: TrialBroker, trial: str, checkpoint: str) -> str | None:
    """Record a checkpoint of a trial by the only rank of group-0; return the previous
    checkpoint."""
    return await broker.saved("group-0", trial, checkpoint, num_ranks=1)
