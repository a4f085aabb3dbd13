"""Measure the speed of one worker on a handful of rows, to estimate how long a run takes."""

import math
import time
from collections.abc import Callable

import numpy as np
import torch

from tailorbird.config.training import TrainingConfig
from tailorbird.models.pretrained import default_device, inference_dtype
from training.batches import Batch
from training.reports import Rates
from training.task import TrainingTask

NUM_ROWS = 16  # maximum number of rows on which the rates are measured
NUM_CALLS = 4


def measure_rates(task: TrainingTask, *, config: TrainingConfig) -> Rates:
    """Return the rates for the training rows of `task`, at most `NUM_ROWS` of them, in the precision of a training.

    The optimizer's step and the communication between workers are not included. The whole model is on this process's
    device, also if `config` has another ZeRO stage.
    """
    config = config.model_copy(update={"zero_stage": 0})
    runtime = task.load_runtime(attention_dropout=config.attention_dropout)
    model, device = runtime.build(config), default_device()
    half = torch.autocast(device, torch.bfloat16, enabled=inference_dtype() == torch.bfloat16)
    window = runtime.train.window(config, epoch=0, number=0)
    rows = np.arange(min(len(window), config.batch_size, NUM_ROWS))
    batch = runtime.collate(config, window, rows).to(device)

    def train(batch: Batch) -> None:
        with half:
            loss = runtime.loss(model, config, batch)
        torch.autograd.backward(loss)

    def predict(batch: Batch) -> None:
        with torch.inference_mode(), half:
            model(*batch.inputs)

    model.train()
    training = _fastest_call(train, batch)
    model.eval()
    prediction = _fastest_call(predict, batch)
    return Rates(len(rows) / training, len(rows) / prediction, len(rows))


def _fastest_call(function: Callable[[Batch], None], batch: Batch) -> float:
    """Return the seconds of the fastest call; the first one allocates memory, and another process may delay any."""
    fastest = math.inf
    for _ in range(NUM_CALLS):
        started = time.perf_counter()
        function(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - started)
    return max(fastest, 1e-6)
