"""A training task (base model and rows), and its runtime in a worker (model, loss, validation
score, export)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tailorbird.config.training import TrainingConfig
from tailorbird.data.rows import Rows
from tailorbird.data.sharding.shards import Shards
from tailorbird.data.tokenized import TokenizedRows
from tailorbird.models.lora import add_adapter
from tailorbird.models.pretrained import share_weights
from training.batch import Batch
from training.dataset import TrainingDataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Weights = Iterator[tuple[str, torch.Tensor]]
"""Name in the trained model and whole fp32 value of each exported weight, in host memory."""


class Diverged(ValueError):
    """A loss or a prediction is not finite. Raised on every rank; the message names the epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainingTask(ABC):
    """A base model with its training and validation rows, sent to every worker. It never contains
    test rows."""

    base_model: str  # URI of the staged base model
    train: Rows | TokenizedRows | Shards
    """Rows or their tokens in memory, or tokenized shards on S3."""
    validation: Rows
    max_length: int
    metric: str  # metric of the validation score; a key of `tailorbird.config.metrics.METRICS`
    validation_tokens: TokenizedRows | None = None  # tokens of `validation`, if they are known
    validates_tokens: ClassVar[bool] = False
    """True if a validation reads the tokens of training, and no texts."""

    @abstractmethod
    def load_runtime(self, *, attention_dropout: float | None = None) -> "TaskRuntime":
        """Download the base model (once per node), load it, and tokenize the rows if they are not
        tokenized.

        `attention_dropout` overrides the base model's value. Raises ModelError or DataError if the
        base model or a row cannot be trained on.
        """

    @abstractmethod
    def tokenize(
        self, rows: Sequence[int], *, tokenizer: "PreTrainedTokenizerBase"
    ) -> TokenizedRows:
        """Return the tokens of these training rows, which must be in memory. Raises DataError."""

    def dataset(self, tokenizer: "PreTrainedTokenizerBase") -> TrainingDataset:
        """Return the training rows as a dataset. Rows that are not tokenized are tokenized first.
        Raises DataError."""
        if isinstance(self.train, Rows):
            return self.tokenize(range(len(self.train)), tokenizer=tokenizer)
        return self.train


class TaskRuntime(Protocol):
    """A task loaded into a worker. All trainings of the worker share it.

    Every rank calls each method with the same arguments, except for the rows of `loss`.
    """

    @property
    def train(self) -> TrainingDataset: ...

    @property
    def checkpoint_before_score(self) -> bool:
        """True if scoring is so slow that a checkpoint is written before it."""

    def weight(self, window: TokenizedRows, rows: NDArray[np.int64]) -> float:
        """Return the denominator of the mean loss of these rows: the number of rows, or of target
        tokens."""

    def check_base_model(self) -> None:
        """Raise ModelError if training does not work with a base model of this type."""

    def build(self, config: TrainingConfig, *, autocast: bool = False) -> nn.Module:
        """Return a model to train, initialized from the base model; see
        `training.engine.placement.place_weights`.

        `autocast` tells whether the engine will compute in bf16. At ZeRO stage 3, every rank must
        call it.
        """

    def attention(self, config: TrainingConfig) -> str:
        """Return the attention of training: `flash` or `dense`. Raises ModelError if it is not
        supported."""

    def collate(
        self, config: TrainingConfig, window: TokenizedRows, rows: NDArray[np.int64]
    ) -> Batch:
        """Return these rows of a window as a batch on the CPU. Called in a thread."""

    def loss(self, engine: Any, config: TrainingConfig, batch: Batch) -> torch.Tensor:
        """Return the summed loss of a batch on the engine's device, without waiting for the
        device."""

    def score(self, engine: Any, config: TrainingConfig) -> float:
        """Return the task's metric on the validation rows, divided among the ranks. Raises
        Diverged."""

    def logits(self, model: Any, *, device: Any) -> torch.Tensor:
        """Return fp32 logits of a few rows, to compare exported weights with the trained model."""

    def write(self, weights: Weights, *, model: Any, config: TrainingConfig, folder: Path) -> None:
        """Write the trained weights as the files of an artifact, one after another if all weights
        were trained.

        `model` is the trained one, whose parameters can be partitioned. Raises ValueError if
        nothing was trained.
        """

    def load(self, folder: Path, *, config: TrainingConfig) -> nn.Module:
        """Load the files that `write` wrote into a copy of the base model, in fp32 and in host
        memory.

        Raises ModelError if they are unusable.
        """


def check_trainable(task: TrainingTask, *, attention_dropout: float | None = None) -> None:
    """Load the task and check its base model, to raise the errors of both before workers start."""
    task.load_runtime(attention_dropout=attention_dropout).check_base_model()


def trainable_copy(base: nn.Module, config: TrainingConfig) -> Any:
    """Return a copy of a transformers model with the adapter and the gradient checkpointing of the
    config.

    The base model's weights are shared; see `share_weights`.
    """
    model: Any = share_weights(base)
    if config.method == "lora":
        model = add_adapter(
            model,
            r=config.lora_r,
            alpha=2 * config.lora_r,
            dropout=config.lora_dropout,
        )
    if config.gradient_checkpointing:
        # Reentrant checkpointing needs inputs with gradients, which LoRA does not have.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def write_adapter(adapted: Any, weights: dict[str, torch.Tensor], *, folder: Path) -> None:
    """Write a LoRA adapter as PEFT's files. Raises ValueError if nothing was trained."""
    if not weights:
        raise ValueError("the adapter is empty; nothing was trained")
    adapted.peft_config["default"].inference_mode = True
    adapted.save_pretrained(folder, state_dict=weights, safe_serialization=True)
