"""Sampling inside continuous batching: each request has its own temperature, top_p and seed."""

from typing import Any

import numpy as np
import torch

from serving.engines.base_chat import Sampling
from tailorbird.models.transformers_private import ContinuousBatchingLogitsProcessor, request_progress

NUM_LIKELY = 512  # tokens among which a `top_p` is searched before the whole vocabulary is sorted


class Sampler(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Samples a token for requests with a temperature, as the one that the engine's argmax takes.

    Transformers' own warpers would sort the whole vocabulary for every request, with or without top_p, sample from one
    random stream, and break ties at random, where the evaluated answer takes the first of the most likely tokens. Holds
    the requests of a pass between its two calls, so the engine must not use CUDA graphs or double buffering.
    """

    supported_kwargs: dict[str, type] = {"temperature": float, "top_p": float, "seed": int}  # noqa: RUF012
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._sampled: list[tuple[int, Sampling, int]] = []
        """Rows, and the position of the token in its text: with the seed, it determines the random number."""

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Fill nothing: it takes no tensor arguments."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """Record which rows are sampled, and at which position of its text each is."""
        progress = map(request_progress, requests_with_new_token)
        self._sampled = [
            (row, Sampling(**options), position)
            for row, (options, position) in enumerate(progress)
            if options.get("temperature")
        ]
        return torch.zeros(len(requests_with_new_token), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, _tensor_arg: torch.Tensor) -> torch.Tensor:
        """Return the scores [B, V], where a sampled row is 0 at its token and -inf elsewhere."""
        for row, sampling, position in self._sampled:
            chance = float(np.random.default_rng([sampling.seed, position]).random())
            token = sample_token(scores[row], temperature=sampling.temperature, top_p=sampling.top_p, chance=chance)
            scores[row] = -torch.inf
            scores[row, token] = 0.0
        return scores


def sample_token(logits: torch.Tensor, *, temperature: float, top_p: float, chance: float) -> int:
    """Return the token at which the cumulative probability of logits [V] exceeds `chance`, a number in [0, 1).

    If `top_p` is under 1, only the most likely tokens that together reach it count (Holtzman et al., 2020).
    """
    probabilities = torch.softmax(logits.float() / temperature, dim=-1).double()
    if top_p == 1:
        return _inverse_cdf(probabilities.cumsum(0), chance)
    probabilities, tokens = _most_likely(probabilities, share=top_p)
    sums = probabilities.cumsum(0)
    sums = sums[: int((sums < top_p).sum()) + 1]
    return int(tokens[_inverse_cdf(sums, chance)])


def _most_likely(probabilities: torch.Tensor, *, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens in order of probability that reach the share; the whole vocabulary is rarely sorted."""
    likely = torch.topk(probabilities, min(NUM_LIKELY, len(probabilities)))
    if float(likely.values.sum()) >= share:
        return likely.values, likely.indices
    ordered = probabilities.sort(descending=True)
    return ordered.values, ordered.indices


def _inverse_cdf(sums: torch.Tensor, chance: float) -> int:
    index = int(torch.searchsorted(sums, chance * float(sums[-1]), right=True))
    return min(index, len(sums) - 1)
