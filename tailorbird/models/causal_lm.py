"""A causal language model for packed rows, whose loss computes logits in chunks."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from tailorbird.data.packing import PackedRows
from tailorbird.models.attention.packed_attention import (
    Attention,
    attention_inputs,
    attention_name,
    set_attention,
)
from tailorbird.models.attention.transformers_private import (
    attention_implementation,
    needs_all_logits,
    replaced_forward,
)
from tailorbird.models.shape import rows_of_loss_chunk


class ChatModel(nn.Module):
    """A causal language model that maps packed rows to next-token logits.

    `lm` is a transformers model, with or without a PEFT adapter. Its attention is dense until
    `set_attention`.
    """

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm
        self._needs_all_logits = needs_all_logits(self.causal)
        self._dense = attention_implementation(self.causal.config) or "eager"

    @property
    def causal(self) -> Any:
        """The transformers model without the PEFT wrapper."""
        lm: Any = self.lm
        return lm.get_base_model() if hasattr(lm, "get_base_model") else lm

    @property
    def attention(self) -> Attention:
        """The attention of packed rows."""
        return attention_name(self.causal)

    def set_attention(self, attention: Attention) -> None:
        """Set the attention of packed rows."""
        if attention != self.attention:
            set_attention(self.causal, attention, dense=self._dense)

    @contextmanager
    def dense_attention(self) -> Iterator[None]:
        """Use dense attention within the block, which works in any dtype and without autocast."""
        attention = self.attention
        self.set_attention("dense")
        try:
            yield
        finally:
            self.set_attention(attention)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        positions: Tensor,
        bounds: Tensor,
        longest: int,
        *,
        targets: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Return fp32 logits [N, V] of the tokens after `positions` [N]; see `PackedRows` for the
        inputs.

        With `targets` [N], return their summed cross-entropy instead. If they are many, logits are
        computed in chunks.

        A token attends only to itself and earlier tokens of its conversation. Logits of other
        tokens are not computed, because the vocabulary is large. The model's own forward pass is
        used, because some models scale or cap logits.
        """
        causal = self.causal

        def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0].reshape(-1, inputs[0].shape[-1])[positions.to(inputs[0].device)],)

        head = causal.get_output_embeddings()
        chunked: AbstractContextManager[None] = nullcontext()
        if (
            targets is not None
            and not self._needs_all_logits
            and len(targets) > rows_of_loss_chunk(head.out_features)
        ):
            loss = partial(
                linear_cross_entropy, head, targets=targets, label_smoothing=label_smoothing
            )
            chunked = replaced_forward(head, loss)
        restricted = attention_inputs(causal, position_ids, bounds, longest=longest)
        with head.register_forward_pre_hook(select), chunked:
            output: Tensor = causal(
                input_ids=input_ids, position_ids=position_ids, use_cache=False, **restricted
            ).logits
        if targets is None or output.ndim == 0:
            return output.float()
        return cross_entropy(
            output.float(), targets, reduction="sum", label_smoothing=label_smoothing
        )


def model_inputs(rows: PackedRows) -> tuple[Tensor | int, ...]:
    """Return the inputs of `ChatModel.forward` on the CPU."""
    arrays = (rows.input_ids, rows.position_ids, rows.positions, rows.bounds)
    return (*map(torch.from_numpy, arrays), rows.longest)


def as_tensors(rows: PackedRows, *, device: Any) -> tuple[Any, ...]:
    """Return the inputs of `ChatModel.forward` on a device."""
    return tuple(
        value.to(device) if isinstance(value, Tensor) else value for value in model_inputs(rows)
    )


def linear_cross_entropy(
    head: nn.Linear, hidden: Tensor, *, targets: Tensor, label_smoothing: float
) -> Tensor:
    """Return the summed cross-entropy of the logits of a head without bias for hidden states [N, D]
    and targets [N].

    Only the logits of a chunk of targets are in memory: the backward pass computes them again.
    """

    def loss_of(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = linear(hidden, head.weight).float()
        return cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)

    rows = rows_of_loss_chunk(len(head.weight))
    chunks = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    losses = [checkpoint(loss_of, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(losses).sum()
