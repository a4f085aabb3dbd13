"""Ray Tune's part of a sweep: who chooses, who stops a trial, who ends the sweep, and who writes it down elsewhere."""

import os
from collections.abc import Sequence
from typing import Any

import ray
from ray import tune

from cluster.remote import on_this_node
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import TuningConfig
from tailorbird.storage.s3 import PERSISTENT, filesystem
from tuning.experiment_tracking import tracker_callbacks
from tuning.futility import Target, TrialScores, can_still_reach, sweep_futility
from tuning.search_space import max_epochs, param_space
from tuning.trainable import BrokeredTrainable
from tuning.trial_broker import TrialRecord


class FutilityStopper(tune.Stopper):  # type: ignore[misc]
    """Stops a trial that cannot reach the goal any more, and all of them once no other can be expected to."""

    def __init__(self, goal: Target, *, desk: Any, num_trials: int, num_rows: int) -> None:
        self._goal, self._desk, self._num_trials, self._num_rows = goal, desk, num_trials, num_rows
        self._trials: dict[str, TrialScores] = {}
        self._ended = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        told = TrialScores(result["scores"], result["epochs_left"])
        self._trials[trial_id] = told
        asked: dict[str, Any] = {"to_beat": self._goal.to_beat, "num_rows": self._num_rows}
        why = sweep_futility(list(self._trials.values()), num_trials=self._num_trials, **asked)
        if why is not None and not self._ended:
            self._ended = True
            ray.get(self._desk.end.remote(why))
        return not can_still_reach(told, **asked)

    def stop_all(self) -> bool:
        return self._ended


class ErrorsAsText(tune.Callback):  # type: ignore[misc]
    """Of a trial that failed Tune keeps the error as a pickle on S3, and at the end would load it from there: it is
    told not to, and reads the text beside it."""

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        trial.run_metadata.pickled_error_filename = None


def keep_keys_here() -> None:
    """Has Tune send no key of S3 along with its actors: Ray would write them to its logs, and show them to whoever may
    list actors. They are in the environment that Ray was started in. Tune has no setting for it."""
    from ray.tune.execution import class_cache

    sent = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in sent if not name.startswith("AWS_")}


def build_tuner(
    config: TuningConfig,
    *,
    training: TrainingConfig,
    stopper: FutilityStopper,
    desk: Any,
    known: Sequence[TrialRecord],
    at_once: int,
    uri: str,
) -> tune.Tuner:
    """A Tuner whose trials, so many at once, pass through the desk; first those `known` of an interrupted sweep."""
    from ray.tune.logger import JsonLoggerCallback
    from ray.tune.schedulers import ASHAScheduler

    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # Tune's own tables, on top of our progress
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # TensorBoard's would write, asked or not, if it can
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # interrupted, it would return as if all trials had run
    keep_keys_here()
    longest = max_epochs(training, config)
    resources = tune.PlacementGroupFactory([BrokeredTrainable.RESOURCES], bundle_label_selector=[on_this_node()])
    store, path = filesystem(uri, retry_policy=PERSISTENT)
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(BrokeredTrainable, desk=desk, training=training), resources),
        param_space=param_space(config),
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=config.num_trials,
            search_alg=_search(config, known=known, seed=training.seed, max_concurrent=at_once),
            scheduler=ASHAScheduler(
                max_t=longest,
                grace_period=min(config.grace_epochs, longest),
                reduction_factor=config.reduction_factor,
            ),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=path,
            storage_filesystem=store,
            stop=stopper,
            # Tune misses its own JSON at the end.
            callbacks=[ErrorsAsText(), JsonLoggerCallback(), *tracker_callbacks(config, uri=uri)],
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def groups_that_fit(training: TrainingConfig) -> int:
    """Worker groups that the cluster holds at once (at least one: the autoscaler may bring more nodes)."""
    have = ray.cluster_resources()
    by_cpu = int(have.get("CPU", 0)) // (training.max_workers * training.cpus_per_worker)
    if training.gpus_per_worker:
        return max(1, min(by_cpu, int(have.get("GPU", 0)) // (training.max_workers * training.gpus_per_worker)))
    return max(1, by_cpu)


def _search(config: TuningConfig, *, known: Sequence[TrialRecord], seed: int, max_concurrent: int) -> Any:
    """Optuna, or random search; without a space there is nothing to search and every trial is the same.

    The same seed would draw anew what is known already, so each known trial moves it on.
    """
    import optuna
    from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    points = [record.config for record in known] if config.space else []
    seed += len(points)
    if config.search == "optuna" and config.space:
        search = OptunaSearch(seed=seed, points_to_evaluate=points)
        return ConcurrencyLimiter(search, max_concurrent=max_concurrent)
    return BasicVariantGenerator(random_state=seed, points_to_evaluate=points, max_concurrent=max_concurrent)
