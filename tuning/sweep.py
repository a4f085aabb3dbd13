"""The sweep: Ray Tune chooses, worker groups train, and the pretrained rungs stand in the table as the rows to beat."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray

from cluster.storage import delete_folder, filesystem
from recipes.schema import TrainingSection, TuningSection
from training.material import TrainingTask
from training.trainer import Trained, TrainingFailed, new_trainer
from tuning.desk import Desk
from tuning.group import group_worker
from tuning.space import max_epochs, trial_section, tune_space
from tuning.stopping import can_still_reach


@dataclass(frozen=True)
class TrialRow:
    """A row of the sweep's table: a trial, or a pretrained rung (`trial` is then its kind, `config` is empty)."""

    trial: str
    config: dict[str, Any]
    score: float
    """Accuracy on validation after the last epoch run."""
    scores: tuple[float, ...]
    """After each epoch."""
    seconds: float
    """Inside training steps."""
    status: str
    """`pretrained`, `completed`, `stopped: …` or `failed: …`."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class SweepResult:
    """The table, best first, and the trial selected on validation."""

    rows: tuple[TrialRow, ...]
    selected: TrainingSection
    trained: Trained

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": [row.to_dict() for row in self.rows],
            "selected": self.selected.model_dump(),
            "trained": self.trained.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "SweepResult":
        rows = tuple(TrialRow(**row | {"scores": tuple(row["scores"])}) for row in value["rows"])
        return cls(rows, TrainingSection.model_validate(value["selected"]), Trained(**value["trained"]))


def sweep(
    section: TuningSection,
    *,
    training: TrainingSection,
    task: TrainingTask,
    rungs: dict[str, float],
    uri: str,
    relay: Any = None,
) -> SweepResult:
    """Runs the trials and selects one on validation; everything it leaves lies under `uri`.

    `rungs` are the pretrained baselines' validation accuracies by kind; the best of them is what trials must reach.
    Raises TrainingFailed when no trial ran to an export.
    """
    delete_folder(uri)  # what a sweep that was interrupted left
    desk = ray.remote(Desk).options(num_cpus=0, max_concurrency=1000).remote()
    num_groups = min(section.num_trials, concurrent_groups(training))
    config = {"section": training, "task": ray.put(task), "desk": desk, "relay": relay, "uri": uri}
    to_beat, num_rows = max(rungs.values()), len(task.validation)
    with _worker_groups(config, num_groups=num_groups, desk=desk) as errors:
        _tuner(
            section,
            training=training,
            desk=desk,
            num_groups=num_groups,
            to_beat=to_beat,
            num_rows=num_rows,
            uri=uri,
        ).fit()
    return _result(ray.get(desk.outcomes.remote()), training=training, rungs=rungs, num_rows=num_rows, errors=errors)


def concurrent_groups(training: TrainingSection) -> int:
    """Worker groups that the cluster holds at once (at least one: the autoscaler may bring more nodes)."""
    have = ray.cluster_resources()
    by_cpu = int(have.get("CPU", 0)) // (training.max_workers * training.cpus_per_worker)
    if training.gpus_per_worker:
        return max(1, min(by_cpu, int(have.get("GPU", 0)) // (training.max_workers * training.gpus_per_worker)))
    return max(1, by_cpu)


@contextmanager
def _worker_groups(config: dict[str, Any], *, num_groups: int, desk: Any) -> Iterator[list[str]]:
    """Groups that take trials until the block ends; the list gets the error of each that ended before its time."""
    start = ray.remote(num_cpus=0, max_retries=0)(_run_group)
    names = [f"group-{number}" for number in range(num_groups)]
    running = {start.remote(config | {"group": name}): name for name in names}
    errors: list[str] = []

    def watch() -> None:
        left = list(running)
        while left:
            (ended,), left = ray.wait(left)
            error = _error_of(ended)
            if error is not None:
                errors.append(error)
                ray.get(desk.lose.remote(running[ended], error, last=not left))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield errors
    finally:
        ray.get(desk.close.remote())
        watcher.join()


def _error_of(group: Any) -> str | None:
    try:
        error: str | None = ray.get(group)
    except ray.exceptions.RayError as died:
        return f"a worker group's process died: {died}"
    return error


def _run_group(config: dict[str, Any]) -> str | None:
    """One group's whole life; the value is the error it ended with, if any."""
    section: TrainingSection = config["section"]
    trainer = new_trainer(group_worker, config, section=section, uri=f"{config['uri']}/groups", name=config["group"])
    try:
        trainer.fit()
    except Exception as error:
        return f"worker group failed {section.max_failures + 1} times: {error}"
    return None


