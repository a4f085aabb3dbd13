"""Finished runs for tests of their readers: the evidence of a simulated run, with other
versions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from tailorbird.evaluation.report.evidence import ROLES, CandidateRecord, Evidence
from tailorbird.evaluation.report.evidence_files import VALIDATION, write_evidence
from tailorbird.evaluation.verdict.decide import Outcome
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.registry.versions import ModelVersion, now
from tests.unit.evaluation.simulated import Simulation, evidence_of


@cache
def _simulated() -> Evidence:
    return evidence_of(Simulation(num_rows=60))


def verdict_of(outcome: str, *, selected: str | None = None) -> Verdict:
    """Return a verdict with this outcome and selected role, by default that of the outcome.

    Other figures do not matter: the selected model has those of the candidate.
    """
    verdict = _simulated().verdict
    role = selected or {"FINE_TUNE": "candidate", "HYBRID": "hybrid"}.get(outcome, "incumbent")
    changes: dict[str, object] = {"outcome": Outcome(outcome), "selected": role}
    if not verdict.has(role):
        model = verdict.model("candidate").model_copy(update={"role": role})
        relations = [
            replace(each, first=role) for each in verdict.relations if each.first == "candidate"
        ]
        changes |= {
            "models": (*verdict.models, model),
            "relations": (*verdict.relations, *relations),
        }
    return Verdict.model_validate(dict(verdict) | changes)


def prediction_table_names(roles: Sequence[str], *, changed: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a run's tables in `predictions/`, if incumbent and candidate have one of
    validation rows.

    `roles` are those of all models that predict the test rows, and `changed` are the sets of
    changed rows and suites.
    """
    return (
        *roles,
        *(f"{role}_{VALIDATION}" for role in ROLES),
        *(f"{role}_{name}" for role in roles for name in changed),
    )


def candidate_record(version: ModelVersion) -> CandidateRecord:
    """Return the evidence's record of a registered version."""
    return CandidateRecord(version.kind, version.uri, version.digest)


def write_finished_run(
    run: str, *, versions: Mapping[str, CandidateRecord], **changes: object
) -> Evidence:
    """Write the evidence of a run with these versions, by role. `changes` are fields of `Evidence`.

    By default, the verdict chose the candidate, there was no champion, and the verdict does not
    expire.
    """
    defaults = {
        "verdict": verdict_of("FINE_TUNE"),
        "champion": None,
        "created_at": now(),
        "expires_at": "2099-01-01T00:00:00+00:00",
    }
    evidence = _simulated().model_copy(
        update=defaults | {"run": run, "versions": dict(versions)} | changes
    )
    write_evidence(run, {"evidence.json": evidence.model_dump_json().encode()})
    return evidence
