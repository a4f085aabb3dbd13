"""Serving overhead of a chat model: tokens per second over HTTP, compared with the engine alone and
with other servers.

    python -m benchmarks.serving.chat_serving

All variants run SmolLM2-135M-Instruct in the dtype of its evaluation, on all cores of the machine,
with greedy decoding and at most 48 tokens per answer. The number after a name is the number of
concurrent requests.

- `direct`: the engine of a replica (the continuous batching of transformers) in this process.
- `served`: clients of the served application, with one replica, that stream their answers.
- `transformers`: `transformers serve` with continuous batching, with the same clients.
- `vllm`: the server of vLLM, with the same clients, if vLLM is installed (in an environment with
  the project's packages).
- `served by vllm`: the served application with `serving.engine: vllm`.

Tokens are counted by applying the model's tokenizer to the answers. The variants alternate in
several rounds, and a figure is the median over the rounds. Other servers run one at a time, while
the served applications are idle. The benchmark starts a separate stack and stops it.
"""

import asyncio
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.harness import (
    CHAT_MODEL,
    Figures,
    finish_ratios,
    register,
    separate_stack,
    server,
    stage,
    stream_all,
    take_turns,
)
from serving.deploy import rollout
from serving.engines.base_chat import Sampling
from serving.engines.language_model import Generation
from serving.engines.transformers_engine import TransformersEngine
from tailorbird.config.serving import ServingConfig
from tailorbird.data.chat_template import prompt_tokens
from tailorbird.data.datasets import icd10
from tailorbird.models import loading
from tailorbird.registry.versions import ModelVersion, Prompting
from tailorbird.storage.node_cache import local_copy

STREAMS = (1, 4, 16)
NUM_ANSWERS = 16
MAX_TOKENS = 48
NUM_ROUNDS = 3
SERVERS = {
    "transformers": "transformers.cli.transformers serve {model} --device cpu "
    "--continuous-batching",
    "vllm": "vllm.entrypoints.openai.api_server --model {model} --max-model-len 2048",
}
"""Modules of other servers, with their arguments."""
RATE = "tokens/s"
RATIOS = {
    "served_to_direct_1": ("served 1", "direct 1", RATE),
    "served_to_direct_4": ("served 4", "direct 4", RATE),
    "served_to_direct_16": ("served 16", "direct 16", RATE),
    "served_to_transformers_16": ("served 16", "transformers 16", RATE),
    "served_to_vllm_16": ("served 16", "vllm 16", RATE),
    "served_by_vllm_to_vllm_16": ("served by vllm 16", "vllm 16", RATE),
}
"""Figures, with the two variants that they compare."""
BOUNDS = {name: ">= 0.9" if "direct" in name else ">= 1.0" for name in RATIOS}


def main() -> None:
    """Print the rounds, then one line of JSON."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with separate_stack(num_cpus=2 * len(os.sched_getaffinity(0))) as folder:
        measured = _measure(folder)
    finish_ratios("chat_serving", measured, ratios=RATIOS, bounds=BOUNDS)


def _measure(folder: Path) -> dict[str, list[Figures]]:
    """Deploy the engines, and measure all variants in turn."""
    texts = icd10.build()["test"]["text"].to_pylist()[:NUM_ANSWERS]
    questions = [f"What is meant by {text}?" for text in texts]
    version, url = _deploy(folder, "transformers")
    served = {"served": url}
    servers = ["transformers"]
    if importlib.util.find_spec("vllm") is not None:
        _, served["served by vllm"] = _deploy(folder, "vllm")
        servers.append("vllm")

    loaded: Any = loading.load_artifact(version.uri)
    engine = TransformersEngine(loaded, max_batch_size=max(STREAMS))
    over_http = partial(_over_http, loaded.tokenizer, questions)
    model = str(local_copy(version.base_model))
    variants: dict[str, Callable[[], Figures]] = {}
    for streams in STREAMS:
        variants[f"direct {streams}"] = partial(_directly, engine, loaded, questions, streams)
        for name, address in served.items():
            variants[f"{name} {streams}"] = partial(over_http, address, "champion", streams)
    for name in servers:
        variants[f"{name} 16"] = partial(_of_server, name, model, version.dtype, over_http)
    measured = take_turns(variants, rounds=NUM_ROUNDS)
    engine.end()
    return measured


def _deploy(folder: Path, engine: Literal["transformers", "vllm"]) -> tuple[ModelVersion, str]:
    """Register the pretrained model as a zero-shot version, and return it with the URL that serves
    it."""
    task_uri = f"s3://models/chat-serving-{engine}"
    version = register(
        folder / engine,
        task_uri=task_uri,
        base_model=stage(CHAT_MODEL),
        max_length=256,
        prompting=Prompting(system=None, max_new_tokens=MAX_TOKENS),
    )
    config = ServingConfig(cpus_per_replica=len(os.sched_getaffinity(0)), engine=engine)
    return version, rollout.deploy(config, task_uri=task_uri, version=version)


def _directly(
    engine: TransformersEngine, loaded: Any, questions: list[str], streams: int
) -> Figures:
    """Answer the questions with a replica's engine in this process."""
    greedy = Sampling(temperature=0.0, top_p=1.0, seed=0)
    system = loaded.prompting.system

    async def answer_all() -> list[int]:
        room = asyncio.Semaphore(streams)

        async def answer(question: str) -> int:
            prompt = prompt_tokens((("user", question),), tokenizer=loaded.tokenizer, system=system)
            async with room:
                generating = engine.generate(Generation(prompt, MAX_TOKENS, greedy))
                [tokens] = [tokens async for tokens, _ in generating]
            text = loaded.tokenizer.decode(tokens, skip_special_tokens=True)
            return len(loaded.tokenizer(text)["input_ids"])

        return await asyncio.gather(*map(answer, questions))

    start = time.perf_counter()
    num_tokens = sum(asyncio.run(answer_all()))
    return {RATE: num_tokens / (time.perf_counter() - start)}


def _over_http(tokenizer: Any, questions: list[str], url: str, model: str, streams: int) -> Figures:
    """Send the questions to a server with an OpenAI-compatible API."""
    texts, seconds, first_s = stream_all(
        url, questions, model=model, max_tokens=MAX_TOKENS, streams=streams
    )
    num_tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    return {RATE: num_tokens / seconds, "first token s": first_s}


def _of_server(
    name: str, model: str, dtype: str, over_http: Callable[[str, str, int], Figures]
) -> Figures:
    command = [sys.executable, "-m", *SERVERS[name].format(model=model).split()]
    environment = {
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    with server([*command, "--host=127.0.0.1", f"--dtype={dtype}"], environment=environment) as url:
        over_http(url, model, 4)  # the first requests load the model
        return over_http(url, model, 16)


if __name__ == "__main__":
    threads = str(len(os.sched_getaffinity(0)))
    if os.environ.get("OMP_NUM_THREADS") != threads:  # torch reads it only on import
        os.execve(sys.executable, sys.orig_argv, os.environ | {"OMP_NUM_THREADS": threads})
    main()
