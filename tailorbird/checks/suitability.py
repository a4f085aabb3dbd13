"""Whether a task should be fine-tuned at all, and what to try first, from what a minute can know.

Each line of the page has the figures that it was computed from, or the reason why they are not
known.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from cluster.display.state import estimate
from cluster.progress import ProgressReporter, StepEvent
from tailorbird.checks.cheap_models import (
    BAG,
    COST_ROWS,
    ENCODER,
    NEAREST,
    CheapModels,
    measure_cheap_models,
)
from tailorbird.checks.planned_test import check_documents, check_prices
from tailorbird.checks.preflight_facts import PreflightFacts
from tailorbird.checks.preflight_memory import groups_that_fit
from tailorbird.checks.preflight_power import check_power, planned_power
from tailorbird.checks.result import CheckResult, fault, heading, note, ok
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.config.metrics import METRICS
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TASKS
from tailorbird.data.rows import Splits
from tailorbird.evaluation.gates.cost import SECONDS_PER_HOUR, TrainingUsage
from tailorbird.evaluation.gates.prices import (
    MONTHS_PER_YEAR,
    CostTerms,
    contender_cost,
    yearly_cost,
)
from tailorbird.evaluation.report.html import load_duties
from tailorbird.evaluation.statistics.headroom import highest_rate
from tailorbird.evaluation.statistics.power import TARGET_POWER, rows_text
from tailorbird.evaluation.statistics.scoring import HIGHEST_SCORE
from tailorbird.evaluation.verdict.formatting import (
    at_most,
    listed,
    model_name,
    money,
    score_text,
    size,
)
from tailorbird.evaluation.verdict.parts import Power
from tailorbird.evaluation.verdict.protocol import expected_gain
from tailorbird.pipeline.estimate import planned_trainings

QUESTION = "Is this task worth fine-tuning?"
FIRST = "What to try first"
PASSES_PER_STEP = 3
"""Time of a training step by that of the encoder: the backward pass takes twice as long as the
forward pass."""
NOT_READ = "not known, because the rows were not read"


@dataclass(frozen=True)
class BestModel:
    """The best of the measured models, and what it leaves to the highest score."""

    kind: str
    left: float
    most: float | None  # upper confidence bound of `left`; None for a mean over classes


def check_suitability(
    recipe: Recipe, facts: PreflightFacts, splits: Splits | None, *, progress: ProgressReporter
) -> Iterator[CheckResult]:
    """Yield what is known before a training about whether it pays, and what to try first.

    `splits` are the checked rows, or None if they were not read. A fault is one that a run would
    end with.
    """
    config = recipe.evaluation
    cheap = None
    yield heading(QUESTION)
    if splits is None:
        yield note("without fine-tuning", NOT_READ)
    else:
        assert facts.model is not None, "rows are read only if the base model can be used"
        yield rows_line(recipe, splits)
        if len(facts.base_models) > 1:
            text = f"only the largest is measured here, {facts.model.uri}; a run tries each"
            yield note("base models", text)
        progress.stage("models without fine-tuning: fitting them on a part of the rows")
        try:
            cheap = measure_cheap_models(recipe, splits, base_model=facts.model.uri)
        except ValueError as error:
            yield fault("without fine-tuning", str(error))
            return
        yield from _without_training(config, cheap, num_train=len(splits.train))
        if facts.champion is not None:
            text = f"the score of {facts.champion}, which serves now, is not known before a run"
            yield note("champion", text)
    power = None
    if facts.planned is not None:
        yield from check_documents(facts.planned)
        power = planned_power(config, facts.planned)
        yield check_power(power, config=config, planned=facts.planned)
    yield regulation_line(config)
    training = None
    if cheap is not None:
        training = training_usage(recipe, cheap, num_rows=_num_tuning(recipe, splits))
    yield from check_prices(recipe)
    yield cost_line(recipe, cheap, training)
    yield _training_line(recipe, facts, training, num_rows=_num_tuning(recipe, splits))
    if cheap is not None:
        yield heading(FIRST)
        steps = first_steps(config, cheap, power=power)
        for number, step in enumerate(steps, start=1):
            yield note(str(number), step)


def _num_tuning(recipe: Recipe, splits: Splits | None) -> int:
    if splits is None:
        return 0
    return min(len(splits.train), recipe.data.max_train_rows or len(splits.train))


def rows_line(recipe: Recipe, splits: Splits) -> CheckResult:
    """Return the numbers of rows, and the rows of each class or the number of different answers."""
    num_train = len(splits.train)
    text = f"{num_train:,} train, {len(splits.validation):,} validation, {len(splits.test):,} test"
    num_tuning = _num_tuning(recipe, splits)
    if num_tuning < num_train:
        text += f"; fine-tuning uses {num_tuning:,} of the training rows (data.max_train_rows)"
    counts = Counter(splits.train.labels)
    if TASKS[recipe.task].has_classes:
        text += (
            f"; {len(counts)} classes with {min(counts.values()):,} to {max(counts.values()):,} "
            f"training rows each, the median is {median(counts.values()):,.0f}"
        )
    else:
        share = np.mean([label in counts for label in splits.validation.labels])
        text += (
            f"; {len(counts):,} different answers in the training rows, which are the answer to "
            f"{share:.0%} of the validation rows"
        )
    return ok("rows", text)


def best_model(config: EvaluationConfig, cheap: CheapModels) -> BestModel:
    """Return the best of the measured models, with what it leaves, one-sided at level 1 - alpha."""
    kind = max(cheap.scores, key=lambda name: cheap.scores[name])
    left = HIGHEST_SCORE - cheap.scores[kind]
    most = None
    if not METRICS[config.metric].is_over_classes:
        most = highest_rate(left * cheap.num_units, n=cheap.num_units, alpha=config.alpha)
    return BestModel(kind, left, most)


def _without_training(
    config: EvaluationConfig, cheap: CheapModels, *, num_train: int
) -> Iterator[CheckResult]:
    ranked = sorted(cheap.scores.items(), key=lambda item: -item[1])
    scores = [f"{_name(kind)} {score_text(config.metric, score)}" for kind, score in ranked]
    best = best_model(config, cheap)
    most = ""
    if best.most is not None:
        most = f" ({at_most(best.most)} or less, with {1 - config.alpha:.0%} confidence)"
    text = (
        f"{listed(scores)} ({config.metric} on {cheap.num_validation:,} validation rows; "
        f"learned from {cheap.num_train:,} of {num_train:,} training rows). A perfect model is "
        f"{_left(best)} better than the {_name(best.kind)}{most}"
    )
    yield ok("without fine-tuning", text)
    yield agreement_line(cheap)
    yield _curve_line(cheap, num_train=num_train)


def _left(best: BestModel) -> str:
    return f"{100 * best.left:.1f} points"


def _name(kind: str) -> str:
    if kind == "majority":
        return "most frequent class as the only answer"
    return model_name(kind)


def agreement_line(cheap: CheapModels) -> CheckResult:
    """Return how often the models agree, are then right, and are all wrong."""
    if cheap.truth is None:
        text = (
            "not known, because preflight runs no language model: `tailorbird baseline` scores "
            "the pretrained model with and without examples"
        )
        return note("agreement", text)
    decisions = np.stack(list(cheap.decisions.values()))
    is_right = decisions == cheap.truth
    is_same = (decisions == decisions[0]).all(axis=0)
    text = f"all {len(decisions)} models give the same label to {is_same.mean():.0%} of these rows"
    if is_same.any():
        text += f", which is right for {is_right[0, is_same].mean():.0%} of them"
    none_right = (~is_right.any(axis=0)).mean()
    text += (
        f". For {none_right:.0%} of the rows, no model is right: their labels may be wrong, or "
        "their texts too short to tell"
    )
    return ok("agreement", text)


def _curve_line(cheap: CheapModels, *, num_train: int) -> CheckResult:
    name = model_name(cheap.curve_of)
    if cheap.curve is None:
        text = "not known, because the training rows are too few for parts with every class"
        return note("more rows", text)
    part = ""
    if cheap.num_train < num_train:
        part = f". The recipe has {num_train:,} training rows already"
    return ok("more rows", f"for the {name}, {cheap.curve.sentence}{part}")


def regulation_line(config: EvaluationConfig) -> CheckResult:
    """Return what `evaluation.regulated` requires, and the documentation duties that a run's
    evidence supports."""
    duties = load_duties()
    sources = Counter(duty["duty"].split(",")[0] for duty in duties["duties"])
    counts = [f"{number} of the {source}" for source, number in sources.items()]
    documents = (
        "The report of a run lists the documentation duties that its evidence supports: "
        f"{listed(counts)}"
    )
    if not config.regulated:
        text = (
            "evaluation.regulated is false, so a gate that the test rows cannot settle does not "
            f"prevent a change of model. {documents}"
        )
        return note("regulation", text, "in a regulated domain, set evaluation.regulated: true")
    return ok("regulation", f"evaluation.regulated is true, so every gate must pass. {documents}")


def training_usage(recipe: Recipe, cheap: CheapModels, *, num_rows: int) -> TrainingUsage | None:
    """Return the CPU-seconds of all trainings from the measured time of the encoder; None if they
    use GPUs or no encoder was measured."""
    if not cheap.usage or recipe.training.gpus_per_worker:
        return None
    num_trainings = recipe.tuning.num_trials + recipe.training.num_seeds - 1
    row_s = fmean(cheap.usage[ENCODER].cpu_s) / 1000
    passes = PASSES_PER_STEP * recipe.training.epochs * num_rows
    return TrainingUsage(cpu_s=num_trainings * passes * row_s)


def cost_line(
    recipe: Recipe, cheap: CheapModels | None, training: TrainingUsage | None
) -> CheckResult:
    """Return the cost of the alternatives for a year at the recipe's volume."""
    terms = CostTerms.from_recipe(recipe.evaluation, serving=recipe.serving)
    name = "yearly cost"
    if terms is None:
        text = "not known, because the recipe has no evaluation.cost"
        return note(name, text, "set value_of_correct, requests_per_month and the prices there")
    value = money(terms.value_of_correct * terms.requests_per_month * MONTHS_PER_YEAR / 100)
    text = (
        f"at {terms.requests_per_month:,.0f} requests a month, one point more is worth {value} a "
        "year in the recipe's currency"
    )
    unknown = None
    if cheap is None:
        unknown = "the rows were not read"
    elif not cheap.usage:
        unknown = "preflight runs no language model"
    elif terms.gpus_per_replica:
        unknown = "replicas use GPUs, and preflight measures on this machine's CPU"
    if cheap is None or unknown is not None:
        return note(name, f"{text}. The cost of serving is not known: {unknown}")
    amounts = []
    names = {BAG: model_name(BAG), ENCODER: "encoder, pretrained or fine-tuned"}
    for kind, model in names.items():
        cost = contender_cost(
            kind, yearly_cost(cheap.usage[kind], terms=terms), alpha=recipe.evaluation.alpha
        )
        if cost.total is None:
            return note(name, f"{text}. The cost of serving is not known: {cost.missing[0]}")
        amounts.append(f"{model} {money(cost.total)}")
    text += (
        f". Serving costs a year: {', '.join(amounts)} (measured here on {COST_ROWS} rows; a "
        f"replica is paid busy or idle, and at least {terms.min_replicas} run)"
    )
    if training is not None:
        hours = training.cpu_s / SECONDS_PER_HOUR
        text += f". The trainings cost at least {money(terms.per_hour(cpus=hours, gpus=0))}"
    if terms.token_prices:
        text += f". That of {listed(tuple(terms.token_prices))} is not known: no request was sent"
    return ok(name, text)


