"""Inside continuous batching: which token each request takes, by its own temperature, top_p and seed."""

from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)

NUM_LIKELY = 512


class Sampler(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Leaves a request without temperature to the engine's argmax, and lets the argmax find a drawn token of others.

    Transformers' own warpers would sort the whole vocabulary for every request, whether it asks for top_p or not, draw
    from one stream of chance, and break ties by it where the evaluated answer takes the first of the most likely.
    Holds the requests of the pass between its two calls: for an engine without CUDA graphs and double buffering.
    """

    supported_kwargs: dict[str, type] = {"temperature": float, "top_p": float, "seed": int}  # noqa: RUF012
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._drawn: list[tuple[int, dict[str, Any], int]] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """It has no arguments in tensors."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """Notes which rows are to be drawn, and at which position of their text each is."""
        states = [request.state for request in requests_with_new_token]
        self._drawn = [
            (row, state.logit_processor_kwargs, len(state.initial_tokens) + len(state.generated_tokens))
            for row, state in enumerate(states)
            if state.logit_processor_kwargs.get("temperature")
        ]
        return torch.zeros(len(states), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, _tensor_arg: torch.Tensor) -> torch.Tensor:
        """Scores [B, V], where a drawn row is 0 at its token and -inf elsewhere."""
        for row, asked, position in self._drawn:
            chance = float(np.random.default_rng([asked["seed"], position]).random())
            token = sample_token(scores[row], temperature=asked["temperature"], top_p=asked["top_p"], chance=chance)
            scores[row] = -torch.inf
            scores[row, token] = 0.0
        return scores


def sample_token(logits: torch.Tensor, *, temperature: float, top_p: float, chance: float) -> int:
    """The token [V] at which the summed probabilities pass `chance`, a number in [0, 1).

    Of the most likely tokens alone that together reach `top_p` (Holtzman et al., 2020), where that is under 1.
    """
    probabilities = torch.softmax(logits.float() / temperature, dim=-1).double()
    if top_p == 1:
        return _inverse_cdf(probabilities.cumsum(0), chance)
    probabilities, tokens = _most_likely(probabilities, share=top_p)
    sums = probabilities.cumsum(0)
    sums = sums[: int((sums < top_p).sum()) + 1]
    return int(tokens[_inverse_cdf(sums, chance)])


def _most_likely(probabilities: torch.Tensor, *, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely tokens, in order, that reach the share at least: seldom is the whole vocabulary to be sorted."""
    likely = torch.topk(probabilities, min(NUM_LIKELY, len(probabilities)))
    if float(likely.values.sum()) >= share:
        return likely.values, likely.indices
    ordered = probabilities.sort(descending=True)
    return ordered.values, ordered.indices


def _inverse_cdf(sums: torch.Tensor, chance: float) -> int:
    place = int(torch.searchsorted(sums, chance * float(sums[-1]), right=True))
    return min(place, len(sums) - 1)


def logit_processors() -> Any:
    """What a continuous batching manager takes as its `logit_processor`."""
    found = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([Sampler()]))
    found.tensors_required = 1
    return found
