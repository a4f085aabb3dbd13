"""The vLLM engine with a tiny model with random weights, and its error if vLLM is not installed."""

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
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
from serving.engines.language_model import Likelihood
from serving.engines.vllm_engine import (
    GPU_SHARE,
    EngineNotInstalled,
    VllmEngine,
    VllmPool,
    server_options,
    version_files,
)
from serving.http.schemas import RequestError
from tailorbird.config.serving import ServingConfig
from tailorbird.models.loading import LoadedChat
from tailorbird.models.lora import add_adapter
from tailorbird.registry.kinds import Kind
from tailorbird.registry.versions import ModelVersion, Prompting, register, write_config
from tests import small_chat
from tests.build import version_config
from tests.loaded import load_model
from tests.unit.byte_level import language_model
from tests.unit.serving.engines import test_transformers_engine as shared
from tests.unit.serving.engines.test_transformers_engine import (
    ANY,
    CHOICE,
    LIMIT,
    PERSON,
    PROMPTS,
    TOKENIZER,
    cancel,
    check_greedy,
    check_unload,
    choice,
    evaluated,
    last,
    loop,
)

__all__ = ["loop"]
needs_vllm = pytest.mark.skipif(
    not importlib.util.find_spec("vllm"), reason="vLLM is not installed"
)
ROOT = Path(__file__).parents[4]
WIDTH = 128  # heads of size 32, the smallest that vLLM supports
CONFIG = ServingConfig(engine="vllm", max_batch_size=8)

test_greedy_answers = (
    shared.test_greedy_answers_of_all_formats_in_one_batch_equal_those_of_the_evaluation
)
test_sampled_choices = shared.test_sampled_choices_are_exactly_the_options
test_log_probabilities = shared.test_log_probabilities_contain_only_tokens_that_the_format_allows
test_seeds = shared.test_a_seed_gives_the_same_answer_alone_and_in_a_batch


def registered(
    folder: Path,
    base: Path,
    *,
    kind: Kind = "zero_shot",
    rank: int = 0,
    format: Any = CHOICE,
) -> ModelVersion:
    """Return a registered version with random weights."""
    lm: Any = language_model(width=WIDTH)
    if kind == "lora":
        lm = add_adapter(lm, r=rank, alpha=2 * rank, dropout=0.0)
    generator = torch.Generator().manual_seed(rank)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    if kind == "lora":
        lm.save_pretrained(folder / "adapter")
    elif kind == "full":
        state = {name: parameter.detach().contiguous() for name, parameter in lm.named_parameters()}
        save_file(state, folder / "model.safetensors")
    config = version_config(
        kind=kind,
        base_model=base.as_uri(),
        max_length=512,
        prompting=Prompting(system=None, max_new_tokens=LIMIT, response_format=format),
    )
    write_config(folder, config)
    return register(base.parent.as_uri() + "/toy", folder)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelVersion]:
    """Return registered versions: a baseline, two adapters of different ranks, and one with weights
    of its own."""
    base = tmp_path_factory.mktemp("registry") / "base"
    language_model(width=WIDTH).save_pretrained(base)
    TOKENIZER.save_pretrained(base)

    def make(name: str, **fields: Any) -> ModelVersion:
        return registered(tmp_path_factory.mktemp(name), base, **fields)

    return {
        "prompt": make("prompt", format=None),
        "a": make("a", kind="lora", rank=8),
        "b": make("b", kind="lora", rank=4),
        "full": make("full", kind="full"),
    }


def model_of(version: ModelVersion) -> Any:
    """Return the model with which the evaluation answers."""
    return load_model(version.uri, LoadedChat, device="cpu").lm


@pytest.fixture(scope="module")
def reference(versions: dict[str, ModelVersion]) -> Any:
    return model_of(versions["a"])


@pytest.fixture(scope="module")
def pool() -> Iterator[VllmPool]:
    if not importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is not installed")
    ray.init(
        num_cpus=4, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}
    )
    yield VllmPool(CONFIG)
    ray.shutdown()


@pytest.fixture(scope="module")
def engine(pool: VllmPool, versions: dict[str, ModelVersion]) -> Iterator[VllmEngine]:
    started = pool.load(versions["a"])
    yield started
    started.end()


@pytest.mark.skipif(bool(importlib.util.find_spec("vllm")), reason="vLLM is installed")
def test_without_vllm_the_error_gives_the_install_command(
    versions: dict[str, ModelVersion],
) -> None:
    with pytest.raises(EngineNotInstalled):
        VllmPool(CONFIG).load(versions["full"])


