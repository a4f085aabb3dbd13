"""The vLLM engine with a tiny model with random weights, and its error if vLLM is not installed."""

import asyncio
import importlib.util
import json
import os
import signal
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray

from serving.engines import vllm_engine
from serving.engines.base_chat import Sampling
from serving.engines.language_model import Likelihood
from serving.engines.vllm_engine import EngineNotInstalled, VllmEngine, start_engine
from serving.http.schemas import RequestError
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.generation import answer_prompts
from tailorbird.registry.versions import Prompting
from tests.small_chat import language_model
from tests.unit.serving.engines.test_transformers_engine import (
    GREEDY,
    LIMIT,
    PROMPTS,
    TOKENIZER,
    check_unload,
    tokens,
)

needs_vllm = pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vLLM is not installed")
ROOT = Path(__file__).parents[4]
WIDTH = 128  # heads of size 32, the smallest that vLLM supports


def loaded() -> Any:
    return SimpleNamespace(
        model=ChatModel(language_model(width=WIDTH)),
        tokenizer=TOKENIZER,
        prompting=Prompting(system="be brief", max_new_tokens=LIMIT),
        version=SimpleNamespace(version="v", dtype="float32"),
        index=None,
    )


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """Return the event loop in which the tests use an engine."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def in_ray() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def engine(in_ray: None) -> Iterator[VllmEngine]:  # noqa: ARG001  starts Ray
    started = start_engine(loaded(), max_batch_size=8)
    yield started
    started.end()


def unfinished(server: Any) -> bool:
    """Return True if vLLM has unfinished requests, for which it has no public attribute."""
    return bool(server._server.engine._engine_client.output_processor.has_unfinished_requests())


async def together(engine: VllmEngine, prompts: list[list[int]], **options: Any) -> list[list[list[int]]]:
    return list(await asyncio.gather(*[tokens(engine, prompt, **options) for prompt in prompts]))


@pytest.mark.skipif(bool(importlib.util.find_spec("vllm")), reason="vLLM is installed")
def test_without_vllm_the_error_gives_the_install_command() -> None:
    with pytest.raises(EngineNotInstalled, match=r"pip install --editable '\.\[gpu\]'"):
        start_engine(loaded(), max_batch_size=8)


@needs_vllm
def test_greedy_answers_equal_those_of_the_evaluation(engine: VllmEngine, loop: asyncio.Runner) -> None:
    lm = language_model(width=WIDTH)
    expected = answer_prompts(lm, PROMPTS, max_new_tokens=LIMIT, end_id=TOKENIZER.eos_token_id)
    for streaming in (True, False):
        answers = loop.run(together(engine, PROMPTS, streaming=streaming))
        for states, answer in zip(answers, expected, strict=True):
            assert [token for token in states[-1] if token != TOKENIZER.eos_token_id] == answer.tokens
            assert (states[-1][-1] == engine.end_id) == answer.finished
            assert len(states) == 1 or streaming
            assert all(states[-1][: len(state)] == state for state in states)
    assert engine.max_length == 256


@needs_vllm
def test_a_seed_gives_the_same_answer_alone_and_in_a_batch(engine: VllmEngine, loop: asyncio.Runner) -> None:
    warm = Sampling(temperature=1.5, top_p=0.9, seed=2**64 - 5)
    alone = loop.run(tokens(engine, PROMPTS[1], sampling=warm))[-1]
    answers = loop.run(together(engine, [PROMPTS[0], PROMPTS[1], PROMPTS[2]], sampling=warm))
    assert answers[1][-1] == alone
    assert loop.run(tokens(engine, PROMPTS[1], sampling=warm._replace(seed=1)))[-1] != alone


@needs_vllm
def test_a_cancelled_request_leaves_the_engine(engine: VllmEngine, loop: asyncio.Runner) -> None:
    async def cancel() -> None:
        generating = engine.generate(PROMPTS[0], max_new_tokens=200, sampling=GREEDY, streaming=True)
        async with aclosing(generating):
            await anext(generating)
        await tokens(engine, PROMPTS[1])

    loop.run(cancel())
    assert not ray.get(engine._server.__ray_call__.remote(unfinished))


@needs_vllm
@pytest.mark.usefixtures("in_ray")
def test_an_unloaded_engine_finishes_its_answers_and_then_ends(loop: asyncio.Runner) -> None:
    loop.run(check_unload(lambda: start_engine(loaded(), max_batch_size=8)))


def shared_memory() -> set[str]:
    """Return the names of shared memory segments."""
    return {file.name for file in Path("/dev/shm").glob("psm_*")}


def processes(server: Any) -> list[int]:  # noqa: ARG001  Ray passes the actor itself
    """Return the ids of the engine's processes."""
    return [child.pid for child in psutil.Process().children(recursive=True)]


@needs_vllm
@pytest.mark.usefixtures("in_ray")
def test_a_killed_engine_is_reported_and_leaves_no_process(loop: asyncio.Runner) -> None:
    engine = start_engine(loaded(), max_batch_size=8)
    pids = ray.get(engine._server.__ray_call__.remote(processes))
    assert pids
    assert engine.running

    async def request() -> None:
        answering = asyncio.create_task(tokens(engine, PROMPTS[0]))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(RequestError) as caught:
            await answering
        assert caught.value.status in (500, 503)  # 500 if the server has not yet detected that its engine ended
        while engine.running:
            await asyncio.sleep(0.1)
        with pytest.raises(RequestError) as caught:
            await tokens(engine, PROMPTS[1])
        assert caught.value.status == 503

    loop.run(request())
    before = shared_memory()
    again = start_engine(loaded(), max_batch_size=8)
    pids = ray.get(again._server.__ray_call__.remote(processes))
    assert shared_memory() - before
    again.end()
    assert not shared_memory() - before
    ended, left = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)
    assert not left, ended


def test_an_event_without_tokens_can_end_an_answer() -> None:
    event = 'data: {"choices": [{"token_ids": [], "finish_reason": "stop"}]}\n\n'
    assert vllm_engine._token_delta([event]) == ([], True, [])
    assert vllm_engine._token_delta(["data: [DONE]\n\n"]) is None


def test_a_third_version_on_a_gpu_is_refused_until_another_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "SHUTDOWN_S", 0)
    monkeypatch.setattr(vllm_engine, "_servers", {"one", "two"})
    with pytest.raises(RuntimeError, match="the GPU already has 2 versions"):
        vllm_engine._wait_for_capacity()
    vllm_engine._servers.discard("one")
    vllm_engine._wait_for_capacity()


def test_log_probabilities_are_read_from_token_ids() -> None:
    logprobs = {
        "tokens": ["token_id:7", "token_id:1"],
        "token_logprobs": [-0.5, -0.1],
        "top_logprobs": [{"token_id:9": -1.5, "token_id:7": -0.5}, {"token_id:1": -0.1, "token_id:3": -4.0}],
    }
    choice = {"token_ids": [7, 1], "finish_reason": "stop", "logprobs": logprobs}
    delta = vllm_engine._token_delta([f"data: {json.dumps({'choices': [choice]})}\n\n"])
    assert delta == (
        [7, 1],
        True,
        [Likelihood(7, -0.5, ((7, -0.5), (9, -1.5))), Likelihood(1, -0.1, ((1, -0.1), (3, -4.0)))],
    )
