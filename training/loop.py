"""The training loop of a Ray Train worker: training steps, and a validation score at the end of
each epoch."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from cluster.progress import StepEvent
from tailorbird.config.training import TrainingConfig
from tailorbird.models.errors import ModelError
from tailorbird.models.pretrained import inference_dtype
from training import preemption
from training.batches import StepBatches, collated_steps
from training.dataset import num_steps
from training.engine.deepspeed_engine import initialize_engine
from training.errors import OutOfMemory
from training.ranks import means_over_ranks, raise_on_all_ranks
from training.reports import EpochReport, Progress
from training.task import Diverged, TaskRuntime

MAX_NAMED_ROWS = 5
REPORT_INTERVAL_S = 1.0

OnStep = Callable[[StepEvent], None]
OnEpoch = Callable[[EpochReport, Any], bool]
"""Called with the report and the engine on every rank. Return False to end the training."""
OnSave = Callable[[Progress, Any], None]
"""Called with this rank's progress and the engine on every rank, between two steps."""


@dataclass(frozen=True)
class Callbacks:
    """Callbacks of a training."""

    on_step: OnStep = lambda _: None  # called on rank 0, about once a second
    on_epoch: OnEpoch = lambda *_: True
    on_save: OnSave | None = None
    """Called every `checkpoint_interval_s` within an epoch, before a slow score, and when a rank
    must stop. It is called at most once in about `REPORT_INTERVAL_S`, when the losses are read."""


def build_engine(config: TrainingConfig, runtime: TaskRuntime) -> Any:
    """Seed this process and return an engine with a new model.

    Raises ModelError on every rank if the attention or compilation is not supported.
    """
    torch.manual_seed(config.seed * 1000 + dist.get_rank())
    raise_on_all_ranks(lambda: runtime.attention(config), ModelError)
    total_steps = sum(
        num_steps(runtime.train, config, epoch=epoch) for epoch in range(config.epochs)
    )
    autocast = inference_dtype() == torch.bfloat16
    model = runtime.build(config, autocast=autocast)
    return initialize_engine(model, config, num_steps=total_steps, autocast=autocast)


def train(
    engine: Any,
    config: TrainingConfig,
    *,
    runtime: TaskRuntime,
    callbacks: Callbacks = Callbacks(),
    progress: Progress | None = None,
) -> EpochReport:
    """Train from `progress`, or from the start if it is None, and return the report of the last
    epoch.

    Raises Diverged.
    """
    progress = progress or Progress()
    while progress.epoch < config.epochs:
        report = _EpochRun(
            engine=engine, config=config, runtime=runtime, callbacks=callbacks, progress=progress
        ).run()
        progress = Progress(epoch=progress.epoch + 1, last=report)
        if not callbacks.on_epoch(report, engine):
            break
    assert progress.last is not None  # epochs >= 1
    return progress.last


@dataclass(frozen=True)
class _PendingStep:
    """A finished step whose loss has not been read."""

    step: int
    loss: torch.Tensor  # this rank's share of the mean loss, float64, on the device
    row_ids: tuple[str, ...]


