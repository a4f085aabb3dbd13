"""Collect the results of a run's stages, and build its evidence."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from tailorbird.config.metrics import row_metric
from tailorbird.config.training import TrainingConfig
from tailorbird.data.rows import Rows
from tailorbird.evaluation.baselines.baseline import Baseline, other_baselines, select_incumbent
from tailorbird.evaluation.gates.cost import TrainingUsage
from tailorbird.evaluation.inference.endpoint_coverage import AnswerCounts
from tailorbird.evaluation.mix_weight import MixRecord
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report import evidence
from tailorbird.evaluation.report.model_scores import figures, model_scores
from tailorbird.evaluation.statistics.headroom import Headroom
from tailorbird.evaluation.statistics.split_differences import SplitSample, split_differences
from tailorbird.evaluation.verdict.protocol import VALID_DAYS
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.pipeline.artifacts import Contender
from tailorbird.pipeline.prepare import RunContext
from tailorbird.registry.test_set_ledger import TestSetAccess
from tailorbird.registry.versions import now
from training.reports import TrainingResult
from tuning.sweep import SweepResult, TrialRow


@dataclass(frozen=True)
class FineTuning:
    """Results of the trainings."""

    sweep: SweepResult
    seeds: tuple[TrainingResult, ...]
    """Trainings of the selected configuration, the sweep's trial first."""
    averaged: evidence.AverageRecord | None
    mix: MixRecord | None
    candidate: Contender

    def usage(self, training: TrainingConfig) -> TrainingUsage:
        """Return the resources that the training steps of all trials and seed runs used."""
        seconds = sum(row.seconds for row in self.sweep.rows)
        seconds += sum(seed.step_seconds for seed in self.seeds[1:])
        worker_s = seconds * training.max_workers
        return TrainingUsage(
            worker_s * training.cpus_per_worker, worker_s * training.gpus_per_worker
        )


@dataclass(frozen=True)
class TrainedModels:
    """Results of the stages before the evaluation on test: either a fine-tuning, or the headroom
    that rules it out."""

    baselines: tuple[Baseline, ...]
    fine_tuning: FineTuning | None = None
    headroom: Headroom | None = None

    @property
    def servable(self) -> dict[str, Contender]:
        """The possible parts of a hybrid by role: incumbent, candidate if there is one, other
        servable baselines."""
        incumbent = select_incumbent(self.baselines)
        servable: dict[str, Contender] = {}
        for baseline in self.baselines:
            if baseline.servable and baseline.uri is not None:  # servable baselines have artifacts
                role = "incumbent" if baseline is incumbent else baseline.kind
                servable[role] = Contender(baseline.kind, baseline.uri, baseline.validation)
        if self.fine_tuning is not None:
            servable["candidate"] = self.fine_tuning.candidate
        return {role: servable[role] for role in evidence.ROLES if role in servable} | servable

    @property
    def contenders(self) -> dict[str, Contender]:
        """The models that predict the test rows, by role: the incumbent, the candidate if there is
        one, and others."""
        servable = self.servable
        tested = [baseline.kind for baseline in other_baselines(self.baselines).tested]
        return {role: servable[role] for role in (*evidence.ROLES, *tested) if role in servable}

    def usage(self, training: TrainingConfig) -> TrainingUsage:
        """Return the resources of the fine-tuning; none without one."""
        if self.fine_tuning is None:
            return TrainingUsage()
        return self.fine_tuning.usage(training)


@dataclass(frozen=True)
class EvaluatedModels:
    """Predictions and cost of all compared models, and the recorded access to the test rows."""

    family: evidence.Family  # the frozen models, with the hybrid
    test_access: TestSetAccess
    predictions: Mapping[str, Predictions]  # by table name
    cost: evidence.CostRecord
    endpoint_answers: Mapping[str, AnswerCounts]  # see `Evidence.endpoint_answers`


