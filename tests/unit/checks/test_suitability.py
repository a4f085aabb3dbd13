"""The end of preflight: each line has its figures, and the steps follow from them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.progress import SILENT
from tailorbird.checks.cheap_models import CheapModels, measure_cheap_models
from tailorbird.checks.suitability import agreement_line, check_suitability, cost_line, first_steps
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.rows import Splits
from tailorbird.evaluation.gates.cost import ServingUsage
from tailorbird.evaluation.statistics.learning_curve import LearningCurve
from tailorbird.evaluation.verdict.parts import Power
from tests import build, small_encoder
from tests.separable import separable_rows
from tests.unit.checks.test_preflight import GOOD, MODEL

EVALUATION = EvaluationConfig(minimum_gain=0.01, expected_gain=0.03)
CHEAP = CheapModels(
    num_train=5000,
    num_validation=500,
    num_units=500,
    scores={"bag_of_words": 0.8, "probe": 0.7},
    curve_of="bag_of_words",
    curve=None,
)
POWER = Power(
    over="incumbent", at_minimum_gain=0.1, at_expected_gain=0.9, rows_needed=2000, limited_by=""
)
RISING = LearningCurve(
    (1, 2, 4), (0.5, 0.6, 0.8), at_double=0.9, interval=(0.85, 0.95), sentence=""
)


def steps(cheap: CheapModels = CHEAP, *, power: Power = POWER, **changed: Any) -> str:
    config = EVALUATION.model_copy(update=changed)
    return " | ".join(first_steps(config, cheap, power=power))


def test_the_first_steps_follow_from_the_figures() -> None:
    assert steps().startswith("run the recipe: 20.0 points")
    assert steps(power=POWER.model_copy(update={"at_expected_gain": 0.4})).startswith("add test")
    assert steps(replace(CHEAP, curve=RISING)).startswith("use more training rows")
    assert steps(expected_gain=0.3).startswith("lower evaluation.expected_gain")
    perfect = replace(CHEAP, scores={"bag_of_words": 1.0})
    assert steps(perfect).startswith("do not train")
    assert "run the recipe" not in steps(perfect)
    assert "do not train" not in steps(perfect, metric="macro_f1")


def test_agreement_counts_the_rows_on_which_no_model_is_right() -> None:
    decisions = {"probe": np.array([0, 1, 1, 0]), "bag_of_words": np.array([0, 1, 0, 0])}
    message = agreement_line(replace(CHEAP, decisions=decisions, truth=np.array([0, 1, 1, 1])))
    for part in ("75% of these rows", "right for 67%", "For 25% of the rows"):
        assert part in message.message


def test_a_task_without_headroom_is_not_worth_training(tmp_path: Path) -> None:
    """A bag of words solves the task."""
    prices = {"value_of_correct": 0.5, "requests_per_month": 20_000, "price_per_cpu_hour": 0.05}
    recipe = build.recipe(
        data={"train": "s3://l/r", "max_length": 16},
        evaluation={"minimum_gain": 0.05, "cost": prices},
    )
    splits = Splits(*(separable_rows(size, seed=size) for size in (200, 300, 40)))
    base_model = small_encoder.save(tmp_path).uri
    model = replace(GOOD.base_models[0], metadata=replace(MODEL, uri=base_model))
    facts = replace(GOOD, base_models=(model,))
    checked = check_suitability(recipe, facts, splits, progress=SILENT)
    lines = {line.name: line for line in checked}
    assert "2 classes with 100 to 100 training rows" in lines["rows"].message
    assert "bag-of-words model 100.0%" in lines["without fine-tuning"].message
    assert "twice the data (400 rows)" in lines["more rows"].message
    assert "one point more is worth 1,200.00 a year" in lines["yearly cost"].message
    assert "438.00" in lines["yearly cost"].message
    assert lines["training"].state == "ok"
    assert lines["1"].message.startswith("do not train")
    assert "2" not in lines


def test_what_was_not_measured_is_not_known() -> None:
    lines = check_suitability(build.recipe(), GOOD, None, progress=SILENT)
    by_name = {line.name: line.message for line in lines}
    for name in ("without fine-tuning", "yearly cost", "training"):
        assert "not known" in by_name[name]
    cost = {"value_of_correct": 1, "requests_per_month": 1, "price_per_gpu_hour": 2}
    on_gpu = build.recipe(
        training={"gpus_per_worker": 1},
        serving={"gpus_per_replica": 1},
        evaluation={"cost": cost},
    )
    on_cpu = replace(CHEAP, usage={"bag_of_words": ServingUsage((1.0,) * 5)})
    assert "replicas use GPUs" in cost_line(on_gpu, on_cpu, None).message


def test_chat_is_judged_by_the_nearest_answer() -> None:
    train = build.pairs([(f"what is {n}", f"it is {n}") for n in range(60)], chat=True)
    validation = build.pairs([(f"what is {n}?", f"it is {n}") for n in range(20)], chat=True)
    recipe = build.recipe(task="chat", evaluation={"metric": "exact_match"})
    cheap = measure_cheap_models(recipe, Splits(train, validation, validation), base_model="")
    assert cheap.scores["nearest"] > 0.5
    assert cheap.curve is not None
    assert "runs no language model" in agreement_line(cheap).message
    assert "tailorbird baseline" in " ".join(
        first_steps(recipe.evaluation, replace(cheap, scores={"nearest": 0.1}), power=None)
    )
