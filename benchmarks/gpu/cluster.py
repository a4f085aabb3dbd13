"""Cases on a Ray cluster, which the environment names: training by Ray Train and Ray Tune, runs to
a verdict, and services."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from benchmarks.clients import clients
from benchmarks.gpu.models import Task, letters, saved_model, training_task
from benchmarks.gpu.report import Figure
from benchmarks.gpu.training import RESUME_TOLERANCE, training_config
from benchmarks.harness import ROOT, chat_request, process_group, register, server, stream_all
from benchmarks.training import training_overhead
from cluster.connection import connect
from cluster.progress import EpochEvent, ProgressEvent, StepEvent, TrialEvent
from tailorbird.config.serving import ServingConfig
from tailorbird.config.tuning import TuningConfig
from tailorbird.registry.versions import Prompting

EPOCHS = 4
KILLED_IN = 2
"""Epoch in which the worker is killed. The checkpoint of the first epoch is stored then, because
its upload ends before the next one is written; the last epoch is trained without the start of a
process."""
NUM_TRIALS = 4
SIZES = {"train": 96, "validation": 16, "test": 60}
CHAT = {"epochs": 6, "learning_rate": 3e-4}
REDUCED_CHAT = {"epochs": 4, "learning_rate": 1e-2}
"""Settings with which a model with random weights learns the answer."""
ALPHABETS = {"first": "abcdefghijklm", "second": "hijklmnopqrst"}
"""Letters of the texts of each class; some of them are in both."""
NUM_CLIENTS = 16
STREAMS = (64, 256)
MAX_TOKENS = 128
MODEL_LENGTH = 1024


@dataclass(frozen=True)
class WorkerLog:
    """Replacement for the handle of an EventQueue: `put.remote(event)` runs in the worker and
    appends a line with the memory of the worker's tensors.

    The first step event of epoch `kill_in_epoch` kills the worker with SIGKILL instead, once.
    """

    path: Path
    kill_in_epoch: int | None = None

    @property
    def put(self) -> "WorkerLog":
        return self

    @property
    def mark(self) -> Path:
        """A file that exists if the worker was killed."""
        return self.path.with_suffix(".killed")

    def remote(self, event: ProgressEvent) -> None:
        is_step = isinstance(event, StepEvent) and event.epoch == self.kill_in_epoch
        if is_step and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        allocated = psutil.Process().memory_info().rss
        if torch.cuda.is_available():
            allocated = torch.cuda.memory_allocated()
        line = {"kind": type(event).__name__, "allocated": allocated} | asdict(event)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def lines(self, kind: type[EpochEvent] | type[TrialEvent]) -> list[dict[str, Any]]:
        """Return the events of this kind in the order in which they were written."""
        events = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return [event for event in events if event["kind"] == kind.__name__]


def _encoder_task(folder: Path, reduced: bool, *, num_steps: int) -> Task:
    base_model = saved_model(folder, "classification", "tiny" if reduced else "400m")
    return training_task(
        base_model,
        "classification",
        num_rows=num_steps * (4 if reduced else 32),
        num_tokens=64 if reduced else 512,
        num_validation=64,
    )


def killed_worker(folder: Path, reduced: bool) -> Iterator[Figure]:
    """Compare `finetune`, whose worker is killed in the third of four epochs, with an uninterrupted
    training in this process."""
    task = _encoder_task(folder, reduced, num_steps=6 if reduced else 48)
    config = training_config(reduced, batch_size=4 if reduced else 32, epochs=EPOCHS)
    with process_group():
        _, reports = training_overhead.finetune(task.load_runtime(), config)

    log = WorkerLog(folder / "killed.jsonl", kill_in_epoch=KILLED_IN)
    with connect():
        from training.trainer import finetune

        finetune(config, task=task, uri=(folder / "killed").as_uri(), events=log)
    epochs = log.lines(EpochEvent)
    first_epochs = sum(event["epoch"] == 0 for event in epochs)
    by_epoch = {event["epoch"]: event for event in epochs}
    differences = [abs(by_epoch[report.epoch]["loss"] / report.loss - 1) for report in reports]
    ratio = by_epoch[EPOCHS - 1]["rows_per_second"] / reports[-1].rows_per_second
    yield Figure("killed", float(log.mark.exists()), ">= 1")
    yield Figure("trainings_of_the_first_epoch", float(first_epochs), "<= 1")
    yield Figure("loss_difference", max(differences), RESUME_TOLERANCE)
    yield Figure("rate_to_in_process", ratio, ">= 0.95", is_hardware=True)


def trials(folder: Path, reduced: bool) -> Iterator[Figure]:
    """Run a sweep in one worker group, and compare the memory of its worker after each trial."""
    space = {"learning_rate": {"log_uniform": [1e-5, 1e-4]}}
    tuning = TuningConfig.model_validate(
        {"num_trials": NUM_TRIALS, "max_concurrent_trials": 1, "space": space}
    )
    log = WorkerLog(folder / "trials.jsonl")
    with connect():
        from tuning.sweep import sweep

        result = sweep(
            tuning,
            training=training_config(reduced, batch_size=4 if reduced else 32),
            tasks={"base": _encoder_task(folder, reduced, num_steps=10)},
            baselines={},
            uri=(folder / "sweep").as_uri(),
            events=log,
        )
    completed = [row for row in result.rows if row.status == "completed"]
    ended = [event["allocated"] for event in log.lines(TrialEvent) if event["status"] != "training"]
    yield Figure("completed_trials", len(completed), f">= {NUM_TRIALS}")
    growth = (max(ended) - min(ended)) / 2**20
    yield Figure("memory_growth_mib", growth, "<= 64", is_hardware=True)


def run_classification(folder: Path, reduced: bool) -> Iterator[Figure]:
    """Run `tailorbird run` of a classifier to a verdict."""
    generator = random.Random(0)
    columns = {}
    for split, size in SIZES.items():
        labels = [generator.choice(list(ALPHABETS)) for _ in range(size)]
        texts = [letters(generator, 24, alphabet=ALPHABETS[label]) for label in labels]
        columns[split] = {"text": texts, "label": labels}
    training = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-4}
    with connect():
        recipe = _recipe(folder, reduced, "classification", columns, training=training)
        yield Figure("has_verdict", float(bool(_outcome(recipe))), ">= 1")


def run_chat(folder: Path, reduced: bool) -> Iterator[Figure]:
    """Run `tailorbird run` of a chat model to a verdict, serve the winner, and change the champion
    while clients send requests."""
    generator = random.Random(0)
    columns = {}
    for split, size in SIZES.items():
        prompts = [letters(generator, 6) for _ in range(size)]
        answers = ["yes"] * size
        if split == "train":
            answers = ["no" if row % 3 == 0 else "yes" for row in range(size)]
        columns[split] = {"prompt": prompts, "completion": answers}
    with connect():
        recipe = _recipe(
            folder,
            reduced,
            "chat",
            columns,
            training={"batch_size": 8} | (REDUCED_CHAT if reduced else CHAT),
            data={"system": "s", "max_new_tokens": 6},
            evaluation={"metric": "token_f1", "prompt_shots": 2, "prompt_draws": 1},
        )
        yield Figure("is_fine_tune", float(_outcome(recipe) == "FINE_TUNE"), ">= 1")
        yield from _serve_and_change(recipe, columns["test"]["prompt"])


def _recipe(
    folder: Path,
    reduced: bool,
    task: str,
    columns: dict[str, dict[str, list[str]]],
    **sections: dict[str, Any],
) -> Path:
    """Write the rows of a task as Parquet, and its recipe."""
    num_gpus = 0 if reduced else 1
    data: dict[str, Any] = {"max_length": 64}
    for split, table in columns.items():
        path = folder / f"{task}-{split}.parquet"
        pq.write_table(pa.table(table), path)
        data[split] = path.as_uri()
    worker = {"num_workers": 1, "gpus_per_worker": num_gpus, "num_seeds": 1}
    content = sections | {
        "name": f"gpu-{task}",
        "task": task,
        "base_model": saved_model(folder, task, "tiny" if reduced else "small"),
        "data": data | sections.get("data", {}),
        "training": worker | sections["training"],
        "tuning": {"num_trials": 1},
        "registry": (folder / "registry").as_uri(),
        "serving": {"gpus_per_replica": num_gpus},
    }
    recipe = folder / f"{task}.yaml"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    return recipe


def _outcome(recipe: Path) -> str:
    """Run `tailorbird run` and return the outcome of its verdict."""
    command = [sys.executable, "-m", "tailorbird", "run", str(recipe), "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return str(json.loads(done.stdout.splitlines()[-1])["verdict"]["outcome"])


def _serve_and_change(path: Path, prompts: list[str]) -> Iterator[Figure]:
    from serving.deploy.application import application_name
    from serving.deploy.rollout import undeploy
    from tailorbird.config.loader import load_recipe
    from tailorbird.registry.champion import read_champion
    from tailorbird.release.promotion import promote_version, roll_back
    from tailorbird.release.serving import serve_champion

    recipe = load_recipe(path)
    winner = promote_version(recipe.task_uri)
    try:
        url, _ = serve_champion(recipe.serving, task_uri=recipe.task_uri)
        stored = read_champion(recipe.task_uri)
        assert stored is not None
        assert stored[0].parity is not None
        parity = stored[0].parity
        yield Figure("parity", parity.matching / parity.rows, ">= 1")
        _, seconds, first_s = stream_all(
            url, prompts, model=recipe.name, max_tokens=6, streams=len(prompts)
        )
        yield Figure("seconds_for_all_streams", seconds)
        yield Figure("seconds_to_first_piece", first_s)
        bodies = [chat_request(prompt, model=recipe.name, max_tokens=6) for prompt in prompts]
        address = f"{url}/v1/chat/completions"
        load = clients(path.parent, address, bodies, number=NUM_CLIENTS, timeout_s=120)
        with load as collect:
            previous = roll_back(recipe.task_uri, reason="acceptance test")
            promote_version(recipe.task_uri, override="acceptance test")
            answers = [response.answer for response in collect()]
        versions = {answer["version"] for answer in answers if answer is not None}
        changed = {winner.version, previous.version} <= versions
        yield Figure("failed_under_load", answers.count(None), "<= 0")
        yield Figure("both_versions_answered_under_load", float(changed), ">= 1")
    finally:
        undeploy(application_name(recipe.task_uri))


def smoke_vllm(folder: Path, reduced: bool) -> Iterator[Figure]:
    """Answer one request with vLLM's server."""
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed", flush=True)
        return
    base_model = saved_model(folder, "chat", "tiny" if reduced else "8b")
    with _vllm(base_model, reduced, streams=1) as url:
        yield from _streams("vllm", url, base_model.removeprefix("file://"), streams=1)


