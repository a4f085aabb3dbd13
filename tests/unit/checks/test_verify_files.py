"""Detection of changed, missing and unlisted files of a run."""

import hashlib
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.checks.verify import verify_evidence
from tailorbird.checks.verify_files import trained_rows_faults
from tailorbird.config.data import DataConfig
from tailorbird.data.loader import read_test
from tailorbird.data.rows import rows_sha256
from tailorbird.evaluation.report.evidence import UNREGISTERED
from tailorbird.evaluation.report.evidence_files import MANIFEST
from tailorbird.evaluation.verdict.inputs import TrainedRows
from tests.unit.checks.finished_run import concluded, flip, rewrite, run_of
from tests.unit.evaluation.simulated import Simulation, evidence_of
from tests.unit.evaluation.test_trained_rows import version_of

NAMES = (
    "evidence.json",
    "protocol.json",
    "report.html",
    "MODEL_CARD.md",
    "predictions/incumbent.parquet",
    "predictions/candidate.parquet",
    "predictions/candidate_noise.parquet",
    "predictions/incumbent_validation.parquet",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_changed_byte_is_reported_with_its_file(
    task_folder: Path, name: str, share: float
) -> None:
    file = run_of(task_folder) / name
    flip(file, at=int(share * (file.stat().st_size - 1)))
    assert any(
        fault.startswith(f"{name} was changed")
        for fault in verify_evidence(run_of(task_folder).as_uri())
    )


@pytest.mark.parametrize(
    "name", ["versions/full-1/head.safetensors", "versions/probe-1/manifest.json"]
)
def test_a_changed_byte_of_a_registered_version_is_detected(task_folder: Path, name: str) -> None:
    flip(task_folder / name, at=9)
    (fault,) = verify_evidence(run_of(task_folder).as_uri())
    assert "versions/" + name.split("/")[1] in fault


def test_changed_or_missing_code_is_detected(task_folder: Path) -> None:
    (archive,) = (task_folder / "code").glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    entries["code/tailorbird/pipeline/run.py"] += b"# changed\n"
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    assert any(
        "code" in fault and "was changed" in fault
        for fault in verify_evidence(run_of(task_folder).as_uri())
    )
    flip(archive, at=archive.stat().st_size // 2)
    assert any(
        "code" in fault and "was changed" in fault
        for fault in verify_evidence(run_of(task_folder).as_uri())
    )
    archive.unlink()
    assert any(
        "code" in fault and "is missing" in fault
        for fault in verify_evidence(run_of(task_folder).as_uri())
    )


@pytest.mark.parametrize("name", [*NAMES, MANIFEST])
def test_a_missing_file_is_reported(task_folder: Path, name: str) -> None:
    (run_of(task_folder) / name).unlink()
    assert any(
        name in fault and "missing" in fault
        for fault in verify_evidence(run_of(task_folder).as_uri())
    )


def test_an_unlisted_table_is_reported(task_folder: Path) -> None:
    shutil.copy(
        run_of(task_folder) / "predictions/candidate.parquet",
        run_of(task_folder) / "predictions/better.parquet",
    )
    faults = verify_evidence(run_of(task_folder).as_uri())
    assert faults == (f"predictions/better.parquet is not listed in {MANIFEST}",)


def test_an_unregistered_version_needs_no_files(task_folder: Path) -> None:
    evidence = json.loads((run_of(task_folder) / "evidence.json").read_text())
    weights = task_folder / "versions" / "full-1" / "head.safetensors"
    files = {weights.name: hashlib.sha256(weights.read_bytes()).hexdigest()}
    evidence["versions"]["candidate"] |= {"digest": UNREGISTERED, "files": files}
    rewrite(run_of(task_folder), versions=evidence["versions"])
    assert verify_evidence(run_of(task_folder).as_uri()) == ()
    flip(weights, at=3)
    assert any(
        "the candidate's file" in fault and "was changed" in fault
        for fault in verify_evidence(run_of(task_folder).as_uri())
    )
    shutil.rmtree(weights.parent)
    assert verify_evidence(run_of(task_folder).as_uri()) == ()


def test_a_changed_base_model_is_detected(task_folder: Path) -> None:
    flip(task_folder / "base" / "model.safetensors", at=5)
    (fault,) = verify_evidence(run_of(task_folder).as_uri())
    assert fault.startswith("the base model ")
    assert "base.model.safetensors is " in fault
    shutil.rmtree(task_folder / "base")
    (fault,) = verify_evidence(run_of(task_folder).as_uri())
    assert fault.endswith('in storage it is "missing"')


def test_a_changed_weight_in_a_part_of_a_hybrid_is_detected(task_folder: Path) -> None:
    part = task_folder / "versions" / "probe-1"
    digest = hashlib.sha256((part / "manifest.json").read_bytes()).hexdigest()
    named = {"uri": part.as_uri(), "digest": digest}
    routing = {"by": "group", "column": "sex", "values": ["male"]}
    config = json.dumps(
        {"kind": "hybrid", "hybrid": {"routing": routing, "first": named, "second": named}}
    ).encode()
    whole = task_folder / "versions" / "hybrid-1"
    whole.mkdir()
    (whole / "config.json").write_bytes(config)
    manifest = json.dumps(
        {"config.json": {"sha256": hashlib.sha256(config).hexdigest(), "size_bytes": len(config)}}
    ).encode()
    (whole / "manifest.json").write_bytes(manifest)
    evidence = json.loads((run_of(task_folder) / "evidence.json").read_text())
    evidence["versions"]["hybrid"] = {
        "kind": "hybrid",
        "uri": whole.as_uri(),
        "digest": hashlib.sha256(manifest).hexdigest(),
        "files": None,
        "offsets": {},
    }
    rewrite(run_of(task_folder), versions=evidence["versions"])
    assert verify_evidence(run_of(task_folder).as_uri()) == ()
    (part / "head.safetensors").write_bytes(b"other weights")
    faults = verify_evidence(run_of(task_folder).as_uri())
    assert any("the first part of the hybrid's file" in fault for fault in faults)


def test_rows_that_were_excluded_after_the_registration_are_reported(tmp_path: Path) -> None:
    trained = TrainedRows({"incumbent": ("r1", "r2")})
    uri = concluded(tmp_path / "task", Simulation(num_rows=900, trained=trained))
    assert verify_evidence(uri) == ()
    rewrite(run_of(tmp_path / "task"), trained_rows={"rows": {"incumbent": ["r1", "r2", "r3"]}})
    faults = verify_evidence(uri)
    assert any(fault.startswith("trained_rows.rows.incumbent") for fault in faults)
    assert any(fault.startswith("verdict.n is 898") for fault in faults)


def test_excluded_rows_are_compared_with_the_version_of_the_champion(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": ["my knee", "a rash"], "label": ["a", "b"]}), tmp_path / "test.parquet"
    )
    data = DataConfig(train="s3://lake/none", test=(tmp_path / "test.parquet").as_uri())
    evidence = evidence_of(Simulation())
    record = replace(evidence.data, sha256={"test": rows_sha256(read_test(data))})
    champion = version_of(tmp_path / "champion", texts=("A rash.",))
    fields = {
        "recipe": evidence.recipe.model_copy(update={"data": data}),
        "data": record,
        "champion": champion.uri,
    }
    for rows, num_faults in ((("1",), 0), (("0", "1"), 1), (None, 1)):
        trained = TrainedRows({"incumbent": rows})
        faults = list(
            trained_rows_faults(evidence.model_copy(update={**fields, "trained_rows": trained}))
        )
        assert len(faults) == num_faults
        assert all("the champion's version gives" in fault for fault in faults)
    (tmp_path / "test.parquet").unlink()
    assert (
        list(trained_rows_faults(evidence.model_copy(update=fields))) == []
    )  # nothing to compare with