def _tuner(
    section: TuningSection,
    *,
    training: TrainingSection,
    desk: Any,
    num_groups: int,
    to_beat: float,
    num_rows: int,
    uri: str,
) -> Any:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    from tuning.trial import Trial

    def hopeless(_trial_id: str, result: dict[str, Any]) -> bool:
        return not can_still_reach(
            result["scores"], epochs_left=result["epochs_left"], to_beat=to_beat, num_rows=num_rows
        )

    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # Tune's own tables, on top of our progress
    longest = max_epochs(training, section)
    store, path = filesystem(uri)
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(Trial, desk=desk, training=training), Trial.RESOURCES),
        param_space=tune_space(section),
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=section.num_trials,
            search_alg=_search(section, seed=training.seed, max_concurrent=num_groups),
            scheduler=ASHAScheduler(
                max_t=longest,
                grace_period=min(section.grace_epochs, longest),
                reduction_factor=section.reduction_factor,
            ),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=path,
            storage_filesystem=store,
            stop=hopeless,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def _search(section: TuningSection, *, seed: int, max_concurrent: int) -> Any:
    """Optuna, or random search; without a space there is nothing to search and every trial is the same."""
    import optuna
    from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if section.search == "optuna" and section.space:
        return ConcurrencyLimiter(OptunaSearch(seed=seed), max_concurrent=max_concurrent)
    return BasicVariantGenerator(random_state=seed, max_concurrent=max_concurrent)


def _result(
    outcomes: dict[str, dict[str, Any]],
    *,
    training: TrainingSection,
    rungs: dict[str, float],
    num_rows: int,
    errors: list[str],
) -> SweepResult:
    rows = [TrialRow(kind, {}, score, (), 0.0, "pretrained") for kind, score in rungs.items()]
    exported: list[tuple[bool, float, str]] = []
    for trial_id, found in outcomes.items():
        section = trial_section(training, found["config"])
        scores = tuple(epoch["score"] for epoch in found["epochs"])
        completed = len(scores) == section.epochs
        if found["outcome"] and found["outcome"]["weights"]:
            exported.append((completed, scores[-1], trial_id))
        rows.append(
            TrialRow(
                trial=trial_id,
                config=found["config"],
                score=scores[-1] if scores else 0.0,
                scores=scores,
                seconds=sum(epoch["step_seconds"] for epoch in found["epochs"]),
                status=_status(found, epochs=section.epochs, to_beat=max(rungs.values()), num_rows=num_rows),
            )
        )
    if not exported:
        failures = [*errors, *(found["failure"] for found in outcomes.values() if found["failure"])]
        raise TrainingFailed(f"no trial was trained to an export: {'; '.join(failures) or 'see the job log'}")
    selected = max(exported)[2]
    for _, _, trial_id in exported:
        if trial_id != selected:
            delete_folder(outcomes[trial_id]["outcome"]["weights"])
    best = outcomes[selected]
    return SweepResult(
        rows=tuple(sorted(rows, key=lambda row: -row.score)),
        selected=trial_section(training, best["config"]),
        trained=Trained(**best["outcome"]),
    )


def _status(found: dict[str, Any], *, epochs: int, to_beat: float, num_rows: int) -> str:
    scores = tuple(epoch["score"] for epoch in found["epochs"])
    if found["failure"]:
        return f"failed: {found['failure']}"
    if not scores:
        return "failed: no epoch was finished"
    if len(scores) == epochs:
        return "completed"
    if not can_still_reach(scores, epochs_left=epochs - len(scores), to_beat=to_beat, num_rows=num_rows):
        return "stopped: cannot reach the best rung any more"
    return "stopped: behind the other trials"
