"""Training of a chat task: the language model, its loss, its validation score and its export."""

import copy
import math
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
from tailorbird.data.packing import pack
from tailorbird.data.rows import Rows
from tailorbird.data.tasks import ChatData
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.data.tokenized import TokenizedRows
from tailorbird.evaluation.inference.chat_answers import answer_rows
from tailorbird.evaluation.statistics.text_metrics import per_row
from tailorbird.models.causal_lm import ChatModel, as_tensors
from tailorbird.models.errors import ModelError
from tailorbird.models.loading import load_chat_weights
from tailorbird.models.pretrained import default_device, inference_dtype, load_causal
from tailorbird.models.retrieval.chat_prompt import chat_prompt
from tailorbird.models.retrieval.index import RetrievalIndex
from tailorbird.models.retrieval.training_examples import RetrievedExamples
from tailorbird.registry.versions import Prompting
from tailorbird.storage.node_cache import local_copy
from training.dataset import InMemoryDataset, TrainingDataset, load_dataset
from training.errors import temporary_directory
from training.export import full_state
from training.task import Diverged, TrainingTask, means_over_ranks, trainable_copy, write_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPARED_ROWS = 4
ISOLATION_TOKENS, ISOLATION_TOLERANCE = (8, 7), 1e-4
"""Lengths of the two conversations of the isolation check, and the tolerated difference of a logit, relative to the
largest logit. Rounding in fp32 causes a thousandth of this difference. A leak between the conversations exceeds it even
with random weights."""


@dataclass(frozen=True, kw_only=True)
class ChatTrainingTask(TrainingTask):
    """Training task of a chat recipe."""

    prompting: Prompting
    examples: RetrievedExamples | None = None
    """Examples of the training rows; set if and only if `prompting.retrieval` is."""

    def load_runtime(self, *, attention_dropout: float | None = None) -> "ChatRuntime":
        folder = local_copy(self.base_model)
        tokenizer, lm = load_tokenizer(folder), load_causal(folder, attention_dropout=attention_dropout)
        require_packing_isolation(lm)
        if self.examples is None:
            data = ChatData(self.prompting.system)
            dataset = load_dataset(self.train, data, tokenizer=tokenizer, max_length=self.max_length)
            return ChatRuntime(lm, tokenizer, self, dataset)
        index = self.examples.load_index()
        return ChatRuntime(lm, tokenizer, self, self._dataset_with_examples(tokenizer, index), index=index)

    def _dataset_with_examples(self, tokenizer: "PreTrainedTokenizerBase", index: RetrievalIndex) -> TrainingDataset:
        """Return the training rows, which must be in memory, with their examples in the prompt."""
        train, examples = self.train, self.examples
        assert isinstance(train, Rows)
        assert train.conversations is not None
        assert examples is not None
        prompts = (  # one at a time, because the prompts of all rows take more memory than their tokens
            chat_prompt(turns, tokenizer=tokenizer, prompting=self.prompting, index=index, rows=rows)
            for turns, rows in zip(train.conversations, examples.rows, strict=True)
        )
        data = ChatData(self.prompting.system)
        tokens = data.encode(train, tokenizer=tokenizer, max_length=self.max_length, prompts=prompts)
        return InMemoryDataset(TokenizedRows.from_lists(train.row_ids, tokens, classes=()))


