"""A classifier with encoder, pooling and linear head, and its forward pass over many rows."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cluster.progress import tracked
from tailorbird.data.length_batches import length_batches, pass_cost
from tailorbird.data.tokenize import collate
from tailorbird.models.pooling.pool import pool
from tailorbird.models.shape import CPU_ROWS, GPU_ROWS
from tailorbird.registry.pooling import MEAN, Pooling

TokenIds = Sequence[Sequence[int]]  # token ids of each row, unpadded
GPU_TOKENS = 65_536  # maximum number of tokens with padding of a forward pass on a GPU; an estimate


class Classifier(nn.Module):
    """A classifier that maps token ids to class logits.

    The output of `encoder`, a transformers model, has `last_hidden_state` [B, T, D]; `head` maps
    [B, D] to [B, L].
    """

    def __init__(self, encoder: nn.Module, head: nn.Linear, *, pooling: Pooling = MEAN) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.pooling = pooling

    def embed(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return the pooled last hidden states, without padding: [B, T], [B, T] -> [B, D].

        `attention_mask` is None if there is no padding, which allows faster kernels for the
        attention.
        """
        hidden: Tensor = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return self.pool(hidden, attention_mask)

    def pool(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return the embeddings of rows from their last hidden states: [B, T, D], [B, T] -> [B,
        D]."""
        return pool(hidden, attention_mask, pooling=self.pooling)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return logits [B, L] in fp32."""
        logits: Tensor = self.head(self.embed(input_ids, attention_mask).to(self.head.weight.dtype))
        return logits.float()


class UnitLinear(nn.Linear):
    """A linear head that scales its input to length 1."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.normalize(input, dim=-1))


ACTIVATIONS = ("tanh", "relu", "gelu")
"""Names of the activations in `torch.nn.functional` that a `DenseHead` can have."""


class DenseHead(nn.Linear):
    """A linear head after a dense layer with an activation. The dense layer is stored under the
    name of the activation."""

    def __init__(self, dense: nn.Linear, output: nn.Linear, activation: str) -> None:
        super().__init__(output.in_features, output.out_features)
        self.load_state_dict(output.state_dict())
        self.activation = activation
        self.add_module(activation, dense)

    def forward(self, input: Tensor) -> Tensor:
        dense = self.get_submodule(self.activation)
        return super().forward(getattr(nn.functional, self.activation)(dense(input)))


def zero_head(num_features: int, num_classes: int) -> nn.Linear:
    """Return a linear head of zeros, for which all classes are equally likely."""
    head = nn.Linear(num_features, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def embed_rows(model: Classifier, token_lists: TokenIds, *, pad_id: int) -> np.ndarray:
    """Return embeddings [N, D] in fp32, in the order of the rows. See `logits_rows`."""
    return _over_rows(model.embed, model, token_lists, pad_id=pad_id)


def logits_rows(
    model: Classifier, token_lists: TokenIds, *, pad_id: int, batch_size: int | None = None
) -> np.ndarray:
    """Return logits [N, L] in fp32, in the order of the rows. Evaluation and serving share this
    function.

    `batch_size` is the maximum number of rows of a forward pass. By default, the passes suit the
    model's device.
    """
    return _over_rows(model.forward, model, token_lists, pad_id=pad_id, batch_size=batch_size)


def _over_rows(
    function: Callable[[Tensor, Tensor | None], Tensor],
    model: Classifier,
    token_lists: TokenIds,
    *,
    pad_id: int,
    batch_size: int | None = None,
) -> np.ndarray:
    device = model.head.weight.device
    if model.training:  # `eval` visits all modules, which would slow down every request
        model.eval()
    is_head_used = function == model.forward
    width = model.head.out_features if is_head_used else model.head.in_features
    result = np.empty((len(token_lists), width), dtype=np.float32)
    lengths = [len(tokens) for tokens in token_lists]
    batches = device_batches(lengths, device=device.type, batch_size=batch_size)
    with torch.inference_mode():
        for rows in tracked(batches, total=len(lengths)):
            inputs = collate([token_lists[row] for row in rows], pad_id=pad_id, device=device)
            result[rows] = function(*inputs).float().cpu().numpy()
    return result


def device_batches(
    lengths: Sequence[int],
    *,
    device: str,
    batch_size: int | None = None,
    max_tokens: int = GPU_TOKENS,
) -> list[NDArray[np.int64]]:
    """Return the rows of each forward pass, of up to `batch_size` rows or, by default, as many as
    suit the device.

    On a GPU, passes of several rows also have at most `max_tokens` tokens with padding.
    """
    max_rows = batch_size or (CPU_ROWS if device == "cpu" else GPU_ROWS)
    fits = len(lengths) <= max_rows and len(lengths) * max(lengths, default=0) <= max_tokens
    if device == "cpu" or fits:
        return length_batches(lengths, max_rows=max_rows)
    return length_batches(lengths, max_rows=max_rows, cost=pass_cost(max_tokens=max_tokens))
