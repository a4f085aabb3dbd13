"""The evidence of re-evaluations, which later re-evaluations and `watch` read."""

from tailorbird import storage
from tailorbird.evaluation.prediction_store import save_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import EVIDENCE_FILE, CostRecord
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.registry.champion import Champion
from tailorbird.registry.versions import Frozen, PinnedVersion
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.stored_model import StoredModel


class AuditedData(Frozen):
    """The audited rows of a re-evaluation."""

    sha256_test: str
    num_rows: int
    dropped: dict[str, int]  # number of omitted rows by reason


class ReevaluationEvidence(StoredModel):
    """The evidence of one re-evaluation of a champion."""

    protocol: TestProtocol
    data: AuditedData
    access_number: int  # number of the entry in the test-set ledger, from 1
    cost: CostRecord
    versions: dict[str, PinnedVersion]
    """Versions by role: `candidate` is the champion, `incumbent` is the version that a rollback restores."""
    champion: Champion
    at: str  # ISO 8601
    verdict: Verdict
    holds: bool | None  # None if the rows do not decide it
    expires_at: str | None  # expiry of the renewed verdict; None unless it holds


def read_reevaluations(task_uri: str) -> list[ReevaluationEvidence]:
    """Return the evidence of all re-evaluations of a task, in order of time."""
    uris = [uri for uri in _files(task_uri) if uri.endswith(f"/{EVIDENCE_FILE}")]
    return [ReevaluationEvidence.model_validate_json(storage.read_bytes(uri)) for uri in uris]


def prediction_files(task_uri: str) -> list[str]:
    """Return the URIs of the champion's predictions in all re-evaluations."""
    return [uri for uri in _files(task_uri) if uri.endswith("/predictions/candidate.parquet")]


def write_reevaluation(
    task_uri: str, uri: str, evidence: ReevaluationEvidence, *, tables: dict[str, Predictions]
) -> None:
    """Write predictions and evidence under `uri`, and an entry in the champion's history."""
    for name, table in tables.items():
        save_predictions(f"{uri}/predictions/{name}.parquet", table)
    storage.write_bytes(f"{uri}/{EVIDENCE_FILE}", evidence.model_dump_json(indent=1).encode())
    entry = evidence.model_dump(mode="json", include={"format", "at", "versions", "holds", "verdict"})
    name = f"{evidence.at.replace(':', '')}-reevaluation"
    storage.write_json(TaskPaths(task_uri).history_entry(name), entry | {"reevaluation": uri})


def _files(task_uri: str) -> list[str]:
    return storage.list_files(TaskPaths(task_uri).reevaluations, missing_ok=True)
