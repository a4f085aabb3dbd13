"""A causal language model for packed rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tailorbird.data.packing import PackedRows
from tailorbird.models.attention.packed_attention import Attention, attention_inputs, attention_name, set_attention
from tailorbird.models.attention.transformers_private import attention_implementation


class ChatModel(nn.Module):
    """A causal language model that maps packed rows to next-token logits.

    `lm` is a transformers model, with or without a PEFT adapter. Its attention is dense until `set_attention`.
    """

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm
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
        """Set the attention of packed rows. Raises ModelError if the model refuses it."""
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
        conversation_ids: Tensor,
        positions: Tensor,
        bounds: Tensor,
        longest: int,
    ) -> Tensor:
        """Return fp32 logits [N, V] of the tokens after `positions` [N]; see `PackedRows` for the inputs.

        A token attends only to itself and earlier tokens of its conversation. Logits of other tokens are not computed,
        because the vocabulary is large. The model's own forward pass is used, because some models scale or cap logits.
        """
        causal = self.causal

        def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0].reshape(-1, inputs[0].shape[-1])[positions],)

        restricted = attention_inputs(causal, conversation_ids, bounds, longest=longest)
        with causal.get_output_embeddings().register_forward_pre_hook(select):
            logits: Tensor = causal(
                input_ids=input_ids, position_ids=position_ids, use_cache=False, **restricted
            ).logits
        return logits.float()


def model_inputs(rows: PackedRows) -> tuple[Tensor | int, ...]:
    """Return the inputs of `ChatModel.forward` on the CPU."""
    arrays = rows.input_ids, rows.position_ids, rows.conversation_ids, rows.positions, rows.bounds
    return *(torch.from_numpy(array) for array in arrays), rows.longest


def as_tensors(rows: PackedRows, *, device: Any) -> tuple[Any, ...]:
    """Return the inputs of `ChatModel.forward` on a device."""
    return tuple(value.to(device) if isinstance(value, Tensor) else value for value in model_inputs(rows))
