"""A verdict is verified from its files alone, and a changed byte anywhere is found and named."""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.code_snapshot import ship_code
from tailorbird.checks.verify import restore_pages, verify_evidence
from tailorbird.cli.app import app
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import UNREGISTERED
from tailorbird.evaluation.report.evidence_files import MANIFEST, render_files, write_evidence
from tailorbird.registry.routing import Routing
from tailorbird.registry.test_set_ledger import Ledger
from tailorbird.storage.paths import TaskPaths
from tests.unit.evaluation.simulated import BASE_WEIGHTS, Simulation, evidence_of, registration_of, tables_of

LEDGERS = TaskPaths("").ledgers.strip("/")
ROOT = Path(__file__).parents[3]
HYBRID = Simulation(
    num_rows=4000,
    candidate=0.82,
    by_group={"female": 0.62},
    evaluation={"hybrid": {"by": "group", "column": "sex"}},
    routing=Routing("group", "sex", ("male", "unstated"), None),
)


def parquet(table: Predictions) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table.to_table(), buffer)
    return buffer.getvalue()


def concluded(folder: Path, simulation: Simulation) -> str:
    """A run with its registered versions and code under a local folder; returns the run's URI."""
    task_uri = folder.as_uri()
    kinds = {"incumbent": "probe", "candidate": "full"} | ({"hybrid": "hybrid"} if simulation.routing else {})
    digests = {role: registered(folder / "versions" / f"{kind}-1", kind) for role, kind in kinds.items()}
    code = ship_code(task_uri, ROOT)
    evidence = evidence_of(simulation, task_uri=task_uri, digests=digests, code=code.sha256)
    (folder / "base").mkdir()
    (folder / "base" / "model.safetensors").write_bytes(BASE_WEIGHTS)
    ledger = folder / "test_set_ledgers" / f"{evidence.test_rows}.json"
    ledger.parent.mkdir()
    ledger.write_text(Ledger(entries=(evidence.test_access,)).model_dump_json())
    stored = {f"predictions/{name}.parquet": parquet(table) for name, table in tables_of(simulation).items()}
    registration = registration_of(simulation, task_uri=task_uri, code=code.sha256)
    stored["protocol.json"] = registration.model_dump_json().encode()
    stored["routing.json"] = json.dumps({"routing": evidence.model_dump(mode="json")["routing"]}).encode()
    for role, version in evidence.versions.items():
        write_evidence(version.uri, stored | render_files(evidence, role=role))
    write_evidence(evidence.run, stored | render_files(evidence, role=evidence.role_of(evidence.run)))
    return evidence.run


def registered(folder: Path, kind: str) -> str:
    folder.mkdir(parents=True)
    contents = {"config.json": json.dumps({"kind": kind}).encode(), "head.safetensors": kind.encode() * 100}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    manifest = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for name, content in contents.items()
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    concluded(folder, Simulation(num_rows=600))
    return folder


