"""Samplers of the search space, and the training config of a trial."""

import pytest
from pydantic import JsonValue

from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import Distribution, TuningConfig
from tuning.scheduler import build_search
from tuning.search_space import max_epochs, param_space, trial_config
from tuning.trial_record import BASE_MODEL, TrialRecord

SPACE = {
    "method": Distribution(choice=("full", "lora")),
    "learning_rate": Distribution(log_uniform=(1e-5, 1e-3)),
    "lora_dropout": Distribution(log_uniform=(0.01, 0.5)),
}


def test_each_field_becomes_a_sampler_within_its_bounds() -> None:
    space = param_space(TuningConfig(space=SPACE), base_models=("base",))
    assert set(space) == set(SPACE)
    assert list(space["method"].categories) == ["full", "lora"]
    assert (space["learning_rate"].lower, space["learning_rate"].upper) == (1e-5, 1e-3)
    for _ in range(20):
        config = trial_config(
            TrainingConfig(), {name: sampler.sample() for name, sampler in space.items()}
        )
        assert 1e-5 <= config.learning_rate <= 1e-3
        assert 0 <= config.lora_dropout <= 0.5


def test_a_trial_changes_only_the_sampled_fields() -> None:
    config = trial_config(
        TrainingConfig(epochs=5, seed=3), {"method": "lora", "learning_rate": 0.01}
    )
    assert config == TrainingConfig(epochs=5, seed=3, method="lora", learning_rate=0.01)


@pytest.mark.parametrize(
    ("distribution", "maximum"),
    [(None, 4), (Distribution(choice=(1, 6, 2)), 6), (Distribution(log_uniform=(1, 3)), 3)],
)
def test_max_epochs_is_the_largest_value_of_the_search_space(
    distribution: Distribution | None, maximum: int
) -> None:
    space = {} if distribution is None else {"epochs": distribution}
    assert max_epochs(TrainingConfig(epochs=4), TuningConfig(space=space)) == maximum


def test_the_first_trials_train_each_base_model_once_with_a_whole_configuration() -> None:
    bases = ("wide", "narrow", "deep")
    space = param_space(TuningConfig(space=SPACE), base_models=bases)
    config: dict[str, JsonValue] = {
        "method": "full",
        "learning_rate": 1e-4,
        "lora_dropout": 0.1,
        BASE_MODEL: "wide",
    }
    known = [TrialRecord(trial="a", config=config)]
    search = build_search(space, base_models=bases, known=known, seed=1, max_concurrent=9)
    search.set_search_properties("score", "max", space)
    points = [search.suggest(str(number)) for number in range(6)]
    assert [point[BASE_MODEL] for point in points[:3]] == list(bases)
    for point in points[1:]:
        sampled = trial_config(TrainingConfig(), point)
        assert 1e-5 <= sampled.learning_rate <= 1e-3
        assert sampled.method in ("full", "lora")
    assert len({point["learning_rate"] for point in points[1:]}) == 5
