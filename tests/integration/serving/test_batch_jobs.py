"""Batch jobs by the command and over HTTP: each row is scored exactly once, despite kills and
cancellations."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from cluster.connection import connect
from cluster.local import stack
from serving.batch_jobs import runner, scoring
from serving.batch_jobs.job_store import read_job, submit_job
from serving.batch_jobs.schema import BatchError
from serving.deploy import application, rollout, serve_client
from serving.engines.classify import Prediction
from serving.http.schemas import BatchJob
from serving.offline import InputRow, load_offline
from tailorbird import storage
from tailorbird.config.serving import ServingConfig
from tailorbird.registry.hybrid_routing import NO_GROUP, Routing
from tailorbird.registry.versions import ModelVersion
from tailorbird.storage.listing import Entry
from tests.integration.load import processes
from tests.integration.serving.classification.service import Service
from tests.integration.small import ROOT, icd10_tables, recipe_file, write_table

PREFIX = "s3://lake/batches"
CONFIG = ServingConfig(batch_prefixes=(PREFIX, "s3://models"))
GROUPS = ("f", None, "m")

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def service(stack: stack.StackState, tmp_path_factory: pytest.TempPathFactory) -> Service:
    assert stack.serve_port
    return Service("s3://models/score-test", tmp_path_factory.mktemp("versions"))


@pytest.fixture(scope="module")
def rows(stack: stack.StackState) -> pa.Table:
    """Return texts with ids and groups; some groups are null."""
    assert stack.s3_endpoint
    texts = icd10_tables()["train"]["text"].to_pylist()[:1000]
    ids = [1000 + 7 * index for index in range(len(texts))]
    groups = [GROUPS[index % 3] for index in range(len(texts))]
    return pa.table({"text": texts, "key": ids, "sex": groups})


def _input(rows: pa.Table, *, num_files: int) -> str:
    """Write the rows to `num_files` files with several row groups each, and return the folder's
    URI."""
    uri = f"{PREFIX}/in-{uuid.uuid4().hex}"
    for number, indices in enumerate(np.array_split(np.arange(len(rows)), num_files)):
        sink = pa.BufferOutputStream()
        pq.write_table(rows.take(indices), sink, row_group_size=70)
        storage.write_bytes(f"{uri}/file-{number:02d}.parquet", sink.getvalue().to_pybytes())
    return uri


def _output() -> str:
    return f"{PREFIX}/out-{uuid.uuid4().hex}"


def _parts(output: str) -> dict[str, Entry | None]:
    """Return the state of each part's file, by URI."""
    if not storage.exists(output):
        return {}
    return {uri: storage.file_entry(uri) for uri in storage.list_files(output) if "/part-" in uri}


def _wait_for_workers_to_end(state: stack.StackState) -> None:
    """Wait until no process of the stack scores rows."""
    _wait_for(lambda: not processes(state, "ray::Map") or None)


