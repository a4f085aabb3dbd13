"""The durations of the stages are computed from the rates of one worker and the number of rows."""

from dataclasses import replace
from pathlib import Path

import pytest

from tailorbird.config.recipe import Recipe
from tailorbird.pipeline.planned_stages import GROUP_START_S, Sizes, planned_stages
from tests.unit.pipeline.contexts import recipe_at
from training.reports import Rates

RATES = Rates(training=10.0, prediction=40.0, num_rows=16)
SIZES = Sizes(train=400, all_train=400, validation=80, test=200, classes=3, groups=1, cost_rows=100)
SCORING_S = 80 / 80  # validation rows, by two workers


def seconds(recipe: Recipe, sizes: Sizes = SIZES) -> dict[str, float | None]:
    return {stage.name: stage.seconds for stage in planned_stages(recipe, sizes, rates=RATES)}


def recipe(folder: Path, *, num_seeds: int = 3, learning_curve: bool = False) -> Recipe:
    return recipe_at(
        folder,
        training={"num_workers": 2, "epochs": 2, "num_seeds": num_seeds},
        tuning={"num_trials": 4, "learning_curve": learning_curve},
    )


def test_all_workers_share_the_rows_of_a_training(tmp_path: Path) -> None:
    steps_s = 2 * (400 / 20 + SCORING_S)
    assert seconds(recipe(tmp_path)) == {
        "baselines": 480 / 40,
        "sweep": pytest.approx(GROUP_START_S + 4 * steps_s),
        "seeds": pytest.approx(2 * (GROUP_START_S + steps_s)),
        "test": pytest.approx(7 * (200 * 3 + 6 * 100) / 40),  # two changed sets of rows; a warm-up and five rounds
    }


def test_trainings_at_the_same_time_divide_the_time(tmp_path: Path) -> None:
    one, two = (seconds(recipe(tmp_path), replace(SIZES, groups=n)) for n in (1, 2))
    assert one["seeds"] == 2 * (two["seeds"] or 0)
    assert (one["sweep"] or 0) - GROUP_START_S == pytest.approx(2 * ((two["sweep"] or 0) - GROUP_START_S))


def test_a_stage_states_how_its_duration_is_computed(tmp_path: Path) -> None:
    bases = {stage.name: stage.basis for stage in planned_stages(recipe(tmp_path, num_seeds=2), SIZES, rates=RATES)}
    assert bases == {
        "baselines": "480 rows, then linear heads, at 40 rows/s",
        "sweep": "4 trials, 1 at once, each 2 epochs of 400 rows at 20 rows/s",
        "seeds": "1 seed, each 2 epochs of 400 rows at 20 rows/s",
        "test": "up to 7 models, 8,400 rows with those of gates and cost, at 40 rows/s",
    }


def test_stages_that_the_recipe_does_not_have_are_not_planned(tmp_path: Path) -> None:
    assert seconds(recipe(tmp_path, num_seeds=1)).keys() == {"baselines", "sweep", "test"}
    assert "learning curve" in seconds(recipe(tmp_path, learning_curve=True))


def test_the_requests_to_an_endpoint_are_a_stage_of_unknown_duration(tmp_path: Path) -> None:
    endpoint = {"url": "https://host/v1", "model": "m", "max_concurrency": 4}
    evaluation = {"prompt_draws": 2, "retrieved_examples": [1, 4, 4], "endpoint": endpoint}
    stages = planned_stages(recipe_at(tmp_path, evaluation=evaluation), SIZES, rates=RATES)
    assert [stage.name for stage in stages][:3] == ["baselines", "endpoint", "sweep"]
    assert stages[1].seconds is None
    assert stages[1].basis == "400 requests, up to 4 at the same time, unless they are stored"
    assert stages[-1].basis.endswith("; requests to an endpoint are not included")


def test_a_chat_task_answers_the_validation_rows_once_for_each_prompt(tmp_path: Path) -> None:
    chat = recipe_at(
        tmp_path,
        task="chat",
        evaluation={"metric": "token_f1", "prompt_draws": 2, "retrieved_examples": [1, 4]},
        training={"num_workers": 2, "num_seeds": 1},
    )
    sizes = Sizes(train=400, all_train=400, validation=80, test=200, classes=0, groups=1, cost_rows=16)
    stages = planned_stages(chat, sizes, rates=RATES)
    assert stages[0].seconds == (1 + 2 + 2) * 80 / 40
    assert stages[0].basis == "400 answers with 5 prompts, at 40 rows/s"
    assert stages[-1].seconds == pytest.approx(7 * (200 + 6 * 16) / 40)  # no changed sets of rows
    with_suites = planned_stages(chat, replace(sizes, suites=100), rates=RATES)
    assert with_suites[-1].seconds == pytest.approx(7 * (200 + 100 + 6 * 16) / 40)
