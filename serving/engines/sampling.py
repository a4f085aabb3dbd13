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
from tailorbird.models.grammar.processor import MatchedRow, matched_row

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
        self._sampled: list[tuple[int, Sampling, int]] = []
        """Rows with their sampling options and the position of the new token. Seed and position
        determine the random number."""
        self._likelihoods: list[
            tuple[int, Likelihoods]
        ] = []  # rows whose log-probabilities are recorded
        self.recorded: dict[
            str, Likelihoods
        ] = {}  # by request id; set and removed by other threads
        self._matched: list[MatchedRow] = []
        self.matchers: dict[
            str, AnswerMatcher
        ] = {}  # by request id; set and removed by other threads

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Fill the argument tensor with zeros, because the processor has no tensor arguments."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """Record the rows to sample and the positions of their new tokens."""
        recorded = [
            (row, self.recorded.get(request_id(each)))
            for row, each in enumerate(requests_with_new_token)
        ]
        self._likelihoods = [
            (row, likelihoods) for row, likelihoods in recorded if likelihoods is not None
        ]
        matchers = [
            (row, each, self.matchers.get(request_id(each)))
            for row, each in enumerate(requests_with_new_token)
        ]
        self._matched = [
            matched_row(row, each, matcher=matcher) for row, each, matcher in matchers if matcher
        ]
        progress = map(request_progress, requests_with_new_token)
        self._sampled = [
            (row, Sampling(**options), position)
            for row, (options, position) in enumerate(progress)
            if options.get("temperature")
        ]
        return torch.zeros(len(requests_with_new_token), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, _tensor_arg: torch.Tensor) -> torch.Tensor:
        """Return the scores [B, V]. A sampled row is 0 at its token and -inf elsewhere."""
        for matched in self._matched:
            matched.constrain(scores)
        logprobs = {
            row: torch.log_softmax(scores[row].float(), dim=-1) for row, _ in self._likelihoods
        }
        for row, sampling, position in self._sampled:
            uniform = float(np.random.default_rng([sampling.seed, position]).random())
            token = sample_token(
                scores[row], temperature=sampling.temperature, top_p=sampling.top_p, uniform=uniform
            )
            scores[row] = -torch.inf
            scores[row, token] = 0.0
        for row, likelihoods in self._likelihoods:
            token = int(scores[row].argmax())
            likelihoods.add([_likelihood(token, logprobs[row], num_likely=likelihoods.num_likely)])
        return scores


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
