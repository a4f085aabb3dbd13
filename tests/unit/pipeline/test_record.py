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
from tests.unit.evaluation.simulated import Simulation, evidence_of, tables_of
from tests.unit.pipeline.contexts import ACCESS, context_of, recipe_at, splits_of, training_result
from tuning.sweep import SweepResult, TrialRow


def trial(
    name: str, *, scores: tuple[float, ...], status: str = "completed", **config: str
) -> TrialRow:
    return TrialRow(
        trial=name,
        config=dict(config),
        score=max(scores, default=0.5),
        scores=scores,
        seconds=1.0,
        status=status,
    )


def test_the_evidence_records_trials_seeds_and_the_best_training(tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path, training={"seed": 5, "method": "full"})
    seeds = (
        training_result("s3://m/0.7", 0.7, step_seconds=7),
        training_result("s3://m/0.9", 0.9, step_seconds=7, epochs=3),
    )
    rows = (
        trial("1", scores=(0.6, 0.7), method="lora"),
        trial("2", scores=(0.5,)),
        trial("probe", scores=(), status="baseline"),
    )
    selected = TrainingConfig(method="lora")
    fine_tuning = FineTuning(
        sweep=SweepResult(base_model="s3://m/base", rows=rows, selected=selected, trained=seeds[0]),
        seeds=seeds,
        averaged=AverageRecord(0.8, chosen=False),
        mix=MixRecord(0.3, validation=0.92, unmixed=0.9),
        candidate=Contender("lora", "s3://m/0.9", 0.9),
    )
    models = TrainedModels((Baseline("probe", "s3://m/probe", 0.5, True, ""),), fine_tuning)
    simulation = Simulation()
    frozen = [
        FrozenModel(role, each.kind, each.uri, each.validation)
        for role, each in models.contenders.items()
    ]
    family = Family(models=tuple(frozen))
    evaluated = EvaluatedModels(
        family, ACCESS, tables_of(simulation), CostRecord(None, TrainingUsage()), {}
    )
    versions = {"candidate": CandidateRecord("lora", "s3://m/0.9", "d")}
    context, verdict = context_of(recipe, splits_of()), evidence_of(simulation).verdict
    evidence = build_evidence(context, models, evaluated, versions=versions, verdict=verdict)
    kinds = [(row.kind, row.epochs) for row in evidence.sweep]
    assert kinds == [("lora", 2), ("full", 1), ("probe", 0)]
    assert evidence.seeds == (SeedRecord(5, 0.7), SeedRecord(6, 0.9))
    assert evidence.training is not None
    assert evidence.training.epochs == 3
    assert evidence.training.selected == selected.model_dump(mode="json")
    assert evidence.expires_at == "2027-01-01T00:00:00+00:00"
    # Three rows of 1 s and one further seed of 7 s, on the workers of the recipe.
    on_cpu = TrainingConfig(num_workers=4, cpus_per_worker=3)
    assert models.usage(on_cpu) == TrainingUsage(cpu_s=10 * 12)
    on_gpu = on_cpu.model_copy(update={"gpus_per_worker": 1})
    assert models.usage(on_gpu) == TrainingUsage(cpu_s=10 * 12, gpu_s=10 * 4)
