"""The vLLM engine with a tiny model with random weights, and its error if vLLM is not installed."""

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
import torch
from safetensors.torch import save_file

from serving.batch_jobs.vllm_model import VllmModel
from serving.engines import vllm_engine, vllm_server
from serving.engines.base_chat import Sampling
from serving.engines.language_model import Generation, Likelihood
from serving.engines.vllm_engine import (
    EngineNotInstalled,
    VllmEngine,
    VllmPool,
    server_options,
    version_files,
)
from serving.http.schemas import RequestError
from tailorbird.config.serving import ServingConfig
from tailorbird.models.generation import Answer, answer_prompts
from tailorbird.models.loading import LoadedChat
from tailorbird.models.lora import add_adapter
from tailorbird.registry.kinds import Kind
from tailorbird.registry.versions import (
    ModelVersion,
    Prompting,
    VersionConfig,
    register,
    write_config,
)
from tests.loaded import load_model
from tests.small_chat import language_model, save
from tests.unit.serving.engines.test_transformers_engine import (
    GREEDY,
    LIMIT,
    PROMPTS,
    TOKENIZER,
    answer_tokens,
    check_logprobs,
    check_unload,
    tokens,
)

needs_vllm = pytest.mark.skipif(
    not importlib.util.find_spec("vllm"), reason="vLLM is not installed"
)
ROOT = Path(__file__).parents[4]
WIDTH = 128  # heads of size 32, the smallest that vLLM supports


