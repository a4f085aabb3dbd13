"""Effect of a change of champion on clients: `promote` and `rollback` while 32 clients send
requests without a pause.

    python -m benchmarks.serving.promotion_under_load

The two versions have MiniLM's full weights and different class names for the same text, so an
answer shows which version gave it. Each promotion runs all its steps: load the candidate next to
the champion, compare its answers to test rows over HTTP (the parity gate), write the champion, and
switch the service. The clients run in one process, with asyncio and 32 persistent connections, on
the same cores.

The benchmark counts failed requests, and answers that differ from the label of their version. For
each change, it compares the 99th percentile of the latency, from the call to two seconds after its
end, with that of the ten seconds before it, so that other load on the machine affects both. There
is one replica with one torch thread. The benchmark starts a separate stack and stops it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from benchmarks.clients import Response, clients
from benchmarks.harness import ENCODER, finish, print_table, separate_stack, stage
from benchmarks.serving.serving_overhead import random_version
from serving.engines.classify import predict_texts
from tailorbird.config.recipe import Recipe
from tailorbird.config.serving import ServingConfig
from tailorbird.data.datasets import icd10
from tailorbird.data.loader import read_test
from tailorbird.data.rows import rows_sha256
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.prediction_store import save_predictions
from tailorbird.models import loading, pretrained
from tailorbird.registry.versions import ModelVersion
from tailorbird.release.promotion import promote_version, roll_back
from tailorbird.release.serving import serve_champion
from tailorbird.storage import node_cache
from tailorbird.storage.paths import TaskPaths
from tests import build
from tests.finished_runs import candidate_record, write_finished_run
from tests.unit.evaluation.simulated import Simulation, evidence_of

DATA = "s3://lake/icd10"
NUM_CLIENTS = 32
NUM_TEXTS = 512
NUM_TEST_ROWS = 512
NUM_CYCLES = 3
QUIET_S = 10.0
WARM_S = 5.0
AFTER_S = 2.0
CLEAR = 0.02
"""Minimum difference between the scores of the two best classes of a text. Another batch may swap
closer classes."""
BOUNDS = {
    "failed_requests": "<= 0",
    "answers_not_their_versions_label": "<= 0",
    "p99_during_to_before_worst": "<= 2",
}


def main() -> None:
    """Print each change, then one line of JSON."""
    with separate_stack() as folder:
        icd10.write(DATA)
        data: dict[str, Any] = {"label": "chapter", "max_test_rows": NUM_TEST_ROWS}
        data |= {split: f"{DATA}/{split}" for split in ("train", "validation", "test")}
        recipe = build.recipe(name="promotion-under-load", data=data)
        first, second = two_versions(folder, task_uri=recipe.task_uri)
        write_run(recipe, first, run="first", champion=None)
        promote_version(recipe.task_uri)
        url, _ = serve_champion(ServingConfig(), task_uri=recipe.task_uri)
        write_run(recipe, second, run="second", champion=first)
        labels = _labels([first, second])
        texts = list(labels)
        bodies = [{"input": text} for text in texts]
        with clients(folder, f"{url}/v1/classify", bodies, number=NUM_CLIENTS) as collect:
            time.sleep(WARM_S)
            changes = list(_changes(recipe.task_uri))
            responses = collect()

    rows = {}
    for number, (name, begin, end) in enumerate(changes, 1):
        before = _p99_ms(responses, begin - QUIET_S, begin)
        during = _p99_ms(responses, begin, end + AFTER_S)
        rows[f"{number} {name}"] = {
            "seconds": end - begin,
            "p99_before_ms": before,
            "p99_during_ms": during,
            "to_before": during / before,
        }
    print_table(f"{NUM_CLIENTS} clients, {pretrained.dtype_name()}", rows)
    answered = [response for response in responses if response.answer is not None]
    measured = {
        "requests": len(responses),
        "failed_requests": len(responses) - len(answered),
        "answers_not_their_versions_label": sum(
            not _is_right(response, labels[texts[response.body]]) for response in answered
        ),
        "p99_during_to_before_worst": max(row["to_before"] for row in rows.values()),
    }
    finish("promotion_under_load", measured, bounds=BOUNDS)


def _p99_ms(responses: list[Response], begin: float, end: float) -> float:
    """Return the 99th percentile of latency of the requests that ended in this interval."""
    chosen = [each.latency_s for each in responses if begin <= each.ended <= end]
    return float(np.quantile(chosen, 0.99) * 1000)


def _is_right(response: Response, labels: dict[str, str]) -> bool:
    """Return whether an answer is the label of its version."""
    assert response.answer is not None
    expected = labels.get(response.answer["version"])
    return [result["label"] for result in response.answer["results"]] == [expected]


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


def two_versions(folder: Path, *, task_uri: str) -> list[ModelVersion]:
    """Register two full versions with the same weights. The second gives each class the name of the
    next class."""
    encoder = pretrained.load_encoder(node_cache.local_copy(stage(ENCODER)))
    tensors = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    classes = sorted(set(icd10.build()["test"]["chapter"].to_pylist()))
    made = []
    for turn in range(2):
        target = folder / f"version-{turn}"
        target.mkdir()
        save_file(tensors, target / "encoder.safetensors")
        names = (*classes[turn:], *classes[:turn])
        made.append(random_version(target, task_uri=task_uri, kind="full", classes=names))
    return made


def write_run(
    recipe: Recipe, version: ModelVersion, *, run: str, champion: ModelVersion | None
) -> None:
    """Write a finished run that the version won, with its predictions of the test rows."""
    rows = read_test(recipe.data)
    run_uri = TaskPaths(recipe.task_uri).run(run)
    predictions = predict_rows(version.uri, rows=rows)
    save_predictions(f"{run_uri}/predictions/candidate.parquet", predictions)
    data = evidence_of(Simulation(num_rows=60)).data
    incumbent = champion or version
    write_finished_run(
        run_uri,
        versions={
            "candidate": candidate_record(version),
            "incumbent": candidate_record(incumbent),
        },
        recipe=recipe,
        data=replace(data, sha256={**data.sha256, "test": rows_sha256(rows)}),
        champion=champion and champion.uri,
    )


def _labels(versions: list[ModelVersion]) -> dict[str, dict[str, str]]:
    """Return the label of each text by version, for the texts on which the two best scores of all
    versions differ."""
    texts = icd10.build()["train"]["text"].to_pylist()[:NUM_TEXTS]
    labels: dict[str, dict[str, str]] = {text: {} for text in texts}
    for version in versions:
        loaded: Any = loading.load_artifact(version.uri)
        predictions = predict_texts(loaded, texts, batch_size=64)
        for text, prediction in zip(texts, predictions, strict=True):
            second, first = np.sort(prediction.scores)[-2:]
            if first - second > CLEAR:
                labels[text][version.version] = prediction.label
    return {text: by_version for text, by_version in labels.items() if len(by_version) == 2}


if __name__ == "__main__":
    main()
