"""Serving overhead: texts per second over HTTP, through HAProxy and Ray Serve, compared with the
model alone.

    python -m benchmarks.serving.serving_overhead

All variants run on all cores of the machine.

- `raw`: one process with one thread per core tokenizes texts, sorts them by length and runs them in
  batches of 64, without HTTP.
- `lists` and `singles`: 32 clients of the served application, which has one replica with one thread
  per core, send 16 texts or one text per request.
- `fastapi`: a plain FastAPI application in a separate process runs the model with torch in fp32
  once per request, on threads that can use all cores.

The client (`wrk`) uses the same cores. The model is MiniLM with a random head, in the dtype of its
evaluation, and the texts are ICD-10-CM terms, as in the demo. The variants alternate
in several rounds, and a figure is the median over the rounds. At the end, the benchmark measures
latencies for other numbers of clients, and the parts of the CPU time of a request with one text. It
starts a separate stack and stops it.
"""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from safetensors.torch import save_file

from benchmarks.harness import (
    ENCODER,
    STACK,
    Figures,
    finish,
    medians,
    print_table,
    register,
    separate_stack,
    server,
    stage,
    take_turns,
)
from cluster.local import stack
from serving.deploy import rollout
from tailorbird.config.serving import ServingConfig
from tailorbird.data.datasets import icd10
from tailorbird.models import loading
from tailorbird.models.classifier import logits_rows
from tailorbird.registry import versions

WIDTH = 384
NUM_CLASSES = 21
MAX_LENGTH = 64
TASK_URI = "s3://models/serving-overhead"
NUM_CLIENTS = 32
LIST_TEXTS = 16
NUM_TEXTS = 4096
RAW_BATCH = 64
RAW_PART = 512
NUM_ROUNDS = 3
SECONDS = 6
WARM_SECONDS = 3
CLIENTS = (1, 32)
BOUNDS = {
    "lists_of_16_to_raw": ">= 0.80",
    "singles_to_raw": ">= 0.55",
    "singles_to_fastapi": ">= 2.5",
}


@dataclass(frozen=True)
class Served:
    """The stack's folder, the two applications under test, and the `wrk` scripts by number of
    texts."""

    stack: Path
    url: str
    plain_url: str
    scripts: dict[int, Path]


