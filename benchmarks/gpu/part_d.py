"""Part d: tokens per second of vLLM's own server and of our service over vLLM, where vLLM is
installed."""

import importlib.util
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from benchmarks.gpu.http_load import stream_answers
from benchmarks.gpu.local_ray import ROOT, local_ray
from benchmarks.gpu.report import Failed, Report, in_child
from benchmarks.gpu.rows import letters

STREAMS, REDUCED_STREAMS = (64, 256), (4,)
MAX_TOKENS = 128
START_TIMEOUT_S = 300
MODEL_LENGTH = 1024


def run(report: Report, _sections: tuple[str, ...]) -> str | None:
    """Measure both servers; return the reason if vLLM is not installed. The figures have no
    bounds."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    counts = REDUCED_STREAMS if report.reduced else STREAMS
    with tempfile.TemporaryDirectory(prefix="tailorbird-gpu-") as temporary:
        folder = Path(temporary)
        base_model = in_child(save_model, folder / "base", report.reduced)
        with _vllm_server(folder / "base", max_streams=max(counts), reduced=report.reduced) as url:
            _measure(report, "vllm", url, model=str(folder / "base"), counts=counts)
        with _our_service(
            folder, base_model, max_streams=max(counts), reduced=report.reduced
        ) as url:
            _measure(report, "served", url, model="champion", counts=counts)
    for count in counts:
        figures = report.figures
        ratio = (
            figures[f"served_{count}_tokens_per_second"]
            / figures[f"vllm_{count}_tokens_per_second"]
        )
        report.add(f"served_to_vllm_{count}", ratio)
    return None


def save_model(folder: Path, reduced: bool) -> str:
    """Save the base model; return its URI."""
    from benchmarks.gpu.models import (
        LLAMA_8B,
        LLAMA_TINY,
        save_chat_model,
    )  # in the child process only: torch

    return save_chat_model(
        folder, {**LLAMA_TINY, "head_dim": 32} if reduced else LLAMA_8B
    )  # 32: vLLM's smallest


def _measure(report: Report, name: str, url: str, *, model: str, counts: tuple[int, ...]) -> None:
    """Send each number of streams twice, and record the second time."""
    for count in counts:
        generator = random.Random(count)
        prompts = [letters(generator, 64) for _ in range(count)]
        for _ in range(2):
            streams = stream_answers(url, prompts, model=model, max_tokens=MAX_TOKENS)
        if streams.failed:
            raise Failed(
                f"{streams.failed} of {count} streams of {name} failed; see the errors above"
            )
        report.add(f"{name}_{count}_tokens_per_second", streams.letters / streams.seconds)
        report.add(f"{name}_{count}_seconds_to_first_piece", streams.first_piece_s)


@contextmanager
def _vllm_server(model: Path, *, max_streams: int, reduced: bool) -> Iterator[str]:
    """Start vLLM's server with an OpenAI-compatible API, and yield its URL when it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--host",
        "127.0.0.1",
        f"--port={port}",
    ]
    command += ["--model", str(model), "--dtype", "float32" if reduced else "bfloat16"]
    command += [f"--max-model-len={MODEL_LENGTH}", f"--max-num-seqs={max_streams}"]
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_TIMEOUT_S
    try:
        while not _is_healthy(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise Failed("vLLM's server does not start; see its errors above")
            time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait()


def _is_healthy(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=5).ok
    except requests.RequestException:
        return False


@contextmanager
def _our_service(
    folder: Path, base_model: str, *, max_streams: int, reduced: bool
) -> Iterator[str]:
    """Serve the model as a zero-shot version with `engine: vllm`, and yield the URL."""
    from cluster import code_snapshot
    from cluster.connection import connect
    from serving.deploy import rollout
    from serving.deploy.application import application_name
    from tailorbird.config.serving import ServingConfig
    from tailorbird.registry import versions

    task_uri = (folder / "registry" / "gpu-vllm").as_uri()
    artifact = folder / "version"
    artifact.mkdir()
    config = versions.VersionConfig(
        kind="zero_shot",
        classes=(),
        base_model=base_model,
        max_length=MODEL_LENGTH,
        dtype="float32" if reduced else "bfloat16",
        code=code_snapshot.ship_code(task_uri, ROOT).uri,
        recipe_hash="0" * 64,
        created_at=versions.now(),
        prompting=versions.Prompting(system=None, max_new_tokens=MAX_TOKENS),
    )
    versions.write_config(artifact, config)
    version = versions.register(task_uri, artifact)
    serving = ServingConfig(
        engine="vllm",
        gpus_per_replica=0 if reduced else 1,
        max_batch_size=max_streams,
        max_queued_requests=4 * max_streams,
    )
    with local_ray(folder), connect():
        try:
            yield rollout.deploy(serving, task_uri=task_uri, version=version)
        finally:
            rollout.undeploy(application_name(task_uri))
