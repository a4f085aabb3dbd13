"""Passes of continuous batching that several clients share."""

import asyncio
import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from serving.engines import fair_scheduler
from serving.engines.fair_scheduler import SHARED_PROMPT_TOKENS, FairScheduler
from serving.limits import Admission
from tailorbird.models.generation import BATCH_TOKENS
from tests.unit.serving.engines.test_transformers_engine import ANY, last, running

NUM_LONG = 8
NUM_TOKENS = 400
SHORT = [9] * 10
Passes = list[Counter[str]]
Prompt = tuple[str, list[int]]


def long_prompts(client: str, num: int) -> list[Prompt]:
    """Return prompts with different beginnings, which the engine does not compute only once."""
    return [(client, [10 + number, *[7] * (NUM_TOKENS - 1)]) for number in range(num)]


def passes_of(monkeypatch: pytest.MonkeyPatch, *prompts: Prompt) -> Passes:
    """Return the tokens of each client in each pass, from prompts with the names of their clients
    that wait before the first pass."""
    passes: Passes = []
    may_start = threading.Event()
    schedule = FairScheduler.schedule_batch

    def recorded(scheduler: FairScheduler, token_budget: int, cache_budget: int) -> Any:
        assert may_start.wait(60)
        scheduled = schedule(scheduler, token_budget, cache_budget)
        tokens: Counter[str] = Counter()
        for request in scheduled[0] or ():
            client = request.state.request_id.partition("/")[2]
            tokens[client] += len(request.state.tokens_to_process)
        passes.append(tokens)
        return scheduled

    async def answers() -> None:
        admission = Admission(requests=100)
        added: list[str] = []
        add_request = engine._manager.add_request

        def counted(*arguments: Any, **options: Any) -> Any:
            added.append(add_request(*arguments, **options))
            if len(added) == len(prompts):
                may_start.set()
            return added[-1]

        monkeypatch.setattr(engine._manager, "add_request", counted)

        async def answer(client: str, prompt: list[int]) -> None:
            with admission.request(client):
                await last(engine, prompt, max_new_tokens=4, format=ANY)

        await asyncio.gather(*(answer(*prompt) for prompt in prompts))

    with running() as engine:
        monkeypatch.setattr(FairScheduler, "schedule_batch", recorded)
        asyncio.run(answers())
    return [tokens for tokens in passes if tokens]


def test_a_short_prompt_does_not_wait_for_the_long_prompts_of_another_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = passes_of(monkeypatch, *long_prompts("busy", NUM_LONG), ("other", SHORT))
    shared = [tokens for tokens in passes if tokens["other"]]
    first = passes.index(shared[0])
    assert first <= 3  # the engine takes requests between passes; in order, it would be 6
    assert shared[0]["other"] == len(SHORT)
    assert passes[first : first + len(shared)] == shared  # it is never left out
    # The other client may return soon, so passes stay small for a while.
    assert all(tokens["busy"] <= SHARED_PROMPT_TOKENS + NUM_LONG for tokens in passes[first:])
    assert sum(tokens["busy"] for tokens in passes) >= NUM_LONG * NUM_TOKENS


def test_clients_with_equal_prompts_get_equal_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    first = long_prompts("first", 2)
    second = [("second", prompt[::-1]) for _, prompt in first]
    passes = passes_of(monkeypatch, *first, *second)
    served: Counter[str] = Counter()
    for tokens in passes[1:10]:  # both have prompts
        served += tokens
        assert abs(served["first"] - served["second"]) <= SHARED_PROMPT_TOKENS + 4


def test_a_client_alone_uses_whole_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_scheduler, "RECENT_S", 0.0)
    passes = passes_of(monkeypatch, *long_prompts("busy", NUM_LONG))
    assert max(tokens["busy"] for tokens in passes) >= BATCH_TOKENS - NUM_LONG
    assert len(passes) <= NUM_LONG * NUM_TOKENS // BATCH_TOKENS + 6


def test_a_client_leaves_a_part_of_the_cache_to_others() -> None:
    def request(client: str, num_tokens: int) -> Any:
        prompt = [0] * num_tokens
        return SimpleNamespace(request_id=f"1/{client}", initial_tokens=prompt, max_new_tokens=10)

    def fitting(active: list[Any], *waiting: Any) -> list[bool]:
        scheduler: Any = SimpleNamespace(
            cache=SimpleNamespace(max_tokens_read=1_000),
            active_requests=dict(enumerate(active)),
        )
        fit = FairScheduler._fitting(scheduler, list(waiting))
        return [any(state is each for each in fit) for state in waiting]

    running = request("busy", 390)
    waiting = [request("busy", 340), request("busy", 340), request("other", 500)]
    assert fitting([running], *waiting) == [True, False, True]
    assert fitting([], request("busy", 980)) == [True]  # alone
