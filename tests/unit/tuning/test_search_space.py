"""Samplers of the search space, and the training config of a trial."""

import pytest

from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import Distribution, TuningConfig
from tuning.search_space import max_epochs, param_space, trial_config

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


@pytest.mark.parametrize(
    ("distribution", "maximum"),
    [(None, 4), (Distribution(choice=(1, 6, 2)), 6), (Distribution(log_uniform=(1, 3)), 3)],
)
def test_max_epochs_is_the_largest_value_of_the_search_space(
    distribution: Distribution | None, maximum: int
) -> None:
    space = {} if distribution is None else {"epochs": distribution}
    assert max_epochs(TrainingConfig(epochs=4), TuningConfig(space=space)) == maximum
