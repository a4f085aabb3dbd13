"""Part c: `tailorbird run` on generated Parquet with a registry on `file://`, then the service of
the chat champion."""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.gpu.http_load import load, stream_answers
from benchmarks.gpu.local_ray import ROOT, local_ray
from benchmarks.gpu.report import Failed, Report, in_child
from benchmarks.gpu.rows import letters
from cluster.connection import connect

SECTIONS = ("classification", "chat")
SIZES: Mapping[str, int] = {"train": 96, "validation": 16, "test": 60}
NUM_STREAMS, NUM_CLIENTS = 64, 16
CHAT, CHAT_REDUCED = {"epochs": 6, "learning_rate": 3e-4}, {"epochs": 4, "learning_rate": 1e-2}
"""Settings with which a model with random weights learns the answer. `CHAT` was measured with
`LLAMA_SMALL`, which has 113 million parameters, on a CPU: all answers are right after three epochs.
With a rate of 1e-4, none is after four. A chat model with 1.2 billion would write a checkpoint of
20 GB before each validation."""
EXPECTED_S = {"classification": 150, "chat": 200}
"""Estimated seconds of each section on an H100 with 16 cores; README.md explains them."""
ALPHABETS = {"first": "abcdefghijklm", "second": "hijklmnopqrst"}
"""Letters of the texts of each class; some of them are in both."""


def run(report: Report, sections: tuple[str, ...]) -> None:
    """Run both tasks, or those in `sections`, to a verdict, and serve the winner of the chat task.
    Raises Failed.

    A section for which the rest of the time limit does not suffice is not run.
    """
    with tempfile.TemporaryDirectory(prefix="tailorbird-gpu-") as temporary:
        folder = Path(temporary)
        in_child(save_models, folder, report.reduced)
        with local_ray(folder):
            for number, task in enumerate(sections or SECTIONS, 1):
                if not report.has_time_for(task, expected_s=EXPECTED_S[task]):
                    continue
                recipe = _write_recipe(folder, task, reduced=report.reduced)
                outcome = _run_recipe(recipe)
                print(f"{task}: {outcome}", flush=True)
                if task == "chat" and outcome != "FINE_TUNE":
                    raise Failed(
                        f"the verdict of the chat task is {outcome}, but its answers are easy to "
                        "learn"
                    )
                report.add("verdicts", number)
                if task == "chat":
                    _serve(report, recipe)


def save_models(folder: Path, reduced: bool) -> None:
    """Save the base model of each task."""
    # Imported in the child process only, because torch and transformers take seconds.
    from benchmarks.gpu.models import (
        BERT_SMALL,
        BERT_TINY,
        LLAMA_SMALL,
        save_chat_model,
        save_encoder,
    )
    from tests import small_chat

    if reduced:
        small_chat.save(folder / "chat-base")
        save_encoder(folder / "classification-base", BERT_TINY)
    else:
        save_chat_model(folder / "chat-base", LLAMA_SMALL)
        save_encoder(folder / "classification-base", BERT_SMALL)


def _write_recipe(folder: Path, task: str, *, reduced: bool) -> Path:
    """Write the rows of a task as Parquet, and its recipe."""
    for split, size in SIZES.items():
        columns = (_chat_columns if task == "chat" else _text_columns)(split, size)
        (folder / task).mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), folder / task / f"{split}.parquet")
    data = {split: (folder / task / f"{split}.parquet").as_uri() for split in SIZES} | {
        "max_length": 64
    }
    training: dict[str, Any] = {
        "num_workers": 1,
        "gpus_per_worker": 0 if reduced else 1,
        "num_seeds": 1,
    }
    chat: dict[str, Any] = {
        "data": data | {"system": "s", "max_new_tokens": 6},
        "training": training | {"batch_size": 8} | (CHAT_REDUCED if reduced else CHAT),
        "evaluation": {"metric": "token_f1", "prompt_shots": 2, "prompt_draws": 1},
    }
    classification = {
        "data": data,
        "training": training | {"epochs": 2, "batch_size": 16, "learning_rate": 1e-4},
    }
    content = {
        "name": f"gpu-{task}",
        "task": task,
        "base_model": (folder / f"{task}-base").as_uri(),
        "tuning": {"num_trials": 1},
        "registry": (folder / "registry").as_uri(),
        "serving": {"gpus_per_replica": 0 if reduced else 1},
    } | (chat if task == "chat" else classification)
    path = folder / f"{task}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _chat_columns(split: str, size: int) -> dict[str, list[str]]:
    """Return prompts with the answer `yes`; every third training row has a wrong answer."""
    generator = random.Random(split)
    prompts = [letters(generator, 6) for _ in range(size)]
    answers = ["no" if split == "train" and row % 3 == 0 else "yes" for row in range(size)]
    return {"prompt": prompts, "completion": answers}


def _text_columns(split: str, size: int) -> dict[str, list[str]]:
    generator = random.Random(split)
    labels = [generator.choice(list(ALPHABETS)) for _ in range(size)]
    return {
        "text": ["".join(generator.choices(ALPHABETS[label], k=24)) for label in labels],
        "label": labels,
    }


def _run_recipe(recipe: Path) -> str:
    """Run `tailorbird run` and return the outcome of its verdict."""
    command = [sys.executable, "-m", "tailorbird", "run", str(recipe), "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Failed(
            f"`tailorbird run` of {recipe.name} ended with exit code {done.returncode}; see its "
            "output above"
        )
    return str(json.loads(done.stdout.splitlines()[-1])["verdict"]["outcome"])


def _serve(report: Report, path: Path) -> None:
    """Promote and serve the winner, send streams, and change the champion while clients send
    requests."""
    from serving.deploy.application import application_name
    from serving.deploy.rollout import undeploy
    from tailorbird.config.loader import load_recipe
    from tailorbird.registry.champion import read_champion
    from tailorbird.release.promotion import promote_version, roll_back
    from tailorbird.release.serving import serve_champion

    recipe = load_recipe(path)
    prompts = _chat_columns("streams", NUM_STREAMS)["prompt"]
    with connect():
        winner = promote_version(recipe.task_uri)
        try:
            url, _ = serve_champion(recipe.serving, task_uri=recipe.task_uri)
            stored = read_champion(recipe.task_uri)
            parity = stored[0].parity if stored else None
            report.add(
                "parity_share", 0.0 if parity is None else parity.matching / parity.rows, ">= 1.0"
            )
            streams = stream_answers(url, prompts, model=recipe.name, max_tokens=6)
            report.add("failed_streams", streams.failed, "<= 0")
            report.add("seconds_for_64_streams", streams.seconds)
            report.add("seconds_to_first_piece", streams.first_piece_s)
            with load(
                url, prompts, model=recipe.name, max_tokens=6, num_clients=NUM_CLIENTS
            ) as counts:
                previous = roll_back(recipe.task_uri, reason="acceptance test")
                promote_version(recipe.task_uri, override="acceptance test")
            for failure in counts.failures[:3]:
                print(f"a request failed: {failure}", flush=True)
            report.add("answered_under_load", counts.answered, ">= 1")
            report.add("failed_under_load", len(counts.failures), "<= 0")
            changed = {winner.version, previous.version} <= counts.versions
            report.add("both_versions_answered_under_load", float(changed), ">= 1")
        finally:
            undeploy(application_name(recipe.task_uri))
