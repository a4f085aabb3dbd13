"""A worker group that trains one trial after another: the training function of the sweep's Ray Train run."""

import gc
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ray
import torch.distributed as dist

from tailorbird.config.training import TrainingConfig
from tailorbird.storage import delete_folder, download_folder, upload_folder
from training import checkpoint, preemption
from training.deepspeed_engine import destroy_engine
from training.errors import temporary_directory
from training.export import UnusableWeights, export_weights
from training.loop import EpochReport, Progress, build_engine, train
from training.safe_checkpoint_loading import UnusableCheckpoint
from training.task import Diverged, TaskRuntime
from training.trainer import step_reporter, training_result
from tuning.search_space import trial_config

WORTH_S = 120.0
"""Seconds of a trial's work that are worth a checkpoint at an epoch's end: writing one takes up to 5 (MiniLM, a busy
machine of two cores)."""


def train_trials(config: dict[str, Any]) -> None:
    """Takes trials from the desk until there are none; `config` holds group, section, task, desk, relay and uri."""
    section: TrainingConfig = config["section"]
    preemption.install_handlers()
    material = ray.get(config["task"]).load_runtime(attention_dropout=section.attention_dropout)
    gc.freeze()  # what all trials share is not walked when a trial's engine is collected
    while True:
        taken = _from_rank_0(lambda: ray.get(config["desk"].take.remote(config["group"])))
        if taken is None:
            return
        name, values, saved = taken
        _tell(config["relay"], {"event": "trial", "trial": name, "config": values, "status": "training"})
        status = _run_trial(name, values, saved=saved, material=material, config=config)
        _tell(config["relay"], {"event": "trial", "trial": name, "config": values, "status": status})


def _run_trial(
    name: str, values: dict[str, Any], *, saved: str | None, material: TaskRuntime, config: dict[str, Any]
) -> str:
    """One trial from where it is to its end; the value says how it ended."""
    section = trial_config(config["section"], values)
    desk, relay, group = config["desk"], config["relay"], config["group"]
    checkpoints = f"{config['uri']}/checkpoints/{name}"
    try:
        engine, progress = _begin(section, material, saved=saved)
    except UnusableCheckpoint as unusable:
        _give_up(name, str(unusable), checkpoints=checkpoints, config=config)
        return "failed"
    save, is_worth_it = _saving(section, desk=desk, name=name, uri=checkpoints)

    def on_epoch(report: EpochReport, engine: Any) -> bool:
        told = asdict(report) | {"last": report.epoch + 1 == section.epochs}
        _tell(relay, {"event": "epoch", "trial": name, **asdict(report)})
        go_on, save_now = _from_rank_0(lambda: (ray.get(desk.report.remote(name, told)), is_worth_it()))
        if go_on and save_now and not told["last"]:
            save(Progress(epoch=report.epoch + 1, last=report), engine)
        return bool(go_on)

    try:
        report = train(
            engine,
            section,
            material=material,
            on_step=step_reporter(relay, trial=name),
            on_epoch=on_epoch,
            on_save=save,
            progress=progress,
        )
    except Diverged as diverged:
        _give_up(name, str(diverged), checkpoints=checkpoints, config=config)
        destroy_engine(engine)
        return "failed"
    completed = report.epoch + 1 == section.epochs
    weights = f"{config['uri']}/trial-{name}"
    wanted = _from_rank_0(lambda: ray.get(desk.is_best.remote(score=report.score, completed=completed)))
    exported = wanted and _export(engine, section, material=material, weights=weights)
    if dist.get_rank() == 0:
        outcome = asdict(training_result(report, weights=weights if exported else ""))
        ray.get(desk.finish.remote(group, name, outcome))
        delete_folder(checkpoints)
    destroy_engine(engine)
    return "completed" if completed else "stopped"


def _give_up(name: str, message: str, *, checkpoints: str, config: dict[str, Any]) -> None:
    """For good: tried again, it would come to the same end."""
    if dist.get_rank() == 0:
        ray.get(config["desk"].give_up.remote(config["group"], name, message))
        delete_folder(checkpoints)


def _begin(section: TrainingConfig, material: TaskRuntime, *, saved: str | None) -> tuple[Any, Progress]:
    """An engine at its first step, or where the checkpoint is, and how far that is."""
    if saved is None:
        return build_engine(section, material), Progress()
    with temporary_directory() as parent:
        folder = parent / "checkpoint"
        download_folder(saved, folder)
        return checkpoint.resume(section, material, folder=folder, uri=saved)


def _saving(
    section: TrainingConfig, *, desk: Any, name: str, uri: str
) -> tuple[Callable[[Progress, Any], None], Callable[[], bool]]:
    """What writes the trial's checkpoint, and what tells whether one is worth it at an epoch's end.

    On S3 by ourselves and not by Ray Train's report: a group's Train run goes through many trials, each with
    checkpoints of its own, which end with it, and from which another group, or another driver's, can go on.
    """
    since = time.perf_counter()

    def is_worth_it() -> bool:
        return time.perf_counter() - since >= min(WORTH_S, section.checkpoint_interval_s)

    def save(progress: Progress, engine: Any) -> None:
        nonlocal since
        new = f"{uri}/{progress.epoch}-{progress.step}-{dist.get_world_size()}"
        with temporary_directory() as folder:
            checkpoint.save(engine, section, folder=folder, progress=progress)
            upload_folder(folder, new)
        dist.barrier()  # it is whole when every rank's part is there
        if dist.get_rank() == 0:
            before = ray.get(desk.saved.remote(name, new))
            if before is not None:
                delete_folder(before)
        since = time.perf_counter()
        who = preemption.preemption_reason()
        if who is not None:
            raise preemption.Interrupted(
                f"{who}; trial {name} is kept at epoch {progress.epoch + 1}, step {progress.step}"
            )

    return save, is_worth_it


def _export(engine: Any, section: TrainingConfig, *, material: TaskRuntime, weights: str) -> bool:
    """Uploads the weights; False on rank 0 if they are unusable, which is the trial's fault and not the group's."""
    with temporary_directory() as folder:
        try:
            export_weights(engine, section, material=material, folder=folder)
        except UnusableWeights:
            return False
        if dist.get_rank() == 0:
            upload_folder(folder, weights)
    return True


def _tell(relay: Any, event: dict[str, Any]) -> None:
    if relay is not None and dist.get_rank() == 0:
        relay.tell.remote(event)


def _from_rank_0(function: Callable[[], Any]) -> Any:
    """What `function` returns on rank 0, on every rank."""
    box = [function() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]
