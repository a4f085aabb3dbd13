"""One training, inside a Ray Train worker: steps, validation at each epoch's end, and a word on whether to go on."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tailorbird.config.training import TrainingConfig
from tailorbird.models.loading import inference_dtype
from training import preemption
from training.batch_sampler import micro_batches, rank_rows
from training.dataset import num_steps, steps
from training.deepspeed_engine import initialize_engine
from training.task import Diverged, TaskRuntime, means_over_ranks

MAX_NAMED_ROWS = 5


@dataclass(frozen=True)
class StepReport:
    """Sent about once a second by rank 0; `rows_per_second` counts all ranks."""

    epoch: int
    step: int
    num_steps: int
    loss: float
    rows_per_second: float


@dataclass(frozen=True)
class EpochReport:
    """After an epoch; the same on every rank."""

    epoch: int
    score: float
    """On the validation rows, by the task's metric."""
    loss: float
    """Mean training loss of the epoch."""
    rows_per_second: float
    step_seconds: float
    """Seconds inside training steps in this epoch."""
    total_seconds: float
    """The same in this epoch and those before."""
    padding_share: float
    """Padding among the tokens computed."""


@dataclass
class Progress:
    """How far this rank is, between two steps: what it takes, beside weights and random state, to go on there."""

    epoch: int = 0
    step: int = 0
    """Steps done of the epoch."""
    losses: float = 0.0
    """Sum of these steps' losses."""
    tokens: int = 0
    padded: int = 0
    """Tokens of this rank's rows, and those computed with their padding."""
    seconds: float = 0.0
    """Inside these steps."""
    last: EpochReport | None = None
    """Of the epoch before."""


OnStep = Callable[[StepReport], None]
OnEpoch = Callable[[EpochReport, Any], bool]
"""Gets the report and the engine, on every rank; False ends the training."""
OnSave = Callable[[Progress, Any], None]
"""Gets how far this rank is and the engine, on every rank, between two steps."""


def build_engine(config: TrainingConfig, material: TaskRuntime) -> Any:
    """Seeds this process and starts an engine on a fresh model."""
    torch.manual_seed(config.seed * 1000 + dist.get_rank())
    in_all = sum(num_steps(material.train, config, epoch=epoch) for epoch in range(config.epochs))
    autocast = inference_dtype() == torch.bfloat16
    return initialize_engine(material.build(config), config, num_steps=in_all, autocast=autocast)


def train(
    engine: Any,
    config: TrainingConfig,
    *,
    material: TaskRuntime,
    on_step: OnStep,
    on_epoch: OnEpoch,
    on_save: OnSave | None = None,
    progress: Progress | None = None,
) -> EpochReport:
    """Runs what is left after `progress` (None: all of it); returns the last epoch's report.

    `on_save` is called each `section.checkpoint_interval_s` within an epoch, before the validation of a chat, and when
    a rank is told to go. Raises Diverged.
    """
    progress = progress or Progress()
    while progress.epoch < config.epochs:
        report = _epoch(engine, config, material=material, progress=progress, on_step=on_step, on_save=on_save)
        progress = Progress(epoch=progress.epoch + 1, last=report)
        if not on_epoch(report, engine):
            break
    assert progress.last is not None  # epochs >= 1
    return progress.last


def _epoch(
    engine: Any,
    config: TrainingConfig,
    *,
    material: TaskRuntime,
    progress: Progress,
    on_step: OnStep,
    on_save: OnSave | None,
) -> EpochReport:
    """The steps of an epoch that `progress`, which it moves on, has not done."""
    epoch, start, in_all = progress.epoch, progress.step, num_steps(material.train, config, epoch=progress.epoch)
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    said = saved = time.perf_counter()
    seen, seconds = 0, 0.0
    for step, (window, batch) in enumerate(steps(material.train, config, epoch=epoch, start=start), start=start):
        begun = time.perf_counter()
        mine = rank_rows(batch, rank=rank, num_ranks=num_ranks)
        step_loss, share = 0.0, material.weight(window, batch) / num_ranks  # the ranks' mean is then the batch's mean
        for rows in micro_batches(mine, num=config.gradient_accumulation_steps):
            # A rank without a row in a last small batch computes one with weight 0.
            some = rows if len(rows) else np.zeros(1, dtype=np.int64)
            weight = (1.0 if len(rows) else 0.0) / share
            total, size = material.loss(engine, config, window, some)
            loss = total * weight
            engine.backward(loss * config.gradient_accumulation_steps)  # DeepSpeed takes the mean of the parts
            engine.step()  # counts the parts; weights move after the last
            step_loss += float(loss.detach())
            progress.padded += size
        now = time.perf_counter()
        late = rank == 0 and now - saved > config.checkpoint_interval_s
        if step + 1 == in_all:  # the end of an epoch is checkpointed with its report, after the score
            late = material.checkpoint_before_score
        due = late or preemption.preemption_reason() is not None
        step_loss, save_now = means_over_ranks(step_loss, float(due))
        if not math.isfinite(step_loss):
            raise Diverged(
                _divergence(
                    f"the loss is {step_loss}", epoch=epoch, step=step, rows=[window.row_ids[row] for row in batch]
                )
            )
        progress.step, progress.losses = step + 1, progress.losses + step_loss
        progress.tokens += int(window.lengths[mine].sum())
        progress.seconds, seconds, seen = progress.seconds + now - begun, seconds + now - begun, seen + len(batch)
        if rank == 0 and (now - said > 1.0 or step + 1 == in_all):
            said = now
            on_step(StepReport(epoch, step + 1, in_all, progress.losses / (step + 1), seen / seconds))
        if on_save is not None and save_now:
            on_save(progress, engine)
            saved = time.perf_counter()
    try:
        score = material.score(engine, config)
    except Diverged as error:
        raise Diverged(f"training diverged in epoch {epoch + 1}: {error}; lower training.learning_rate") from None
    return EpochReport(
        epoch=epoch,
        score=score,
        loss=progress.losses / in_all,
        rows_per_second=len(material.train) / progress.seconds,
        step_seconds=progress.seconds,
        total_seconds=progress.seconds + (progress.last.total_seconds if progress.last else 0.0),
        padding_share=means_over_ranks(1 - progress.tokens / progress.padded)[0],
    )


def _divergence(what: str, *, epoch: int, step: int, rows: Sequence[str]) -> str:
    named = ", ".join(rows[:MAX_NAMED_ROWS]) + (
        f" and {len(rows) - MAX_NAMED_ROWS} more" if len(rows) > MAX_NAMED_ROWS else ""
    )
    return (
        f"training diverged: {what} in epoch {epoch + 1}, step {step + 1}, on training rows {named}; "
        "lower training.learning_rate, or look at these rows"
    )