CONFIG = ServingConfig(engine="vllm", max_batch_size=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny language model."""
    folder = tmp_path_factory.mktemp("base")
    save(folder, language_model(width=WIDTH))
    return folder


@pytest.fixture(scope="module")
def versions(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelVersion]:
    """Return registered versions: a baseline, two adapters of different ranks, and one with weights
    of its own."""
    task_uri = tmp_path_factory.mktemp("registry").as_uri() + "/toy"
    kinds: tuple[tuple[str, Kind, int], ...] = (
        ("prompt", "zero_shot", 0),
        ("a", "lora", 8),
        ("b", "lora", 4),
        ("full", "full", 0),
    )
    return {
        name: registered_version(
            base, tmp_path_factory.mktemp(name), kind=kind, rank=rank, task_uri=task_uri
        )
        for name, kind, rank in kinds
    }


def registered_version(
    base: Path, folder: Path, *, kind: Kind, rank: int, task_uri: str
) -> ModelVersion:
    """Return a registered version with random weights."""
    lm: Any = language_model(width=WIDTH)
    generator = torch.Generator().manual_seed(rank)
    if kind == "lora":
        lm = add_adapter(lm, r=rank, alpha=2 * rank, dropout=0.0)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad and kind != "zero_shot":
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    if kind == "lora":
        lm.save_pretrained(folder / "adapter")
    elif kind == "full":
        state = {name: parameter.detach().contiguous() for name, parameter in lm.named_parameters()}
        save_file(state, folder / "model.safetensors")
    config = VersionConfig(
        kind=kind,
        classes=(),
        base_model=base.as_uri(),
        max_length=256,
        dtype="float32",
        code="s3://none.zip",
        recipe_hash="0" * 64,
        created_at="2026-01-01T00:00:00+00:00",
        prompting=Prompting(system="be brief", max_new_tokens=LIMIT),
    )
    write_config(folder, config)
    return register(task_uri, folder)


def expected(version: ModelVersion) -> list[Answer]:
    """Return the answers of the evaluation."""
    lm = load_model(version.uri, LoadedChat, device="cpu").lm
    return answer_prompts(lm, PROMPTS, max_new_tokens=LIMIT, end_id=TOKENIZER.eos_token_id)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """Return the event loop in which the tests use an engine."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def in_ray() -> Iterator[None]:
    ray.init(
        num_cpus=4, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pool(in_ray: None) -> VllmPool:  # noqa: ARG001  starts Ray
    return VllmPool(CONFIG)


@pytest.fixture(scope="module")
def engine(pool: VllmPool, versions: dict[str, ModelVersion]) -> Iterator[VllmEngine]:
    started = load(pool, versions["a"])
    yield started
    started.end()


def load(pool: VllmPool, version: ModelVersion) -> VllmEngine:
    return pool.load(version)


def unfinished(server: Any) -> bool:
    """Return True if vLLM has unfinished requests, for which it has no public attribute."""
    return bool(server._server.engine._engine_client.output_processor.has_unfinished_requests())


async def together(engine: VllmEngine, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    return list(
        await asyncio.gather(*[answer_tokens(engine, prompt, **options) for prompt in prompts])
    )


@pytest.mark.skipif(bool(importlib.util.find_spec("vllm")), reason="vLLM is installed")
def test_without_vllm_the_error_gives_the_install_command(
    versions: dict[str, ModelVersion],
) -> None:
    with pytest.raises(EngineNotInstalled):
        load(VllmPool(CONFIG), versions["full"])


def check_answers(engine: VllmEngine, loop: asyncio.Runner, *, streaming: bool = True) -> None:
    """Check that the engine answers as its version did in the evaluation."""
    answers = loop.run(together(engine, PROMPTS, streaming=streaming))
    for tokens_of_answer, answer in zip(answers, expected(engine.version), strict=True):
        assert [
            token for token in tokens_of_answer if token != TOKENIZER.eos_token_id
        ] == answer.tokens
        assert (tokens_of_answer[-1] == engine.end_id) == answer.finished


@needs_vllm
@pytest.mark.parametrize("streaming", [True, False])
def test_greedy_answers_equal_those_of_the_evaluation(
    engine: VllmEngine, loop: asyncio.Runner, streaming: bool
) -> None:
    check_answers(engine, loop, streaming=streaming)
    assert len(loop.run(tokens(engine, PROMPTS[0], streaming=False))) == 1
    assert engine.max_length == 256


@needs_vllm
def test_log_probabilities_equal_those_of_the_evaluation(
    engine: VllmEngine, loop: asyncio.Runner
) -> None:
    loop.run(check_logprobs(engine, expected(engine.version)))


@needs_vllm
def test_versions_on_one_base_model_share_a_server_and_give_their_own_answers(
    engine: VllmEngine, pool: VllmPool, versions: dict[str, ModelVersion], loop: asyncio.Runner
) -> None:
    others = [load(pool, versions[name]) for name in ("b", "prompt", "b")]
    assert pool.num_running == 1
    assert all(other.slots is engine.slots for other in others)

    async def all_at_once() -> list[list[list[int]]]:
        return list(await asyncio.gather(*[together(each, PROMPTS) for each in (engine, *others)]))

    answers = loop.run(all_at_once())
    for each, answered in zip((engine, *others), answers, strict=True):
        wanted = [answer.tokens for answer in expected(each.version)]
        assert [
            [token for token in answer if token != engine.end_id] for answer in answered
        ] == wanted
    assert answers[1] == answers[3]
    assert len({str(answer) for answer in answers}) == 3
    for other in others:
        other.end()
    assert engine.running
    check_answers(engine, loop)


@needs_vllm
@pytest.mark.usefixtures("in_ray")
def test_a_base_model_and_other_weights_have_servers_of_their_own(
    versions: dict[str, ModelVersion], loop: asyncio.Runner
) -> None:
    pool = VllmPool(CONFIG)
    adapted = load(pool, versions["a"])
    check_answers(adapted, loop)
    full = load(pool, versions["full"])
    assert pool.num_running == 2
    check_answers(full, loop)
    for each in (adapted, full):
        each.end()
        assert not each.running
    assert pool.num_running == 0


@needs_vllm
def test_a_seed_gives_the_same_answer_alone_and_in_a_batch(
    engine: VllmEngine, loop: asyncio.Runner
) -> None:
    warm = Sampling(temperature=1.5, top_p=0.9, seed=2**64 - 5)
    alone = loop.run(answer_tokens(engine, PROMPTS[1], sampling=warm))
    answers = loop.run(together(engine, [PROMPTS[0], PROMPTS[1], PROMPTS[2]], sampling=warm))
    assert answers[1] == alone
    assert loop.run(answer_tokens(engine, PROMPTS[1], sampling=warm._replace(seed=1))) != alone


@needs_vllm
def test_a_cancelled_request_leaves_the_engine(engine: VllmEngine, loop: asyncio.Runner) -> None:
    async def cancel() -> None:
        generating = engine.generate(Generation(PROMPTS[0], 200, GREEDY, streaming=True))
        async with aclosing(generating):
            await anext(generating)
        await tokens(engine, PROMPTS[1])

    loop.run(cancel())
    assert not ray.get(engine._server.actor.__ray_call__.remote(unfinished))


@needs_vllm
@pytest.mark.usefixtures("in_ray")
def test_an_unloaded_engine_finishes_its_answers_and_then_ends(
    versions: dict[str, ModelVersion], loop: asyncio.Runner
) -> None:
    loop.run(check_unload(lambda: load(VllmPool(CONFIG), versions["full"])))


def shared_memory() -> set[str]:
    """Return the names of shared memory segments."""
    return {file.name for file in Path("/dev/shm").glob("psm_*")}


def processes(server: Any) -> list[int]:  # noqa: ARG001  Ray passes the actor itself
    """Return the ids of the engine's processes."""
    return [child.pid for child in psutil.Process().children(recursive=True)]


@needs_vllm
@pytest.mark.usefixtures("in_ray")
def test_a_killed_engine_is_reported_and_leaves_no_process(
    versions: dict[str, ModelVersion], loop: asyncio.Runner
) -> None:
    pool = VllmPool(CONFIG)
    engine = load(pool, versions["a"])
    pids = ray.get(engine._server.actor.__ray_call__.remote(processes))
    assert pids
    assert engine.running

    async def request() -> None:
        answering = asyncio.create_task(tokens(engine, PROMPTS[0]))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(RequestError) as caught:
            await answering
        assert caught.value.status in (
            500,
            503,
        )  # 500 if the server has not yet detected that its engine ended
        while engine.running:
            await asyncio.sleep(0.1)
        with pytest.raises(RequestError) as caught:
            await tokens(engine, PROMPTS[1])
        assert caught.value.status == 503

    loop.run(request())
    before = shared_memory()
    again = load(pool, versions["a"])  # not on the server that has stopped
    pids = ray.get(again._server.actor.__ray_call__.remote(processes))
    assert shared_memory() - before
    again.end()
    assert not shared_memory() - before
    ended, left = psutil.wait_procs(
        [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20
    )
    assert not left, ended


@needs_vllm
def test_a_batch_has_the_answers_and_the_confidence_of_the_evaluation(
    versions: dict[str, ModelVersion],
) -> None:
    for name in ("a", "full"):
        model = VllmModel(versions[name], config=CONFIG)
        for answer, wanted in zip(model.answer(PROMPTS), expected(versions[name]), strict=True):
            assert (answer.tokens, answer.finished) == (wanted.tokens, wanted.finished)
            assert answer.confidence == pytest.approx(wanted.confidence, rel=1e-3)


PARENT = """
import subprocess, time
from serving.engines.vllm_server import guard_children
print(subprocess.Popen(["sleep", "600"]).pid, guard_children().pid, flush=True)
time.sleep(600)
"""


def test_the_children_of_a_killed_process_are_killed() -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert all(child.is_running() for child in children)
        parent.kill()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            while child.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.1)


def test_an_event_without_tokens_can_end_an_answer() -> None:
    event = 'data: {"choices": [{"token_ids": [], "finish_reason": "stop"}]}\n\n'
    assert vllm_server._token_delta([event]) == ([], True, [])
    assert vllm_server._token_delta(["data: [DONE]\n\n"]) is None


def test_log_probabilities_are_read_from_token_ids() -> None:
    logprobs = {
        "tokens": ["token_id:7", "token_id:1"],
        "token_logprobs": [-0.5, -0.1],
        "top_logprobs": [
            {"token_id:9": -1.5, "token_id:7": -0.5},
            {"token_id:1": -0.1, "token_id:3": -4.0},
        ],
    }
    choice = {"token_ids": [7, 1], "finish_reason": "stop", "logprobs": logprobs}
    delta = vllm_server._token_delta([f"data: {json.dumps({'choices': [choice]})}\n\n"])
    assert delta == (
        [7, 1],
        True,
        [Likelihood(7, -0.5, ((7, -0.5), (9, -1.5))), Likelihood(1, -0.1, ((1, -0.1), (3, -4.0)))],
    )


@pytest.mark.parametrize(
    ("gpus", "options", "most"),
    [(1, {}, 2), (0.5, {}, 2), (8, {}, 2), (1, {"gpu_memory_utilization": 0.85}, 1)],
)
def test_a_gpu_has_room_for_two_servers_unless_the_recipe_gives_one_more_memory(
    monkeypatch: pytest.MonkeyPatch,
    versions: dict[str, ModelVersion],
    gpus: float,
    options: dict[str, Any],
    most: int,
) -> None:
    monkeypatch.setattr(vllm_engine, "SHUTDOWN_S", 0)
    config = CONFIG.model_copy(update={"gpus_per_replica": gpus, "engine_options": options})
    files = version_files(versions["a"])
    server = server_options(files, config=config, folder=files.base)
    pool = VllmPool(config)
    running = SimpleNamespace(running=True)
    pool._servers = [running] * (most - 1)  # type: ignore[list-item]
    pool._wait_for_capacity(server)
    pool._servers = [running] * most  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match=rf"the replica's GPU memory holds {most} base model"):
        pool._wait_for_capacity(server)


def test_the_options_of_a_gpu_server_use_all_gpus_of_the_replica(
    versions: dict[str, ModelVersion],
) -> None:
    config = ServingConfig(
        engine="vllm",
        gpus_per_replica=4,
        engine_options={"quantization": "fp8", "max_model_len": 4096},
    )
    files = version_files(versions["a"])
    options = server_options(files, config=config, folder=files.base)
    kwargs = options.engine_kwargs()
    assert (kwargs["tensor_parallel_size"], kwargs["gpu_memory_utilization"]) == (
        4,
        vllm_engine.GPU_SHARE,
    )
    assert (kwargs["quantization"], kwargs["max_model_len"], kwargs["max_num_seqs"]) == (
        "fp8",
        4096,
        64,
    )
    assert (kwargs["enable_lora"], kwargs["max_lora_rank"], kwargs["max_loras"]) == (True, 8, 7)
    config_of_ray, env_vars = vllm_server.llm_config(options)
    assert (
        config_of_ray["placement_group_config"]["bundles"] == [{"GPU": vllm_engine.GPU_SHARE}] * 4
    )
    assert env_vars["VLLM_RAY_PER_WORKER_GPUS"] == str(vllm_engine.GPU_SHARE)
    half = server_options(
        files, config=config.model_copy(update={"gpus_per_replica": 0.5}), folder=files.base
    )
    assert half.engine_kwargs()["tensor_parallel_size"] == 1
    assert half.gpu_share == vllm_engine.GPU_SHARE / 2


def test_an_adapter_of_a_rank_that_vllm_does_not_support_is_refused() -> None:
    options = vllm_server.ServerOptions("m", "folder", "bfloat16", 8, max_lora_rank=513)
    with pytest.raises(
        ValueError,
        match=r"adapters of rank up to 512, not 513; train with a lower training\.lora_r",
    ):
        options.engine_kwargs()
