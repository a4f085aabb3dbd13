"""Search algorithm (Optuna) and scheduler (ASHA) of the sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import TuningConfig
from tuning.search_space import max_epochs
from tuning.trial_record import BASE_MODEL, TrialRecord


def build_scheduler(config: TuningConfig, *, training: TrainingConfig) -> ASHAScheduler:
    """Return the ASHA scheduler, which stops trials that score worse than the others."""
    longest = max_epochs(training, config)
    return ASHAScheduler(
        max_t=longest,
        grace_period=min(config.grace_epochs, longest),
        reduction_factor=2,
    )


def build_search(
    space: Mapping[str, Any],
    *,
    base_models: Sequence[str],
    known: Sequence[TrialRecord],
    seed: int,
    max_concurrent: int,
) -> Any:
    """Return a search that submits the configurations of the `known` trials first, then each of
    several base models once.

    Without a search space, every trial has the same configuration. The number of known trials is
    added to the seed, because the same seed would sample their configurations again.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    points = [record.config for record in known] if space else []
    seed += len(points)
    if BASE_MODEL in space:
        # The known trials began with the first base models.
        generator = np.random.default_rng(seed)
        for name in base_models[len(points) :]:
            point = {
                field: domain.sample(random_state=generator) for field, domain in space.items()
            }
            points.append(point | {BASE_MODEL: name})
    if space:
        search = OptunaSearch(seed=seed, points_to_evaluate=points)
        return ConcurrencyLimiter(search, max_concurrent=max_concurrent)
    return BasicVariantGenerator(
        random_state=seed, points_to_evaluate=points, max_concurrent=max_concurrent
    )