def test_the_command_resumes_after_a_kill_without_repeated_parts_or_rows(
    stack: stack.StackState, service: Service, rows: pa.Table, tmp_path: Path
) -> None:
    hybrid = service.register_hybrid(
        tmp_path, routing=Routing(by="group", column="sex", values=("f",))
    )
    recipe = recipe_file(tmp_path, name="score-test", data="s3://lake/small")
    uri = _input(rows, num_files=20)
    output = _output()
    command = [sys.executable, "-m", "tailorbird", "score", str(recipe), "--input", uri]
    command += ["--output", output, "--model", hybrid.version, "--id", "key", "--json"]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        _wait_for(lambda: _parts(output) or first.poll())
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    _wait_for_workers_to_end(stack)
    before = _parts(output)
    assert 0 < len(before) < 20
    assert not storage.exists(f"{output}/{scoring.MANIFEST}")
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(again.stdout)
    assert (result["num_rows"], result["num_new"]) == (1000, 1000 - 50 * len(before))
    after = _parts(output)
    assert len(after) == 20
    assert before.items() <= after.items()
    answers = pa.concat_tables(
        [pq.read_table(pa.BufferReader(storage.read_bytes(part))) for part in after]
    )
    groups = [group or NO_GROUP for group in rows["sex"].to_pylist()]
    assert answers["row"].to_pylist() == list(range(1000))
    assert answers["id"].equals(rows["key"])
    assert answers["group"].to_pylist() == groups
    assert set(answers["version"].to_pylist()) == {hybrid.version}
    model = load_offline(hybrid, batch_size=CONFIG.batch_size("classification"))
    expected: list[Prediction] = []
    # In the same batches, because rounding in bfloat16 depends on the batch.
    for indices in np.array_split(np.arange(len(rows)), 20):
        expected += model.answer(
            [
                InputRow((("user", rows["text"][index].as_py()),), "row", groups[index])
                for index in indices.tolist()
            ]
        )
    for name, values in (
        ("label", [prediction.label for prediction in expected]),
        ("answered_by", ["second" if group == "f" else "first" for group in groups]),
    ):
        assert answers[name].to_pylist() == values
    scores = [prediction.score for prediction in expected]
    assert np.allclose(answers["score"].to_numpy(), scores, atol=1e-5)
    manifest = storage.read_json(result["manifest"])
    assert (manifest["num_rows"], manifest["batch"]["digest"]) == (1000, hybrid.digest)
    assert [file["uri"] for file in manifest["inputs"]] == storage.list_files(uri)

    def again_by(version: ModelVersion) -> scoring.ScoringResult:
        batch = scoring.new_batch(version, input=uri, output=output, id_column="key")
        return scoring.score_batch(batch, CONFIG, version=version)

    assert (again_by(hybrid).num_new, _parts(output)) == (0, after)
    with pytest.raises(BatchError):
        again_by(service.first)
    write_table(f"{uri}/file-99.parquet", rows.slice(0, 1))
    with pytest.raises(BatchError):
        again_by(hybrid)


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    """Yield the URL of the first version, deployed with batches enabled."""
    yield rollout.deploy(CONFIG, task_uri=service.task_uri, version=service.first)
    rollout.undeploy(application.application_name(service.task_uri))


