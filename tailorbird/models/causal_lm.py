"""The one shape of a chat model (a causal language model), its forward pass over packed rows, and its answers."""

from typing import Any

import torch
from torch import nn

from tailorbird.data.packing import Packed


class ChatModel(nn.Module):
    """Packed token ids to next-token logits. `lm` is a transformers causal language model, adapted by PEFT or not."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, owners: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """Logits [N, V] in fp32 of the tokens that follow `places` [N]; the rest, and `Packed`'s names, are [B, T].

        A token attends to earlier ones of its own conversation alone. The vocabulary is large: only what is asked for
        is computed. The pass is the language model's own, for some scale or cap what its output layer gives.
        """
        lm: Any = self.lm
        causal = lm.get_base_model() if hasattr(lm, "get_base_model") else lm

        def asked(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (given[0].reshape(-1, given[0].shape[-1])[places],)

        mask = _mask(owners)
        if causal.config._attn_implementation == "eager":  # which adds it to the scores
            mask = torch.zeros_like(mask, dtype=causal.dtype).masked_fill(~mask, torch.finfo(causal.dtype).min)
        with causal.get_output_embeddings().register_forward_pre_hook(asked):
            logits: torch.Tensor = causal(
                input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False
            ).logits
        return logits.float()


def as_tensors(rows: Packed, *, device: Any) -> tuple[torch.Tensor, ...]:
    """What `ChatModel.forward` takes of packed rows."""
    arrays = rows.input_ids, rows.position_ids, rows.owners, rows.places
    return tuple(torch.from_numpy(array).to(device) for array in arrays)


def _mask(owners: torch.Tensor) -> torch.Tensor:
    """Whether a token [B, 1, T, T] sees another: its own conversation's, up to itself. Padding sees padding."""
    same = owners[:, None, :, None] == owners[:, None, None, :]
    return same & torch.ones(same.shape[-2:], dtype=torch.bool, device=owners.device).tril()
