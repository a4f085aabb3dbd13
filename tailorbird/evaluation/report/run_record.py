"""What a run hands over to its evidence: what was made, chosen and measured, as values of one type."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from tailorbird.data.quality import DataReport
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.gates.cost import CpuRounds
from tailorbird.evaluation.predictions import Predictions
from tailorbird.registry.routing import Routing
from tailorbird.registry.test_set_ledger import TestSetAccess


@dataclass(frozen=True)
class DataRecord:
    """The rows of a run."""

    report: DataReport
    trained_on: int
    """Training rows, of which `report` may cover a part."""
    sha256: Mapping[str, str]
    """Of each split, by its name."""
    other_test_sets: int
    """Other sets of test rows that were evaluated under the recipe's name."""


@dataclass(frozen=True)
class TrialRecord:
    """A row of the sweep's table: a trial, or a baseline (`status` is then `pretrained`)."""

    trial: str
    kind: str
    config: Mapping[str, JsonValue]
    epochs: int
    validation: float
    seconds: float
    """Inside training steps."""
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
    chosen: bool
    """True if it is the candidate."""


@dataclass(frozen=True)
class TrainingRecord:
    """The selected configuration, and the training of it that scored best on validation."""

    selected: Mapping[str, JsonValue]
    """Fields of the training config."""
    num_workers: int
    zero_stage: int
    epochs: int
    seconds: float
    """Inside training steps."""
    samples_per_second: float
    padding_share: float
    """Of the tokens computed, in [0, 1]."""


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

    cpu: CpuRounds | None
    """Of serving; None if it was not measured."""
    training_cpu_s: float
    """CPU-seconds inside the training steps of every trial and seed."""


@dataclass(frozen=True)
class CandidateRecord:
    """A version that the verdict compares or made: the run's incumbent, candidate or hybrid."""

    kind: str
    uri: str
    digest: str
    """`UNREGISTERED` if the verdict did not choose it."""
    files: Mapping[str, str] | None = None
    """sha256 of each file by name, if it is not registered."""


@dataclass(frozen=True)
class CodeRecord:
    """The code of the run."""

    sha256: str
    uri: str
    """URI of the archive."""


@dataclass(frozen=True)
class BaseModelRecord:
    """The staged base model."""

    uri: str
    files: Mapping[str, str]
    """sha256 of each file by name."""


@dataclass(frozen=True)
class RunRecord:
    """All of a finished run that `build_evidence` reads, besides recipe, protocol and verdict."""

    run: str
    """URI of the run."""
    requested_by: str
    created_at: str
    expires_at: str
    champion: str | None
    """URI of the version that served when the run began."""
    code: CodeRecord
    base_model: BaseModelRecord
    data: DataRecord
    baselines: tuple[Baseline, ...]
    sweep: tuple[TrialRecord, ...]
    sweep_ended: str | None
    """Why the sweep ended before all trials had run, if it did."""
    training: TrainingRecord
    seeds: tuple[SeedRecord, ...]
    averaged: AverageRecord | None
    curve: CurveRecord | None
    candidate_validation: float
    """The candidate's score on validation."""
    versions: Mapping[str, CandidateRecord]
    """By role."""
    test_access: TestSetAccess
    """The entry in the test-set ledger."""
    test_rows: str
    """Names the ledger: sha256 of the test rows' content."""
    routing: Routing | None
    """Of a hybrid, as fitted on validation."""
    cost: CostRecord
    predictions: Mapping[str, Predictions]
    """By the table's name."""
