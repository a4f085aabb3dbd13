"""The evidence of a run: the inputs and results of its verdict, stored as `evidence.json` next to
the predictions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, JsonValue

from cluster.code_snapshot import CodeVersion
from cluster.display.state import trial_name
from tailorbird.config.recipe import Recipe
from tailorbird.data.quality import DataReport
from tailorbird.evaluation.gates.cost import ServingCosts, ServingDevice, TrainingUsage
from tailorbird.evaluation.hybrid import FrozenHybrid
from tailorbird.evaluation.inference.endpoint_coverage import AnswerCounts
from tailorbird.evaluation.mix_weight import MixRecord
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.headroom import Headroom
from tailorbird.evaluation.verdict.decide import ANCHOR
from tailorbird.evaluation.verdict.inputs import (
    Anchor,
    TrainedRows,
    VerdictInputs,
    model_predictions,
)
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.models.base_model import BaseModelRecord
from tailorbird.registry.test_set_ledger import RowUse, TestSetAccess
from tailorbird.storage.stored_model import StoredModel

EVIDENCE_FILE = "evidence.json"
ROLES = ("incumbent", "candidate")
FAMILY_FILE = "family.json"  # file name of the `Family` in the folder of a run or a version
# digest of a version that the verdict did not select, so it was not registered
UNREGISTERED = "not registered"


@dataclass(frozen=True)
class DataRecord:
    """The rows of a run."""

    report: DataReport
    trained_on: int  # training rows of the fine-tuned models; `data.max_train_rows` limits them
    sha256: Mapping[str, str]  # sha256 of each split by name
    differences: tuple[str, ...] = ()
    """Sentences about differences between validation and test that are larger than chance."""


BASELINE = "baseline"
"""Status of a baseline in the table of the sweep."""


@dataclass(frozen=True)
class TrialRecord:
    """A row of the sweep table: a trial, or a baseline (with the status `baseline`)."""

    trial: str
    kind: str
    config: Mapping[str, JsonValue]
    epochs: int
    validation: float
    seconds: float  # time in training steps
    status: str
    scores: tuple[float, ...] = ()  # validation score after each epoch; none for a baseline

    @property
    def name(self) -> str:
        """The name for people: that of the baseline, or `trial` with the end of the id, as in the
        terminal."""
        if self.status == BASELINE:
            return self.trial
        return trial_name(self.trial)


@dataclass(frozen=True)
class SeedRecord:
    """One training of the selected configuration."""

    seed: int
    validation: float


@dataclass(frozen=True)
class AverageRecord:
    """The average of the weights of all seeds."""

    validation: float
    chosen: bool  # True if the averaged weights are the candidate


@dataclass(frozen=True)
class TrainingRecord:
    """The selected configuration and its best training on validation."""

    selected: Mapping[str, JsonValue]  # fields of the training config
    num_workers: int
    zero_stage: int
    epochs: int
    seconds: float  # time in training steps
    samples_per_second: float
    padding_share: float  # share of padding among the processed tokens, in [0, 1]
    attention: str = "dense"  # attention in training: `flash` or `dense`


@dataclass(frozen=True)
class CostRecord:
    """The measured cost."""

    serving: ServingCosts | None
    """Resources for a thousand rows by the role of the model; None if not measured."""
    training: TrainingUsage
    device: ServingDevice | None = None  # device of `serving`


@dataclass(frozen=True)
class FrozenModel:
    """A model that is compared on the test rows, as frozen before they are read."""

    role: str  # `incumbent`, `candidate`, or the kind of another contender
    kind: str
    uri: str  # URI of its artifact or version
    validation: float  # validation score


@dataclass(frozen=True)
class FrozenAnchor:
    """The last champion that was proven better than its predecessor, unless it is the incumbent."""

    uri: str
    problem: str = ""
    """Why it cannot predict the test rows; then no model replaces another for its cost."""


class Family(StoredModel):
    """The models of a run's comparison, and the hybrid; stored before the test rows are
    predicted."""

    models: tuple[FrozenModel, ...]
    """The incumbent, the candidate if a model was trained, then the other models without
    fine-tuning, best on validation first. Parts of the hybrid are among them."""
    replacing: tuple[str, ...] = ()
    """Roles of the other models that may replace the incumbent."""
    hybrid: FrozenHybrid | None = None
    anchor: FrozenAnchor | None = None
    headroom: Headroom | None = None
    """What was left to gain over the incumbent, by the validation rows, if therefore no model was
    trained."""

    @property
    def compared_roles(self) -> tuple[str, ...]:
        """Those of `ROLES` that a model has."""
        roles = {model.role for model in self.models}
        return tuple(role for role in ROLES if role in roles)

    def verdict_inputs(
        self,
        tables: Mapping[str, Predictions],
        *,
        test_sha256: str,
        cost: CostRecord,
        look: RowUse,
        trained_rows: TrainedRows,
    ) -> VerdictInputs:
        """Return the inputs of the verdict; `tables` are the run's predictions by name."""
        anchor = None
        if self.anchor is not None:
            anchor = Anchor(None if self.anchor.problem else tables[ANCHOR], self.anchor.problem)
        return VerdictInputs(
            models={model.role: model_predictions(model.role, tables) for model in self.models},
            test_sha256=test_sha256,
            replacing=self.replacing,
            hybrid=self.hybrid,
            anchor=anchor,
            costs=cost.serving,
            training=cost.training,
            headroom=self.headroom,
            look=look,
            trained_rows=trained_rows,
        )


