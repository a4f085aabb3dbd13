"""Latency of one client while another one sends as much as it can.

    python -m benchmarks.serving.fairness

The client `few` sends one text per request, one request after another. In the variant `attack`, the
client `many` sends 256 texts of 4 KB in each of three requests at the same time, and again after
each answer, also after a refusal with 429. In the variant `invalid`, it sends bodies of 1 MB with
half a million numbers in place of texts; in `lists`, bodies of 1 MB with nearly as many lists in
place of texts as a body may have values. Each client has its own API key. The 99th percentile of
the latency of `few` under each attack may be at most 5 times that of the variant `calm`, in which
it is alone.

The model is MiniLM with a random head, in one replica with one torch thread on a separate stack.
The variants alternate. A figure is the median over the rounds, and the ratio compares the variants
within a round. The clients use the same cores as the replica.
"""

import asyncio
import json
import time
from functools import partial
from itertools import cycle

import aiohttp
import numpy as np

from benchmarks.harness import Figures, finish_ratios, separate_stack, take_turns
from benchmarks.serving.serving_overhead import random_version
from serving.deploy import rollout
from serving.http.api_keys import new_key
from serving.http.schemas import MAX_VALUES
from tailorbird.config.serving import ServingConfig
from tailorbird.data.datasets import icd10

TASK_URI = "s3://models/fairness"
NUM_TEXTS = 256
TEXT_BYTES = 4000  # 256 texts of 4,096 bytes exceed `MAX_BODY_BYTES`
NUM_NUMBERS = 520_000  # in a body of 1 MB
NUM_ATTACKS = 3
SECONDS = 20.0
NUM_ROUNDS = 3

Headers = dict[str, dict[str, str]]
"""Headers of the clients `few` and `many`."""


def main() -> None:
    """Print the rounds, then one line of JSON."""
    terms = icd10.build()["train"]["text"].to_pylist()
    bodies = attack_bodies(terms)
    headers: Headers = {}
    with separate_stack() as folder:
        with (folder / "keys").open("w", encoding="utf-8") as keys:
            for name in ("few", "many"):
                key, stored = new_key(name)
                headers[name] = {"authorization": f"Bearer {key}"}
                keys.write(f"{stored.to_line()}\n")
        version = random_version(folder / "version", task_uri=TASK_URI)
        config = ServingConfig(api_keys=(folder / "keys").as_uri())
        url = rollout.deploy(config, task_uri=TASK_URI, version=version)
        variants = {}
        for name, body in ({"calm": b""} | bodies).items():
            variants[name] = partial(_variant, url, headers, terms, body)
        measured = take_turns(variants, rounds=NUM_ROUNDS)

    ratios = {f"p99_{name}_to_calm": (name, "calm", "p99_ms") for name in bodies}
    finish_ratios("fairness", measured, ratios=ratios, bounds=dict.fromkeys(ratios, "<= 5"))


def attack_bodies(terms: list[str]) -> dict[str, bytes]:
    """Return the bodies that `many` sends, by variant."""
    text = " ".join(terms * 10)
    texts = [text[number * TEXT_BYTES : (number + 1) * TEXT_BYTES] for number in range(NUM_TEXTS)]
    lists = {"input": [[]] * (MAX_VALUES - 10), "model": "a" * 950_000}
    return {
        "attack": json.dumps({"input": texts}).encode(),
        "invalid": json.dumps({"input": [1] * NUM_NUMBERS}, separators=(",", ":")).encode(),
        "lists": json.dumps(lists, separators=(",", ":")).encode(),
    }


def _variant(url: str, headers: Headers, terms: list[str], body: bytes) -> Figures:
    return asyncio.run(_measure(f"{url}/v1/classify", headers, terms, body))


async def _measure(url: str, headers: Headers, terms: list[str], body: bytes) -> Figures:
    """Return the latencies of `few`, while `many` repeats an attack unless `body` is empty."""
    ends_at = time.monotonic() + SECONDS
    latencies: list[float] = []

    async def attack(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < ends_at:
            async with session.post(url, data=body, headers=headers["many"]) as answer:
                await answer.read()

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        attacks = []
        if body:
            attacks = [asyncio.create_task(attack(session)) for _ in range(NUM_ATTACKS)]
        await asyncio.sleep(1)
        for term in cycle(terms):
            begun = time.perf_counter()
            request = session.post(url, json={"input": term}, headers=headers["few"])
            async with request as answer:
                answer.raise_for_status()
                await answer.read()
            latencies.append(time.perf_counter() - begun)
            if time.monotonic() > ends_at:
                break
        await asyncio.gather(*attacks)
    return {"p99_ms": 1000 * float(np.quantile(latencies, 0.99))}


if __name__ == "__main__":
    main()
