"""The evidence of a run: everything that led to its verdict, stored as `evidence.json` next to the predictions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from cluster.code_snapshot import CodeVersion
from tailorbird.config.recipe import Recipe
from tailorbird.data.quality import DataReport
from tailorbird.evaluation.gates.cost import CpuRounds
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.verdict.inputs import VerdictInputs, model_predictions
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.rules import winner
from tailorbird.evaluation.verdict.runtime_equivalence import Equivalence
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.registry.routing import Routing
from tailorbird.registry.test_set_ledger import TestSetAccess
from tailorbird.registry.versions import PinnedVersion
from tailorbird.storage.stored_model import StoredModel

EVIDENCE_FILE = "evidence.json"
ENGINE_EVIDENCE = "engine_evidence.json"  # name of the `EngineEvidence` in the exported version's folder
UNREGISTERED = "not registered"  # digest of a version that was not registered, because the verdict did not choose it


@dataclass(frozen=True)
class DataRecord:
    """The rows of a run."""

    report: DataReport
    trained_on: int  # training rows, of which `report` may cover a part
    sha256: Mapping[str, str]  # of each split, by its name
    other_test_sets: int  # other sets of test rows that were evaluated under the recipe's name


@dataclass(frozen=True)
class TrialRecord:
    """A row of the sweep's table: a trial, or a baseline (`status` is then `pretrained`)."""

    trial: str
    kind: str
    config: Mapping[str, JsonValue]
    epochs: int
    validation: float
    seconds: float  # inside training steps
    status: str


@dataclass(frozen=True)
class SeedRecord:
    """One training of the selected configuration."""

    seed: int
    validation: float


@dataclass(frozen=True)
class AverageRecord:
    """The mean of the seeds' weights."""

    validation: float
    chosen: bool  # true if it is the candidate


@dataclass(frozen=True)
class TrainingRecord:
    """The selected configuration, and the training of it that scored best on validation."""

    selected: Mapping[str, JsonValue]  # fields of the training config
    num_workers: int
    zero_stage: int
    epochs: int
    seconds: float  # inside training steps
    samples_per_second: float
    padding_share: float  # of the tokens computed, in [0, 1]


@dataclass(frozen=True)
class CurveRecord:
    """A learning curve and its prediction for twice the training rows."""

    sizes: tuple[int, ...]
    scores: tuple[float, ...]
    at_double: float
    interval: tuple[float, float]
    sentence: str


@dataclass(frozen=True)
class CostRecord:
    """What was measured of the cost."""

    cpu: CpuRounds | None  # of serving; None if it was not measured
    training_cpu_s: float  # CPU-seconds inside the training steps of every trial and seed


@dataclass(frozen=True)
class CandidateRecord:
    """A version that the verdict compares or made: the run's incumbent, candidate or hybrid."""

    kind: str
    uri: str
    digest: str  # `UNREGISTERED` if the verdict did not choose it
    files: Mapping[str, str] | None = None  # sha256 of each file by name, if it is not registered


@dataclass(frozen=True)
class BaseModelRecord:
    """The staged base model."""

    uri: str
    files: Mapping[str, str]  # sha256 of each file by name


@dataclass(frozen=True)
class ModelScore:
    """Scores of a baseline or of the candidate."""

    kind: str
    validation: float
    interval: tuple[float, float] | None  # Wilson interval of an accuracy on validation; None for another metric
    test: float | None  # None where the model did not predict the test rows
    role: Literal["incumbent", "candidate", "reference"] | None


@dataclass(frozen=True)
class ReliabilityBin:
    """A bin of confidence after temperature: mean confidence, share of right answers, number of rows."""

    confidence: float
    accuracy: float
    n: int


class Evidence(StoredModel):
    """Everything that led to a verdict; the report, the model card and `tailorbird verify` are functions of it."""

    name: str
    run: str
    """Its URI."""
    created_at: str
    """ISO 8601, as every time here."""
    requested_by: str
    expires_at: str
    """Time after which the verdict may promote nothing."""
    recipe: Recipe
    protocol: TestProtocol
    verdict: Verdict
    test_access: TestSetAccess
    """The entry in the test-set ledger."""
    test_rows: str
    """sha256 of the test rows' content, which names the ledger."""
    routing: Routing | None
    """Of the hybrid, as fitted on validation."""
    data: DataRecord
    scores: tuple[ModelScore, ...]
    """A row a baseline, and the candidate's last."""
    sweep: tuple[TrialRecord, ...]
    sweep_ended: str | None
    """Why the sweep ended before its last trial, if it did."""
    seeds: tuple[SeedRecord, ...]
    averaged: AverageRecord | None
    """The mean of the seeds' weights; None if it was not a candidate."""
    curve: CurveRecord | None
    """The learning curve, if the recipe asks for one."""
    training: TrainingRecord
    cost: CostRecord
    reliability: dict[str, tuple[ReliabilityBin, ...]]
    """By role; empty for a chat task."""
    measures: dict[str, dict[str, float]]
    """(chat only) `log_likelihood` by role: mean over the test rows, in nats a token."""
    versions: dict[str, CandidateRecord]
    """By role: `incumbent`, `candidate`, and `hybrid` if there is one."""
    champion: str | None
    """URI of the version that served when the run began."""
    code: CodeVersion
    base_model: BaseModelRecord

    @property
    def winning_role(self) -> str:
        """The role that the verdict chose."""
        return winner(self.verdict.outcome)

    @property
    def winner(self) -> CandidateRecord:
        """The version that the verdict chose."""
        return self.versions[self.winning_role]

    def role_of(self, uri: str) -> str:
        """Return the role of the version at a URI; for the run's URI, the role that the verdict chose."""
        roles = [role for role, version in self.versions.items() if version.uri == uri]
        return roles[0] if roles else self.winning_role

    def verdict_inputs(self, tables: Mapping[str, Predictions]) -> VerdictInputs:
        """Return what the verdict was decided on; `tables` are the run's predictions by name."""
        return VerdictInputs(
            incumbent=model_predictions("incumbent", tables),
            candidate=model_predictions("candidate", tables),
            reference=tables.get("reference"),
            test_sha256=self.data.sha256["test"],
            leaks=self.data.report.leaks,
            access_number=self.test_access.number,
            routing=self.routing,
            cpu=self.cost.cpu,
            training_cpu_s=self.cost.training_cpu_s,
        )


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
    code: CodeVersion
    created_at: str
    """ISO 8601."""