def serve_vllm(folder: Path, reduced: bool) -> Iterator[Figure]:
    """Compare the service with `engine: vllm` with vLLM's own server."""
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed", flush=True)
        return
    from serving.deploy import rollout
    from serving.deploy.application import application_name

    counts = (4,) if reduced else STREAMS
    base_model = saved_model(folder, "chat", "tiny" if reduced else "8b")
    rates = {}
    with _vllm(base_model, reduced, streams=max(counts)) as url:
        for count in counts:
            figures = list(_streams("vllm", url, base_model.removeprefix("file://"), streams=count))
            rates[count] = figures[0].value
            yield from figures

    task_uri = (folder / "registry" / "gpu-vllm").as_uri()
    version = register(
        folder / "version",
        task_uri=task_uri,
        base_model=base_model,
        max_length=MODEL_LENGTH,
        dtype="float32" if reduced else "bfloat16",
        prompting=Prompting(system=None, max_new_tokens=MAX_TOKENS),
    )
    config = ServingConfig(
        engine="vllm",
        gpus_per_replica=0 if reduced else 1,
        max_batch_size=max(counts),
        max_queued_requests=4 * max(counts),
    )
    with connect():
        try:
            url = rollout.deploy(config, task_uri=task_uri, version=version)
            for count in counts:
                figures = list(_streams("served", url, "champion", streams=count))
                yield from figures
                ratio = figures[0].value / rates[count]
                yield Figure(f"served_to_vllm_{count}", ratio, ">= 0.95", is_hardware=True)
        finally:
            rollout.undeploy(application_name(task_uri))


@contextmanager
def _vllm(base_model: str, reduced: bool, *, streams: int) -> Iterator[str]:
    """Start vLLM's server with an OpenAI-compatible API, and yield its URL."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host=127.0.0.1"]
    command += ["--model", base_model.removeprefix("file://")]
    command += [f"--dtype={'float32' if reduced else 'bfloat16'}"]
    command += [f"--max-model-len={MODEL_LENGTH}", f"--max-num-seqs={streams}"]
    variables = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with server(command, environment=variables) as url:
        yield url


def _streams(name: str, url: str, model: str, *, streams: int) -> Iterator[Figure]:
    """Send streams twice, and yield the figures of the second time. A token is a letter."""
    generator = random.Random(streams)
    prompts = [letters(generator, 64) for _ in range(streams)]
    for _ in range(2):
        texts, seconds, first_s = stream_all(
            url, prompts, model=model, max_tokens=MAX_TOKENS, streams=streams
        )
    yield Figure(f"{name}_{streams}_tokens_per_second", sum(map(len, texts)) / seconds)
    yield Figure(f"{name}_{streams}_seconds_to_first_piece", first_s)
