"""The sweep's Ray Tune run: search algorithm and scheduler."""

import os
from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.logger import JsonLoggerCallback

from cluster.ray_private import (
    exclude_from_tune_actors,
    keep_trial_error_as_text,
    silence_slow_tune_operations,
)
from cluster.remote import this_node_selector
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import TuningConfig
from tailorbird.storage.s3 import PERSISTENT, filesystem
from tuning.scheduler import build_scheduler, build_search
from tuning.search_space import param_space
from tuning.trainable import BrokeredTrainable
from tuning.trial_record import TrialRecord


class ErrorsAsText(tune.Callback):  # type: ignore[misc]
    """Callback that makes Tune read a failed trial's error as text, instead of loading its pickle
    from S3."""

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        keep_trial_error_as_text(trial)


def build_tuner(
    config: TuningConfig,
    *,
    training: TrainingConfig,
    base_models: Sequence[str],
    broker: Any,
    known: Sequence[TrialRecord],
    max_concurrent: int,
    uri: str,
) -> tune.Tuner:
    """Return a Tuner whose trials go through the broker, starting with the `known` trials of an
    interrupted sweep."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # no tables of Tune, because tailorbird prints progress
    # TensorBoard's logger would run whenever it is installed.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    # After Ctrl-C, Tune would return as if all trials had run.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    silence_slow_tune_operations()
    # S3 credentials come from the environment in which Ray was started.
    exclude_from_tune_actors("AWS_")

    resources = tune.PlacementGroupFactory(
        [BrokeredTrainable.RESOURCES], bundle_label_selector=[this_node_selector()]
    )
    space = param_space(config, base_models=base_models)
    store, path = filesystem(uri, retry_policy=PERSISTENT)
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(BrokeredTrainable, broker=broker), resources),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=config.num_trials,
            search_alg=build_search(
                space,
                base_models=base_models,
                known=known,
                seed=training.seed,
                max_concurrent=max_concurrent,
            ),
            scheduler=build_scheduler(config, training=training),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=path,
            storage_filesystem=store,
            # Tune reads the results from its JSON files at the end.
            callbacks=[ErrorsAsText(), JsonLoggerCallback()],
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
