"""Stored re-evaluations are read by champion and promotion."""

from pathlib import Path

import numpy as np

from tailorbird import storage
from tailorbird.evaluation.gates.cost import TrainingUsage
from tailorbird.evaluation.report.evidence import CostRecord
from tailorbird.operate.reevaluation_evidence import (
    AuditedData,
    ReevaluationEvidence,
    evaluated_rows,
    read_reevaluations,
    write_reevaluation,
)
from tailorbird.operate.reevaluation_verdict import decide_reevaluation
from tailorbird.registry.champion import Champion, ChangeReason
from tailorbird.registry.versions import PinnedVersion
from tests.unit.evaluation.verdict.tables import inputs_of, predictions, protocol_for

PROMOTED_AT = "2026-03-01T00:00:00+00:00"


def champion_since(since: str) -> Champion:
    reason = ChangeReason(change="promotion", text="a test")
    return Champion(
        version="full-1",
        uri="s3://m/t/versions/full-1",
        digest="d",
        run="",
        reason=reason,
        since=since,
    )


def write(
    task_uri: str, *, month: int, num_rows: int, since: str = PROMOTED_AT, is_worse: bool = False
) -> str:
    """Write a re-evaluation on rows 0, 1, ... and return its URI."""
    tables = {
        name: predictions(name, np.arange(num_rows) % 2 == 0) for name in ("incumbent", "candidate")
    }
    if is_worse:
        tables["candidate"] = predictions("candidate", np.zeros(num_rows, bool))
    protocol = protocol_for(num_rows)
    champion = champion_since(since)
    pinned = PinnedVersion(uri=champion.uri, digest=champion.digest)
    evidence = ReevaluationEvidence(
        protocol=protocol,
        data=AuditedData(sha256_test="5f", num_rows=num_rows, num_new=num_rows, dropped={}),
        cost=CostRecord(None, TrainingUsage()),
        versions={"candidate": pinned, "incumbent": pinned},
        champion=champion,
        at=f"2026-{month:02}-01T00:00:00+00:00",
        verdict=decide_reevaluation(inputs_of(*tables.values()), protocol=protocol, number=1),
        expires_at=None,
    )
    uri = f"{task_uri}/reevaluations/2026-{month:02}"
    write_reevaluation(task_uri, uri, evidence, tables=tables)
    return uri


def test_the_reevaluations_since_a_promotion_are_returned_with_the_rows_that_they_used(
    tmp_path: Path,
) -> None:
    task_uri = tmp_path.as_uri()
    champion = champion_since(PROMOTED_AT)
    write(task_uri, month=2, num_rows=60, since="2026-01-01T00:00:00+00:00")
    later = [write(task_uri, month=month, num_rows=10 * month) for month in (4, 3)]
    read = read_reevaluations(task_uri, champion=champion)
    assert list(read) == sorted(later)
    assert [evidence.verdict.n for evidence in read.values()] == [30, 40]
    assert evaluated_rows(read) == {str(row) for row in range(40)}


def test_each_reevaluation_is_in_the_history(tmp_path: Path) -> None:
    task_uri = f"{tmp_path.as_uri()}/task"
    for month, is_worse in ((5, False), (6, True)):
        uri = write(task_uri, month=month, num_rows=400, is_worse=is_worse)
        stored = storage.read_json(storage.list_files(f"{task_uri}/history")[-1])
        assert (stored["reevaluation"], stored["verdict"]["n"]) == (uri, 400)
        assert stored["verdict"]["holds"] is not is_worse
