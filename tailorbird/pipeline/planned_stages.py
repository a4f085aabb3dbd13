"""The expected duration of each stage of a run, computed from rates. Imports neither ray nor torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.display.state import rate
from cluster.progress import PlannedStage
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TaskName
from tailorbird.evaluation.baselines.baseline import EMBEDDING_S
from tailorbird.evaluation.gates.cost import MIN_ROUNDS
from tailorbird.evaluation.report.evidence_files import changed_sets
from tailorbird.registry.kinds import KINDS
from training.reports import Rates
from tuning.learning_curve import curve_sizes

GROUP_START_S = 30.0
"""Seconds until the workers of a training have loaded DeepSpeed and the base model, on two busy CPU cores."""
NUM_COST_ROWS: Mapping[TaskName, int] = {"classification": 256, "chat": 16}
"""Test rows on which the cost of all models is measured: fewer for chat, because an answer takes a hundred times as
long as a label."""
NUM_MODELS = 2 + sum(spec.is_always_tested for spec in KINDS.values())
"""Most models that predict the test rows: incumbent, candidate and the other baselines."""


@dataclass(frozen=True)
class Sizes:
    """What the durations depend on, in addition to the recipe."""

    train: int  # training rows for fine-tuning
    all_train: int  # training rows for the baselines
    validation: int
    test: int
    classes: int  # 0 for a chat task
    groups: int  # trainings that the cluster has room for at the same time
    cost_rows: int  # test rows on which the cost is measured
    suites: int = 0  # rows of all suites


def planned_stages(recipe: Recipe, sizes: Sizes, *, rates: Rates) -> tuple[PlannedStage, ...]:
    """Return the stages after `prepare` with their expected durations, which do not include linear heads.

    The duration of requests to an endpoint is not known before its first answers. Then their progress states the rate.
    """
    training, tuning = recipe.training, recipe.tuning
    train_rate = rates.training * training.max_workers
    score_rate = rates.prediction * training.max_workers

    def seconds(num_rows: int) -> float:
        """Return the seconds of one training on this number of rows."""
        each_epoch = num_rows / train_rate + sizes.validation / score_rate
        return GROUP_START_S + training.epochs * each_epoch

    at_once = tuning.trials_at_once(room=sizes.groups)
    of_trial = f"{_count(training.epochs, 'epoch')} of {sizes.train:,} rows at {rate(train_rate)}"
    stages = [
        _baselines(recipe, sizes, rates=rates),
        *_endpoint(recipe.evaluation, sizes),
        PlannedStage(
            "sweep",
            GROUP_START_S + (seconds(sizes.train) - GROUP_START_S) * tuning.num_trials / at_once,
            f"{_count(tuning.num_trials, 'trial')}, {at_once} at once, each {of_trial}",
        ),
    ]
    further = training.num_seeds - 1
    if further:
        rounds = -(-further // min(further, sizes.groups))
        stages.append(
            PlannedStage("seeds", rounds * seconds(sizes.train), f"{_count(further, 'seed')}, each {of_trial}")
        )
    if tuning.learning_curve:
        parts = curve_sizes(sizes.train, num_classes=max(1, sizes.classes))[:-1]
        text = f"{len(parts)} trainings on {', '.join(f'{part:,}' for part in parts)} rows"
        stages.append(PlannedStage("learning curve", sum(map(seconds, parts)), text))
    return (*stages, _test(recipe, sizes, rates=rates))


def _baselines(recipe: Recipe, sizes: Sizes, *, rates: Rates) -> PlannedStage:
    """Return the stage of the baselines: embeddings of a classifier, answers to the validation rows of a chat model."""
    evaluation = recipe.evaluation
    if sizes.classes:
        num_rows, text = sizes.all_train + sizes.validation, "rows, then linear heads"
        longest = EMBEDDING_S + sizes.validation / rates.prediction
    else:
        longest = math.inf
        passes = 1 + evaluation.prompt_draws + len(evaluation.retrieved_examples)
        num_rows, text = passes * sizes.validation, f"answers with {passes} prompts"
    seconds = min(num_rows / rates.prediction, longest)
    return PlannedStage("baselines", seconds, f"{num_rows:,} {text}, at {rate(rates.prediction)}")


def _endpoint(config: EvaluationConfig, sizes: Sizes) -> tuple[PlannedStage, ...]:
    if config.endpoint is None:
        return ()
    number = config.requests_per_row * sizes.validation
    text = f"{number:,} requests, up to {config.endpoint.max_concurrency} at the same time, unless they are stored"
    return (PlannedStage("endpoint", None, text),)


def _test(recipe: Recipe, sizes: Sizes, *, rates: Rates) -> PlannedStage:
    changed = changed_sets(recipe.evaluation.gates) if sizes.classes else ()
    num_rows = NUM_MODELS * (sizes.test * (1 + len(changed)) + sizes.suites + (1 + MIN_ROUNDS) * sizes.cost_rows)
    text = f"up to {NUM_MODELS} models, {num_rows:,} rows with those of gates and cost, at {rate(rates.prediction)}"
    text += "" if recipe.evaluation.endpoint is None else "; requests to an endpoint are not included"
    return PlannedStage("test", num_rows / rates.prediction, text)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
