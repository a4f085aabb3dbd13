"""A causal language model for packed rows, and its loss without the logits of all targets in
memory."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear

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

Gradients = list[Tensor | None]


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
        if hasattr(lm, "get_base_model"):
            return lm.get_base_model()
        return lm

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
            return (inputs[0].reshape(-1, inputs[0].shape[-1])[positions],)

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
    arrays = rows.input_ids, rows.position_ids, rows.positions, rows.bounds
    return *(torch.from_numpy(array) for array in arrays), rows.longest


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

    Logits of a chunk of targets are computed at a time, with their gradients, so that the backward
    pass needs neither the logits nor the weight. The gradient of the weight is summed in fp32, and
    it is kept until the backward pass.
    """
    loss: Tensor = _ChunkedLoss.apply(hidden, head.weight, targets, label_smoothing)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float
    ) -> Tensor:
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        else:
            dtype = None
        inputs = (hidden, weight)
        sums: Gradients = [
            torch.zeros_like(value, dtype=torch.float32) if needed else None
            for value, needed in zip(inputs, ctx.needs_input_grad, strict=False)
        ]
        total = torch.zeros((), device=hidden.device)
        with torch.autocast(device, enabled=False):
            cast = weight.detach().to(dtype or weight.dtype)
            rows = rows_of_loss_chunk(len(weight))
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                own = hidden[part].detach().to(dtype or hidden.dtype)
                own_sums = [None if sums[0] is None else sums[0][part], sums[1]]
                total += _add_chunk(
                    own, cast, targets[part], own_sums, label_smoothing=label_smoothing
                )
        ctx.gradients = [
            None if grad is None else grad.to(value.dtype)
            for value, grad in zip(inputs, sums, strict=True)
        ]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        ctx.gradients = None
        return *(None if value is None else value.mul_(grad) for value in gradients), None, None


def _add_chunk(
    hidden: Tensor, weight: Tensor, targets: Tensor, sums: Gradients, *, label_smoothing: float
) -> Tensor:
    """Return the loss of a chunk, and add its gradients to `sums`, which has None for inputs
    without a gradient."""
    with torch.enable_grad():
        leaves = [
            value.detach().requires_grad_(total is not None)
            for value, total in zip((hidden, weight), sums, strict=True)
        ]
        logits = linear(*leaves).float()
        loss = cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    trained = [leaf for leaf in leaves if leaf.requires_grad]
    if trained:
        totals = [total for total in sums if total is not None]
        for total, gradient in zip(totals, torch.autograd.grad(loss, trained), strict=True):
            total += gradient
    return loss.detach()
