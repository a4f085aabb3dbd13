"""Verification of a verdict from its files: changes are detected even if every hash matches."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tailorbird.checks.verify import (
    engine_subject_faults,
    restore_pages,
    rounding_tolerance,
    verify_evidence,
)
from tailorbird.cli.app import app
from tailorbird.evaluation.hybrid import FrozenHybrid
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import EngineEvidence
from tailorbird.evaluation.report.evidence_files import MANIFEST, read_evidence
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.test_set_ledger import TestSetAccess
from tailorbird.registry.versions import PinnedVersion, register, write_config
from tailorbird.storage.s3 import StorageError
from tests.build import version_config
from tests.unit.checks.finished_run import (
    concluded,
    flip,
    registered,
    rewrite,
    run_of,
    write_ledger,
)
from tests.unit.evaluation.simulated import NOTHING_TO_GAIN, Simulation, on_cpu

HYBRID = Simulation(
    num_rows=4000,
    candidate=0.86,
    by_group={"female": 0.55},
    evaluation={"hybrid": "sex"},
    routing=Routing("group", "sex", ("male", "unstated"), None),
)


def test_the_verdict_of_an_unchanged_run_and_its_versions_holds(finished: Path) -> None:
    assert verify_evidence(run_of(finished).as_uri()) == ()
    assert verify_evidence((finished / "versions" / "full-1").as_uri() + "/") == ()


def test_the_verdict_of_a_replaced_incumbent_is_recomputed(tmp_path: Path) -> None:
    run = concluded(
        tmp_path / "task",
        Simulation(candidate=0.7, contenders={"bag_of_words": 0.85, "centroid": 0.6}),
    )
    evidence = json.loads((run_of(tmp_path / "task") / "evidence.json").read_text())
    assert (evidence["verdict"]["outcome"], evidence["verdict"]["selected"]) == (
        "STAY",
        "bag_of_words",
    )
    assert verify_evidence(run) == ()
    assert verify_evidence((tmp_path / "task" / "versions" / "bag_of_words-1").as_uri()) == ()
    flip(run_of(tmp_path / "task") / "predictions" / "bag_of_words.parquet", at=1000)
    assert any(
        "predictions/bag_of_words.parquet was changed" in fault for fault in verify_evidence(run)
    )


Stored = dict[str, Any]


def changed(path: str, value: object) -> Callable[[Stored], None]:
    """Return a function that sets the value at a path of stored evidence."""

    def change(evidence: Stored) -> None:
        *parents, name = path.split(".")
        node: Any = evidence
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node[parent]
        node[name] = value

    return change


def hide_zero_shot(evidence: Stored) -> None:
    """Claim that a baseline that was not compared has the best score."""
    for score in evidence["scores"]:
        if score["kind"] == "zero_shot":
            score |= {"servable": True, "validation": 0.9}


def raise_candidate(evidence: Stored) -> None:
    for score in evidence["scores"]:
        if score["role"] == "candidate":
            score["validation"] = 0.9


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (hide_zero_shot, ("the other models is", "scores.1.role is null")),
        (raise_candidate, ("scores on validation.candidate is 0.9", "scores.5.validation is 0.9")),
        (changed("confusions.0.fixed", 10_000), ("confusions.0.fixed is 10000",)),
        (changed("confusions", None), ("confusions",)),
        (changed("verdict.relations.0.gain", 0.2), ("verdict.relations.0.gain is 0.2",)),
        (
            changed("protocol.alpha", 0.2),
            (
                "protocol.alpha is 0.2 in evidence.json; it must be 0.05",
                "verdict.alpha",
            ),
        ),
        (changed("champion", "file:///none/task/versions/full-0"), ("the incumbent is ",)),
        (changed("data.sha256", {"test": "0" * 64}), ("the verdict is refused: the test rows",)),
        (changed("expires_at", "2037-11-24T16:30:00+00:00"), ("expires_at is ",)),
        (changed("recipe.training.epochs", 77), ("recipe.training.epochs is 77",)),
        (changed("recipe.serving.max_queued_requests", 7), ()),  # may change when a run resumes
    ],
)
def test_a_change_of_the_evidence_is_detected_even_if_every_hash_matches(
    task_folder: Path, change: Callable[[Stored], None], parts: tuple[str, ...]
) -> None:
    run = run_of(task_folder)
    evidence = json.loads((run / "evidence.json").read_text())
    change(evidence)
    rewrite(run, **evidence)
    faults = verify_evidence(run.as_uri())
    for part in parts:
        assert any(fault.startswith(part) for fault in faults), faults
    assert bool(faults) is bool(parts)


def test_a_rounded_p_value_is_no_fault(task_folder: Path) -> None:
    run = run_of(task_folder)
    verdict = json.loads((run / "evidence.json").read_text())["verdict"]
    verdict["relations"][0]["p_value"] += 1e-15
    rewrite(run, verdict=verdict)
    assert verify_evidence(run.as_uri()) == ()


SECONDS = dict.fromkeys(("incumbent", "candidate", "bag_of_words", "centroid"), (1.0,) * 5)
COST = {"value_of_correct": 1, "requests_per_month": 1000, "price_per_cpu_hour": 0.1}


@pytest.mark.parametrize(
    ("simulation", "changes"),
    [
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
    run = concluded(tmp_path / "task", simulation)
    assert verify_evidence(run) == ()
    folder = run_of(tmp_path / "task")
    evidence = json.loads((folder / "evidence.json").read_text())
    for path, value in changes.items():
        changed(path, value)(evidence)
    rewrite(folder, **evidence)
    faults = verify_evidence(run)
    for path in changes:
        assert any(fault.startswith(f"{path} is ") for fault in faults), faults


def replace_file(run: Path, name: str, content: Stored) -> None:
    """Write a stored file and its hash in the manifest, as a forger would."""
    text = json.dumps(content).encode()
    (run / name).write_bytes(text)
    manifest = json.loads((run / MANIFEST).read_text())
    manifest[name] = hashlib.sha256(text).hexdigest()
    (run / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(("role", "index"), [("candidate", 1), ("incumbent", 0)])
def test_a_validation_score_that_the_stored_predictions_do_not_give_is_a_fault(
    task_folder: Path, role: str, index: int
) -> None:
    run = run_of(task_folder)
    evidence = json.loads((run / "evidence.json").read_text())
    for score in evidence["scores"]:
        if score["role"] == role:
            score["validation"] = 0.99
    evidence["family"]["models"][index]["validation"] = 0.99
    replace_file(run, "family.json", evidence["family"])
    rewrite(run, **evidence)
    fault, *_ = verify_evidence(run.as_uri())
    assert fault.startswith(f"the score of the {role} on validation is 0.99 ")


@pytest.mark.parametrize("with_recipe", [False, True])
def test_a_protocol_weakened_in_all_files_is_detected(task_folder: Path, with_recipe: bool) -> None:
    """The recipe gives another protocol or, if it is changed too, the run another name."""
    run = run_of(task_folder)
    registration = json.loads((run / "protocol.json").read_text())
    evidence = json.loads((run / "evidence.json").read_text())
    for stored in (registration, evidence):
        stored["protocol"]["minimum_gain"] = 0.001
        if with_recipe:
            stored["recipe"]["evaluation"]["minimum_gain"] = 0.001
    replace_file(run, "protocol.json", registration)
    rewrite(run, **evidence)
    faults = verify_evidence(run.as_uri())
    expected = "protocol.minimum_gain is 0.001 in evidence.json; it must be 0.01"
    if with_recipe:
        expected = "the digest of the request in protocol.json"
        assert any(fault.startswith("the name of the run is") for fault in faults)
    assert any(fault.startswith(expected) for fault in faults)


def test_a_routing_without_a_hybrid_in_the_recipe_is_detected(task_folder: Path) -> None:
    run = run_of(task_folder)
    routing = Routing("group", "sex", ("male",))
    hybrid = FrozenHybrid(routing, "incumbent", "candidate", validation=0.8, share_to_second=0.5)
    family = json.loads((run / "family.json").read_text()) | {"hybrid": asdict(hybrid)}
    replace_file(run, "family.json", family)
    rewrite(run, family=family)
    (fault,) = verify_evidence(run.as_uri())
    assert fault.startswith("family.hybrid is ")


def test_evidence_of_another_version_is_a_fault(task_folder: Path) -> None:
    evaluated, other = task_folder / "versions" / "full-1", task_folder / "versions" / "lora-9"
    registered(other, "lora")
    for name in (*json.loads((evaluated / MANIFEST).read_text()), MANIFEST):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(evaluated / name, other / name)
    (fault,) = verify_evidence(other.as_uri())
    assert fault.startswith("the subject is false")
    (other / "head.safetensors").write_bytes(b"other weights")
    assert verify_evidence(other.as_uri()) == (fault,)


def test_evidence_of_a_run_of_another_task_is_a_fault(task_folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "task2" / "runs" / "deadbeef"
    shutil.copytree(run_of(task_folder), copied)
    (fault,) = verify_evidence(copied.as_uri())
    assert fault.startswith("the subject is false")


def test_engine_evidence_of_another_export_is_a_fault(tmp_path: Path) -> None:
    folder, evaluated = (
        tmp_path / "export",
        PinnedVersion(uri="s3://m/t/versions/full-1", digest="ab"),
    )
    folder.mkdir()
    for name in ("encoder.onnx", "head.safetensors"):
        (folder / name).write_text(name)
    exported = {"engine": "onnxruntime-int8", "exported_from": evaluated}
    write_config(folder, version_config(kind="full", classes=("a", "b"), **exported))
    uri = register((tmp_path / "task").as_uri(), folder).uri
    for engine, digest, is_own in (
        ("onnxruntime-int8", "ab", True),
        ("onnxruntime-int8", "cd", False),
        ("torch", "ab", False),
    ):
        of = evaluated.model_copy(update={"digest": digest})
        record = EngineEvidence.model_construct(engine=engine, evaluated=of)
        assert (list(engine_subject_faults(uri, record=record)) == []) is is_own


def test_a_second_test_access_recorded_as_the_first_is_detected(task_folder: Path) -> None:
    run = run_of(task_folder)
    access = TestSetAccess.model_validate(
        json.loads((run / "evidence.json").read_text())["test_access"]
    )
    write_ledger(task_folder, access.model_copy(update={"models": ("another model",)}), access)
    faults = verify_evidence(run.as_uri())
    assert "test_access.number is 1 in evidence.json; it must be 2" in faults
    assert "test_access.num_seen is 0 in evidence.json; it must be 600" in faults
    write_ledger(task_folder)
    (fault,) = verify_evidence(run.as_uri())
    assert fault.endswith("does not contain this access")


def test_the_level_of_a_further_access_is_recomputed(tmp_path: Path) -> None:
    simulation = Simulation(num_rows=600, access_number=2, num_rows_seen=600)
    run = concluded(tmp_path / "task", simulation)
    evidence = json.loads((run_of(tmp_path / "task") / "evidence.json").read_text())
    access = TestSetAccess.model_validate(evidence["test_access"])
    write_ledger(
        tmp_path / "task", access.model_copy(update={"models": ("another model",)}), access
    )
    assert verify_evidence(run) == ()
    rewrite(run_of(tmp_path / "task"), verdict=evidence["verdict"] | {"alpha": 0.05})
    assert any(fault.startswith("verdict.alpha is 0.05") for fault in verify_evidence(run))


def test_damaged_rows_in_the_ledger_are_an_error_of_the_storage(task_folder: Path) -> None:
    (rows,) = (task_folder.parent / "_ledger" / "rows").iterdir()
    flip(rows, at=60)
    with pytest.raises(StorageError, match=r"does not contain the test set.*; restore the file"):
        verify_evidence(run_of(task_folder).as_uri())


@pytest.mark.parametrize("content", [b"{}", b"[]", b"{", b""])
def test_invalid_evidence_is_a_fault(task_folder: Path, content: bytes) -> None:
    (run_of(task_folder) / "evidence.json").write_bytes(content)
    assert verify_evidence(run_of(task_folder).as_uri())


def test_a_folder_without_evidence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finished run or a version"):
        verify_evidence(tmp_path.as_uri())


def test_damaged_pages_are_restored_and_the_verdict_holds_again(task_folder: Path) -> None:
    run = run_of(task_folder)
    before = {
        name: (run / name).read_bytes() for name in ("report.html", "MODEL_CARD.md", MANIFEST)
    }
    (run / "report.html").write_text("<p>all is well</p>")
    assert restore_pages(run.as_uri()) == ("report.html",)
    assert {name: (run / name).read_bytes() for name in before} == before
    assert restore_pages(run.as_uri()) == ()


def test_pages_are_not_rendered_from_changed_evidence(task_folder: Path) -> None:
    flip(run_of(task_folder) / "evidence.json", at=40)
    with pytest.raises(ValueError, match="cannot render the pages"):
        restore_pages(run_of(task_folder).as_uri())


def test_the_command_exits_with_0_only_if_the_verdict_holds(task_folder: Path) -> None:
    runner, uri = CliRunner(), run_of(task_folder).as_uri()
    intact = runner.invoke(app, ["verify", uri, "--json"])
    assert (intact.exit_code, json.loads(intact.stdout)) == (
        0,
        {"uri": uri, "holds": True, "faults": []},
    )
    flip(run_of(task_folder) / "report.html", at=100)
    damaged = runner.invoke(app, ["verify", uri])
    assert damaged.exit_code == 1
    assert damaged.stdout.startswith("report.html was changed")
    assert runner.invoke(app, ["report", uri]).exit_code == 0
    assert runner.invoke(app, ["verify", uri]).exit_code == 0
    assert runner.invoke(app, ["verify", f"{uri}-not-there"]).exit_code == 2


def test_the_command_compares_two_versions_of_a_run(finished: Path) -> None:
    uris = [(finished / "versions" / name).as_uri() for name in ("full-1", "probe-1")]
    done = CliRunner().invoke(app, ["compare", *uris, "--json"])
    gain = read_evidence(run_of(finished).as_uri()).verdict.relation("candidate", "incumbent").gain
    assert json.loads(done.stdout)["comparison"]["gain"] == pytest.approx(gain)


def test_pages_rewritten_by_newer_code_are_listed_in_the_manifest(task_folder: Path) -> None:
    run = run_of(task_folder)
    manifest = json.loads((run / MANIFEST).read_text())
    (run / "report.html").write_text("<p>written by an older version</p>")
    manifest["report.html"] = hashlib.sha256((run / "report.html").read_bytes()).hexdigest()
    (run / MANIFEST).write_text(json.dumps(manifest))
    assert restore_pages(run.as_uri()) == ("report.html",)
    assert verify_evidence(run.as_uri()) == ()


def test_a_changed_routing_file_is_detected(tmp_path: Path) -> None:
    run = concluded(tmp_path / "task", HYBRID)
    folder = run_of(tmp_path / "task")
    family = json.loads((folder / "family.json").read_text())
    (folder / "family.json").write_text(json.dumps(family | {"hybrid": None}))
    assert any(fault.startswith("family.hybrid is ") for fault in verify_evidence(run))
    (folder / "family.json").unlink()
    assert any("family.json is missing" in fault for fault in verify_evidence(run))


def test_a_routing_that_validation_does_not_give_is_detected(tmp_path: Path) -> None:
    fitted_to_test = Routing("group", "sex", ("male",), None)
    run = concluded(tmp_path / "task", replace(HYBRID, routing=fitted_to_test))
    assert any(
        fault.startswith("family.hybrid.routing.values is ") for fault in verify_evidence(run)
    )


@pytest.mark.parametrize(
    "supports", [(495, 495, 10), (400, 300, 200, 97, 3), (660, 660, 660, 10, 10), (66, 66, 66, 2)]
)
def test_one_row_of_a_rare_class_that_is_rounded_differently_is_no_fault(
    supports: tuple[int, ...],
) -> None:
    labels = [str(label) for label, support in enumerate(supports) for _ in range(support)]
    outputs = [*labels[:-1], "0"]
    ids, ones = tuple(map(str, range(len(labels)))), np.ones(len(labels))
    table = Predictions(
        "full", ids, tuple(labels), tuple(outputs), scores=ones, confidences=ones, calibrated=ones
    )
    change = 1 - score_table("macro_f1", table)
    assert 0.005 < change < rounding_tolerance("macro_f1", table)
    assert rounding_tolerance("accuracy", table) < 0.02


def test_a_run_that_should_have_trained_a_model_is_reported(tmp_path: Path) -> None:
    simulation = replace(NOTHING_TO_GAIN, incumbent=0.9)
    faults = verify_evidence(concluded(tmp_path / "task", simulation))
    assert any(fault.startswith("that no training was needed is true") for fault in faults)
