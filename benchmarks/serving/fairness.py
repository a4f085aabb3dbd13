"""Latency of one client while another one sends as much as it can.

    python -m benchmarks.serving.fairness [served | in-process] [max_length]

The client `few` sends one text per request, one request after another. In the variant `attack`, the
client `many` sends 256 texts of 4 KB in each of three requests at the same time, and again after
each answer, also after a refusal with
429. In the variant `invalid`, it sends bodies of 1 MB with half a million numbers in place of
     texts; in `lists`, bodies of 1 MB with nearly as many lists in place of texts as a body may
     have values. Each client has its own API key. The 99th percentile of the latency of `few` under
     each attack may be at most 5 times that of the variant `calm`, in which it is alone.

The model is MiniLM with a random head, in one replica with one torch thread, and texts are cut to
`max_length` tokens (64 by default). With `in-process`, a process runs the application of a replica
on uvicorn, without Ray and HAProxy; otherwise the benchmark starts a separate stack and stops it.
The variants alternate. A figure is the median over the rounds, and the ratio compares the variants
within a round. The clients use the same cores as the replica.
"""

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp
import requests
import torch

from benchmarks.material import MAX_LENGTH, ROOT
from benchmarks.rounds import finish, medians, print_table, take_turns
from benchmarks.serving.serving_overhead import own_stack, random_version
from serving.deploy import rollout
from serving.http.api_keys import new_key
from serving.http.schemas import MAX_VALUES
from tailorbird.config.serving import ServingConfig
from tailorbird.data.datasets import icd10
from tailorbird.models import pretrained

NUM_TEXTS, TEXT_BYTES, NUM_ATTACKS = (
    256,
    4000,
    3,
)  # 256 texts of 4,096 bytes exceed `MAX_BODY_BYTES`
NUM_NUMBERS = 520_000  # in a body of 1 MB
ATTACKS = ("attack", "invalid", "lists")
SECONDS, NUM_ROUNDS = 20.0, 3
START_S = 120.0


def main(mode: str, max_length: int) -> None:
    """Print the rounds, then one line of JSON."""
    start = _in_process if mode == "in-process" else _served
    keys = {name: new_key(name) for name in ("few", "many")}
    lines = "".join(f"{stored.to_line()}\n" for _, stored in keys.values())
    with tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as folder:
        keys_file = Path(folder) / "keys"
        keys_file.write_text(lines)
        with start(Path(folder), ServingConfig(api_keys=keys_file.as_uri()), max_length) as url:
            headers = {name: {"authorization": f"Bearer {key}"} for name, (key, _) in keys.items()}
            variants = {
                "calm": lambda: asyncio.run(_measure(url, headers)),
                "attack": lambda: asyncio.run(_measure(url, headers, attack_body=long_texts())),
                "invalid": lambda: asyncio.run(_measure(url, headers, attack_body=invalid_texts())),
                "lists": lambda: asyncio.run(_measure(url, headers, attack_body=lists())),
            }
            measured = take_turns(variants, rounds=NUM_ROUNDS)
    rows = {name: medians(rounds) for name, rounds in measured.items()}
    print_table(
        f"one text per request, {mode}, {max_length} tokens, {pretrained.dtype_name()}", rows
    )
    ratios = {
        name: [
            under["p99_ms"] / calm["p99_ms"]
            for under, calm in zip(measured[name], measured["calm"], strict=True)
        ]
        for name in ATTACKS
    }
    figures = {
        "calm_p50_ms": rows["calm"]["p50_ms"],
        "calm_p99_ms": rows["calm"]["p99_ms"],
        "attack_p50_ms": rows["attack"]["p50_ms"],
        "attack_p99_ms": rows["attack"]["p99_ms"],
        "attack_texts_per_s": rows["attack"]["attack_texts_per_s"],
        "attack_refused": rows["attack"]["attack_refused"],
        "p99_attack_to_calm": median(ratios["attack"]),
        "invalid_p99_ms": rows["invalid"]["p99_ms"],
        "p99_invalid_to_calm": median(ratios["invalid"]),
        "lists_p99_ms": rows["lists"]["p99_ms"],
        "p99_lists_to_calm": median(ratios["lists"]),
    }
    finish("fairness", figures, bounds={f"p99_{name}_to_calm": "<= 5" for name in ATTACKS})


def long_texts() -> bytes:
    """Return a request of 256 texts of 4 KB."""
    text = " ".join(_terms() * 10)
    texts = [text[number * TEXT_BYTES : (number + 1) * TEXT_BYTES] for number in range(NUM_TEXTS)]
    return json.dumps({"input": texts}).encode()


