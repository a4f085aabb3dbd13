"""Between Ray Tune and the worker groups: an actor where trials are handed in, taken, reported on and called off."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

MAX_FAILURES = 2
"""Times that the group which holds a trial may fail, without a new checkpoint in between, before the trial is given up.
A group that comes back without a word, because Ray gave it another number of workers, has not failed."""


class SweepFailed(RuntimeError):
    """No worker group is left to run trials; the message is the last group's error."""


@dataclass
class TrialRecord:
    """A trial as the journal keeps it, in plain JSON."""

    trial: str
    config: dict[str, Any]
    epochs: list[dict[str, Any]] = field(default_factory=list)
    """What was reported after each."""
    checkpoint: str | None = None
    """URI of the newest one, from which the trial goes on."""
    outcome: dict[str, Any] | None = None
    """Of a finished trial: what it measured, and its weights' URI where it was the best so far."""
    failure: str | None = None
    by_workers: bool = False
    """Whether `failure` is of the groups that held it: run again, the sweep tries the trial again."""
    with_sweep: bool = False
    """Whether it was not over when the whole sweep was ended."""

    @property
    def completed(self) -> bool:
        """Whether its last epoch was reported (its weights may still be on their way)."""
        return bool(self.epochs) and bool(self.epochs[-1]["last"])

    @property
    def over(self) -> bool:
        """Whether no group need take it again."""
        return self.outcome is not None or self.failure is not None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        return cls(**value)


@dataclass
class _Trial:
    record: TrialRecord
    delivered: int = 0
    stopped: bool = False
    failures: int = 0
    """Of groups that held it, since its newest checkpoint."""
    has_saved: bool = False
    """Whether it has left a checkpoint since it was taken."""

    @property
    def wanted(self) -> bool:
        """Whether a group has to take it: not if it was called off, but then still for its weights if completed."""
        return not self.record.over and (self.record.completed or not self.stopped)


Journal = dict[str, Any]
"""`trials`: a `TrialRecord` each, in the order they came; `ended`: why the sweep ended itself, or None."""