class Load(NamedTuple):
    """Result of a load test."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float


def main() -> None:
    """Print the rounds, latencies and CPU times, then one line of JSON."""
    if shutil.which("wrk") is None:
        skipped = "the client `wrk` is not installed"
        print(json.dumps({"benchmark": "serving_overhead", "skipped": skipped}), flush=True)
        return
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(1)  # as in each measured process
    texts = icd10.build()["train"]["text"].to_pylist()[:NUM_TEXTS]
    with separate_stack(num_cpus=cores) as folder:
        scripts = {
            count: _script(folder / f"{count}.lua", texts, count=count) for count in (1, LIST_TEXTS)
        }
        plain = random_version(folder / "plain", task_uri=TASK_URI, dtype="float32")
        version = random_version(folder / "version", task_uri=TASK_URI)
        config = ServingConfig(autoscaling={"min_replicas": cores, "max_replicas": cores})
        url = rollout.deploy(config, task_uri=TASK_URI, version=version)
        command = [sys.executable, "-m", "benchmarks.serving.serving_overhead", "plain"]
        with server([*command, plain.uri], ready="/docs") as plain_url:
            served = Served(folder / STACK, url, plain_url, scripts)
            for warmed in (url, plain_url):
                _wrk(warmed, scripts[1], seconds=WARM_SECONDS)
            rounds = take_turns(
                {"": lambda: _round(version.uri, texts, served)}, rounds=NUM_ROUNDS
            )[""]
        print_table(f"{version.dtype}: latency by clients", _latencies(served))
        parts = {"": _cpu_by_part(version.uri, texts, served)}
        print_table("CPU milliseconds of a request with one text at 32 clients", parts)
    finish("serving_overhead", medians(rounds), bounds=BOUNDS)


def random_version(folder: Path, *, task_uri: str, **fields: object) -> versions.ModelVersion:
    """Create `folder` with a random head for MiniLM, and register it as a version."""
    folder.mkdir(exist_ok=True)
    weight = torch.randn(NUM_CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight, "bias": torch.zeros(NUM_CLASSES)}, folder / "head.safetensors")
    given = {
        "classes": tuple(f"class {number}" for number in range(NUM_CLASSES)),
        "base_model": stage(ENCODER),
        "max_length": MAX_LENGTH,
    }
    return register(folder, task_uri=task_uri, **(given | fields))


def _round(uri: str, texts: list[str], served: Served) -> Figures:
    raw = _raw(uri, texts)
    with_lists = _wrk(served.url, served.scripts[LIST_TEXTS], seconds=SECONDS)
    lists = with_lists.requests_per_s * LIST_TEXTS
    singles = _wrk(served.url, served.scripts[1], seconds=SECONDS).requests_per_s
    plain = _wrk(served.plain_url, served.scripts[1], seconds=SECONDS).requests_per_s
    return {
        "raw_texts_per_s": raw,
        "lists_texts_per_s": lists,
        "singles_texts_per_s": singles,
        "fastapi_texts_per_s": plain,
        "lists_of_16_to_raw": lists / raw,
        "singles_to_raw": singles / raw,
        "singles_to_fastapi": singles / plain,
    }


def _latencies(served: Served) -> dict[str, Figures]:
    """Return texts per second and latencies (p50, p99) by number of clients and texts per
    request."""
    latencies: dict[str, Figures] = {}
    for count, script in served.scripts.items():
        for clients in CLIENTS:
            load = _wrk(served.url, script, seconds=SECONDS, clients=clients)
            latencies[f"{clients} clients, {count} texts"] = {
                "texts/s": load.requests_per_s * count,
                "p50 ms": load.p50_ms,
                "p99 ms": load.p99_ms,
            }
    return latencies


def _cpu_by_part(uri: str, texts: list[str], served: Served) -> Figures:
    """Return the CPU milliseconds of a request in HAProxy, the replica and the rest.

    `forward` estimates a part of the replica: the forward passes of the same texts without a
    service, in batches with one text per client.
    """
    before = _cpu_seconds(served.stack)
    load = _wrk(served.url, served.scripts[1], seconds=SECONDS)
    after = _cpu_seconds(served.stack)
    num_requests = load.requests_per_s * SECONDS
    parts = {name: 1000 * (after[name] - before[name]) / num_requests for name in before}

    loaded: Any = loading.load_artifact(uri)
    tokens = loaded.encode(texts)
    pad_id = loaded.tokenizer.pad_token_id
    begun = time.process_time()
    for start in range(0, len(tokens), NUM_CLIENTS):
        logits_rows(loaded.model, tokens[start : start + NUM_CLIENTS], pad_id=pad_id)
    return parts | {"forward": 1000 * (time.process_time() - begun) / len(texts)}


def _cpu_seconds(folder: Path) -> dict[str, float]:
    """Return the CPU seconds of a stack's HAProxy (`proxy`), replicas, and other processes of Ray
    and Serve."""
    total = dict.fromkeys(("proxy", "replica", "rest"), 0.0)
    state = stack.status(folder)
    assert state is not None
    for process in stack.family(state.pid):
        with suppress(psutil.NoSuchProcess):
            part = "rest"
            if "haproxy" in process.name():
                part = "proxy"
            elif "ServeReplica" in " ".join(process.cmdline()[:1]):
                part = "replica"
            times = process.cpu_times()
            total[part] += times.user + times.system
    return total


def _raw(uri: str, texts: list[str]) -> float:
    """Run a process on each core; they start together, each with its share of the texts. Return
    texts per second."""
    num_processes = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(num_processes)
    results: Any = context.SimpleQueue()
    processes = []
    for number in range(num_processes):
        arguments = (uri, texts[number::num_processes], together, results)
        processes.append(context.Process(target=raw_forward, args=arguments))
    for process in processes:
        process.start()
    rates: list[float] = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(rates)


def raw_forward(uri: str, texts: list[str], together: Any, results: Any) -> None:
    """Run a process of the raw variant: tokenize, sort and classify its texts for SECONDS."""
    torch.set_num_threads(1)
    loaded: Any = loading.load_artifact(uri)
    pad_id = loaded.tokenizer.pad_token_id

    def forward(start: int) -> int:
        tokens = loaded.encode(texts[start : start + RAW_PART])
        logits_rows(loaded.model, tokens, pad_id=pad_id, batch_size=RAW_BATCH)
        return len(tokens)

    forward(0)
    together.wait()
    begun = time.perf_counter()
    done = 0
    while time.perf_counter() - begun < SECONDS:
        done += forward(done % len(texts))
    results.put(done / (time.perf_counter() - begun))


def serve_plain(uri: str, port: int) -> None:
    """Serve the model with FastAPI and uvicorn in the simplest way, with one forward pass per
    request."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    from tailorbird.models.decision import temperature_softmax

    class Body(BaseModel):
        input: str

    torch.set_num_threads(1)
    loaded: Any = loading.load_artifact(uri)
    app = FastAPI()

    @app.post("/v1/classify")
    def classify(body: Body) -> dict[str, Any]:
        tokens = loaded.encode([body.input])
        logits = logits_rows(loaded.model, tokens, pad_id=loaded.tokenizer.pad_token_id)
        scores = temperature_softmax(logits, temperature=1.0)[0]
        best = int(scores.argmax())
        return {"label": loaded.classes[best], "score": float(scores[best])}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def _script(path: Path, texts: list[str], *, count: int) -> Path:
    """Write a script that makes wrk send all texts repeatedly, `count` per request."""
    bodies = []
    for start in range(0, len(texts), count):
        batch: Any = texts[start : start + count]
        if count == 1:
            batch = texts[start]
        bodies.append(f"[==[{json.dumps({'input': batch})}]==]")
    path.write_text(
        "local bodies = {" + ",\n".join(bodies) + "}\n"
        "local headers = {['content-type'] = 'application/json'}\n"
        "local next_body = 0\n"
        "function request()\n"
        "  next_body = next_body % #bodies + 1\n"
        "  return wrk.format('POST', wrk.path, headers, bodies[next_body])\n"
        "end\n"
    )
    return path


def _wrk(url: str, script: Path, *, seconds: int, clients: int = NUM_CLIENTS) -> Load:
    """Send requests from clients that wait for each answer. Raise RuntimeError unless all answers
    have status 2xx."""
    options = ["-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
    command = ["wrk", *options, "-s", str(script), f"{url}/v1/classify"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"the load test failed:\n{output}")
    rate = re.findall(r"Requests/sec:\s+([\d.]+)", output)
    milliseconds = []
    for value, unit in re.findall(r" (?:50|99)%\s+([\d.]+)(us|ms|s)\b", output):
        milliseconds.append(float(value) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit])
    p50, p99 = milliseconds
    return Load(float(rate[0]), p50, p99)


if __name__ == "__main__":
    if sys.argv[1:2] == ["plain"]:
        serve_plain(sys.argv[2], int(sys.argv[3].removeprefix("--port=")))
    else:
        main()
