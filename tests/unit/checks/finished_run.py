"""A finished run in a local folder, for tests that damage it."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster.code_snapshot import ship_code
from tailorbird import storage
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import UNREGISTERED
from tailorbird.evaluation.report.evidence_files import MANIFEST, render_files, write_evidence
from tailorbird.registry.test_set_ledger import Ledger, TestSetAccess, record_test_access
from tailorbird.storage.paths import TaskPaths
from tests.unit.evaluation.simulated import (
    BASE_WEIGHTS,
    Simulation,
    evidence_of,
    registration_of,
    tables_of,
)

ROOT = Path(__file__).parents[3]


def parquet(table: Predictions) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table.to_table(), buffer)
    return buffer.getvalue()


def concluded(folder: Path, simulation: Simulation) -> str:
    """Write a run with its registered versions and code to a local folder; return the run's URI."""
    task_uri = folder.as_uri()
    kinds = {"incumbent": "probe", "candidate": "full"}
    kinds |= {kind: kind for kind in simulation.contenders}
    if simulation.routing:
        kinds["hybrid"] = "hybrid"
    digests = {
        role: registered(folder / "versions" / f"{kind}-1", kind) for role, kind in kinds.items()
    }
    code = ship_code(task_uri, ROOT)
    evidence = evidence_of(simulation, task_uri=task_uri, digests=digests, code=code.sha256)
    (folder / "base").mkdir()
    (folder / "base" / "model.safetensors").write_bytes(BASE_WEIGHTS)
    write_ledger(folder, evidence.test_access)
    stored = {
        f"predictions/{name}.parquet": parquet(table)
        for name, table in tables_of(simulation).items()
    }
    registration = registration_of(simulation, task_uri=task_uri, code=code.sha256)
    stored["protocol.json"] = registration.model_dump_json().encode()
    stored["family.json"] = evidence.family.model_dump_json().encode()
    for role, version in evidence.versions.items():
        if version.digest == UNREGISTERED:
            continue
        write_evidence(version.uri, stored | render_files(evidence, role=role))
    write_evidence(
        evidence.run, stored | render_files(evidence, role=evidence.role_of(evidence.run))
    )
    return evidence.run


def write_ledger(folder: Path, *entries: TestSetAccess) -> None:
    """Write the test-set ledger of the registry that contains the task's folder, with accesses to
    the same rows."""
    paths = TaskPaths(folder.as_uri())
    storage.delete_folder(f"{paths.registry}/_ledger")
    for entry in entries:
        rows = np.arange(entry.num_rows, dtype=np.uint64)  # those of `hashes_of`
        record_test_access(
            paths.task_uri, rows=rows, models=entry.models, protocol=entry.protocol, run=entry.run
        )
    storage.write_bytes(paths.test_set_ledger, Ledger(entries=entries).model_dump_json().encode())


def registered(folder: Path, kind: str, **fields: object) -> str:
    folder.mkdir(parents=True)
    contents = {"config.json": json.dumps({"kind": kind} | fields), "head.safetensors": kind * 100}
    manifest = {}
    for name, text in contents.items():
        (folder / name).write_text(text)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        manifest[name] = {"sha256": sha256, "size_bytes": len(text)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def run_of(task_folder: Path) -> Path:
    (run,) = (task_folder / "runs").iterdir()
    return run


def flip(file: Path, *, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(bytes(content))


def rewrite(run: Path, /, **changes: Any) -> None:
    """Change evidence.json and update its hash in the manifest, as a forger would."""
    evidence = json.loads((run / "evidence.json").read_text())
    (run / "evidence.json").write_text(json.dumps(evidence | changes, indent=1))
    rehash(run, "evidence.json")


def rehash(run: Path, name: str) -> None:
    """Write the hash of a changed file into the manifest."""
    manifest = json.loads((run / MANIFEST).read_text())
    manifest[name] = hashlib.sha256((run / name).read_bytes()).hexdigest()
    (run / MANIFEST).write_text(json.dumps(manifest))
