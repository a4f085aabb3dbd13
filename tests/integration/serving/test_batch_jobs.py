"""Batches by the command: each row is scored exactly once, despite kills."""

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.local import stack
from serving.batch_jobs import scoring
from serving.batch_jobs.schema import BatchError
from serving.engines.classify import Prediction
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
CONFIG = ServingConfig()
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


def _wait_for(result: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 300
    while True:
        value = result()
        if value is not None:
            return value
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_an_invalid_batch_is_refused_with_a_reason(service: Service, rows: pa.Table) -> None:
    uri = _input(rows.slice(0, 10), num_files=1)
    for input, output, column, expected in (
        (uri, _output(), "words", "has no column 'words'"),
        (uri, _input(rows.slice(0, 1), num_files=1), None, "contains no batch"),
        (_input(rows.slice(0, 0), num_files=1), _output(), None, "has no rows"),
    ):
        batch = scoring.new_batch(service.first, input=input, output=output, column=column)
        with pytest.raises(BatchError, match=expected):
            scoring.score_batch(batch, CONFIG, version=service.first)