def test_versions_on_one_base_model_share_a_server_and_give_their_own_answers(
    engine: VllmEngine, pool: VllmPool, versions: dict[str, ModelVersion], loop: asyncio.Runner
) -> None:
    names = ("a", "b", "prompt", "b")
    engines = [engine, *(pool.load(versions[name]) for name in names[1:])]
    assert pool.num_running == 1
    assert {id(each.slots) for each in engines} == {id(engine.slots)}
    works = [last(each, PROMPTS[0], format=ANY) for each in engines]
    texts = [answer.text for answer in loop.run(shared.together(*works))]
    assert texts[1] == texts[3]
    assert len(set(texts)) == 3
    for name, each in zip(names[1:], engines[1:], strict=True):
        check_greedy(each, loop, model_of(versions[name]))
        each.end()
    assert engine.running
    assert loop.run(last(engine, PROMPTS[0], format=ANY)).text == texts[0]
    assert engine.max_length == 512


@pytest.mark.usefixtures("pool")
def test_other_weights_have_servers_of_their_own(
    versions: dict[str, ModelVersion], loop: asyncio.Runner
) -> None:
    pool = VllmPool(CONFIG)
    engines = [pool.load(versions[name]) for name in ("a", "full")]
    assert pool.num_running == 2
    for each in engines:
        check_greedy(each, loop, model_of(each.version))
        each.end()
        assert not each.running
    assert pool.num_running == 0


def unfinished(server: Any) -> bool:
    """Return True if vLLM has unfinished requests, for which it has no public attribute."""
    return bool(server._server.engine._engine_client.output_processor.has_unfinished_requests())


def test_a_cancelled_request_leaves_the_engine(engine: VllmEngine, loop: asyncio.Runner) -> None:
    loop.run(cancel(engine))
    assert not ray.get(engine._server.actor.__ray_call__.remote(unfinished))


def test_an_unloaded_engine_finishes_its_answers_and_then_ends(
    pool: VllmPool, versions: dict[str, ModelVersion], loop: asyncio.Runner
) -> None:
    loop.run(check_unload(lambda: pool.load(versions["full"])))


def shared_memory() -> set[str]:
    """Return the names of shared memory segments."""
    return {file.name for file in Path("/dev/shm").glob("psm_*")}


def processes(server: Any) -> list[int]:  # noqa: ARG001  Ray passes the actor itself
    """Return the ids of the engine's processes."""
    return [child.pid for child in psutil.Process().children(recursive=True)]


@pytest.mark.usefixtures("pool")
def test_a_killed_engine_is_reported_and_leaves_no_process(
    versions: dict[str, ModelVersion], loop: asyncio.Runner
) -> None:
    pool = VllmPool(CONFIG)
    engine = pool.load(versions["a"])
    pids = ray.get(engine._server.actor.__ray_call__.remote(processes))
    assert pids
    assert engine.running

    async def request() -> None:
        answering = asyncio.create_task(last(engine, PROMPTS[0], format=ANY))
        await asyncio.sleep(0)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(RequestError) as caught:
            await answering
        # 500 if the server has not yet detected that its engine ended
        assert caught.value.status in (500, 503)
        while engine.running:
            await asyncio.sleep(0.1)
        with pytest.raises(RequestError) as caught:
            await last(engine, PROMPTS[1])
        assert caught.value.status == 503

    loop.run(request())
    before = shared_memory()
    again = pool.load(versions["a"])  # not on the server that has stopped
    pids = ray.get(again._server.actor.__ray_call__.remote(processes))
    assert shared_memory() - before
    again.end()
    assert not shared_memory() - before
    left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    assert not psutil.wait_procs(left, timeout=20)[1]


@needs_vllm
@pytest.mark.parametrize("name", ["a", "full", "prompt"])
def test_a_batch_has_the_answers_and_log_probabilities_of_the_evaluation(
    versions: dict[str, ModelVersion], name: str
) -> None:
    version = versions[name]
    assert version.prompting is not None
    expected = evaluated(model_of(version), version.prompting.response_format)
    for answer, wanted in zip(
        VllmModel(version, config=CONFIG).answer(PROMPTS), expected, strict=True
    ):
        assert (answer.tokens, answer.finished) == (wanted.tokens, wanted.finished)
        assert answer.confidence == pytest.approx(wanted.confidence, rel=1e-3)
        assert answer.logprobs == pytest.approx(wanted.logprobs, abs=1e-3)


