"""The actor between Ray Tune and the worker groups, where trials are submitted, assigned, reported
and cancelled.

The states of a trial, and the calls that change them:

    submit            take                finish
    ------> waiting ---------> assigned ----------> over (its record has a result)
              ^                 |  |
              |     requeue     |  |  give_up, or requeue after MAX_FAILURES
              +-----------------+  +--------------> over (its record has a failure)

`report` and `next_report` do not change the state: a group and Tune wait there for each other at
the end of each epoch. `cancel` ends the training of an assigned trial at its next `report`, after
which its group calls `finish`; a waiting trial that is cancelled is not taken, unless its last
epoch was reported and only its weights are missing. A trial of an interrupted sweep that is over
stays so, except one with `failed_by_workers`, which waits again.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tailorbird.config.training import TrainingConfig
from training.reports import EpochReport, TrainingResult
from tuning.trial_record import SampledValues, SweepJournal, TrialRecord

MAX_FAILURES = 2
"""Number of failures of worker groups, without a new checkpoint in between, after which a trial
fails. A group that restarts because Ray changed its number of workers did not fail."""


class SweepFailed(RuntimeError):
    """The failure of all worker groups or of a trial."""


@dataclass(frozen=True)
class TrialAssignment:
    """A trial assigned to a worker group."""

    trial: str
    config: SampledValues
    checkpoint: str | None  # URI of the checkpoint to resume from


@dataclass(frozen=True)
class TrialReport:
    """Report of a trial's epoch to Ray Tune."""

    score: float
    done: bool  # true if this is the trial's last epoch


@dataclass
class _Trial:
    record: TrialRecord
    num_requested: int = 0  # reports that Tune has requested
    cancelled: bool = False
    failures: int = 0  # failures of worker groups with this trial since its newest checkpoint
    parts: Counter[str] = field(default_factory=Counter)
    """Number of stored parts of checkpoints that are not complete, by URI."""

    @property
    def pending(self) -> bool:
        """True if a group must take the trial. A cancelled trial is taken only to export its
        weights."""
        return not self.record.over and (self.record.completed or not self.cancelled)


@dataclass(frozen=True)
class WorkerGroupJob:
    """Arguments of a worker group's training function."""

    group: str
    training: TrainingConfig
    tasks: Mapping[str, Any]  # ObjectRefs of the TrainingTasks by base model
    broker: Any  # handle of the TrialBroker
    events: Any  # handle of a `cluster.event_queue.EventQueue`, or None
    uri: str
    # name of this run of the sweep; another driver must not replace the weights of its trials
    run: str = ""
    num_trials: int = 0  # trials of the sweep


