"""The evidence by which a version that was exported for another engine was accepted or not."""

from tailorbird.evaluation.gates.cost import CpuRounds
from tailorbird.evaluation.report.evidence import CodeRecord
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.runtime_equivalence import Equivalence
from tailorbird.registry.versions import PinnedVersion
from tailorbird.storage.stored_model import StoredModel

ENGINE_EVIDENCE = "engine_evidence.json"
"""Name of the `EngineEvidence` in the exported version's folder."""


class EngineEvidence(StoredModel):
    """An export for another engine, compared with the version that a run evaluated."""

    engine: str
    equivalence: Equivalence
    evaluated: PinnedVersion
    """The version that the run's verdict is about."""
    run: str
    """URI of that run."""
    protocol: TestProtocol
    cpu: CpuRounds
    code: CodeRecord
    created_at: str
    """ISO 8601."""