@dataclass(frozen=True)
class CandidateRecord:
    """A model of a run's comparison, or the hybrid."""

    kind: str
    uri: str
    digest: str  # `UNREGISTERED` if the verdict did not select it
    files: Mapping[str, str] | None = None
    """sha256 of each file by name; only for an unregistered version."""
    offsets: Mapping[str, float] = field(default_factory=dict)
    """That are not 0, by class; see `VersionConfig.offsets`."""
    base_model: str | None = None
    """Source of its base model, or its URI if the run did not stage it; None without one."""
    reported_model: str | None = None  # that the endpoint named in its answers; None without one


@dataclass(frozen=True)
class ModelScore:
    """Scores of a baseline or of the candidate."""

    kind: str
    validation: float
    interval: tuple[float, float] | None
    """Wilson interval of the validation accuracy; None for other metrics."""
    test: float | None  # None if the model did not predict the test rows
    role: Literal["incumbent", "candidate", "contender"] | None
    servable: bool = True
    base_models: Mapping[str, float] = field(default_factory=dict)
    """Validation score with each base model; see `Baseline.base_models`."""


@dataclass(frozen=True)
class ReliabilityBin:
    """A bin of confidence after temperature scaling: mean confidence, accuracy and number of
    rows."""

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Confusion:
    """Test rows of one class that one of the two models answers with the same wrong class, and the
    other correctly."""

    label: str  # the correct class
    output: str  # the wrong answer
    fixed: int  # rows that the incumbent answers so, and the candidate correctly
    made: int  # rows that the candidate answers so, and the incumbent correctly


@dataclass(frozen=True)
class SuiteScore:
    """The mean scores on a suite, or on a group of its rows."""

    suite: str
    group: str | None  # None for all rows of the suite
    n: int
    scores: Mapping[str, float | None]  # by role; None if the model cannot answer some of the rows


class Evidence(StoredModel):
    """The stored record of a verdict, from which report, model card and `tailorbird verify` are
    computed."""

    name: str
    run: str
    """URI of the run."""
    created_at: str
    """ISO 8601, as all times in this record."""
    requested_by: str
    expires_at: str
    """Time after which the verdict may no longer promote a model."""
    recipe: Recipe
    protocol: TestProtocol
    verdict: Verdict
    test_access: TestSetAccess
    """The entry in the test-set ledger."""
    family: Family
    """The compared models, as frozen before the test rows were read."""
    data: DataRecord
    scores: tuple[ModelScore, ...]
    """Scores of each baseline, then of the candidate, if a model was trained."""
    sweep: tuple[TrialRecord, ...] = ()
    """Empty if no model was trained."""
    seeds: tuple[SeedRecord, ...] = ()
    averaged: AverageRecord | None = None
    """The averaged weights; None if they were not evaluated."""
    mix: MixRecord | None = None
    """The mix with the bag of words; None for chat tasks."""
    training: TrainingRecord | None = None
    """None if no model was trained."""
    cost: CostRecord
    reliability: dict[str, tuple[ReliabilityBin, ...]]
    """Reliability bins by role; empty for chat tasks."""
    confusions: tuple[Confusion, ...] | None
    """(classification only) The confusions that the candidate fixes or makes most often; None
    without a candidate."""
    suites: tuple[SuiteScore, ...] = ()
    """(chat only) Scores on the suites of the gate `suites`."""
    trained_rows: TrainedRows = TrainedRows()
    """The test rows on which no model was compared, because a compared model was trained on
    them."""
    versions: dict[str, CandidateRecord]
    """Versions by role: those of `family` with the parts of its hybrid, and `hybrid` if the verdict
    selected it."""
    champion: str | None
    """URI of the champion when the run began."""
    code: CodeVersion
    base_models: tuple[BaseModelRecord, ...]
    retrieval_encoder: BaseModelRecord | None
    """(chat only) The encoder of `evaluation.retrieval_encoder`, if the recipe names one."""
    endpoint_answers: dict[str, AnswerCounts] = Field(default_factory=dict)
    """Test rows by what an endpoint answered, by role; for a champion that is a hybrid, of the part
    that is one."""

    @property
    def winner(self) -> CandidateRecord:
        """The version that the verdict selected."""
        return self.versions[self.verdict.selected]

    def roles_with(self, base_model: BaseModelRecord) -> list[str]:
        """Return the roles of the versions that use a base model of the run."""
        source = base_model.source
        return [role for role, version in self.versions.items() if version.base_model == source]

    def role_of(self, uri: str) -> str:
        """Return the role of the version at a URI; for the run's URI, the role that the verdict
        selected."""
        roles = [role for role, version in self.versions.items() if version.uri == uri]
        if roles:
            return roles[0]
        return self.verdict.selected

    def verdict_inputs(self, tables: Mapping[str, Predictions]) -> VerdictInputs:
        """Return the inputs of the verdict; `tables` are the run's predictions by name."""
        return self.family.verdict_inputs(
            tables,
            test_sha256=self.data.sha256["test"],
            cost=self.cost,
            look=self.test_access,
            trained_rows=self.trained_rows,
        )
