"""Between Ray Tune and the worker groups: an actor where trials are handed in, taken, reported on and called off."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

MAX_ATTEMPTS = 2
"""Times a trial is handed out before it is given up: its worker group may die under it."""


class SweepFailed(RuntimeError):
    """No worker group is left to run trials; the message is the last group's error."""


@dataclass
class _Trial:
    config: dict[str, Any]
    reports: list[dict[str, Any]] = field(default_factory=list)
    delivered: int = 0
    stopped: bool = False
    attempts: int = 0
    failure: str | None = None
    outcome: dict[str, Any] | None = None

    @property
    def completed(self) -> bool:
        """Whether its last epoch was reported (its weights may still be on their way)."""
        return bool(self.reports) and bool(self.reports[-1]["last"])


class Desk:
    """Used as a Ray actor without a CPU. A report is answered when Tune has asked for the next one or called it off."""

    def __init__(self) -> None:
        self._trials: dict[str, _Trial] = {}
        self._waiting: deque[str] = deque()
        self._held: dict[str, str] = {}
        self._best: tuple[bool, float] | None = None
        self._closed = False
        self._failure: str | None = None
        self._changed = asyncio.Condition()

    async def submit(self, trial_id: str, config: dict[str, Any]) -> None:
        """From Tune: a trial to run."""
        self._trials[trial_id] = _Trial(config)
        self._waiting.append(trial_id)
        await self._notify()

    async def next_report(self, trial_id: str) -> dict[str, Any]:
        """From Tune: waits for the trial's next epoch; asking for it is the word to go on.

        Raises SweepFailed when no group is left, or the trial was given up.
        """
        trial = self._trials[trial_id]
        wanted = trial.delivered
        trial.delivered += 1
        await self._notify()
        async with self._changed:
            await self._changed.wait_for(lambda: len(trial.reports) > wanted or self._failure or trial.stopped)
        if len(trial.reports) > wanted:
            return trial.reports[wanted]
        raise SweepFailed(self._failure or trial.failure or f"trial {trial_id} was called off")

    async def call_off(self, trial_id: str) -> None:
        """From Tune: the trial need not go on."""
        self._trials[trial_id].stopped = True
        await self._notify()

    async def take(self, group: str) -> tuple[str, dict[str, Any]] | None:
        """From a worker group: the next trial, None when the sweep is over.

        A group that comes back without having finished its trial gets the same one again.
        """
        held = self._held.pop(group, None)
        if held is not None:
            trial = self._trials[held]
            if trial.attempts >= MAX_ATTEMPTS:
                await self._fail(held, f"trial {held} was given up after {trial.attempts} attempts")
            elif trial.completed or not trial.stopped:
                self._waiting.appendleft(held)
        async with self._changed:
            await self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            trial_id = self._waiting.popleft()
        self._held[group] = trial_id
        self._trials[trial_id].attempts += 1
        return trial_id, self._trials[trial_id].config

    async def report(self, trial_id: str, epoch: dict[str, Any]) -> bool:
        """From a worker group: an epoch's figures; True to go on. A repeated epoch is not told twice."""
        trial = self._trials[trial_id]
        if epoch["epoch"] < len(trial.reports):
            return trial.completed or not trial.stopped
        trial.reports.append(epoch)
        await self._notify()
        if epoch["last"]:
            return False
        async with self._changed:
            await self._changed.wait_for(lambda: trial.delivered > len(trial.reports) or trial.stopped or self._closed)
        return trial.delivered > len(trial.reports)

    def is_best(self, *, score: float, completed: bool) -> bool:
        """From a worker group: whether to export the weights. A trial that ran to its end outranks a stopped one."""
        return self._best is None or (completed, score) > self._best

    async def finish(self, group: str, trial_id: str, outcome: dict[str, Any]) -> None:
        """From a worker group: the trial is over; `outcome` holds its weights' URI where it was the best so far."""
        trial = self._trials[trial_id]
        trial.outcome = outcome
        if outcome["weights"]:
            self._best = max(self._best or (False, 0.0), (trial.completed, float(outcome["score"])))
        self._held.pop(group, None)

    async def give_up(self, group: str, trial_id: str, message: str) -> None:
        """From a worker group: the trial failed by itself, and would again."""
        self._held.pop(group, None)
        await self._fail(trial_id, message)

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """Each trial's configuration, epochs, outcome, and why it failed if it did."""
        return {
            trial_id: {
                "config": trial.config,
                "epochs": trial.reports,
                "outcome": trial.outcome,
                "failure": trial.failure,
            }
            for trial_id, trial in self._trials.items()
        }

    async def close(self) -> None:
        """From the sweep: no more trials; groups that wait go home."""
        self._closed = True
        await self._notify()

    async def lose(self, group: str, message: str, *, last: bool) -> None:
        """From the sweep: a worker group is gone for good; its trial goes to another, if one is left."""
        held = self._held.pop(group, None)
        if held is not None and not self._trials[held].stopped:
            self._waiting.appendleft(held)
        if last:
            self._failure = message
        await self._notify()

    async def _fail(self, trial_id: str, message: str) -> None:
        self._trials[trial_id].failure = message
        self._trials[trial_id].stopped = True
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