class TrialBroker:
    """A Ray actor that passes trials from Ray Tune to worker groups, and reports back to Ray Tune.
    It uses no CPU.

    A group's `report` returns when Tune has requested the next epoch or cancelled the trial. `keep`
    is called with the journal after each change that a restarted driver must know. `known` are the
    trials of an interrupted sweep. If Tune submits the configuration of a known trial, the trial
    continues under its previous name. Tune receives the previous reports again, and a group resumes
    the trial from its checkpoint if it is not over.
    """

    def __init__(
        self,
        *,
        keep: Callable[[SweepJournal], None],
        num_trials: int,
        known: Sequence[TrialRecord] = (),
    ) -> None:
        self._keep = keep
        self._num_left = num_trials  # trials that Tune has not submitted
        self._known = list(known)
        self._trials: dict[str, _Trial] = {}
        """Trials by Tune's id and by name. The two differ for a known trial."""
        self._waiting: deque[str] = deque()
        self._assigned: dict[str, str] = {}  # trials by group
        self._batch_tokens: int | None = None
        """Limit of a micro-batch that the memory of the GPUs has shown."""
        ranks = [record.exported_rank for record in known]
        self._best = max((rank for rank in ranks if rank is not None), default=None)
        self._closed = False
        self._failure: str | None = None
        self._changed = asyncio.Condition()
        self._writing = asyncio.Lock()

    async def submit(self, trial_id: str, config: SampledValues) -> None:
        """(Tune) Add a trial."""
        self._num_left -= 1
        record = next((known for known in self._known if known.config == config), None)
        if record is not None:
            self._known.remove(record)
            if record.failed_by_workers:
                record.failure = None
                record.failed_by_workers = False
        trial = _Trial(record or TrialRecord(trial=trial_id, config=config))
        self._trials[trial_id] = self._trials[trial.record.trial] = trial
        self._waiting.append(trial.record.trial)
        await self._notify()

    async def next_report(self, trial_id: str) -> TrialReport:
        """(Tune) Let the trial continue to its next epoch, and wait for the report.

        Raises SweepFailed if no group is left, or if the trial failed or was cancelled.
        """
        trial = self._trials[trial_id]
        record = trial.record
        index = trial.num_requested
        trial.num_requested += 1
        await self._notify()
        async with self._changed:
            await self._changed.wait_for(
                lambda: (
                    len(record.epochs) > index or self._failure or record.failure or trial.cancelled
                )
            )
        if len(record.epochs) > index:
            # A trial that an interrupted sweep stopped early is over but not completed.
            is_last = index + 1 == len(record.epochs) and (record.completed or record.over)
            return TrialReport(record.epochs[index].score, done=is_last)
        raise SweepFailed(self._failure or record.failure or f"trial {trial_id} was cancelled")

    async def cancel(self, trial_id: str) -> None:
        """(Tune) Stop the trial after its current epoch."""
        self._trials[trial_id].cancelled = True
        await self._notify()

    async def take(self, group: str) -> TrialAssignment | None:
        """(Worker group) Wait for the next trial; return None if there will be none, so that the
        group can end.

        A group that restarted before it finished its trial gets the same trial, unless another
        group has taken it.
        """
        unfinished = self._assigned.pop(group, None)
        if unfinished is not None:
            self._waiting.appendleft(unfinished)
            await self._notify()
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._next() is not None or self._closed or self._num_left <= 0
            )
            name = self._next()
            if name is None:
                return None
            self._waiting.popleft()
        self._assigned[group] = name
        record = self._trials[name].record
        record.batch_tokens = self._batch_tokens or record.batch_tokens
        return TrialAssignment(name, record.trained_config, record.checkpoint)

    def _next(self) -> str | None:
        """Return the pending trial that has waited longest, or None."""
        while self._waiting and not self._trials[self._waiting[0]].pending:
            self._waiting.popleft()
        if self._waiting:
            return self._waiting[0]
        return None

    async def report(self, name: str, epoch: EpochReport, *, last: bool) -> bool:
        """(Worker group) Record an epoch, and return True if the trial continues. Repeated epochs
        are ignored."""
        trial = self._trials[name]
        record = trial.record
        if epoch.epoch < len(record.epochs):
            return record.completed or not trial.cancelled
        record.epochs.append(epoch)
        record.completed = last
        await self._write()
        await self._notify()
        if last:
            return False
        async with self._changed:
            await self._changed.wait_for(
                lambda: trial.num_requested > len(record.epochs) or trial.cancelled or self._closed
            )
        return trial.num_requested > len(record.epochs)

    async def saved(self, group: str, name: str, checkpoint: str, *, num_ranks: int) -> str | None:
        """(Worker group) Note that a rank has stored its part of a checkpoint; after the last rank,
        record it.

        Return the previous checkpoint, which can be deleted, to the last rank, and None to the
        others. A group that failed may still be uploading; its checkpoints are ignored.
        """
        if self._assigned.get(group) != name:
            return None
        trial = self._trials[name]
        trial.parts[checkpoint] += 1
        if trial.parts[checkpoint] < num_ranks:
            return None
        trial.parts.clear()
        previous = trial.record.checkpoint
        trial.record.checkpoint = checkpoint
        trial.failures = 0
        await self._write()
        return previous

    def is_best(self, *, score: float, completed: bool) -> bool:
        """(Worker group) Return True if the weights are the best so far. Completed trials rank
        above stopped ones."""
        return self._best is None or (completed, score) > self._best

    async def finish(self, group: str, name: str, result: TrainingResult) -> None:
        """(Worker group) Record the trial's result."""
        record = self._trials[name].record
        self._assigned.pop(group, None)
        if record.over:  # this group was considered dead, and another group has finished the trial
            return
        record.result = result
        if result.weights:
            self._best = max(self._best or (False, 0.0), (record.completed, result.score))
        await self._write()

    async def give_up(self, group: str, name: str, message: str) -> None:
        """(Worker group) Record that the trial failed and is not retried."""
        self._assigned.pop(group, None)
        await self._fail(name, message)

    def journal(self) -> SweepJournal:
        """Return a copy of all records, including known trials that were not submitted again."""
        records = {trial.record.trial: trial.record for trial in self._trials.values()}
        trials = tuple(record.model_copy(deep=True) for record in (*records.values(), *self._known))
        return SweepJournal(trials=trials)

    async def requeue(self, group: str, reason: str, *, batch_tokens: int | None = None) -> None:
        """(Ray Train) Put the trial of a group whose workers failed at the front of the queue, for
        any group.

        With `batch_tokens`, they failed because a GPU ran out of memory. The micro-batches of all
        trials are limited from now on, and the trial's failures are not counted.
        """
        if batch_tokens is not None:
            self._batch_tokens = min(batch_tokens, self._batch_tokens or batch_tokens)
        name = self._assigned.pop(group, None)
        if name is None:
            return
        trial = self._trials[name]
        if batch_tokens is None:
            trial.failures += 1
        if trial.failures >= MAX_FAILURES:
            trial.record.failed_by_workers = True
            await self._fail(
                name, f"trial {name} failed {trial.failures} times and is not retried: {reason}"
            )
            return
        self._waiting.appendleft(name)
        await self._notify()

    async def close(self) -> None:
        """(Sweep) Accept no more trials, and let waiting groups end."""
        self._closed = True
        await self._notify()

    async def group_lost(self, group: str, message: str, *, last: bool) -> None:
        """(Sweep) Requeue the trial of a worker group that ended with an error; `last` is true if
        no group is left."""
        await self.requeue(group, message)
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
        async with self._writing:  # one write at a time, so that the newest journal is written last
            await asyncio.to_thread(self._keep, self.journal())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
