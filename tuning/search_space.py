"""The recipe's search space in Ray Tune's words, and a trial's training section from what the search drew."""

from typing import Any

from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import Distribution, TuningConfig


def param_space(config: TuningConfig) -> dict[str, Any]:
    """One Ray Tune sampler a field."""
    from ray import tune

    def sampler(distribution: Distribution) -> Any:
        if distribution.choice is not None:
            return tune.choice(list(distribution.choice))
        if distribution.uniform is not None:
            return tune.uniform(*distribution.uniform)
        assert distribution.log_uniform is not None  # the schema wants exactly one
        return tune.loguniform(*distribution.log_uniform)

    return {name: sampler(distribution) for name, distribution in config.space.items()}


def trial_config(training: TrainingConfig, config: dict[str, Any]) -> TrainingConfig:
    """The training section with a trial's values; raises ValidationError (a ValueError) if one is not allowed."""
    return TrainingConfig.model_validate(training.model_dump() | config)


def max_epochs(training: TrainingConfig, config: TuningConfig) -> int:
    """The most epochs a trial may run."""
    distribution = config.space.get("epochs")
    if distribution is None:
        return training.epochs
    return max(int(value) for value in distribution.choice or distribution.uniform or distribution.log_uniform or ())
