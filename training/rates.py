"""Measure the speed of one worker on a handful of rows, to estimate how long a run takes."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from tailorbird.config.training import TrainingConfig
from tailorbird.models.pretrained import default_device
from training.batches import Batch
from training.task import TrainingTask

NUM_ROWS = 16  # maximum number of rows on which the rates are measured


@dataclass(frozen=True)
class Rates:
    """Rows per second of one worker."""

    training: float  # forward and backward passes
    prediction: float  # forward passes; of a chat model, answers
    num_rows: int  # rows on which they were measured


def measure_rates(task: TrainingTask, *, config: TrainingConfig) -> Rates:
    """Return the rates for the training rows of `task`, at most `NUM_ROWS` of them, in the second of two passes.

    The optimizer's step and the communication between workers are not included. The whole model is on this process's
    device, also if `config` has another ZeRO stage.
    """
    config = config.model_copy(update={"zero_stage": 0})
    runtime = task.load_runtime(attention_dropout=config.attention_dropout)
    model = runtime.build(config)
    window = runtime.train.window(config, epoch=0, number=0)
    rows = np.arange(min(len(window), config.batch_size, NUM_ROWS))
    batch = runtime.collate(config, window, rows).to(default_device())

    def train(batch: Batch) -> None:
        torch.autograd.backward(runtime.loss(model, config, batch))

    def predict(batch: Batch) -> None:
        with torch.inference_mode():
            model(*batch.inputs)

    model.train()
    training = _second_call(train, batch)
    model.eval()
    prediction = _second_call(predict, batch)
    return Rates(len(rows) / training, len(rows) / prediction, len(rows))


def _second_call(function: Callable[[Batch], None], batch: Batch) -> float:
    """Return the seconds of the second call, because the first one allocates memory."""
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        function(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return max(seconds, 1e-6)
