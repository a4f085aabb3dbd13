"""Convert the recipe's search space to Ray Tune samplers, and sampled values to a training
config."""

from collections.abc import Sequence
from typing import Any

from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import Distribution, TuningConfig
from tuning.trial_record import BASE_MODEL, SampledValues


def param_space(config: TuningConfig, *, base_models: Sequence[str]) -> dict[str, Any]:
    """Return a Ray Tune sampler for each field of the search space, and for the base model if there
    are several."""
    from ray import tune

    def sampler(distribution: Distribution) -> Any:
        if distribution.choice is not None:
            return tune.choice(list(distribution.choice))
        assert distribution.log_uniform is not None  # the config requires exactly one
        return tune.loguniform(*distribution.log_uniform)

    samplers = {name: sampler(distribution) for name, distribution in config.space.items()}
    if len(base_models) > 1:
        samplers[BASE_MODEL] = tune.choice(list(base_models))
    return samplers


def trial_config(training: TrainingConfig, values: SampledValues) -> TrainingConfig:
    """Return the training config with a trial's values. Raises ValidationError (a ValueError) for
    an invalid value."""
    fields = {name: value for name, value in values.items() if name != BASE_MODEL}
    return TrainingConfig.model_validate(training.model_dump() | fields)


def base_model_of(values: SampledValues, base_models: Sequence[str]) -> str:
    """Return the name of the base model that a trial trains."""
    return str(values.get(BASE_MODEL, base_models[0]))


def max_epochs(training: TrainingConfig, config: TuningConfig) -> int:
    """Return the largest number of epochs of a trial."""
    distribution = config.space.get("epochs")
    if distribution is None:
        return training.epochs
    return max(int(value) for value in distribution.choice or distribution.log_uniform or ())