class TrialBroker:
    """Used as a Ray actor without a CPU. A report is answered when Tune has asked for the next one or called it off.

    `keep` gets the journal after each change that a driver run again must know of. `known` are the trials of an
    interrupted sweep: a configuration handed in again takes up its trial, under its old name. What that reported is
    told to Tune as if it came now, and a group takes it only if it was not over, from its checkpoint.
    """

    def __init__(self, *, keep: Callable[[Journal], None], known: Sequence[TrialRecord] = ()) -> None:
        self._keep = keep
        self._known = list(known)
        self._trials: dict[str, _Trial] = {}
        """By Tune's id of the trial, and by its name where it has an older one."""
        self._waiting: deque[str] = deque()
        self._held: dict[str, str] = {}
        kept = [record for record in known if record.outcome and record.outcome["weights"]]
        self._best = max(((record.completed, float(record.epochs[-1]["score"])) for record in kept), default=None)
        self._closed = False
        self._ended: str | None = None
        self._failure: str | None = None
        self._changed = asyncio.Condition()
        self._writing = asyncio.Lock()

    async def submit(self, trial_id: str, config: dict[str, Any]) -> None:
        """From Tune: a trial to run."""
        taken_up = next((record for record in self._known if record.config == config), None)
        if taken_up is not None:
            self._known.remove(taken_up)
            if taken_up.by_workers:
                taken_up.failure, taken_up.by_workers = None, False
        trial = _Trial(taken_up or TrialRecord(trial_id, config))
        self._trials[trial_id] = self._trials[trial.record.trial] = trial
        self._waiting.append(trial.record.trial)
        await self._notify()

    async def next_report(self, trial_id: str) -> dict[str, Any]:
        """From Tune: waits for the trial's next epoch; asking for it is the word to go on.

        `over` in it says that no other will come. Raises SweepFailed when no group is left, or the trial was given up.
        """
        trial = self._trials[trial_id]
        record, wanted = trial.record, trial.delivered
        trial.delivered += 1
        await self._notify()
        async with self._changed:
            await self._changed.wait_for(
                lambda: len(record.epochs) > wanted or self._failure or record.failure or trial.stopped
            )
        if len(record.epochs) > wanted:
            told = record.epochs[wanted]
            final = record.over and wanted + 1 == len(record.epochs)  # of an interrupted sweep, and stopped in it
            return told | {"over": told["last"] or final}
        raise SweepFailed(self._failure or record.failure or f"trial {trial_id} was called off")

    async def call_off(self, trial_id: str) -> None:
        """From Tune: the trial need not go on."""
        self._trials[trial_id].stopped = True
        await self._notify()

    async def take(self, group: str) -> tuple[str, dict[str, Any], str | None] | None:
        """From a worker group: the next trial's name, configuration and checkpoint; None when the sweep is over.

        A group that comes back without having finished its trial gets the same one again, if no other has it by now.
        """
        held = self._held.pop(group, None)
        if held is not None:
            self._waiting.appendleft(held)
            await self._notify()
        async with self._changed:
            await self._changed.wait_for(lambda: self._next() is not None or self._closed)
            name = self._next()
            if name is None:
                return None
            self._waiting.popleft()
        self._held[group] = name
        trial = self._trials[name]
        trial.has_saved = False
        return name, trial.record.config, trial.record.checkpoint

    def _next(self) -> str | None:
        """The trial that has waited longest, of those that a group has to take."""
        while self._waiting and not self._trials[self._waiting[0]].wanted:
            self._waiting.popleft()
        return self._waiting[0] if self._waiting else None

    async def report(self, name: str, epoch: dict[str, Any]) -> bool:
        """From a worker group: an epoch's figures; True to go on. A repeated epoch is not told twice."""
        trial = self._trials[name]
        record = trial.record
        if epoch["epoch"] < len(record.epochs):
            return record.completed or not trial.stopped
        record.epochs.append(epoch)
        await self._write()
        await self._notify()
        if epoch["last"]:
            return False
        async with self._changed:
            await self._changed.wait_for(lambda: trial.delivered > len(record.epochs) or trial.stopped or self._closed)
        return trial.delivered > len(record.epochs)

    async def saved(self, name: str, checkpoint: str) -> str | None:
        """From a worker group: the trial's new checkpoint, whole on S3; returns the one before, of no more use."""
        trial = self._trials[name]
        before, trial.record.checkpoint = trial.record.checkpoint, checkpoint
        trial.has_saved = True
        await self._write()
        return before

    def is_best(self, *, score: float, completed: bool) -> bool:
        """From a worker group: whether to export the weights. A trial that ran to its end outranks a stopped one."""
        return self._best is None or (completed, score) > self._best

    async def finish(self, group: str, name: str, outcome: dict[str, Any]) -> None:
        """From a worker group: the trial is over; `outcome` holds its weights' URI where it was the best so far."""
        record = self._trials[name].record
        self._held.pop(group, None)
        if record.over:  # another group has had it meanwhile: this one was taken for dead
            return
        record.outcome = outcome
        if outcome["weights"]:
            self._best = max(self._best or (False, 0.0), (record.completed, float(outcome["score"])))
        await self._write()

    async def give_up(self, group: str, name: str, message: str) -> None:
        """From a worker group: the trial failed by itself, and would again."""
        self._held.pop(group, None)
        await self._fail(name, message)

    async def end(self, why: str) -> None:
        """From Tune: the whole sweep ends; trials that are not over end with it."""
        self._ended = why
        for trial in self._trials.values():
            trial.record.with_sweep = not (trial.stopped or trial.record.completed or trial.record.over)
        await self._write()

    def journal(self) -> Journal:
        """What is known of the trials, those of an interrupted sweep that were not handed in again included."""
        records = {trial.record.trial: trial.record for trial in self._trials.values()}
        return {"trials": [record.to_dict() for record in (*records.values(), *self._known)], "ended": self._ended}

    async def put_back(self, group: str, why: str) -> None:
        """From Ray Train: workers of the group failed; its trial is the next to be taken, by whichever group."""
        held = self._held.pop(group, None)
        if held is None:
            return
        trial = self._trials[held]
        trial.failures = 0 if trial.has_saved else trial.failures + 1
        if trial.failures >= MAX_FAILURES:
            trial.record.by_workers = True
            await self._fail(held, f"trial {held} was given up after {trial.failures} failures: {why}")
            return
        self._waiting.appendleft(held)
        await self._notify()

    async def close(self) -> None:
        """From the sweep: no more trials; groups that wait go home."""
        self._closed = True
        await self._notify()

    async def lose(self, group: str, message: str, *, last: bool) -> None:
        """From the sweep: a worker group is gone for good; its trial goes to another, if one is left."""
        await self.put_back(group, message)
        if last:
            self._failure = message
        await self._notify()

    async def _fail(self, name: str, message: str) -> None:
        record = self._trials[name].record
        if record.over:
            return
        record.failure = message
        await self._write()
        await self._notify()

    async def _write(self) -> None:
        async with self._writing:  # one after the other: the newest journal stays
            await asyncio.to_thread(self._keep, self.journal())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