@dataclass
class _EpochRun:
    """The remaining steps of an epoch.

    A read of a loss waits for the device, and a reduction waits for the other ranks. Both are
    therefore done about once in `REPORT_INTERVAL_S`, for all steps since the last time. Only then
    can a checkpoint be written, so that one never contains steps with a loss that is not finite.
    """

    engine: Any
    config: TrainingConfig
    runtime: TaskRuntime
    callbacks: Callbacks
    progress: Progress
    total: int = 0
    num_rows: int = 0  # rows of the steps of this run
    seconds: float = 0.0  # time in these steps
    reported: float = field(default_factory=time.perf_counter)
    saved: float = field(default_factory=time.perf_counter)

    def run(self) -> EpochReport:
        epoch = self.progress.epoch
        start = self.progress.step
        self.total = num_steps(self.runtime.train, self.config, epoch=epoch)
        pending: list[_PendingStep] = []
        interval = 1
        started = time.perf_counter()
        with collated_steps(self.runtime, self.config, epoch=epoch, start=start) as collated:
            for step, batches in enumerate(collated, start=start):
                pending.append(_PendingStep(step, self._step(batches), batches.row_ids))
                if len(pending) == interval or step + 1 == self.total:
                    interval = self._read(pending, started=started)
                    pending = []
                    started = time.perf_counter()
        return self._report()

    def _step(self, step: StepBatches) -> torch.Tensor:
        """Run one optimizer step, and return this rank's share of the batch's mean loss, without
        waiting for it. Raises OutOfMemory."""
        num_parts = self.config.accumulation_steps(dist.get_world_size())
        step_loss = torch.zeros((), dtype=torch.float64, device=self.engine.device)
        for number, (batch, weight) in enumerate(step.batches, start=1):
            # With `batch_tokens`, the number of micro-batches differs from step to step.
            if self.config.batch_tokens is not None:
                self.engine.set_gradient_accumulation_boundary(number == len(step.batches))
            try:
                on_device = batch.to(self.engine.device)
                loss = self.runtime.loss(self.engine, self.config, on_device) * weight
                self.engine.backward(loss * num_parts)  # DeepSpeed averages over the micro-batches
                self.engine.step()  # updates the weights after the last micro-batch
            except torch.OutOfMemoryError as error:
                limit = self.config.batch_tokens or batch.num_tokens
                if not 1 < batch.num_tokens <= limit:
                    raise  # a single row exceeds the limit, and cannot be split
                raise OutOfMemory(batch.num_tokens // 2) from error
            step_loss += loss.detach()
            self.progress.padded += batch.num_tokens
        self.progress.tokens += step.num_tokens
        return step_loss

    def _read(self, pending: Sequence[_PendingStep], *, started: float) -> int:
        """Read the losses of these steps, then report and save if it is time.

        Return the number of steps until the next read. All ranks return the same number, that of
        rank 0. Raises Diverged on every rank.
        """
        progress = self.progress
        done = pending[-1].step + 1
        shares = torch.stack([step.loss for step in pending]).tolist()
        now = time.perf_counter()
        interval = 0  # the mean over the ranks becomes that of rank 0
        if dist.get_rank() == 0:
            interval = self._interval((now - started) / len(pending), last=len(pending))
            interval *= dist.get_world_size()
        should_save = self._should_save(done, now=now)
        *losses, save_now, agreed = means_over_ranks(*shares, float(should_save), float(interval))

        for step, loss in zip(pending, losses, strict=True):
            if not math.isfinite(loss):
                raise Diverged(
                    _divergence(loss, epoch=progress.epoch, step=step.step, rows=step.row_ids)
                )
            progress.losses += loss
            self.num_rows += len(step.row_ids)
        progress.step = done
        progress.seconds += now - started
        self.seconds += now - started

        is_due = now - self.reported > REPORT_INTERVAL_S / 2 or done == self.total
        if is_due and dist.get_rank() == 0:
            self.reported = now
            self.callbacks.on_step(self._event())
        if self.callbacks.on_save is not None and save_now:
            self.callbacks.on_save(progress, self.engine)
            self.saved = time.perf_counter()
        return round(agreed)

    def _should_save(self, done: int, *, now: float) -> bool:
        """Return True if this rank asks all ranks for a checkpoint."""
        if preemption.preemption_reason() is not None:
            return True
        if done == self.total:  # `on_epoch` writes the checkpoint, after the score
            return self.runtime.checkpoint_before_score
        return dist.get_rank() == 0 and now - self.saved > self.config.checkpoint_interval_s

    def _event(self) -> StepEvent:
        """Return the report of the finished steps."""
        progress = self.progress
        rate = self.num_rows / self.seconds
        epochs_left = self.config.epochs - progress.epoch - progress.step / self.total
        return StepEvent(
            epoch=progress.epoch,
            step=progress.step,
            num_steps=self.total,
            loss=progress.losses / progress.step,
            rows_per_second=rate,
            seconds_left=epochs_left * len(self.runtime.train) / rate,
        )

    def _interval(self, step_seconds: float, *, last: int) -> int:
        """Return the number of steps that take about `REPORT_INTERVAL_S`, at most twice the last
        number.

        The first steps can be slow, and a checkpoint must not wait longer than
        `checkpoint_interval_s`.
        """
        seconds = min(REPORT_INTERVAL_S, self.config.checkpoint_interval_s)
        return max(1, min(2 * last, int(seconds / step_seconds)))

    def _report(self) -> EpochReport:
        progress = self.progress
        total_seconds = progress.seconds
        if progress.last is not None:
            total_seconds += progress.last.total_seconds
        try:
            score = self.runtime.score(self.engine, self.config)
        except Diverged as error:
            message = (
                f"training diverged in epoch {progress.epoch + 1}: {error}; lower "
                "training.learning_rate"
            )
            raise Diverged(message) from None
        return EpochReport(
            epoch=progress.epoch,
            score=score,
            loss=progress.losses / self.total,
            rows_per_second=len(self.runtime.train) / progress.seconds,
            step_seconds=progress.seconds,
            total_seconds=total_seconds,
            padding_share=means_over_ranks(1 - progress.tokens / progress.padded)[0],
            attention=self.runtime.attention(self.config),
        )


def _divergence(loss: float, *, epoch: int, step: int, rows: Sequence[str]) -> str:
    names = ", ".join(rows[:MAX_NAMED_ROWS])
    if len(rows) > MAX_NAMED_ROWS:
        names += f" and {len(rows) - MAX_NAMED_ROWS} more"
    return (
        f"training diverged: the loss is {loss} in epoch {epoch + 1}, step {step + 1}, on training "
        f"rows {names}; lower training.learning_rate, or inspect "
        "these rows"
    )
