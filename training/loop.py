"""The training loop of a Ray Train worker: training steps, and a validation score at the end of each epoch."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from cluster.progress import StepEvent
from tailorbird.config.training import TrainingConfig
from tailorbird.data.tokenized import TokenizedRows
from tailorbird.models.pretrained import inference_dtype
from training import preemption
from training.dataset import num_steps, rank_rows, steps
from training.deepspeed_engine import initialize_engine
from training.reports import EpochReport, Progress
from training.task import Diverged, TaskRuntime, means_over_ranks

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
    """Called every `checkpoint_interval_s` within an epoch, before a slow score, and when a rank must stop."""


def build_engine(config: TrainingConfig, runtime: TaskRuntime) -> Any:
    """Seed this process and return an engine with a new model."""
    torch.manual_seed(config.seed * 1000 + dist.get_rank())
    total_steps = sum(num_steps(runtime.train, config, epoch=epoch) for epoch in range(config.epochs))
    autocast = inference_dtype() == torch.bfloat16
    return initialize_engine(runtime.build(config), config, num_steps=total_steps, autocast=autocast)


def train(
    engine: Any,
    config: TrainingConfig,
    *,
    runtime: TaskRuntime,
    callbacks: Callbacks = Callbacks(),
    progress: Progress | None = None,
) -> EpochReport:
    """Train from `progress`, or from the start if it is None, and return the report of the last epoch.

    Raises Diverged.
    """
    progress = progress or Progress()
    while progress.epoch < config.epochs:
        report = _EpochRun(engine, config, runtime, callbacks, progress).run()
        progress = Progress(epoch=progress.epoch + 1, last=report)
        if not callbacks.on_epoch(report, engine):
            break
    assert progress.last is not None  # epochs >= 1
    return progress.last


@dataclass
class _EpochRun:
    """The remaining steps of an epoch. Each step updates `progress`."""

    engine: Any
    config: TrainingConfig
    runtime: TaskRuntime
    callbacks: Callbacks
    progress: Progress

    def run(self) -> EpochReport:
        progress, train_rows = self.progress, self.runtime.train
        epoch, start = progress.epoch, progress.step
        total = num_steps(train_rows, self.config, epoch=epoch)
        reported = saved = time.perf_counter()
        num_rows, seconds = 0, 0.0
        for step, (window, batch) in enumerate(steps(train_rows, self.config, epoch=epoch, start=start), start=start):
            started = time.perf_counter()
            loss = self._step(window, batch)
            now = time.perf_counter()
            should_save = dist.get_rank() == 0 and now - saved > self.config.checkpoint_interval_s
            if step + 1 == total:  # `on_epoch` writes the checkpoint at the end of an epoch, after the score
                should_save = self.runtime.checkpoint_before_score
            loss, save_now = means_over_ranks(loss, float(should_save or preemption.preemption_reason() is not None))
            if not math.isfinite(loss):
                raise Diverged(_divergence(loss, epoch=epoch, step=step, rows=[window.row_ids[row] for row in batch]))
            progress.step, progress.losses = step + 1, progress.losses + loss
            progress.seconds, seconds = progress.seconds + now - started, seconds + now - started
            num_rows += len(batch)
            if dist.get_rank() == 0 and (now - reported > REPORT_INTERVAL_S or step + 1 == total):
                reported = now
                mean_loss = progress.losses / (step + 1)
                self.callbacks.on_step(StepEvent(epoch, step + 1, total, mean_loss, num_rows / seconds))
            if self.callbacks.on_save is not None and save_now:
                self.callbacks.on_save(progress, self.engine)
                saved = time.perf_counter()
        return self._report(total)

    def _step(self, window: TokenizedRows, batch: NDArray[np.int64]) -> float:
        """Run one optimizer step, and return this rank's share of the batch's mean loss."""
        rank, num_ranks = dist.get_rank(), dist.get_world_size()
        own = rank_rows(batch, rank=rank, num_ranks=num_ranks)
        num_parts = self.config.gradient_accumulation_steps
        step_loss = 0.0
        share = self.runtime.weight(window, batch) / num_ranks  # the mean over ranks is the mean over the batch
        for rows in np.array_split(own, num_parts):
            # In a small last batch a rank or micro-batch may have no rows. It then computes one row with weight 0.
            computed = rows if len(rows) else np.zeros(1, dtype=np.int64)
            weight = (1.0 if len(rows) else 0.0) / share
            total, num_tokens = self.runtime.loss(self.engine, self.config, window, computed)
            loss = total * weight
            self.engine.backward(loss * num_parts)  # DeepSpeed averages over the micro-batches
            self.engine.step()  # updates the weights after the last micro-batch
            step_loss += float(loss.detach())
            self.progress.padded += num_tokens
        self.progress.tokens += int(window.lengths[own].sum())
        return step_loss

    def _report(self, num_epoch_steps: int) -> EpochReport:
        progress = self.progress
        try:
            score = self.runtime.score(self.engine, self.config)
        except Diverged as error:
            message = f"training diverged in epoch {progress.epoch + 1}: {error}; lower training.learning_rate"
            raise Diverged(message) from None
        return EpochReport(
            epoch=progress.epoch,
            score=score,
            loss=progress.losses / num_epoch_steps,
            rows_per_second=len(self.runtime.train) / progress.seconds,
            step_seconds=progress.seconds,
            total_seconds=progress.seconds + (progress.last.total_seconds if progress.last else 0.0),
            padding_share=means_over_ranks(1 - progress.tokens / progress.padded)[0],
        )


def _divergence(loss: float, *, epoch: int, step: int, rows: Sequence[str]) -> str:
    more = f" and {len(rows) - MAX_NAMED_ROWS} more" if len(rows) > MAX_NAMED_ROWS else ""
    return (
        f"training diverged: the loss is {loss} in epoch {epoch + 1}, step {step + 1}, on training rows "
        f"{', '.join(rows[:MAX_NAMED_ROWS])}{more}; lower training.learning_rate, or inspect these rows"
    )
