"""Tests of the comparison of two versions from their stored predictions."""

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tailorbird.evaluation.predictions import VerdictRefused
from tailorbird.evaluation.report.evidence_files import read_evidence, render_files, write_evidence
from tailorbird.evaluation.report.version_comparison import compare_versions
from tests.unit.evaluation.report.test_html import SIMULATIONS
from tests.unit.evaluation.simulated import Simulation, evidence_of, tables_of


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


def test_the_uri_of_a_run_stands_for_its_candidate(tmp_path: Path) -> None:
    first, second = (
        stored(tmp_path / name, Simulation(candidate=level))
        for name, level in (("a", 0.78), ("b", 0.72))
    )
    assert compare_versions(first["run"], second=second["run"]).comparison.gain > 0
    assert compare_versions(first["run"], second=first["candidate"]).comparison.gain == 0


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
