"""Sampling in continuous batching, with a temperature, a top_p and a seed per request."""

import math
from typing import Any

import numpy as np
import torch

from serving.engines.base_chat import Sampling
from serving.engines.language_model import Likelihood, Likelihoods
from tailorbird.models.attention.transformers_private import (
    ContinuousBatchingLogitsProcessor,
    request_id,
    request_progress,
)
from tailorbird.models.grammar.matcher import AnswerMatcher
from tailorbird.models.grammar.processor import matched_row

# number of most likely tokens that are tried for `top_p` before the whole vocabulary is sorted
NUM_LIKELY = 512


class Sampler(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """A logits processor that samples a token for each request with a temperature above 0.

    It sets the scores so that the engine's argmax is this token. Before that, it sets the scores of
    the tokens that the grammar of a request in `matchers` does not allow to -inf, and then adds the
    log-probabilities of the new tokens of each request in `recorded`. The rows of other requests
    are not changed. It keeps the requests of a pass between its two calls, so the engine must not
    use CUDA graphs or double buffering.

    The warpers of transformers are not used: they sort the whole vocabulary for every request, use
    one random stream for all requests, and break ties at random, whereas greedy decoding in the
    evaluation takes the first of equally likely tokens.
    """

    supported_kwargs: dict[str, type] = {"temperature": float, "top_p": float, "seed": int}  # noqa: RUF012
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._requests: list[Any] = []
        # by request id; set and removed by other threads
        self.recorded: dict[str, Likelihoods] = {}
        self.matchers: dict[str, AnswerMatcher] = {}

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Fill the argument tensor with zeros, because the processor has no tensor arguments."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """Keep the requests of the pass, in the order of its rows."""
        self._requests = list(requests_with_new_token)
        return torch.zeros(len(requests_with_new_token), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, _tensor_arg: torch.Tensor) -> torch.Tensor:
        """Return the scores [B, V]. A sampled row is 0 at its token and -inf elsewhere."""
        for row, request in enumerate(self._requests):
            matcher = self.matchers.get(request_id(request))
            if matcher is not None:
                matched_row(row, request, matcher=matcher).constrain(scores)
            likelihoods = self.recorded.get(request_id(request))
            if likelihoods is not None:
                logprobs = torch.log_softmax(scores[row].float(), dim=-1)
            options, position = request_progress(request)
            if options.get("temperature"):
                _sample(scores[row], Sampling(**options), position=position)
            if likelihoods is not None:
                token = int(scores[row].argmax())
                num_likely = likelihoods.num_likely
                likelihoods.add([_likelihood(token, logprobs, num_likely=num_likely)])
        return scores


def _sample(scores: torch.Tensor, sampling: Sampling, *, position: int) -> None:
    """Sample a token from scores [V], and set them to 0 at this token and to -inf elsewhere.

    Seed and position of the token determine the random number.
    """
    uniform = float(np.random.default_rng([sampling.seed, position]).random())
    token = sample_token(
        scores, temperature=sampling.temperature, top_p=sampling.top_p, uniform=uniform
    )
    scores.fill_(-torch.inf)
    scores[token] = 0.0


def _likelihood(token: int, logprobs: torch.Tensor, *, num_likely: int) -> Likelihood:
    """Return the log-probability of a token from those of the vocabulary [V], with the most likely
    possible tokens."""
    likely = torch.topk(logprobs, min(num_likely, len(logprobs)))
    pairs = zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
    return Likelihood(
        token, float(logprobs[token]), tuple(pair for pair in pairs if pair[1] > -math.inf)
    )


def sample_token(logits: torch.Tensor, *, temperature: float, top_p: float, uniform: float) -> int:
    """Return the token at which the cumulative probability of logits [V] exceeds `uniform`, a
    number in [0, 1).

    If `top_p` is below 1, only the most likely tokens that together reach it are considered
    (Holtzman et al., 2020).
    """
    probabilities = torch.softmax(logits.float() / temperature, dim=-1).double()
    if top_p == 1:
        return _inverse_cdf(probabilities.cumsum(0), uniform)
    probabilities, tokens = _most_likely(probabilities, share=top_p)
    sums = probabilities.cumsum(0)
    sums = sums[: int((sums < top_p).sum()) + 1]
    return int(tokens[_inverse_cdf(sums, uniform)])


def _most_likely(probabilities: torch.Tensor, *, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most likely tokens that together reach `share`, in order. Sort all tokens only if
    needed."""
    likely = torch.topk(probabilities, min(NUM_LIKELY, len(probabilities)))
    if float(likely.values.sum()) >= share:
        return likely.values, likely.indices
    ordered = probabilities.sort(descending=True)
    return ordered.values, ordered.indices


def _inverse_cdf(sums: torch.Tensor, uniform: float) -> int:
    index = int(torch.searchsorted(sums, uniform * float(sums[-1]), right=True))
    return min(index, len(sums) - 1)