@dataclass(frozen=True)
class ChatRuntime:
    """Runtime of a chat task; see `training.task.TaskRuntime`. The loss covers the assistant's tokens only."""

    lm: torch.nn.Module
    tokenizer: "PreTrainedTokenizerBase"
    task: ChatTrainingTask
    train: TrainingDataset
    index: RetrievalIndex | None = None  # set if the task has examples
    checkpoint_before_score: bool = True

    def weight(self, window: TokenizedRows, rows: NDArray[np.int64]) -> float:
        return float(window.num_assistant_tokens(rows))

    def build(self, config: TrainingConfig) -> ChatModel:
        return ChatModel(trainable_copy(self.lm, config)).to(default_device())

    def loss(
        self, engine: Any, config: TrainingConfig, window: TokenizedRows, rows: NDArray[np.int64]
    ) -> tuple[torch.Tensor, int]:
        batch = pack(window.conversations(rows), pad_id=self._pad_id)
        logits = engine(*as_tensors(batch, device=engine.device))
        targets = torch.from_numpy(batch.targets).to(engine.device)
        total = cross_entropy(logits, targets, reduction="sum", label_smoothing=config.label_smoothing)
        return total, batch.input_ids.size

    def score(self, engine: Any, config: TrainingConfig) -> float:
        """Return the score of the exported weights, in the dtype and with the code of evaluation and serving.

        Each rank generates with its own copy of the weights. With the engine at ZeRO stage 3, the ranks would wait for
        each other at each token.
        """
        rank, num_ranks = dist.get_rank(), dist.get_world_size()
        state = full_state(engine, config, everywhere=True)
        with temporary_directory() as folder:
            self.write(state, model=engine.module, config=config, folder=folder)
            model = self.load(folder, config=config)
        model.to(default_device(), dtype=inference_dtype()).eval()
        rows = self.task.validation.take(range(rank, len(self.task.validation), num_ranks))
        options = {"tokenizer": self.tokenizer, "prompting": self.task.prompting, "index": self.index}
        answers = answer_rows(model, rows, **options) if len(rows) else []
        finite = all(math.isfinite(answer.confidence) for answer in answers)
        if means_over_ranks(float(finite))[0] < 1:
            raise Diverged("predictions are not finite")
        scores = per_row(self.task.metric, outputs=[answer.text for answer in answers], references=rows.labels)
        total = torch.tensor([float(scores.sum())], dtype=torch.float64, device=default_device())
        dist.all_reduce(total)
        return float(total) / len(self.task.validation)

    def logits(self, model: Any, *, device: Any) -> torch.Tensor:
        sample = self.train.sample()
        rows = sample.conversations(range(min(COMPARED_ROWS, len(sample))))
        logits: torch.Tensor = model(*as_tensors(pack(rows, pad_id=self._pad_id), device=device))
        return logits

    def write(self, state: dict[str, torch.Tensor], *, model: Any, config: TrainingConfig, folder: Path) -> None:
        """Write `model.safetensors` or `adapter/`."""
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


def require_packing_isolation(lm: Any) -> None:
    """Raise ModelError if the logits of two short conversations change when both are packed into one row.

    Recurrent and convolutional layers (LFM2, Falcon-H1, Qwen3-Next, Jamba) carry state from one conversation to the
    next; Bloom and Mamba do not accept a four-dimensional attention mask.
    """
    num_tokens, vocab_size = sum(ISOLATION_TOKENS), lm.config.get_text_config().vocab_size
    ids = np.split(np.linspace(0, vocab_size - 1, num=num_tokens, dtype=np.int64), ISOLATION_TOKENS[:1])
    batch = pack([Tokens(row.tolist(), np.ones(len(row), dtype=np.bool_)) for row in ids], pad_id=0)
    try:
        with torch.inference_mode():
            passes = [lm(input_ids=torch.from_numpy(row)[None], use_cache=False).logits[0, :-1] for row in ids]
            alone = torch.cat(passes).float()
            difference = float((ChatModel(lm)(*as_tensors(batch, device="cpu")) - alone).abs().max())
        tolerance = ISOLATION_TOLERANCE * float(alone.abs().max())
        reason = f"a logit differs by {difference:.3g}" if not difference <= tolerance else ""
    except Exception as error:  # models that do not accept these inputs raise various exceptions
        reason = f"{type(error).__name__}: {error}"
    if reason:
        raise ModelError(
            f"a model of type {lm.config.model_type} cannot be trained for a chat task: training packs several "
            f"conversations into one row, and this model does not isolate them ({reason}); choose a model that "
            "has only attention layers, such as Llama, Qwen2, Qwen3, Gemma, Granite or SmolLM"
        )
