"""Training of a chat task: the language model, its loss, its validation score and its export."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from tailorbird.config.training import TrainingConfig
from tailorbird.data.chat_template import Tokens
from tailorbird.data.packing import pack
from tailorbird.data.rows import Rows
from tailorbird.data.task_data import ChatData
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.data.tokenized import TokenizedRows
from tailorbird.evaluation.inference.chat_answers import Answer, answer_rows
from tailorbird.evaluation.statistics.answer_metrics import per_row
from tailorbird.models.attention.packed_attention import Attention, choose_attention
from tailorbird.models.causal_lm import ChatModel, as_tensors, model_inputs
from tailorbird.models.errors import ModelError
from tailorbird.models.loading import load_chat_weights
from tailorbird.models.lora import merge_layers
from tailorbird.models.pretrained import default_device, load_causal, share_weights
from tailorbird.registry.versions import Prompting
from tailorbird.storage.node_cache import local_copy
from training.batch import Batch
from training.dataset import TrainingDataset, sampled_rows
from training.engine.deepspeed_engine import compute_dtype
from training.engine.deepspeed_private import fp32_values, full_shapes
from training.engine.placement import layerwise_copy, place_weights
from training.engine.synced_generation import synced_answers
from training.engine.tensor_file import save_tensors
from training.ranks import any_rank
from training.task import (
    Diverged,
    TrainingTask,
    Weights,
    trainable_copy,
    write_adapter,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPARED_LOGITS = 256
"""Number of positions whose logits an export is compared by."""
ISOLATION_TOKENS = (8, 7)
"""Lengths of the two conversations of the isolation check."""
ISOLATION_TOLERANCE = 1e-4
"""Tolerated difference of a logit in the isolation check, relative to the largest logit. Rounding
in fp32 causes a thousandth of it; a leak between the conversations exceeds it even with random
weights."""


@dataclass(frozen=True, kw_only=True)
class ChatTrainingTask(TrainingTask):
    """Training task of a chat recipe."""

    prompting: Prompting

    def load_runtime(self, *, attention_dropout: float | None = None) -> "ChatRuntime":
        folder = local_copy(self.base_model)
        tokenizer = load_tokenizer(folder)
        lm = load_causal(folder, dtype=None, attention_dropout=attention_dropout)
        train = self.dataset(tokenizer)
        return ChatRuntime(lm=lm, tokenizer=tokenizer, task=self, train=train)

    def tokenize(
        self, rows: Sequence[int], *, tokenizer: "PreTrainedTokenizerBase"
    ) -> TokenizedRows:
        assert isinstance(self.train, Rows)
        train = self.train.take(rows)
        data = ChatData(self.prompting.system)
        tokens = data.encode(train, tokenizer=tokenizer, max_length=self.max_length)
        return TokenizedRows.from_lists(train.row_ids, tokens, classes=())


@dataclass(frozen=True)
class ChatRuntime:
    """Runtime of a chat task; see `training.task.TaskRuntime`. The loss covers the assistant's
    tokens only."""

    lm: torch.nn.Module
    tokenizer: "PreTrainedTokenizerBase"
    task: ChatTrainingTask
    train: TrainingDataset
    checkpoint_before_score: bool = True

    def weight(self, window: TokenizedRows, rows: NDArray[np.int64]) -> float:
        return float(window.num_assistant_tokens(rows))

    def check_base_model(self) -> None:
        require_packing_isolation(self.lm)

    def build(self, config: TrainingConfig, *, autocast: bool = False) -> ChatModel:
        model = ChatModel(trainable_copy(self.lm, config))
        model.set_attention(self.attention(config))
        return place_weights(model, config, autocast=autocast)

    def attention(self, config: TrainingConfig) -> Attention:
        return choose_attention(self.lm, device=default_device(), dtype=compute_dtype(config))

    def collate(
        self, config: TrainingConfig, window: TokenizedRows, rows: NDArray[np.int64]
    ) -> Batch:
        one_row = self.attention(config) == "flash"  # its cost does not depend on the layout
        batch = pack(
            window.conversations(rows),
            pad_id=self._pad_id,
            max_width=self.task.max_length,
            one_row=one_row,
        )
        return Batch(model_inputs(batch), torch.from_numpy(batch.targets), batch.input_ids.size)

    def loss(self, engine: Any, config: TrainingConfig, batch: Batch) -> torch.Tensor:
        loss: torch.Tensor = engine(
            *batch.inputs, targets=batch.targets, label_smoothing=config.label_smoothing
        )
        return loss

    def score(self, engine: Any, config: TrainingConfig) -> float:
        """Return the score of greedy answers to the validation rows, which are divided among the
        ranks."""
        rank = dist.get_rank()
        num_ranks = dist.get_world_size()
        rows = self.task.validation.take(range(rank, len(self.task.validation), num_ranks))
        answers = self.answers(engine, config, rows)
        finite = all(math.isfinite(answer.confidence) for answer in answers)
        if any_rank(not finite):
            raise Diverged("predictions are not finite")
        texts = [answer.text for answer in answers]
        scores = per_row(
            self.task.metric, outputs=texts, references=rows.labels, config=rows.answers
        )
        total = torch.tensor([float(scores.sum())], dtype=torch.float64, device=default_device())
        dist.all_reduce(total)
        return float(total) / len(self.task.validation)

    def answers(self, engine: Any, config: TrainingConfig, rows: Rows) -> list[Answer]:
        """Return the greedy answers of the trained model to this rank's rows. Every rank must call
        it.

        At ZeRO stages 0 to 2, each rank answers with the code and in the dtype of evaluation and
        serving. At stage 3, no rank holds the model, so all ranks generate in step with the
        engine's parameters.
        """
        options = {
            "tokenizer": self.tokenizer,
            "prompting": self.task.prompting,
        }
        if config.zero_stage == 3:
            with generation_mode(engine), engine.module.dense_attention():
                return answer_rows(engine.module, rows, generate=synced_answers, **options)
        model = self.inference_model(engine, config)
        if len(rows):
            return answer_rows(model, rows, **options)
        return []

    def inference_model(self, engine: Any, config: TrainingConfig) -> ChatModel:
        """Return the model that the export of this engine would load as (ZeRO stages 0 to 2). Every
        rank must call it.

        It uses the engine's memory for weights that are trained in the dtype of inference, and the
        base model's memory for frozen weights that are stored in it. An adapter is read and merged
        in fp32, as after the export.
        """
        dtype = compute_dtype(config)
        parameters = engine.module.lm.named_parameters()
        trained = {name: value for name, value in parameters if value.requires_grad}
        lm = trainable_copy(self.lm, config)
        copied = dict(lm.named_parameters())
        for buffer in lm.buffers():
            buffer.data = buffer.data.to(default_device())
        if config.method == "lora":
            for name, value in zip(trained, fp32_values(engine, trained.values()), strict=True):
                copied[name].data = value
            lm = merge_layers(lm, dtype=dtype, device=default_device())
        else:
            for name, parameter in trained.items():
                copied[name].data = parameter.detach().to(dtype)
        return ChatModel(lm).eval().requires_grad_(False)

    def logits(self, model: Any, *, device: Any) -> torch.Tensor:
        batch = pack(sampled_rows(self.train).conversations([0]), pad_id=self._pad_id)
        # A position has a value for each token of the vocabulary.
        step = 1 + len(batch.positions) // COMPARED_LOGITS
        batch = replace(batch, positions=batch.positions[::step], targets=batch.targets[::step])
        with model.dense_attention():  # flash attention computes in half precision only
            logits: torch.Tensor = model(*as_tensors(batch, device=device))
        return logits

    def write(self, weights: Weights, *, model: Any, config: TrainingConfig, folder: Path) -> None:
        """Write `model.safetensors` or `adapter/`."""
        named = ((name.removeprefix("lm."), value) for name, value in weights)
        if config.method == "lora":
            write_adapter(model.lm, dict(named), folder=folder / "adapter")
        else:
            save_tensors(named, folder / "model.safetensors", shapes=full_shapes(model.lm))

    def load(self, folder: Path, *, config: TrainingConfig) -> ChatModel:
        return load_chat_weights(folder, lm=share_weights(self.lm), kind=config.method, dtype=None)

    @property
    def _pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)


@contextmanager
def generation_mode(engine: Any) -> Iterator[None]:
    """Compute as the engine does in training, but without dropout and gradients."""
    dtype = engine.torch_autocast_dtype()
    device = engine.device.type
    engine.eval()
    try:
        with (
            torch.no_grad(),
            torch.autocast(device, dtype=dtype, enabled=engine.torch_autocast_enabled()),
        ):
            yield
    finally:
        engine.train()


def require_packing_isolation(lm: Any) -> None:
    """Raise ModelError if the logits of two short conversations change when both are packed into
    one row.

    Recurrent and convolutional layers (LFM2, Falcon-H1, Qwen3-Next, Jamba) carry state from one
    conversation to the next; Bloom and Mamba do not accept a four-dimensional attention mask.
    """
    num_tokens = sum(ISOLATION_TOKENS)
    vocab_size = lm.config.get_text_config().vocab_size
    ids = np.split(
        np.linspace(0, vocab_size - 1, num=num_tokens, dtype=np.int64), ISOLATION_TOKENS[:1]
    )
    batch = pack([Tokens(row.tolist(), np.ones(len(row), dtype=np.bool_)) for row in ids], pad_id=0)
    try:
        model = ChatModel(layerwise_copy(lm))
        with torch.no_grad():
            passes = [
                model.lm(input_ids=torch.from_numpy(row)[None], use_cache=False).logits[0, :-1]
                for row in ids
            ]
            alone = torch.cat(passes).float()
            difference = float((model(*as_tensors(batch, device="cpu")) - alone).abs().max())
        if difference <= ISOLATION_TOLERANCE * float(alone.abs().max()):
            return
        reason = f"a logit differs by {difference:.3g}"
    except Exception as error:  # models that do not accept these inputs raise various exceptions
        reason = f"{type(error).__name__}: {error}"
    raise ModelError(
        f"a model of type {lm.config.model_type} cannot be trained for a chat task: training "
        "packs several conversations into one row, and this model does not isolate them "
        f"({reason}); choose a model that has only attention layers, such as Llama, Qwen2, "
        "Qwen3, Gemma, Granite or SmolLM"
    )
