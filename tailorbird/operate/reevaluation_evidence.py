"""The evidence of re-evaluations, which later re-evaluations and `watch` read."""

from collections.abc import Iterable

from pydantic import Field

from tailorbird import storage
from tailorbird.evaluation.inference.endpoint_coverage import AnswerCounts
from tailorbird.evaluation.prediction_store import load_predictions, save_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import EVIDENCE_FILE, CostRecord, Evidence
from tailorbird.evaluation.report.evidence_files import read_evidence
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.operate.reevaluation_verdict import ReevaluationVerdict
from tailorbird.registry.champion import Champion
from tailorbird.registry.versions import Frozen, PinnedVersion
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.stored_model import StoredModel


class AuditedData(Frozen):
    """The audited rows of a re-evaluation."""

    sha256_test: str
    num_rows: int
    num_new: int  # of these, rows that no earlier re-evaluation of the champion contains
    dropped: dict[str, int]  # number of omitted rows by reason


class ReevaluationEvidence(StoredModel):
    """The evidence of one re-evaluation of a champion."""

    protocol: TestProtocol
    data: AuditedData
    cost: CostRecord
    versions: dict[str, PinnedVersion]
    """Versions by role: `candidate` is the champion, `incumbent` is the version that a rollback
    restores."""
    champion: Champion
    at: str  # ISO 8601
    verdict: ReevaluationVerdict
    expires_at: str | None  # expiry of the renewed verdict; None unless it is renewed
    endpoint_answers: dict[str, AnswerCounts] = Field(default_factory=dict)
    """Rows by what an endpoint answered, as in the evidence of a run."""


def champion_evidence(champion: Champion) -> Evidence | None:
    """Return the evidence of the run that chose the champion; None without such a run."""
    if champion.run and storage.exists(f"{champion.run}/{EVIDENCE_FILE}"):
        return read_evidence(champion.run)
    return None


def read_reevaluations(task_uri: str, *, champion: Champion) -> dict[str, ReevaluationEvidence]:
    """Return the re-evaluations since this champion was promoted, by URI of their folder, in order
    of time."""
    files = storage.list_files(TaskPaths(task_uri).reevaluations, missing_ok=True)
    folders = [
        uri.removesuffix(f"/{EVIDENCE_FILE}") for uri in files if uri.endswith(f"/{EVIDENCE_FILE}")
    ]
    evidence = {
        uri: ReevaluationEvidence.model_validate_json(storage.read_bytes(f"{uri}/{EVIDENCE_FILE}"))
        for uri in folders
    }
    term = (champion.digest, champion.since)
    return {
        uri: read
        for uri, read in evidence.items()
        if (read.champion.digest, read.champion.since) == term
    }


def evaluated_rows(reevaluations: Iterable[str]) -> set[str]:
    """Return the ids of the rows of these re-evaluations (URIs)."""
    tables = (load_predictions(f"{uri}/predictions/candidate.parquet") for uri in reevaluations)
    return {row_id for table in tables for row_id in table.row_ids}


def write_reevaluation(
    task_uri: str, uri: str, evidence: ReevaluationEvidence, *, tables: dict[str, Predictions]
) -> None:
    """Write predictions and evidence under `uri`, and an entry in the champion's history."""
    for name, table in tables.items():
        save_predictions(f"{uri}/predictions/{name}.parquet", table)
    storage.write_bytes(f"{uri}/{EVIDENCE_FILE}", evidence.model_dump_json(indent=1).encode())
    entry = evidence.model_dump(mode="json", include={"format", "at", "versions", "verdict"})
    name = f"{evidence.at.replace(':', '')}-reevaluation"
    storage.write_json(TaskPaths(task_uri).history_entry(name), entry | {"reevaluation": uri})
