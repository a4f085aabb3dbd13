"""Latency of one client while another one sends as much as it can.

    python -m benchmarks.serving.fairness [texts] [chat]

The client `few` sends small requests, one after another. The client `many` repeats large requests
at the same time, each after its answer, also after a refusal with 429. Each client has its own API
key. The 99th percentile of the latency of `few` may be at most 5 times that without `many`.

A classifier (MiniLM with a random head) gets one text per request from `few`, and three requests at
a time from `many`:

- `texts`: 256 texts of 4 KB each;
- `invalid`: 1 MB with half a million numbers in place of texts;
- `lists`: 1 MB with nearly as many lists in place of texts as a body may have values.

A chat model (SmolLM2-135M-Instruct, answers of 16 tokens) gets a short prompt from `few`, and from
`many` 16 prompts of 1,500 tokens at a time (`16 prompts`), or 4 of 7,000 (`4 prompts`).

Each model has one replica with one torch thread on a separate stack. The variants alternate. A
figure is the median over the rounds, and the ratio compares the variants within a round. The
clients use the same cores as the replicas.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count, cycle, repeat
from pathlib import Path
from typing import NamedTuple

import aiohttp
import numpy as np

from benchmarks.harness import (
    CHAT_MODEL,
    Figures,
    chat_request,
    finish_ratios,
    register,
    separate_stack,
    stage,
    take_turns,
)
from benchmarks.serving.serving_overhead import random_version
from serving.deploy import rollout
from serving.http.api_keys import new_key
from serving.http.schemas import MAX_VALUES
from tailorbird.config.serving import ServingConfig
from tailorbird.data.datasets import icd10
from tailorbird.registry.versions import Prompting

NUM_TEXTS = 256
TEXT_BYTES = 4000  # 256 texts of 4,096 bytes exceed `MAX_BODY_BYTES`
NUM_NUMBERS = 520_000  # in a body of 1 MB
NUM_REQUESTS = 3  # that `many` sends to the classifier at the same time
LONG_PROMPTS = {"16 prompts": (16, 1_500), "4 prompts": (4, 7_000)}
"""Prompts that `many` sends at the same time, and the words of each, which are tokens."""
MAX_TOKENS = 16
MAX_LENGTH = 8_192
SECONDS = 20.0
NUM_ROUNDS = 3


Variants = dict[str, Callable[[], Figures]]


class Service(NamedTuple):
    """A served model, and the headers of its clients."""

    url: str
    few: dict[str, str]
    many: dict[str, str]


def main() -> None:
    """Print the rounds, then one line of JSON."""
    with separate_stack(num_cpus=4) as folder:
        variants: Variants = {}
        for name in sys.argv[1:] or PARTS:
            variants |= PARTS[name](folder)
        measured = take_turns(variants, rounds=NUM_ROUNDS)

    ratios = {}
    for name in variants:
        calm = "chat calm" if name in LONG_PROMPTS else "texts calm"
        if name != calm and not name.endswith("calm"):
            ratios[f"p99 of {name} to {calm}"] = (name, calm, "p99_ms")
    finish_ratios("fairness", measured, ratios=ratios, bounds=dict.fromkeys(ratios, "<= 5"))


def _texts(folder: Path) -> Variants:
    """Return the variants of the classifier."""
    terms = icd10.build()["train"]["text"].to_pylist()
    small = [json.dumps({"input": term}).encode() for term in terms]
    service = _deploy(folder, "/v1/classify")
    variants: Variants = {"texts calm": partial(_variant, service, small)}
    for name, body in attack_bodies(terms).items():
        variants[name] = partial(_variant, service, small, repeat(body), NUM_REQUESTS)
    return variants


def _chat(folder: Path) -> Variants:
    """Return the variants of the chat model."""
    small = [_prompt("hi")]
    service = _deploy(folder, "/v1/chat/completions")
    variants: Variants = {"chat calm": partial(_variant, service, small)}
    for name, (number, words) in LONG_PROMPTS.items():
        # An engine computes the beginning that prompts share only once.
        prompts = (_prompt(f"{start} {'word ' * words}") for start in count())
        variants[name] = partial(_variant, service, small, prompts, number)
    return variants


def _deploy(folder: Path, route: str) -> Service:
    """Deploy the model that answers on this route, with keys for both clients."""
    name = route.split("/")[2]
    headers = []
    with (folder / f"{name}-keys").open("w", encoding="utf-8") as keys:
        for client in ("few", "many"):
            key, stored = new_key(client)
            headers.append({"authorization": f"Bearer {key}"})
            keys.write(f"{stored.to_line()}\n")
    task_uri = f"s3://models/fairness-{name}"
    if name == "classify":
        version = random_version(folder / name, task_uri=task_uri)
    else:
        version = register(
            folder / name,
            task_uri=task_uri,
            base_model=stage(CHAT_MODEL),
            max_length=MAX_LENGTH,
            prompting=Prompting(system=None, max_new_tokens=MAX_TOKENS),
        )
    config = ServingConfig(api_keys=(folder / f"{name}-keys").as_uri())
    url = rollout.deploy(config, task_uri=task_uri, version=version)
    return Service(f"{url}{route}", *headers)


def _prompt(text: str) -> bytes:
    return json.dumps(chat_request(text, model="champion", max_tokens=MAX_TOKENS)).encode()


def attack_bodies(terms: list[str]) -> dict[str, bytes]:
    """Return the bodies that `many` sends to the classifier, by variant."""
    text = " ".join(terms * 10)
    texts = [text[number * TEXT_BYTES : (number + 1) * TEXT_BYTES] for number in range(NUM_TEXTS)]
    lists = {"input": [[]] * (MAX_VALUES - 10), "model": "a" * 950_000}
    return {
        "texts": json.dumps({"input": texts}).encode(),
        "invalid": json.dumps({"input": [1] * NUM_NUMBERS}, separators=(",", ":")).encode(),
        "lists": json.dumps(lists, separators=(",", ":")).encode(),
    }


def _variant(
    service: Service, small: Sequence[bytes], large: Iterable[bytes] = (), number: int = 0
) -> Figures:
    return asyncio.run(_measure(service, small, large=large, number=number))


async def _measure(
    service: Service, small: Iterable[bytes], *, large: Iterable[bytes], number: int
) -> Figures:
    """Return the latencies of `few`, while `many` repeats this number of large requests."""
    ends_at = time.monotonic() + SECONDS
    latencies: list[float] = []
    bodies = iter(large)

    async def attack(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < ends_at:
            async with session.post(service.url, data=next(bodies), headers=service.many) as answer:
                await answer.read()

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        attacks = [asyncio.create_task(attack(session)) for _ in range(number)]
        await asyncio.sleep(1)
        for body in cycle(small):
            begun = time.perf_counter()
            async with session.post(service.url, data=body, headers=service.few) as answer:
                answer.raise_for_status()
                await answer.read()
            latencies.append(time.perf_counter() - begun)
            if time.monotonic() > ends_at:
                break
        await asyncio.gather(*attacks)
    return {"p99_ms": 1000 * float(np.quantile(latencies, 0.99))}


PARTS = {"texts": _texts, "chat": _chat}

if __name__ == "__main__":
    main()