def _post(url: str, path: str, body: Any, *, status: int) -> Any:
    answer = requests.post(f"{url}/v1/batches{path}", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def _until(url: str, batch_id: str, *statuses: str) -> Any:
    """Return the job when it has one of the statuses; a killed replica takes seconds to restart."""

    def ended() -> Any:
        with suppress(requests.ConnectionError):
            answer = requests.get(f"{url}/v1/batches/{batch_id}", timeout=60)
            if answer.status_code == 200 and answer.json()["status"] in statuses:
                return answer.json()
        return None

    return _wait_for(ended)


def _wait_for(result: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 300
    while True:
        value = result()
        if value is not None:
            return value
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_batch_over_http_survives_a_killed_replica_and_a_repeated_request_returns_the_same_job(
    service: Service, url: str, rows: pa.Table
) -> None:
    output = _output()
    body = {"input": _input(rows, num_files=60), "output": f"{output}/", "id": "key"}
    batch = _post(url, "", body, status=202)
    assert (batch["status"], batch["version"]) == ("queued", service.first.version)
    assert _post(url, "", body, status=202)["id"] == batch["id"]
    _until(url, batch["id"], "running")
    (replica,) = serve_client.serve_applications()["score-test"].replicas
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    done = _until(url, batch["id"], "completed", "failed")
    assert (done["rows_done"], done["rows_total"], done["error"]) == (1000, 1000, None)
    assert len(_parts(output)) == 60
    assert storage.read_json(f"{output}/{scoring.MANIFEST}")["num_rows"] == 1000
    assert _post(url, f"/{batch['id']}/cancel", None, status=409)["error"]["type"] == "batch_over"


def test_a_queued_job_runs_with_the_configuration_that_is_current_at_its_start(
    service: Service, rows: pa.Table
) -> None:
    task_uri = "s3://models/score-closed"
    uri = _input(rows, num_files=60)

    def queued() -> str:
        batch = scoring.new_batch(service.first, input=uri, output=_output(), id_column="key")
        return submit_job(task_uri, batch, service.first, owner=None).id

    def job(batch_id: str, *statuses: str) -> BatchJob:
        """Return the job when it has one of the statuses."""

        def current() -> BatchJob | None:
            job = read_job(task_uri, batch_id)
            return job if job is not None and job.status in statuses else None

        job: BatchJob = _wait_for(current)
        return job

    with connect():
        first = queued()
        runner.start_runner(task_uri, CONFIG)
        job(first, "running")
        second = queued()
        closed = CONFIG.model_copy(update={"batch_prefixes": ("s3://lake/elsewhere",)})
        runner.start_runner(task_uri, closed)
        assert len(runner.running_runners(task_uri)) == 2
        # it had started before the change
        assert job(first, "completed", "failed").status == "completed"
        refused = job(second, "completed", "failed")
        assert refused.status == "failed"
        assert refused.error is not None
        assert "is not under a prefix" in refused.error
        _wait_for(lambda: not runner.running_runners(task_uri) or None)


def test_a_queued_or_running_batch_is_cancelled_and_a_repeated_request_resumes_it(
    stack: stack.StackState, url: str, rows: pa.Table
) -> None:
    body = {"input": _input(rows, num_files=60), "output": _output()}
    batch = _post(url, "", body, status=202)
    other = _post(url, "", body | {"output": _output()}, status=202)
    assert batch["id"] != other["id"]
    assert _post(url, f"/{other['id']}/cancel", None, status=200)["status"] == "cancelled"
    _wait_for(lambda: _parts(batch["output"]) or None)
    assert _post(url, f"/{batch['id']}/cancel", None, status=200)["status"] == "cancelled"
    _wait_for_workers_to_end(stack)
    before = _parts(batch["output"])
    assert 0 < len(before) < 60
    assert _post(url, "", body, status=202)["status"] == "queued"
    assert _until(url, batch["id"], "completed", "failed")["status"] == "completed"
    after = _parts(batch["output"])
    assert len(after) == 60
    assert before.items() <= after.items()
    assert _parts(other["output"]) == {}


def test_an_invalid_or_forbidden_batch_is_refused_with_a_reason(
    service: Service, url: str, rows: pa.Table
) -> None:
    uri = _input(rows.slice(0, 10), num_files=1)
    body = {"input": uri, "output": _output()}
    for fields, status, expected in (
        ({"input": "s3://lake/other/in"}, 403, "serving.batch_prefixes"),
        ({"output": f"{service.task_uri}/versions/mine"}, 403, "overlaps the model registry"),
        ({"output": f"{PREFIX}/../x"}, 422, "without empty parts"),
        ({"column": "words"}, 422, "has no column 'words'"),
        ({"model": "other"}, 404, "model 'other' is not served"),
        ({"input": f"{PREFIX}/absent"}, 422, "does not exist or is not accessible"),
        ({"output": _input(rows.slice(0, 1), num_files=1)}, 422, "contains no batch"),
        ({"input": 1}, 422, "input: "),
    ):
        message = _post(url, "", body | fields, status=status)["error"]["message"]
        assert expected in message
        assert "127.0.0.1" not in message
    for batch_id in ("0" * 24, "..", "x"):
        assert requests.get(f"{url}/v1/batches/{batch_id}", timeout=60).status_code == 404
    empty = _post(url, "", body | {"input": _input(rows.slice(0, 0), num_files=1)}, status=202)
    failed = _until(url, empty["id"], "completed", "failed")
    assert failed["status"] == "failed"
    assert "has no rows" in failed["error"]
