"""A chat task in training: the language model, its loss over what the assistant says, its answers on validation."""

import copy
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from tailorbird.config.training import TrainingConfig
from tailorbird.data.chat_template import Tokens
from tailorbird.data.packing import packed
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.data.tokenized import Encoded, Encoding
from tailorbird.evaluation.inference.chat_answers import answer_rows
from tailorbird.evaluation.statistics.text_metrics import per_row
from tailorbird.models.causal_lm import ChatModel, as_tensors
from tailorbird.models.errors import ModelError
from tailorbird.models.loading import default_device, inference_dtype, load_causal, load_chat_weights
from tailorbird.models.lora import add_adapter
from tailorbird.storage.node_cache import local_copy
from training.dataset import TrainingRows, load_rows
from training.export import full_state
from training.task import Diverged, TrainingTask, checkpoint_activations, means_over_ranks, write_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPARED_ROWS = 4
APART_TOKENS, APART = (8, 7), 1e-4
"""Tokens of the conversations that a model is tried on, and by how much a logit may differ, as a share of the largest:
fp32 rounds to a thousandth of that, and what leaks from one into the other is more even in random weights."""


@dataclass(frozen=True)
class ChatMaterial:
    """`training.material.Material` of a chat task."""

    lm: torch.nn.Module
    tokenizer: "PreTrainedTokenizerBase"
    task: TrainingTask
    train: TrainingRows

    def weight(self, window: Encoded, rows: NDArray[np.int64]) -> float:
        return float(window.num_said(rows))

    def build(self, config: TrainingConfig) -> ChatModel:
        lm = copy.deepcopy(self.lm)
        if config.method == "lora":
            lm = add_adapter(lm, r=config.lora_r, alpha=config.lora_alpha, dropout=config.lora_dropout)
        if config.gradient_checkpointing:
            checkpoint_activations(lm)
        return ChatModel(lm).to(default_device())

    def loss(
        self, engine: Any, config: TrainingConfig, window: Encoded, rows: NDArray[np.int64]
    ) -> tuple[torch.Tensor, int]:
        some = packed(window.conversations(rows), pad_id=self._pad_id)
        logits = engine(*as_tensors(some, device=engine.device))
        targets = torch.from_numpy(some.targets).to(engine.device)
        total = cross_entropy(logits, targets, reduction="sum", label_smoothing=config.label_smoothing)
        return total, some.input_ids.size

    def score(self, engine: Any, config: TrainingConfig) -> float:
        """By the weights as they would be exported, in the dtype that evaluation and serving use, and by its code.

        Answers are made by each rank alone, so at stage 3 no rank waits for another between two tokens.
        """
        rank, num_ranks = dist.get_rank(), dist.get_world_size()
        state = full_state(engine, config, everywhere=True)
        with tempfile.TemporaryDirectory() as folder:
            self.write(state, model=engine.module, config=config, folder=Path(folder))
            plain = self.load(Path(folder), config=config)
        plain.to(default_device(), dtype=inference_dtype()).eval()
        mine = self.task.validation.take(range(rank, len(self.task.validation), num_ranks))
        assert self.task.prompting is not None
        answers = answer_rows(plain, mine, tokenizer=self.tokenizer, prompting=self.task.prompting) if len(mine) else []
        finite = all(math.isfinite(answer.confidence) for answer in answers)
        if means_over_ranks(float(finite))[0] < 1:
            raise Diverged("answers are no numbers")
        scores = per_row(self.task.metric, outputs=[answer.text for answer in answers], references=mine.labels)
        total = torch.tensor([float(scores.sum())], dtype=torch.float64, device=default_device())
        dist.all_reduce(total)
        return float(total) / len(self.task.validation)

    def logits(self, model: Any, *, device: Any) -> torch.Tensor:
        some = self.train.some()
        rows = some.conversations(range(min(COMPARED_ROWS, len(some))))
        found: torch.Tensor = model(*as_tensors(packed(rows, pad_id=self._pad_id), device=device))
        return found

    def write(self, state: dict[str, torch.Tensor], *, model: Any, config: TrainingConfig, folder: Path) -> None:
        """`model.safetensors` or `adapter/`."""
        weights = {name.removeprefix("lm."): value for name, value in state.items()}
        if config.method == "lora":
            write_adapter(model.lm, weights, folder=folder / "adapter")
        else:
            save_file(weights, folder / "model.safetensors")

    def load(self, folder: Path, *, config: TrainingConfig) -> ChatModel:
        return load_chat_weights(folder, lm=copy.deepcopy(self.lm), kind=config.method)

    @property
    def _pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)


def load_chat_task(task: TrainingTask, *, attention_dropout: float | None = None) -> ChatMaterial:
    """Downloads the base model (once a node) and encodes the training rows; `attention_dropout` as in `load_causal`.

    Raises ModelError for a model that tells packed conversations not apart, and DataError as `training_tokens`.
    """
    folder = local_copy(task.base_model)
    tokenizer, lm = load_tokenizer(folder), load_causal(folder, attention_dropout=attention_dropout)
    _require_apart(lm)
    assert task.prompting is not None
    encoding = Encoding(max_length=task.max_length, chat=True, system=task.prompting.system)
    return ChatMaterial(lm, tokenizer, task, load_rows(task.train, encoding, tokenizer=tokenizer, classes=task.classes))


def try_chat_task(task: TrainingTask, *, attention_dropout: float | None) -> None:
    """Raises what `load_chat_task` would raise in every worker."""
    load_chat_task(task, attention_dropout=attention_dropout)


def _require_apart(lm: Any) -> None:
    """Raises ModelError where the logits of two short conversations in one row are not those of each alone.

    Known for it are recurrent and convolutional layers (LFM2, Falcon-H1, Qwen3-Next, Jamba), which carry on what stood
    before; Bloom and Mamba take no mask of ours at all.
    """
    num, most = sum(APART_TOKENS), lm.config.get_text_config().vocab_size
    ids = np.split(np.linspace(0, most - 1, num=num, dtype=np.int64), APART_TOKENS[:1])
    some = packed([Tokens(one.tolist(), np.ones(len(one), dtype=np.bool_)) for one in ids], pad_id=0)
    try:
        with torch.inference_mode():
            passes = [lm(input_ids=torch.from_numpy(one)[None], use_cache=False).logits[0, :-1] for one in ids]
            alone = torch.cat(passes).float()
            difference = float((ChatModel(lm)(*as_tensors(some, device="cpu")) - alone).abs().max())
        why = f"a logit is another by {difference:.3g}" if not difference <= APART * float(alone.abs().max()) else ""
    except Exception as error:  # whatever a model raises that cannot be asked so
        why = f"{type(error).__name__}: {error}"
    if why:
        raise ModelError(
            f"a model of the kind {lm.config.model_type} cannot be trained for a chat task here: conversations are "
            f"packed into one row, where it does not answer each as it does alone ({why}); choose a model of attention "
            "layers only, as Llama, Qwen2 and 3, Gemma, Granite and SmolLM are"
        )
