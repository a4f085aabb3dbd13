"""Tests of the comparison of two versions from their stored predictions."""

import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.predictions import VerdictRefused
from tailorbird.evaluation.report.evidence_files import read_evidence, render_files, write_evidence
from tailorbird.evaluation.report.preregistration import PROTOCOL_FILE, evaluated_recipe, run_uri
from tailorbird.evaluation.report.version_comparison import compare_versions
from tailorbird.registry.champion import Champion, ChangeReason
from tests import build
from tests.unit.evaluation.report.test_html import SIMULATIONS
from tests.unit.evaluation.simulated import Simulation, evidence_of, registration_of, tables_of


def stored(folder: Path, simulation: Simulation) -> dict[str, str]:
    """Store a run and its registered versions in a folder; return the URIs by role, with that of
    the run as `run`."""
    evidence = evidence_of(simulation, task_uri=folder.as_uri())
    files = dict(render_files(evidence, role="candidate"))
    for name, table in tables_of(simulation).items():
        buffer = io.BytesIO()
        pq.write_table(table.to_table(), buffer)
        files[f"predictions/{name}.parquet"] = buffer.getvalue()
    uris = {"run": evidence.run}
    for role, version in evidence.versions.items():
        uris[role] = version.uri
    for uri in uris.values():
        write_evidence(uri, files)
    return uris


def test_versions_of_a_run_compare_as_in_its_verdict(tmp_path: Path) -> None:
    uris = stored(tmp_path, SIMULATIONS["HYBRID"])
    verdict = read_evidence(uris["run"]).verdict
    gain = verdict.relation("candidate", "incumbent")
    result = compare_versions(uris["candidate"], second=uris["incumbent"] + "/")
    comparison = result.comparison
    assert [comparison.gain, *comparison.interval] == pytest.approx([gain.gain, *gain.interval])
    assert comparison.p_value == pytest.approx(gain.p_value)
    assert uris["candidate"] in " ".join(result.lines())
    backwards = compare_versions(uris["incumbent"], second=uris["run"]).comparison
    assert backwards.gain == pytest.approx(-gain.gain)
    hybrid = compare_versions(uris["hybrid"], second=uris["incumbent"]).comparison
    assert hybrid.gain == pytest.approx(verdict.relation("hybrid", "incumbent").gain)


def test_versions_with_different_test_rows_are_refused(tmp_path: Path) -> None:
    first, second = (
        stored(tmp_path / name, Simulation(num_rows=n)) for name, n in (("a", 200), ("b", 300))
    )
    with pytest.raises(VerdictRefused, match=r"200 rows and .* 300 rows"):
        compare_versions(first["run"], second=second["run"])
    evidence = next((tmp_path / "b").glob("runs/*/evidence.json"))
    evidence.write_text(evidence.read_text().replace("5f" * 32, "6f" * 32))
    with pytest.raises(VerdictRefused, match="tested on different rows"):
        compare_versions(first["run"], second=second["run"])


def test_a_uri_without_evidence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the URI of a finished run"):
        compare_versions(tmp_path.as_uri(), second=tmp_path.as_uri())


def recipe(**changes: Any) -> Recipe:
    endpoint = {"url": "https://host/v1", "model": "m", "prices": (1, 1)} | changes
    return build.recipe(evaluation={"contenders": {"hosted": {"endpoint": endpoint}}})


@pytest.mark.parametrize(
    ("field", "is_same_run"),
    [
        ({"max_spend": 9}, True),
        ({"timeout_s": 9}, True),
        ({"model": "n"}, False),
        ({"prices": (2, 1)}, False),
    ],
)
def test_another_endpoint_starts_a_new_run_and_other_limits_resume_it(
    field: dict[str, Any], is_same_run: bool
) -> None:
    assert (evaluated_recipe(recipe(**field)) == evaluated_recipe(recipe())) is is_same_run


def test_the_request_of_the_run_of_the_champion_resumes_that_run(tmp_path: Path) -> None:
    task_uri = (tmp_path / "task").as_uri()
    run = (tmp_path / "task" / "runs" / "first").as_uri()
    registration = registration_of(Simulation(), task_uri=task_uri)
    reason = ChangeReason(change="promotion", text="a test")
    champion = Champion(
        version="v", uri="s3://m/v", digest="5f", run=run, reason=reason, since="2026-11-24"
    )
    assert (
        run_uri(task_uri, registration.request_sha256, champion=champion) != run
    )  # its protocol is not stored
    storage.write_once(f"{run}/{PROTOCOL_FILE}", registration)
    assert run_uri(task_uri, registration.request_sha256, champion=champion) == run
    other_request = run_uri(task_uri, "0" * 64, champion=champion)
    without_champion = run_uri(task_uri, registration.request_sha256, champion=None)
    without_both = run_uri(task_uri, "0" * 64, champion=None)
    assert len({run, other_request, without_champion, without_both}) == 4
