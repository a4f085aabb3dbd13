"""Verification of a verdict from its files: changes are detected even if every hash matches."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tailorbird.checks.differences import differences
from tailorbird.checks.verify import (
    restore_pages,
    rounding_tolerance,
    verify_evidence,
)
from tailorbird.checks.verify_files import trained_rows_faults
from tailorbird.cli.app import app
from tailorbird.config.data import DataConfig
from tailorbird.data.loader import read_test
from tailorbird.data.rows import rows_sha256
from tailorbird.evaluation.hybrid import FrozenHybrid
from tailorbird.evaluation.report.evidence import UNREGISTERED
from tailorbird.evaluation.report.evidence_files import MANIFEST, read_evidence
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.evaluation.verdict.inputs import TrainedRows
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.test_set_ledger import TestSetAccess
from tailorbird.storage.s3 import StorageError
from tests import build
from tests.unit.checks.finished_run import (
    concluded,
    flip,
    registered,
    rehash,
    rewrite,
    run_of,
    write_ledger,
)
from tests.unit.evaluation.simulated import NOTHING_TO_GAIN, Simulation, evidence_of, on_cpu
from tests.unit.evaluation.test_trained_rows import version_of

Stored = dict[str, Any]
HYBRID = Simulation(
    num_rows=4000,
    candidate=0.86,
    by_group={"female": 0.55},
    evaluation={"hybrid": "sex"},
    routing=Routing("group", "sex", ("male", "unstated"), None),
)
SECONDS = dict.fromkeys(("incumbent", "candidate", "bag_of_words", "centroid"), (1.0,) * 5)
COST = {"value_of_correct": 1, "requests_per_month": 1000, "price_per_cpu_hour": 0.1}
NAMES = (
    "evidence.json",
    "protocol.json",
    "family.json",
    "report.html",
    "MODEL_CARD.md",
    "predictions/incumbent.parquet",
    "predictions/candidate.parquet",
    "predictions/candidate_noise.parquet",
    "predictions/incumbent_validation.parquet",
)


def stored_in(folder: Path, name: str = "evidence.json") -> Stored:
    content: Stored = json.loads((run_of(folder) / name).read_text())
    return content


def change(content: Stored, changes: Mapping[str, object]) -> None:
    """Set the values at paths of stored JSON."""
    for path, value in changes.items():
        *parents, name = path.split(".")
        node: Any = content
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node[parent]
        node[name] = value


def forged(folder: Path, changes: Mapping[str, object]) -> tuple[str, ...]:
    """Change evidence.json and its hash, and return the faults."""
    evidence = stored_in(folder)
    change(evidence, changes)
    rewrite(run_of(folder), **evidence)
    return faults_of(folder)


def replace_file(folder: Path, name: str, content: Stored) -> None:
    """Write a stored file and its hash in the manifest, as a forger would."""
    (run_of(folder) / name).write_text(json.dumps(content))
    rehash(run_of(folder), name)


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def faults_of(folder: Path) -> tuple[str, ...]:
    return verify_evidence(run_of(folder).as_uri())


def has(faults: tuple[str, ...], *parts: str) -> bool:
    return any(all(part in fault for part in parts) for fault in faults)


def test_the_verdict_of_an_unchanged_run_and_its_versions_holds(finished: Path) -> None:
    assert faults_of(finished) == ()
    assert verify_evidence((finished / "versions" / "full-1").as_uri() + "/") == ()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"scores.1.servable": True, "scores.1.validation": 0.9},  # a baseline not compared
            ("the other models is", "scores.1.role is null"),
        ),
        (
            {"scores.5.validation": 0.9},
            ("scores on validation.candidate is 0.9", "scores.5.validation is 0.9"),
        ),
        ({"confusions.0.fixed": 10_000}, ("confusions.0.fixed is 10000",)),
        ({"confusions": None}, ("confusions",)),
        ({"verdict.relations.0.gain": 0.2}, ("verdict.relations.0.gain is 0.2",)),
        (
            {"protocol.alpha": 0.2},
            ("protocol.alpha is 0.2 in evidence.json; it must be 0.05", "verdict.alpha"),
        ),
        ({"champion": "file:///none/task/versions/full-0"}, ("the incumbent is ",)),
        ({"data.sha256": {"test": "0" * 64}}, ("the verdict is refused: the test rows",)),
        ({"expires_at": "2037-11-24T16:30:00+00:00"}, ("expires_at is ",)),
        ({"recipe.training.epochs": 77}, ("recipe.training.epochs is 77",)),
        ({"recipe.serving.max_queued_requests": 7}, ()),  # may change when a run resumes
    ],
)
def test_a_change_of_the_evidence_is_detected_even_if_every_hash_matches(
    task_folder: Path, changes: dict[str, object], parts: tuple[str, ...]
) -> None:
    faults = forged(task_folder, changes)
    for part in parts:
        assert any(fault.startswith(part) for fault in faults), faults
    assert bool(faults) is bool(parts)


@pytest.mark.parametrize(
    ("simulation", "changes"),
    [
        pytest.param(
            Simulation(candidate=0.7, contenders={"bag_of_words": 0.85, "centroid": 0.6}),
            {"verdict.selected": "incumbent"},
            id="replaced incumbent",
        ),
        pytest.param(HYBRID, {"verdict.hybrid.share_to_second": 0.9}, id="hybrid"),
        pytest.param(
            Simulation(num_rows=300, chat=True, suites={"general": (0.2, 0.7)}),
            {"suites.0.scores.candidate": 0.7, "protocol.suites.general": "ab" * 32},
            id="suites",
        ),
        pytest.param(
            Simulation(
                evaluation={"cost": COST},
                serving={"autoscaling": {"min_replicas": 1}},
                costs=on_cpu(SECONDS),
            ),
            {"verdict.costs.0.total": 1.0, "protocol.cost.min_replicas": 0},
            id="costs",
        ),
        pytest.param(NOTHING_TO_GAIN, {"family.headroom.most": 0.0001}, id="no training"),
    ],
)
def test_every_figure_of_a_verdict_is_recomputed(
    tmp_path: Path, simulation: Simulation, changes: dict[str, object]
) -> None:
    folder = tmp_path / "task"
    assert verify_evidence(concluded(folder, simulation)) == ()
    faults = forged(folder, changes)
    for path in changes:
        assert any(fault.startswith(f"{path} is ") for fault in faults), faults


@pytest.mark.parametrize(("role", "index"), [("candidate", 1), ("incumbent", 0)])
def test_a_validation_score_that_the_stored_predictions_do_not_give_is_a_fault(
    task_folder: Path, role: str, index: int
) -> None:
    evidence = stored_in(task_folder)
    for score in evidence["scores"]:
        if score["role"] == role:
            score["validation"] = 0.99
    evidence["family"]["models"][index]["validation"] = 0.99
    replace_file(task_folder, "family.json", evidence["family"])
    rewrite(run_of(task_folder), **evidence)
    assert has(faults_of(task_folder), f"the score of the {role} on validation is 0.99 ")


@pytest.mark.parametrize("with_recipe", [False, True])
def test_a_protocol_weakened_in_all_files_is_detected(task_folder: Path, with_recipe: bool) -> None:
    """The recipe gives another protocol or, if it is changed too, the run another name."""
    changes: dict[str, object] = {"protocol.minimum_gain": 0.001}
    expected = ["protocol.minimum_gain is 0.001 in evidence.json; it must be 0.01"]
    if with_recipe:
        changes["recipe.evaluation.minimum_gain"] = 0.001
        expected = ["the digest of the request in protocol.json", "the name of the run is"]
    registration = stored_in(task_folder, "protocol.json")
    change(registration, changes)
    replace_file(task_folder, "protocol.json", registration)
    faults = forged(task_folder, changes)
    assert all(has(faults, part) for part in expected)


def test_a_hybrid_that_the_recipe_or_the_validation_rows_do_not_give_is_detected(
    task_folder: Path, tmp_path: Path
) -> None:
    routing = Routing("group", "sex", ("male",))
    hybrid = FrozenHybrid(routing, "incumbent", "candidate", validation=0.8, share_to_second=0.5)
    family = stored_in(task_folder, "family.json") | {"hybrid": asdict(hybrid)}
    replace_file(task_folder, "family.json", family)
    rewrite(run_of(task_folder), family=family)
    (fault,) = faults_of(task_folder)
    assert fault.startswith("family.hybrid is ")

    fitted_to_test = Routing("group", "sex", ("male",), None)
    run = concluded(tmp_path / "task", replace(HYBRID, routing=fitted_to_test))
    assert has(verify_evidence(run), "family.hybrid.routing.values is ")


def test_a_run_that_should_have_trained_a_model_is_reported(tmp_path: Path) -> None:
    simulation = replace(NOTHING_TO_GAIN, incumbent=0.9)
    faults = verify_evidence(concluded(tmp_path / "task", simulation))
    assert has(faults, "that no training was needed is true")


def test_equal_numbers_of_another_rounding_are_no_difference_and_other_types_are_one() -> None:
    stated = {"d": 0.1 + 0.2, "e": 1, "f": [1]}
    expected = {"d": 0.3, "e": True, "f": [1, 2]}
    assert list(differences(stated, expected, at="", other="it is")) == [
        "e is 1 in evidence.json; it is true",
        "f is [1] in evidence.json; it is [1, 2]",
    ]


def test_evidence_of_another_version_or_run_is_a_fault(task_folder: Path, tmp_path: Path) -> None:
    evaluated = task_folder / "versions" / "full-1"
    other = task_folder / "versions" / "lora-9"
    registered(other, "lora")
    for name in (*json.loads((evaluated / MANIFEST).read_text()), MANIFEST):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(evaluated / name, other / name)
    copied = tmp_path / "task2" / "runs" / "deadbeef"
    shutil.copytree(run_of(task_folder), copied)
    for folder in (other, copied):
        (fault,) = verify_evidence(folder.as_uri())
        assert fault.startswith("this is the evidence of")
        assert fault.endswith(f"not of {folder.as_uri()}")


def test_a_second_test_access_recorded_as_the_first_is_detected(task_folder: Path) -> None:
    access = TestSetAccess.model_validate(stored_in(task_folder)["test_access"])
    write_ledger(task_folder, access.model_copy(update={"models": ("another model",)}), access)
    faults = faults_of(task_folder)
    assert "test_access.number is 1 in evidence.json; it must be 2" in faults
    assert "test_access.num_seen is 0 in evidence.json; it must be 600" in faults
    write_ledger(task_folder)
    (fault,) = faults_of(task_folder)
    assert fault.endswith("does not contain this access")


def test_the_level_of_a_further_access_is_recomputed(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    run = concluded(folder, Simulation(num_rows=600, access_number=2, num_rows_seen=600))
    access = TestSetAccess.model_validate(stored_in(folder)["test_access"])
    write_ledger(folder, access.model_copy(update={"models": ("another model",)}), access)
    assert verify_evidence(run) == ()
    assert has(forged(folder, {"verdict.alpha": 0.05}), "verdict.alpha is 0.05")


def test_damaged_rows_in_the_ledger_are_an_error_of_the_storage(task_folder: Path) -> None:
    (rows,) = (task_folder.parent / "_ledger" / "rows").iterdir()
    flip(rows, at=60)
    with pytest.raises(StorageError):
        faults_of(task_folder)


def test_damaged_pages_are_restored_but_not_from_changed_evidence(task_folder: Path) -> None:
    run = run_of(task_folder)
    names = ("report.html", "MODEL_CARD.md", MANIFEST)
    before = {name: (run / name).read_bytes() for name in names}
    (run / "report.html").write_text("<p>all is well</p>")
    assert restore_pages(run.as_uri()) == ("report.html",)
    assert {name: (run / name).read_bytes() for name in names} == before
    assert restore_pages(run.as_uri()) == ()

    (run / "report.html").write_text("<p>written by an older version</p>")
    rehash(run, "report.html")
    assert restore_pages(run.as_uri()) == ("report.html",)
    assert faults_of(task_folder) == ()

    flip(run / "evidence.json", at=40)
    with pytest.raises(ValueError, match="cannot render the pages"):
        restore_pages(run.as_uri())


def test_the_commands_exit_with_0_only_if_the_verdict_holds(task_folder: Path) -> None:
    runner = CliRunner()
    uri = run_of(task_folder).as_uri()
    intact = runner.invoke(app, ["verify", uri, "--json"])
    assert intact.exit_code == 0
    assert json.loads(intact.stdout) == {"uri": uri, "holds": True, "faults": []}
    uris = [(task_folder / "versions" / name).as_uri() for name in ("full-1", "probe-1")]
    done = runner.invoke(app, ["compare", *uris, "--json"])
    gain = read_evidence(uri).verdict.relation("candidate", "incumbent").gain
    assert json.loads(done.stdout)["comparison"]["gain"] == pytest.approx(gain)

    flip(run_of(task_folder) / "report.html", at=100)
    damaged = runner.invoke(app, ["verify", uri])
    assert damaged.exit_code == 1
    assert damaged.stdout.startswith("report.html was changed")
    assert runner.invoke(app, ["report", uri]).exit_code == 0
    assert runner.invoke(app, ["verify", uri]).exit_code == 0
    assert runner.invoke(app, ["verify", f"{uri}-not-there"]).exit_code == 2


@pytest.mark.parametrize(
    "supports", [(495, 495, 10), (400, 300, 200, 97, 3), (660, 660, 660, 10, 10), (66, 66, 66, 2)]
)
def test_one_row_of_a_rare_class_that_is_rounded_differently_is_no_fault(
    supports: tuple[int, ...],
) -> None:
    labels: list[str] = []
    for label, support in enumerate(supports):
        labels += [str(label)] * support
    outputs = [*labels[:-1], "0"]
    table = build.predictions(outputs, labels, scores=np.ones(len(labels)))
    change_of_score = 1 - score_table("macro_f1", table)
    assert 0.005 < change_of_score < rounding_tolerance("macro_f1", table)
    assert rounding_tolerance("accuracy", table) < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_byte_and_a_missing_file_are_reported(task_folder: Path, name: str) -> None:
    file = run_of(task_folder) / name
    flip(file, at=file.stat().st_size // 2)
    assert has(faults_of(task_folder), f"{name} was changed")
    file.unlink()
    assert has(faults_of(task_folder), name, "missing")


def test_a_missing_manifest_and_an_unlisted_table_are_reported(task_folder: Path) -> None:
    run = run_of(task_folder)
    shutil.copy(run / "predictions/candidate.parquet", run / "predictions/better.parquet")
    assert faults_of(task_folder) == (f"predictions/better.parquet is not listed in {MANIFEST}",)
    (run / MANIFEST).unlink()
    assert has(faults_of(task_folder), MANIFEST, "missing")
    (run / "evidence.json").unlink()
    with pytest.raises(ValueError, match="finished run or a version"):
        faults_of(task_folder)


@pytest.mark.parametrize(
    "name",
    [
        "versions/full-1/head.safetensors",
        "versions/probe-1/manifest.json",
        "base/model.safetensors",
    ],
)
def test_a_changed_byte_of_a_registered_version_or_of_the_base_model_is_detected(
    task_folder: Path, name: str
) -> None:
    flip(task_folder / name, at=9)
    (fault,) = faults_of(task_folder)
    assert name.rpartition("/")[0] in fault


def test_changed_or_missing_code_is_detected(task_folder: Path) -> None:
    (archive,) = (task_folder / "code").glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    entries["code/tailorbird/pipeline/run.py"] += b"# changed\n"
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    assert has(faults_of(task_folder), "code", "was changed")
    flip(archive, at=archive.stat().st_size // 2)
    assert has(faults_of(task_folder), "code", "was changed")
    archive.unlink()
    assert has(faults_of(task_folder), "code", "is missing")


def test_an_unregistered_version_needs_no_files(task_folder: Path) -> None:
    weights = task_folder / "versions" / "full-1" / "head.safetensors"
    files = {weights.name: sha256_of(weights)}
    unregistered = {
        "versions.candidate.digest": UNREGISTERED,
        "versions.candidate.files": files,
    }
    assert forged(task_folder, unregistered) == ()
    flip(weights, at=3)
    assert has(faults_of(task_folder), "the candidate's file", "was changed")
    shutil.rmtree(weights.parent)
    assert faults_of(task_folder) == ()


def test_a_changed_weight_in_a_part_of_a_hybrid_is_detected(task_folder: Path) -> None:
    part = task_folder / "versions" / "probe-1"
    named = {"uri": part.as_uri(), "digest": sha256_of(part / "manifest.json")}
    routing = {"by": "group", "column": "sex", "values": ["male"]}
    hybrid = {"routing": routing, "first": named, "second": named}
    whole = task_folder / "versions" / "hybrid-1"
    changed = {"uri": whole.as_uri(), "digest": registered(whole, "hybrid", hybrid=hybrid)}
    record = stored_in(task_folder)["versions"]["incumbent"] | changed
    assert forged(task_folder, {"versions.hybrid": record}) == ()
    (part / "head.safetensors").write_bytes(b"other weights")
    assert has(faults_of(task_folder), "the first part of the hybrid's file")


def test_rows_that_were_excluded_after_the_registration_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    trained = TrainedRows({"incumbent": ("r1", "r2")})
    assert verify_evidence(concluded(folder, Simulation(num_rows=900, trained=trained))) == ()
    faults = forged(folder, {"trained_rows.rows.incumbent": ["r1", "r2", "r3"]})
    assert has(faults, "trained_rows.rows.incumbent")
    assert has(faults, "verdict.n is 898")


def test_excluded_rows_are_compared_with_the_version_of_the_champion(tmp_path: Path) -> None:
    file = tmp_path / "test.parquet"
    pq.write_table(pa.table({"text": ["my knee", "a rash"], "label": ["a", "b"]}), file)
    data = DataConfig(train="s3://lake/none", test=file.as_uri())
    evidence = evidence_of(Simulation())
    champion = version_of(tmp_path / "champion", texts=("A rash.",))
    evidence = evidence.model_copy(
        update={
            "recipe": evidence.recipe.model_copy(update={"data": data}),
            "data": replace(evidence.data, sha256={"test": rows_sha256(read_test(data))}),
            "champion": champion.uri,
        }
    )
    for rows, num_faults in ((("1",), 0), (("0", "1"), 1), (None, 1)):
        trained = TrainedRows({"incumbent": rows})
        stated = evidence.model_copy(update={"trained_rows": trained})
        assert len(list(trained_rows_faults(stated))) == num_faults
    file.unlink()  # nothing to compare with
    assert list(trained_rows_faults(evidence)) == []
