"""A worker group that trains one trial after another: the training function of the sweep's Ray Train run."""

import gc
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist

from cluster.storage import upload_folder
from recipes.schema import TrainingSection
from training.export import UnusableWeights, export_weights
from training.loop import EpochReport, load_material, new_engine, train
from training.material import Diverged, Material
from training.trainer import summary, teller
from training.zero import stop_engine
from tuning.space import trial_section


def group_worker(config: dict[str, Any]) -> None:
    """Takes trials from the desk until there are none; `config` holds group, section, task, desk, relay and uri."""
    section: TrainingSection = config["section"]
    material = load_material(ray.get(config["task"]), attention_dropout=section.attention_dropout)
    gc.freeze()  # what all trials share is not walked when a trial's engine is collected
    while True:
        taken = _from_rank_0(lambda: ray.get(config["desk"].take.remote(config["group"])))
        if taken is None:
            return
        _run_trial(*taken, material=material, config=config)


def _run_trial(trial_id: str, values: dict[str, Any], *, material: Material, config: dict[str, Any]) -> None:
    section = trial_section(config["section"], values)
    desk, relay = config["desk"], config["relay"]
    engine = new_engine(section, material)

    def on_epoch(report: EpochReport, _: Any) -> bool:
        last = report.epoch + 1 == section.epochs
        if relay is not None and dist.get_rank() == 0:
            relay.tell.remote({"event": "epoch", "trial": trial_id, **asdict(report)})
        told = asdict(report) | {"last": last}
        return bool(_from_rank_0(lambda: ray.get(desk.report.remote(trial_id, told))))

    try:
        report = train(engine, section, material=material, on_step=teller(relay, trial=trial_id), on_epoch=on_epoch)
    except Diverged as diverged:
        if dist.get_rank() == 0:
            ray.get(desk.give_up.remote(config["group"], trial_id, str(diverged)))
        stop_engine(engine)
        return
    completed = report.epoch + 1 == section.epochs
    weights = f"{config['uri']}/trial-{trial_id}"
    wanted = _from_rank_0(lambda: ray.get(desk.is_best.remote(score=report.score, completed=completed)))
    exported = wanted and _export(engine, section, material=material, weights=weights)
    if dist.get_rank() == 0:
        outcome = asdict(summary(report, weights=weights if exported else ""))
        ray.get(desk.finish.remote(config["group"], trial_id, outcome))
    stop_engine(engine)


def _export(engine: Any, section: TrainingSection, *, material: Material, weights: str) -> bool:
    """Uploads the weights; False on rank 0 if they are unusable, which is the trial's fault and not the group's."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            export_weights(engine, section, material=material, folder=Path(folder))
        except UnusableWeights:
            return False
        if dist.get_rank() == 0:
            upload_folder(Path(folder), weights)
    return True


def _from_rank_0(function: Callable[[], Any]) -> Any:
    """What `function` returns on rank 0, on every rank."""
    box = [function() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]
