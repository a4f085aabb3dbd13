"""The evidence of a run records each trial's method, each seed's score, and the best training."""

from pathlib import Path

from tailorbird.config.training import TrainingConfig
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.gates.cost import TrainingUsage
from tailorbird.evaluation.mix_weight import MixRecord
from tailorbird.evaluation.report.evidence import (
    AverageRecord,
    CandidateRecord,
    CostRecord,
    Family,
    FrozenModel,
    SeedRecord,
)
from tailorbird.pipeline.artifacts import Contender
from tailorbird.pipeline.record import EvaluatedModels, FineTuning, TrainedModels, build_evidence
from tailorbird.registry.test_set_ledger import TestSetAccess
from tests.unit.evaluation.simulated import Simulation, evidence_of, tables_of
from tests.unit.pipeline.contexts import context_of, recipe_at, splits_of
from training.reports import TrainingResult
from tuning.sweep import SweepResult, TrialRow
from tuning.trial_record import SampledValues

ACCESS = TestSetAccess(
    number=1,
    num_rows=9,
    num_seen=0,
    alpha_share=1.0,
    rows="5f",
    models=("c",),
    protocol="p",
    run="r",
    at="2026-11-24T16:30:00+00:00",
)


def trial(
    name: str, *, config: SampledValues, scores: tuple[float, ...], status: str = "completed"
) -> TrialRow:
    score = max(scores, default=0.5)
    return TrialRow(
        trial=name, config=config, score=score, scores=scores, seconds=1.0, status=status
    )


def trained(score: float, *, epochs: int) -> TrainingResult:
    return TrainingResult(
        weights=f"s3://m/{score}",
        score=score,
        epochs=epochs,
        rows_per_second=9.0,
        padding_share=0.1,
        step_seconds=7.0,
        dtype="float32",
    )


def test_the_evidence_records_trials_seeds_and_the_best_training(tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path, training={"seed": 5, "method": "full"})
    seeds = (trained(0.7, epochs=1), trained(0.9, epochs=3))
    rows = (
        trial("1", config={"method": "lora"}, scores=(0.6, 0.7)),
        trial("2", config={}, scores=(0.5,)),
        trial("probe", config={}, scores=(), status="baseline"),
    )
    selected = TrainingConfig(method="lora")
    fine_tuning = FineTuning(
        sweep=SweepResult(base_model="s3://m/base", rows=rows, selected=selected, trained=seeds[0]),
        seeds=seeds,
        averaged=AverageRecord(0.8, chosen=False),
        mix=MixRecord(0.3, validation=0.92, unmixed=0.9),
        curve=None,
        candidate=Contender("lora", "s3://m/0.9", 0.9),
    )
    models = TrainedModels(
        (Baseline("probe", "s3://m/probe", 0.5, servable=True, note=""),), fine_tuning
    )
    simulation = Simulation()
    roles = models.contenders.items()
    family = Family(
        models=tuple(
            FrozenModel(role, each.kind, each.uri, each.validation) for role, each in roles
        )
    )
    evaluated = EvaluatedModels(
        family, ACCESS, tables_of(simulation), CostRecord(None, TrainingUsage()), {}
    )
    versions = {"candidate": CandidateRecord("lora", "s3://m/0.9", "d")}
    context, verdict = context_of(recipe, splits_of()), evidence_of(simulation).verdict
    evidence = build_evidence(context, models, evaluated, versions=versions, verdict=verdict)
    assert [(row.kind, row.epochs) for row in evidence.sweep] == [
        ("lora", 2),
        ("full", 1),
        ("probe", 0),
    ]
    assert evidence.seeds == (SeedRecord(5, 0.7), SeedRecord(6, 0.9))
    assert evidence.training is not None
    assert (evidence.training.epochs, evidence.training.selected) == (
        3,
        selected.model_dump(mode="json"),
    )
    assert evidence.expires_at == "2027-11-24T16:30:00+00:00"
    # Three rows of 1 s and one further seed of 7 s, on the workers of the recipe.
    on_cpu = TrainingConfig(num_workers=4, cpus_per_worker=3)
    assert models.usage(on_cpu) == TrainingUsage(cpu_s=10 * 12)
    on_gpu = on_cpu.model_copy(update={"gpus_per_worker": 1})
    assert models.usage(on_gpu) == TrainingUsage(cpu_s=10 * 12, gpu_s=10 * 4)
