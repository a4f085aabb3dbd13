"""Convert the recipe's search space to Ray Tune samplers, and sampled values to a training
config."""

from typing import Any

from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import Distribution, TuningConfig
from tuning.trial_record import SampledValues


def param_space(config: TuningConfig) -> dict[str, Any]:
    """Return a Ray Tune sampler for each field of the search space."""
    from ray import tune

    def sampler(distribution: Distribution) -> Any:
        if distribution.choice is not None:
            return tune.choice(list(distribution.choice))
        assert distribution.log_uniform is not None  # the config requires exactly one
        return tune.loguniform(*distribution.log_uniform)

    return {name: sampler(distribution) for name, distribution in config.space.items()}


def trial_config(training: TrainingConfig, values: SampledValues) -> TrainingConfig:
    """Return the training config with a trial's values. Raises ValidationError (a ValueError) for
    an invalid value."""
    return TrainingConfig.model_validate(training.model_dump() | values)


def max_epochs(training: TrainingConfig, config: TuningConfig) -> int:
    """Return the largest number of epochs of a trial."""
    distribution = config.space.get("epochs")
    if distribution is None:
        return training.epochs
    return max(int(value) for value in distribution.choice or distribution.log_uniform or ())