@pytest.fixture
def task_folder(whole: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy to damage, at the place that its evidence names."""
    kept = tmp_path / "kept"
    shutil.copytree(whole, kept)
    yield whole
    shutil.rmtree(whole)
    shutil.copytree(kept, whole)


def run_of(task_folder: Path) -> Path:
    (run,) = (task_folder / "runs").iterdir()
    return run


def flip(file: Path, *, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(bytes(content))


def rewrite(run: Path, **changes: Any) -> None:
    """Changes evidence.json and makes the manifest say so: a forger who knows the manifest."""
    evidence = json.loads((run / "evidence.json").read_text())
    evidence |= changes
    content = json.dumps(evidence, indent=1).encode()
    (run / "evidence.json").write_bytes(content)
    manifest = json.loads((run / MANIFEST).read_text())
    manifest["evidence.json"] = hashlib.sha256(content).hexdigest()
    (run / MANIFEST).write_text(json.dumps(manifest))


def test_an_untouched_run_and_its_versions_hold(whole: Path) -> None:
    assert verify_evidence(run_of(whole).as_uri()) == ()
    assert verify_evidence((whole / "versions" / "full-1").as_uri() + "/") == ()


def test_a_hybrid_is_recomputed_too(tmp_path: Path) -> None:
    run = concluded(tmp_path, HYBRID)
    evidence = json.loads((run_of(tmp_path) / "evidence.json").read_text())
    assert evidence["verdict"]["outcome"] == "HYBRID"
    assert verify_evidence(run) == ()
    evidence["verdict"]["hybrid"]["p_holm"] = 0.5
    rewrite(run_of(tmp_path), verdict=evidence["verdict"])
    assert any("verdict.hybrid.p_holm is 0.5" in fault for fault in verify_evidence(run))


def test_a_chat_run_is_recomputed_too(tmp_path: Path) -> None:
    run = concluded(tmp_path, Simulation(num_rows=300, chat=True))
    assert verify_evidence(run) == ()
    evidence = json.loads((run_of(tmp_path) / "evidence.json").read_text())
    evidence["measures"]["log_likelihood"]["candidate"] += 0.1
    rewrite(run_of(tmp_path), measures=evidence["measures"])
    assert any(fault.startswith("measures.log_likelihood.candidate is") for fault in verify_evidence(run))


NAMES = (
    "evidence.json", "protocol.json", "report.html", "MODEL_CARD.md", "predictions/incumbent.parquet",
    "predictions/candidate.parquet", "predictions/reference.parquet", "predictions/candidate_noise.parquet",
    "predictions/incumbent_validation.parquet",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_changed_byte_is_found_and_its_file_named(task_folder: Path, name: str, share: float) -> None:
    file = run_of(task_folder) / name
    flip(file, at=int(share * (file.stat().st_size - 1)))
    assert any(fault.startswith(f"{name} was changed") for fault in verify_evidence(run_of(task_folder).as_uri()))


@pytest.mark.parametrize("name", ["versions/full-1/head.safetensors", "versions/probe-1/manifest.json"])
def test_a_changed_byte_of_a_registered_version_is_found(task_folder: Path, name: str) -> None:
    flip(task_folder / name, at=9)
    (fault,) = verify_evidence(run_of(task_folder).as_uri())
    assert "versions/" + name.split("/")[1] in fault


def test_a_protocol_that_was_eased_in_both_files_is_found(task_folder: Path) -> None:
    run = run_of(task_folder)
    registration = json.loads((run / "protocol.json").read_text())
    registration["protocol"]["minimum_gain"] = 0.001
    content = json.dumps(registration).encode()
    (run / "protocol.json").write_bytes(content)
    manifest = json.loads((run / MANIFEST).read_text())
    manifest["protocol.json"] = hashlib.sha256(content).hexdigest()
    (run / MANIFEST).write_text(json.dumps(manifest))
    rewrite(run, protocol=registration["protocol"])
    assert "protocol.minimum_gain is 0.001 in evidence.json; the recipe asks 0.01" in verify_evidence(run.as_uri())


def test_a_protocol_and_recipe_that_were_eased_everywhere_are_no_longer_those_of_the_runs_name(
    task_folder: Path,
) -> None:
    run = run_of(task_folder)
    registration, evidence = (json.loads((run / name).read_text()) for name in ("protocol.json", "evidence.json"))
    for stored in (registration, evidence):
        stored["protocol"]["minimum_gain"] = stored["recipe"]["evaluation"]["minimum_gain"] = 0.001
    content = json.dumps(registration).encode()
    (run / "protocol.json").write_bytes(content)
    manifest = json.loads((run / MANIFEST).read_text())
    manifest["protocol.json"] = hashlib.sha256(content).hexdigest()
    (run / MANIFEST).write_text(json.dumps(manifest))
    rewrite(run, protocol=evidence["protocol"], recipe=evidence["recipe"])
    faults = verify_evidence(run.as_uri())
    assert any(fault.startswith("protocol.json was changed: its request has the digest") for fault in faults)
    assert any("is not the run of this protocol" in fault for fault in faults)


def test_changed_or_lost_code_is_found(task_folder: Path) -> None:
    (archive,) = (task_folder / "code").glob("*.zip")
    with zipfile.ZipFile(archive) as there:
        entries = {name: there.read(name) for name in there.namelist()}
    entries["code/tailorbird/pipeline/run.py"] += b"# changed\n"
    with zipfile.ZipFile(archive, "w") as there:
        for name, content in entries.items():
            there.writestr(name, content)
    assert any("code" in fault and "was changed" in fault for fault in verify_evidence(run_of(task_folder).as_uri()))
    flip(archive, at=archive.stat().st_size // 2)
    assert any("code" in fault and "was changed" in fault for fault in verify_evidence(run_of(task_folder).as_uri()))
    archive.unlink()
    assert any("code" in fault and "is missing" in fault for fault in verify_evidence(run_of(task_folder).as_uri()))


@pytest.mark.parametrize("name", [*NAMES, MANIFEST])
def test_a_lost_file_is_named(task_folder: Path, name: str) -> None:
    (run_of(task_folder) / name).unlink()
    assert any(name in fault and "missing" in fault for fault in verify_evidence(run_of(task_folder).as_uri()))


def test_a_foreign_table_is_named(task_folder: Path) -> None:
    shutil.copy(
        run_of(task_folder) / "predictions/candidate.parquet", run_of(task_folder) / "predictions/better.parquet"
    )
    faults = verify_evidence(run_of(task_folder).as_uri())
    assert faults == (f"predictions/better.parquet is foreign: {MANIFEST} does not name it",)


def test_a_forged_verdict_is_found_though_every_hash_fits(task_folder: Path) -> None:
    evidence = json.loads((run_of(task_folder) / "evidence.json").read_text())
    forged = evidence["verdict"] | {"gain": 0.2, "p_value": evidence["verdict"]["p_value"] + 1e-15}
    rewrite(run_of(task_folder), verdict=forged)
    (fault,) = verify_evidence(run_of(task_folder).as_uri())
    assert fault.startswith("verdict.gain is 0.2 in evidence.json; recomputed it is 0.0")


def test_a_protocol_changed_after_the_fact_is_found_by_what_was_registered(task_folder: Path) -> None:
    evidence = json.loads((run_of(task_folder) / "evidence.json").read_text())
    rewrite(run_of(task_folder), protocol=evidence["protocol"] | {"alpha": 0.2})
    faults = verify_evidence(run_of(task_folder).as_uri())
    assert any(fault.startswith("protocol.alpha is 0.2 in evidence.json; protocol.json says 0.05") for fault in faults)
    assert any(fault.startswith("verdict.alpha") for fault in faults)


def test_evidence_of_other_test_rows_is_refused_by_name(task_folder: Path) -> None:
    evidence = json.loads((run_of(task_folder) / "evidence.json").read_text())
    rewrite(run_of(task_folder), data=evidence["data"] | {"sha256": {"test": "0" * 64}})
    faults = verify_evidence(run_of(task_folder).as_uri())
    assert any(fault.startswith("the verdict is refused (rule 1): the test rows changed") for fault in faults)


def test_a_version_that_was_not_registered_needs_no_files(task_folder: Path) -> None:
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


def test_a_changed_base_model_is_found(task_folder: Path) -> None:
    flip(task_folder / "base" / "model.safetensors", at=5)
    (fault,) = verify_evidence(run_of(task_folder).as_uri())
    assert fault.startswith("the base model ")
    assert "base.model.safetensors is " in fault
    shutil.rmtree(task_folder / "base")
    (fault,) = verify_evidence(run_of(task_folder).as_uri())
    assert fault.endswith('in the store "missing"')


def test_a_second_access_that_is_stated_as_the_first_is_found(task_folder: Path) -> None:
    (ledger,) = (task_folder / "test_set_ledgers").iterdir()
    (entry,) = json.loads(ledger.read_text())["entries"]
    ledger.write_text(json.dumps({"entries": [entry | {"number": 2}]}))
    faults = verify_evidence(run_of(task_folder).as_uri())
    assert "test_access.number is 1 in evidence.json; the test-set ledger says 2" in faults
    ledger.write_text('{"entries": []}')
    (fault,) = verify_evidence(run_of(task_folder).as_uri())
    assert fault.endswith("does not have this access")


def test_a_changed_weight_of_a_hybrids_part_is_found(task_folder: Path) -> None:
    part = task_folder / "versions" / "probe-1"
    digest = hashlib.sha256((part / "manifest.json").read_bytes()).hexdigest()
    named = {"uri": part.as_uri(), "digest": digest}
    routing = {"by": "group", "column": "sex", "values": ["male"]}
    config = json.dumps(
        {"kind": "hybrid", "hybrid": {"routing": routing, "incumbent": named, "candidate": named}}
    ).encode()
    whole = task_folder / "versions" / "hybrid-1"
    whole.mkdir()
    (whole / "config.json").write_bytes(config)
    manifest = json.dumps({"config.json": {"sha256": hashlib.sha256(config).hexdigest()}}).encode()
    (whole / "manifest.json").write_bytes(manifest)
    evidence = json.loads((run_of(task_folder) / "evidence.json").read_text())
    evidence["versions"]["hybrid"] = {
        "kind": "hybrid", "uri": whole.as_uri(), "digest": hashlib.sha256(manifest).hexdigest(), "files": None
    }  # fmt: skip
    rewrite(run_of(task_folder), versions=evidence["versions"])
    assert verify_evidence(run_of(task_folder).as_uri()) == ()
    (part / "head.safetensors").write_bytes(b"other weights")
    faults = verify_evidence(run_of(task_folder).as_uri())
    assert any("the incumbent in the hybrid's file" in fault for fault in faults)


def test_a_routing_where_the_recipe_asks_for_no_hybrid_is_found(task_folder: Path) -> None:
    run, routing = run_of(task_folder), {"by": "group", "column": "sex", "values": ["male"], "threshold": None}
    content = json.dumps({"routing": routing}).encode()
    (run / "routing.json").write_bytes(content)
    manifest = json.loads((run / MANIFEST).read_text())
    manifest["routing.json"] = hashlib.sha256(content).hexdigest()
    (run / MANIFEST).write_text(json.dumps(manifest))
    rewrite(run, routing=routing)
    (fault,) = verify_evidence(run.as_uri())
    assert fault.startswith("routing is ")
    assert fault.endswith("the validation rows give null")


def test_an_expiry_put_off_is_found(task_folder: Path) -> None:
    rewrite(run_of(task_folder), expires_at="2037-11-24T16:30:00+00:00")
    assert any(fault.startswith("expires_at is ") for fault in verify_evidence(run_of(task_folder).as_uri()))


@pytest.mark.parametrize("content", [b"{}", b"[]", b"{", b""])
def test_evidence_that_is_none_is_a_fault_and_no_traceback(task_folder: Path, content: bytes) -> None:
    (run_of(task_folder) / "evidence.json").write_bytes(content)
    assert verify_evidence(run_of(task_folder).as_uri())


def test_where_nothing_is_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="URI of a finished run or a version"):
        verify_evidence(tmp_path.as_uri())


def test_damaged_pages_are_restored_and_the_verdict_holds_again(task_folder: Path) -> None:
    run = run_of(task_folder)
    before = {name: (run / name).read_bytes() for name in ("report.html", "MODEL_CARD.md", MANIFEST)}
    (run / "report.html").write_text("<p>all is well</p>")
    assert restore_pages(run.as_uri()) == ("report.html",)
    assert {name: (run / name).read_bytes() for name in before} == before
    assert restore_pages(run.as_uri()) == ()


def test_pages_are_not_made_from_evidence_that_was_changed(task_folder: Path) -> None:
    flip(run_of(task_folder) / "evidence.json", at=40)
    with pytest.raises(ValueError, match="no page is made from it"):
        restore_pages(run_of(task_folder).as_uri())


def test_the_verb_ends_with_0_only_where_the_verdict_holds(task_folder: Path) -> None:
    runner, uri = CliRunner(), run_of(task_folder).as_uri()
    whole = runner.invoke(app, ["verify", uri, "--json"])
    assert (whole.exit_code, json.loads(whole.stdout)) == (0, {"uri": uri, "holds": True, "faults": []})
    flip(run_of(task_folder) / "report.html", at=100)
    damaged = runner.invoke(app, ["verify", uri])
    assert damaged.exit_code == 1
    assert damaged.stdout.startswith("report.html was changed")
    assert runner.invoke(app, ["report", uri]).exit_code == 0
    assert runner.invoke(app, ["verify", uri]).exit_code == 0
    assert runner.invoke(app, ["verify", f"{uri}-not-there"]).exit_code == 2


def test_the_verb_compares_two_versions_of_a_run(whole: Path) -> None:
    uris = [(whole / "versions" / name).as_uri() for name in ("full-1", "probe-1")]
    done = CliRunner().invoke(app, ["compare", *uris, "--json"])
    verdict = json.loads((run_of(whole) / "evidence.json").read_text())["verdict"]
    assert json.loads(done.stdout)["comparison"]["gain"] == pytest.approx(verdict["gain"])


def test_pages_written_by_newer_code_are_named_in_the_manifest(task_folder: Path) -> None:
    run = run_of(task_folder)
    manifest = json.loads((run / MANIFEST).read_text())
    (run / "report.html").write_text("<p>as an older version wrote it</p>")
    manifest["report.html"] = hashlib.sha256((run / "report.html").read_bytes()).hexdigest()
    (run / MANIFEST).write_text(json.dumps(manifest))
    assert restore_pages(run.as_uri()) == ("report.html",)
    assert verify_evidence(run.as_uri()) == ()


def test_serving_may_be_asked_otherwise_when_a_run_goes_on(task_folder: Path) -> None:
    evidence = json.loads((run_of(task_folder) / "evidence.json").read_text())
    evidence["recipe"]["serving"]["max_replicas"] = 7
    rewrite(run_of(task_folder), recipe=evidence["recipe"])
    assert verify_evidence(run_of(task_folder).as_uri()) == ()
    evidence["recipe"]["training"]["epochs"] = 77
    rewrite(run_of(task_folder), recipe=evidence["recipe"])
    (fault,) = verify_evidence(run_of(task_folder).as_uri())
    assert fault.startswith("recipe.training.epochs is 77")


def test_a_routing_changed_after_it_was_frozen_is_found(tmp_path: Path) -> None:
    run = concluded(tmp_path, HYBRID)
    (run_of(tmp_path) / "routing.json").write_text(json.dumps({"routing": None}))
    assert any(fault.startswith("routing is ") for fault in verify_evidence(run))
    (run_of(tmp_path) / "routing.json").unlink()
    assert any("routing.json is missing" in fault for fault in verify_evidence(run))


def test_a_routing_that_validation_does_not_speak_for_is_found_though_both_files_say_it(tmp_path: Path) -> None:
    fitted_to_test = Routing("group", "sex", ("male",), None)
    run = concluded(tmp_path, replace(HYBRID, routing=fitted_to_test))
    assert any(fault.startswith("routing.values is ") for fault in verify_evidence(run))
