"""What a training is made of, of either task: rows that a worker holds, a loss over them, and a score on others."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from tailorbird.config.training import TrainingConfig
from tailorbird.data.rows import Rows
from tailorbird.data.shards import Shards
from tailorbird.data.tokenized import Encoded
from tailorbird.models.loading import default_device
from tailorbird.registry.versions import Prompting
from training.dataset import TrainingRows


class Diverged(ValueError):
    """A loss or an answer that is no finite number; the message names epoch, step and rows. The same on every rank."""


@dataclass(frozen=True)
class TrainingTask:
    """What is trained on what; it travels to every worker. There is no test split in it."""

    base_model: str
    """URI of the staged base model."""
    train: Rows | Shards
    """Rows, or where there are more than memory should hold, where they lie encoded."""
    validation: Rows
    classes: tuple[str, ...]
    """Of a classification; a chat task has none."""
    max_length: int
    metric: str = "accuracy"
    """What validation is scored by; one of the task's in `recipes.schema.TASK_METRICS`."""
    prompting: Prompting | None = None
    """Of a chat task: how its model is asked."""


class Material(Protocol):
    """A task loaded into a worker once, for as many trainings as follow; `training.classification` and `training.chat`.

    Every rank calls the methods with the same arguments, but for the rows of a loss.
    """

    @property
    def task(self) -> TrainingTask:
        """What it was made from."""

    @property
    def train(self) -> TrainingRows:
        """The training rows as tokens."""

    def weight(self, window: Encoded, rows: NDArray[np.int64]) -> float:
        """What the loss of these rows of a window is the mean over: rows, or tokens that the assistant said."""

    def build(self, config: TrainingConfig) -> nn.Module:
        """A fresh model to train, on this process's device."""

    def loss(
        self, engine: Any, config: TrainingConfig, window: Encoded, rows: NDArray[np.int64]
    ) -> tuple[torch.Tensor, int]:
        """The summed loss of these rows of a window, and the tokens computed, padding among them."""

    def score(self, engine: Any, config: TrainingConfig) -> float:
        """The task's metric on the validation rows; the ranks share them. Raises Diverged."""

    def logits(self, model: Any, *, device: Any) -> torch.Tensor:
        """In fp32, of a few rows: what exported weights are compared by."""

    def write(self, state: dict[str, torch.Tensor], *, model: Any, config: TrainingConfig, folder: Path) -> None:
        """The trained weights, whole, as an artifact's files."""

    def load(self, folder: Path, *, config: TrainingConfig) -> nn.Module:
        """What `write` wrote over the pristine base model; ModelError if it is unusable."""


def means_over_ranks(*values: float) -> list[float]:
    """The mean of each value over the ranks, on every rank."""
    if dist.get_world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=default_device())
    dist.all_reduce(tensor)
    return [float(total) / dist.get_world_size() for total in tensor]


def checkpoint_activations(model: Any) -> None:
    """Makes a transformers model compute each layer's activations again in the backward pass."""
    kwargs = {"use_reentrant": False}  # the other kind asks for inputs with gradients, which LoRA has not
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)


def write_adapter(adapted: Any, weights: dict[str, torch.Tensor], *, folder: Path) -> None:
    """A LoRA adapter as PEFT's files; ValueError if nothing was trained."""
    if not weights:
        raise ValueError("the adapter is empty; nothing was trained")
    adapted.peft_config["default"].inference_mode = True
    adapted.save_pretrained(folder, state_dict=weights, safe_serialization=True)