@pytest.mark.usefixtures("pool")
def test_a_tokenizer_without_the_characters_of_a_format_is_an_error_of_one_answer(
    loop: asyncio.Runner, tmp_path: Path
) -> None:
    base = tmp_path / "registry" / "base"
    small_chat.save(base, small_chat.language_model(width=WIDTH))
    (tmp_path / "version").mkdir()
    letters = VllmPool(CONFIG).load(registered(tmp_path / "version", base, format=None))
    prompt = letters.chat_prompt((("user", "abc"),), max_new_tokens=LIMIT)
    try:
        with pytest.raises(RequestError) as caught:
            loop.run(last(letters, prompt, format=PERSON))
        assert caught.value.status == 400
        format = choice("dog", "cat")
        assert loop.run(last(letters, prompt, format=format)).text in format.choice
    finally:
        letters.end()


PARENT = """
import subprocess, time
from serving.engines.vllm_server import guard_children
print(subprocess.Popen(["sleep", "600"]).pid, guard_children().pid, flush=True)
time.sleep(600)
"""


def test_the_children_of_a_killed_process_are_killed() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert all(child.is_running() for child in children)
        parent.kill()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            while child.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.1)


def delta_of(**choice: Any) -> Any:
    event = json.dumps({"choices": [choice]})
    return vllm_server._token_delta([f"data: {event}\n\n"])


def test_tokens_and_log_probabilities_are_read_from_events() -> None:
    assert vllm_server._token_delta(["data: [DONE]\n\n"]) is None
    assert delta_of(token_ids=[], finish_reason="stop") == ([], True, [])
    with pytest.raises(ValueError, match="abort"):
        delta_of(token_ids=[], finish_reason="abort")
    logprobs = {
        "tokens": ["token_id:7"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"token_id:9": -1.5, "token_id:7": -0.5, "token_id:3": -9999.0}],
    }
    likelihood = Likelihood(7, -0.5, ((7, -0.5), (9, -1.5)))
    delta = delta_of(token_ids=[7], finish_reason=None, logprobs=logprobs)
    assert delta == ([7], False, [likelihood])


def options_of(version: ModelVersion, **fields: Any) -> vllm_server.ServerOptions:
    files = version_files(version)
    config = CONFIG.model_copy(update=fields)
    return server_options(files, config=config, folder=files.base)


@pytest.mark.parametrize(
    ("gpus", "engine_options", "most"),
    [(0.5, {}, 2), (8, {}, 2), (1, {"gpu_memory_utilization": 0.85}, 1)],
)
def test_a_gpu_has_room_for_two_servers_unless_the_recipe_gives_one_more_memory(
    monkeypatch: pytest.MonkeyPatch,
    versions: dict[str, ModelVersion],
    gpus: float,
    engine_options: dict[str, Any],
    most: int,
) -> None:
    monkeypatch.setattr(vllm_engine, "SHUTDOWN_S", 0)
    server = options_of(versions["a"], gpus_per_replica=gpus, engine_options=engine_options)
    pool = VllmPool(CONFIG)
    running: Sequence[Any] = [SimpleNamespace(running=True)] * most
    pool._servers = [*running[1:]]
    pool._wait_for_capacity(server)
    pool._servers = [*running]
    with pytest.raises(RuntimeError, match=f"holds {most} "):
        pool._wait_for_capacity(server)


def test_the_options_of_a_gpu_server_use_all_gpus_of_the_replica(
    versions: dict[str, ModelVersion],
) -> None:
    chosen = {"quantization": "fp8", "max_model_len": 4096}
    options = options_of(versions["a"], gpus_per_replica=4, engine_options=chosen)
    lora = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 7}
    gpus = {"tensor_parallel_size": 4, "gpu_memory_utilization": GPU_SHARE, "max_num_seqs": 8}
    assert (chosen | lora | gpus).items() <= options.engine_kwargs().items()
    config, env_vars = vllm_server.llm_config(options)
    assert config["placement_group_config"]["bundles"] == [{"GPU": GPU_SHARE}] * 4
    assert env_vars["VLLM_RAY_PER_WORKER_GPUS"] == str(GPU_SHARE)
    half = options_of(versions["a"], gpus_per_replica=0.5)
    assert half.engine_kwargs()["tensor_parallel_size"] == 1
    assert half.gpu_share == GPU_SHARE / 2


def test_an_adapter_of_a_rank_that_vllm_does_not_support_is_refused() -> None:
    options = vllm_server.ServerOptions(
        name="m", folder="folder", dtype="bfloat16", max_batch_size=8, max_lora_rank=513
    )
    with pytest.raises(ValueError, match="lora_r"):
        options.engine_kwargs()
