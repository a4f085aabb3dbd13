"""A causal language model for packed rows."""

from typing import Any

import torch
from torch import Tensor, nn

from tailorbird.data.packing import PackedRows
from tailorbird.models.transformers_private import attention_implementation


class ChatModel(nn.Module):
    """A causal language model that maps packed rows to next-token logits.

    `lm` is a transformers model, with or without a PEFT adapter.
    """

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, input_ids: Tensor, position_ids: Tensor, conversation_ids: Tensor, positions: Tensor) -> Tensor:
        """Return fp32 logits [N, V] of the tokens after `positions` [N]; other inputs are [B, T] (see `PackedRows`).

        A token attends only to itself and earlier tokens of its conversation. Logits of other tokens are not computed,
        because the vocabulary is large. The model's own forward pass is used, because some models scale or cap logits.
        """
        lm: Any = self.lm
        causal = lm.get_base_model() if hasattr(lm, "get_base_model") else lm

        def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0].reshape(-1, inputs[0].shape[-1])[positions],)

        mask = _mask(conversation_ids)
        if attention_implementation(causal.config) == "eager":  # eager attention adds the mask to the scores
            mask = torch.zeros_like(mask, dtype=causal.dtype).masked_fill(~mask, torch.finfo(causal.dtype).min)
        with causal.get_output_embeddings().register_forward_pre_hook(select):
            logits: Tensor = causal(
                input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False
            ).logits
        return logits.float()


def as_tensors(rows: PackedRows, *, device: Any) -> tuple[Tensor, ...]:
    """Return the inputs of `ChatModel.forward`."""
    arrays = rows.input_ids, rows.position_ids, rows.conversation_ids, rows.positions
    return tuple(torch.from_numpy(array).to(device) for array in arrays)


def _mask(conversation_ids: Tensor) -> Tensor:
    """Return the attention mask [B, 1, T, T]: causal within a conversation; padding attends to padding."""
    same = conversation_ids[:, None, :, None] == conversation_ids[:, None, None, :]
    return same & torch.ones(same.shape[-2:], dtype=torch.bool, device=same.device).tril()
