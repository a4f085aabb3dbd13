"""Measure the speed of one worker on a handful of rows, to estimate how long a run takes."""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from tailorbird.config.training import TrainingConfig
from tailorbird.data.tokenized import TokenizedRows
from tailorbird.models.pretrained import default_device, inference_dtype
from training.batches import Batch, micro_batches
from training.reports import NOT_MEASURED, Rates
from training.task import TrainingTask

NUM_ROWS = 16  # maximum number of rows on which the rates are measured
NUM_CALLS = 4


def measure_rates(task: TrainingTask, *, config: TrainingConfig) -> Rates:
    """Return the rates for a micro-batch of a training, of at most `NUM_ROWS` rows, in the precision of a training.

    The optimizer's step and the communication between workers are not included. The whole model is on this process's
    device, also if `config` has another ZeRO stage. If the model or the micro-batch does not fit on this process's GPU,
    nothing is measured. A process without a GPU must have the memory.
    """
    try:
        return _measure(task, config.model_copy(update={"zero_stage": 0}))
    except torch.OutOfMemoryError:
        return NOT_MEASURED


def _measure(task: TrainingTask, config: TrainingConfig) -> Rates:
    runtime = task.load_runtime(attention_dropout=config.attention_dropout)
    device, autocast = default_device(), inference_dtype() == torch.bfloat16
    model = runtime.build(config, autocast=autocast)
    half = torch.autocast(device, torch.bfloat16, enabled=autocast)
    window = runtime.train.window(config, epoch=0, number=0)
    rows = _micro_batch(window, config)
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


def _micro_batch(window: TokenizedRows, config: TrainingConfig) -> NDArray[np.int64]:
    """Return the rows of a micro-batch; with `batch_tokens`, of one with rows of medium length."""
    rows = np.arange(min(len(window), config.micro_batch_size(config.max_workers), NUM_ROWS))
    if config.batch_tokens is None:
        return rows
    (split,) = micro_batches(window.lengths, rows, config, num_ranks=1)
    return split[len(split) // 2]


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
