"""Continuous batching that is fair by client: no client waits for the long prompts of others."""

import time
from collections import Counter
from typing import Any

from serving.limits import client_name
from tailorbird.models.attention.transformers_private import (
    SCHEDULER_MAPPING,
    FIFOScheduler,
    RequestStatus,
)

FAIR = "fair"
SHARED_PROMPT_TOKENS = 32
"""Maximum number of prompt tokens in a pass while several clients share the engine. An answer gets
one token in a pass, so it determines how much the prompts of others delay each token."""
RECENT_S = 2.0
"""A client counts as sharing the engine for this time after its last pass, so that its next request
does not wait for a whole pass of others."""
CLIENT_CACHE = 0.75
"""Maximum share of the key-value cache that one client holds with more than one request."""


class FairScheduler(FIFOScheduler):  # type: ignore[misc]
    """A scheduler that divides the passes of continuous batching among clients.

    Each pass generates a token of every answer that has started. The rest of it are prompts. While
    several clients have requests, they are few, and those of the client that was served least come
    first. A client that returns counts as if it had been served as much as the one served least. A
    client that is alone uses whole passes, in order of arrival. The rest of the cache is left for
    other clients, because a full one starts no request before another ends.
    """

    def reset(self) -> None:
        super().reset()
        self._served: dict[str, int] = {}  # tokens of each recent client
        self._seen_at: dict[str, float] = {}

    def schedule_batch(
        self, token_budget: int, cache_budget: int
    ) -> tuple[list[Any] | None, bool, int, int]:
        states = self.active_requests.values()
        answers = [state for state in states if state.status == RequestStatus.DECODING]
        prompts = [state for state in states if state.status == RequestStatus.PREFILLING]
        if not self.block_new_requests:
            prompts += self._fitting(self._get_waiting_candidates())

        least = min(self._served.values(), default=0)
        now = time.monotonic()
        self._seen_at |= {_client_of(state): now for state in (*answers, *prompts)}
        self._served = {
            client: self._served.get(client, least)
            for client, seen_at in self._seen_at.items()
            if now - seen_at <= RECENT_S
        }
        self._seen_at = {client: self._seen_at[client] for client in self._served}
        if len(self._served) > 1:
            token_budget = min(token_budget, len(answers) + SHARED_PROMPT_TOKENS)
            prompts.sort(key=lambda state: self._served[_client_of(state)])

        started: set[str] = set()
        scheduled, is_cache_full, is_decoding_only, num_tokens, num_keys = self._process_candidates(
            answers + prompts, token_budget, cache_budget, started
        )
        self._cleanup_waiting_queue(started)
        for request in scheduled:
            self._served[_client_of(request.state)] += len(request.state.tokens_to_process)
        if not scheduled and is_cache_full:
            return None, is_decoding_only, 0, 0
        return scheduled, is_decoding_only, num_tokens, num_keys

    def _fitting(self, waiting: list[Any]) -> list[Any]:
        """Return the waiting requests, without those with which a client would hold more than its
        share of the cache."""
        limit = CLIENT_CACHE * self.cache.max_tokens_read
        held: Counter[str] = Counter()
        for state in self.active_requests.values():
            held[_client_of(state)] += _num_cached(state)
        fitting = []
        for state in waiting:
            client = _client_of(state)
            if not held[client] or held[client] + _num_cached(state) <= limit:
                fitting.append(state)
                held[client] += _num_cached(state)
        return fitting


SCHEDULER_MAPPING[FAIR] = FairScheduler


def named_by_client(request_id: str) -> str:
    """Return the id with which continuous batching finds the client of the current request."""
    return f"{request_id}/{client_name()}"


def _num_cached(state: Any) -> int:
    """Return the maximum number of tokens of a request in the cache."""
    return len(state.initial_tokens) + int(state.max_new_tokens)


def _client_of(state: Any) -> str:
    return str(state.request_id).partition("/")[2]
