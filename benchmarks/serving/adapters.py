"""Cost of many adapters in one replica: texts per second over HTTP with eight adapters, with one,
and with none.

    python -m benchmarks.serving.adapters

One replica on one core, with one torch thread, serves MiniLM with a random head as the champion,
and eight random LoRA adapters that share the encoder (`serving.versions`). 32 clients (`wrk`) send
ICD-10-CM terms, one or 16 per request, to the champion, to one adapter, or to the eight adapters in
turn, so that a forward pass has texts of several adapters. The variants alternate in several
rounds, and a ratio is the median over the rounds. The benchmark starts a separate stack and stops
it.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import requests
import torch

from benchmarks.rounds import Figures, finish, medians, print_table, skip, take_turns
from benchmarks.serving.serving_overhead import (
    LIST_TEXTS,
    NUM_TEXTS,
    SECONDS,
    WARM_SECONDS,
    own_stack,
    random_adapter,
    random_version,
    wrk,
    wrk_script,
)
from serving.deploy import rollout
from serving.deploy.application import AdditionalVersions
from tailorbird.config.serving import ServingConfig
from tailorbird.data.datasets import icd10

TASK_URI = "s3://models/adapters"
NUM_ADAPTERS, NUM_ROUNDS = 8, 3


def main() -> None:
    """Print the rounds, then one line of JSON."""
    if shutil.which("wrk") is None:
        skip("adapters", "the client `wrk` is not installed")
        return
    torch.set_num_threads(1)
    texts = icd10.build()["train"]["text"].to_pylist()[:NUM_TEXTS]
    with (
        tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as temporary,
        own_stack(Path(temporary)),
    ):
        folder = Path(temporary)
        champion = random_version(folder / "champion", task_uri=TASK_URI)
        adapters = [
            random_adapter(
                folder / f"adapter-{number}", task_uri=TASK_URI, like=champion, seed=number
            )
            for number in range(NUM_ADAPTERS)
        ]
        additional, config = (
            AdditionalVersions(others=adapters),
            ServingConfig(versions=NUM_ADAPTERS),
        )
        url = rollout.deploy(config, task_uri=TASK_URI, version=champion, additional=additional)
        names = [adapter.version for adapter in adapters]
        for name in names:
            answer = requests.post(
                f"{url}/v1/classify", json={"input": texts[0], "model": name}, timeout=60
            )
            answer.raise_for_status()
            assert answer.json()["version"] == name
        models_by_name = {
            "champion": ["champion"],
            "one adapter": names[:1],
            "eight adapters": names,
        }
        variants: dict[str, Callable[[], Figures]] = {}
        for count in (1, LIST_TEXTS):
            for name, models in models_by_name.items():
                script = wrk_script(
                    folder / f"{name}-{count}.lua", texts, count=count, models=models
                )
                wrk(url, script, seconds=WARM_SECONDS)
                variants[_variant(name, count)] = partial(_texts_per_s, url, script, count)
        measured = take_turns(variants, rounds=NUM_ROUNDS)
    print_table(
        "32 clients, one replica", {name: medians(rounds) for name, rounds in measured.items()}
    )
    figures = {}
    for count in (1, LIST_TEXTS):
        for name, other in (("eight adapters", "one adapter"), ("one adapter", "champion")):
            pairs = zip(
                measured[_variant(name, count)], measured[_variant(other, count)], strict=True
            )
            ratio = median(
                numerator["texts/s"] / denominator["texts/s"] for numerator, denominator in pairs
            )
            figures[f"{name} to {other}, {count} a request".replace(" ", "_").replace(",", "")] = (
                ratio
            )
    finish("adapters", figures, bounds={})


def _variant(name: str, count: int) -> str:
    return f"{name}, {count} a request"


def _texts_per_s(url: str, script: Path, count: int) -> Figures:
    load = wrk(url, script, seconds=SECONDS)
    return {"texts/s": load.requests_per_s * count, "p99 ms": load.p99_ms}


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