def build_evidence(
    context: RunContext,
    trained: TrainedModels,
    evaluated: EvaluatedModels,
    *,
    versions: Mapping[str, evidence.CandidateRecord],
    verdict: Verdict,
) -> evidence.Evidence:
    """Return the evidence of a run. The verdict expires `VALID_DAYS` after the test rows were
    accessed."""
    accessed_at = datetime.fromisoformat(evaluated.test_access.at)
    recipe = context.recipe
    inputs = context.inputs
    protocol = context.protocol
    data = inputs.data
    roles = [model.role for model in evaluated.family.models]
    registered = context.registered
    predictions = registered.trained_rows.without(evaluated.predictions, roles=roles)
    candidate = None
    if trained.fine_tuning is not None:
        candidate = (versions["candidate"].kind, trained.fine_tuning.candidate.validation)
    without_training = evidence.Evidence(
        name=recipe.name,
        run=context.run,
        created_at=now(),
        requested_by=registered.requested_by,
        expires_at=(accessed_at + timedelta(days=VALID_DAYS)).isoformat(timespec="seconds"),
        recipe=recipe,
        protocol=protocol,
        verdict=verdict,
        test_access=evaluated.test_access,
        family=evaluated.family,
        data=evidence.DataRecord(
            report=data.report,
            trained_on=inputs.num_tuning_rows,
            sha256=inputs.hashes,
            differences=_differences(context, predictions),
        ),
        scores=model_scores(
            trained.baselines,
            candidate=candidate,
            num_validation=data.report.num_validation,
            verdict=verdict,
        ),
        cost=evaluated.cost,
        **figures(predictions, suites=tuple(protocol.suites), roles=roles),
        trained_rows=registered.trained_rows,
        versions=dict(versions),
        champion=registered.champion,
        code=inputs.code,
        base_models=tuple(base.record for base in inputs.bases),
        retrieval_encoder=inputs.encoder,
        endpoint_answers=dict(evaluated.endpoint_answers),
    )
    if trained.fine_tuning is None:
        return without_training
    return _with_fine_tuning(without_training, trained.fine_tuning, recipe.training)


def _with_fine_tuning(
    record: evidence.Evidence, fine_tuning: FineTuning, config: TrainingConfig
) -> evidence.Evidence:
    """Return the evidence with the results of the trainings."""
    sweep = fine_tuning.sweep
    scores = enumerate(model.score for model in fine_tuning.seeds)
    results = {
        "sweep": tuple(_trial(row, method=config.method) for row in sweep.rows),
        "seeds": tuple(
            evidence.SeedRecord(config.seed + number, score) for number, score in scores
        ),
        "averaged": fine_tuning.averaged,
        "mix": fine_tuning.mix,
        "training": _training(fine_tuning, config),
    }
    return record.model_copy(update=results)


def _differences(context: RunContext, predictions: Mapping[str, Predictions]) -> tuple[str, ...]:
    """Return the differences between validation and test that are larger than chance."""
    metric = row_metric(context.protocol.metric)

    def sample(rows: Rows, table: Predictions) -> SplitSample:
        scores = table.per_row(metric)
        return SplitSample(rows.class_labels, rows.texts, table.clusters, scores=scores)

    test = context.splits.test
    trained_on = context.registered.trained_rows.excluded
    compared = [row for row, row_id in enumerate(test.row_ids) if row_id not in trained_on]
    return split_differences(
        sample(context.splits.validation, predictions["incumbent_validation"]),
        test=sample(test.take(compared), predictions["incumbent"]),
    )


def _trial(row: TrialRow, *, method: str) -> evidence.TrialRecord:
    kind = str(row.config.get("method", method))
    if row.status == evidence.BASELINE:
        kind = row.trial
    return evidence.TrialRecord(
        trial=row.trial,
        kind=kind,
        config=row.config,
        epochs=len(row.scores),
        validation=row.score,
        seconds=row.seconds,
        status=row.status,
        scores=row.scores,
    )


def _training(trained: FineTuning, config: TrainingConfig) -> evidence.TrainingRecord:
    best = max(trained.seeds, key=lambda seed: seed.score)
    return evidence.TrainingRecord(
        selected=trained.sweep.selected.model_dump(mode="json"),
        num_workers=config.max_workers,
        zero_stage=config.zero_stage,
        epochs=best.epochs,
        seconds=best.step_seconds,
        samples_per_second=best.rows_per_second,
        padding_share=best.padding_share,
        attention=best.attention,
    )