def invalid_texts() -> bytes:
    """Return a request of 1 MB whose texts are numbers."""
    return json.dumps({"input": [1] * NUM_NUMBERS}, separators=(",", ":")).encode()


def lists() -> bytes:
    """Return a request of 1 MB whose texts are lists, with nearly as many values as a body may
    have."""
    return json.dumps(
        {"input": [[]] * (MAX_VALUES - 10), "model": "a" * 950_000}, separators=(",", ":")
    ).encode()


@cache
def _terms() -> list[str]:
    terms: list[str] = icd10.build()["train"]["text"].to_pylist()
    return terms


async def _measure(
    url: str, headers: Mapping[str, Mapping[str, str]], *, attack_body: bytes | None = None
) -> dict[str, float]:
    """Return the latencies of `few`, while `many` repeats `attack_body` if it is given."""
    terms, ends_at = _terms(), time.monotonic() + SECONDS
    answered, refused = 0, 0

    async def attack(session: aiohttp.ClientSession) -> None:
        nonlocal answered, refused
        while time.monotonic() < ends_at:
            async with session.post(
                f"{url}/v1/classify", data=attack_body, headers=headers["many"]
            ) as answer:
                answered += answer.status == 200
                refused += answer.status == 429
                await answer.read()

    latencies: list[float] = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        attacks = [
            asyncio.create_task(attack(session)) for _ in range(NUM_ATTACKS if attack_body else 0)
        ]
        await asyncio.sleep(1)
        for term in cycle(terms):
            begun = time.perf_counter()
            async with session.post(
                f"{url}/v1/classify", json={"input": term}, headers=headers["few"]
            ) as answer:
                answer.raise_for_status()
                await answer.read()
            latencies.append(time.perf_counter() - begun)
            if time.monotonic() > ends_at:
                break
        begun = time.monotonic()
        await asyncio.gather(*attacks)
        seconds = SECONDS + time.monotonic() - begun
    points = (
        quantiles(latencies, n=100, method="inclusive") if len(latencies) > 1 else latencies * 99
    )
    figures = {
        "requests": float(len(latencies)),
        "p50_ms": points[49] * 1000,
        "p99_ms": points[98] * 1000,
    }
    if attack_body:
        figures |= {
            "attack_texts_per_s": answered * NUM_TEXTS / seconds,
            "attack_refused": float(refused),
        }
    return figures


@contextmanager
def _served(folder: Path, config: ServingConfig, max_length: int) -> Iterator[str]:
    """Deploy a version on a separate stack, and yield the URL."""
    task_uri = "s3://models/fairness"
    with own_stack(folder):
        version = random_version(folder / "version", task_uri=task_uri, max_length=max_length)
        yield rollout.deploy(config, task_uri=task_uri, version=version)


@contextmanager
def _in_process(folder: Path, config: ServingConfig, max_length: int) -> Iterator[str]:
    """Run a replica's application in a separate process, and yield its URL."""
    task_uri = f"{(folder / 'models').as_uri()}/task"
    version = random_version(folder / "version", task_uri=task_uri, max_length=max_length)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [config.model_dump_json(), version.uri, version.digest, str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving.fairness", "replica", *arguments], cwd=ROOT
    )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S
    try:
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the replica did not start; see its output above")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=5).status_code == 200
    except (requests.ConnectionError, requests.Timeout):
        return False


def serve_replica(config: str, uri: str, digest: str, port: int) -> None:
    """Serve the application of a replica on uvicorn, without Ray."""
    import uvicorn

    from serving.replica import classifier

    def configured(config: str) -> ServingConfig:
        torch.set_num_threads(1)
        return ServingConfig.model_validate_json(config)

    async def serve() -> None:
        replica: Any = classifier.Classifier(uri.rpartition("/")[0], config)
        await replica.reconfigure({"champion": {"uri": uri, "digest": digest}})
        app = replica.__serve_build_asgi_app__()
        options: Any = {
            "host": "127.0.0.1",
            "port": port,
            "log_level": "warning",
            "access_log": False,
        }
        await uvicorn.Server(uvicorn.Config(app, **options)).serve()

    vars(classifier)["configure_process"] = (
        configured  # the original checks the code that Ray has shipped
    )
    asyncio.run(serve())


if __name__ == "__main__":
    if sys.argv[1:2] == ["replica"]:
        serve_replica(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        main((sys.argv[1:2] or ["served"])[0], int((sys.argv[2:3] or [str(MAX_LENGTH)])[0]))