def _training_line(
    recipe: Recipe, facts: PreflightFacts, training: TrainingUsage | None, *, num_rows: int
) -> CheckResult:
    if training is None or facts.cluster is None:
        text = (
            "its time is not known, because preflight measures classifiers on CPUs only; a run "
            "prints it after the first steps"
        )
        return note("training", text)
    config = recipe.training
    num_trainings = recipe.tuning.num_trials + config.num_seeds - 1
    seconds = training.cpu_s / num_trainings / (config.max_workers * config.cpus_per_worker)
    step = StepEvent(
        epoch=0,
        step=0,
        num_steps=0,
        loss=0.0,
        rows_per_second=num_rows * config.epochs / seconds,
        seconds_left=seconds,
    )
    plan = planned_trainings(recipe, step, groups=groups_that_fit(recipe, facts.cluster))
    stages = [
        f"{estimate(stage.seconds)} for the {stage.name} ({stage.basis})" for stage in plan.stages
    ]
    text = (
        f"at least {listed(stages)}, {training} in all, if no training stops early: "
        f"{PASSES_PER_STEP} times the time of the encoder on this machine for each row, without "
        "optimizer, communication and validation"
    )
    return ok("training", text)


def first_steps(
    config: EvaluationConfig, cheap: CheapModels, *, power: Power | None
) -> Iterator[str]:
    """Yield what to try, the first step first, each with the figures that are its reason."""
    best = best_model(config, cheap)
    name = _name(best.kind)
    gain = expected_gain(config)
    if best.most is not None and best.most < config.minimum_gain:
        yield (
            f"do not train: a perfect model is at most {at_most(best.most)} points better than "
            f"the {name}, which is less than minimum_gain ({size(config.minimum_gain)})"
        )
        return
    if best.left < gain:
        yield (
            f"lower evaluation.expected_gain: it is {size(gain)}, but a perfect model is only "
            f"{_left(best)} better than the {name}"
        )
    if power is not None and power.at_expected_gain < TARGET_POWER:
        yield (
            f"add test rows: with the present ones, a model that is {size(gain)} better is chosen "
            f"in {power.at_expected_gain:.0%} of tests, and with {rows_text(power.rows_needed)} "
            f"in {TARGET_POWER:.0%}"
        )
    if cheap.curve is not None:
        low = cheap.curve.interval[0]
        score = cheap.curve.scores[-1]
        if low > score:
            yield (
                f"use more training rows: twice the {cheap.num_train:,} measured ones raise the "
                f"{model_name(cheap.curve_of)} by at least {size(low - score)}"
            )
    if cheap.curve_of == NEAREST:
        yield "score the pretrained model with `tailorbird baseline`, which trains nothing"
    yield (
        f"run the recipe: {_left(best)} are left above the {name}, and only a run shows how "
        "much of that a fine-tuned model gains"
    )
