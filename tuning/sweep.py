"""The sweep: Ray Tune chooses, worker groups train, and the pretrained rungs stand in the table as the rows to beat."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ray
from ray.train import UserCallback, WorkerGroupError

from cluster.remote import on_this_node
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import TuningConfig
from tailorbird.storage import delete_folder, exists, read_json, write_json
from tailorbird.storage.s3 import PERSISTENT
from training.errors import describe_failure
from training.task import TrainingTask
from training.trainer import TrainingFailed, TrainingResult, build_torch_trainer
from tuning.futility import Target, TrialScores, can_still_reach
from tuning.search_space import trial_config
from tuning.trial_broker import Journal, TrialBroker, TrialRecord
from tuning.tuner import FutilityStopper, build_tuner, groups_that_fit
from tuning.worker import train_trials


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
    selected: TrainingConfig
    trained: TrainingResult
    ended: str | None = None
    """Why the sweep ended before all trials had run, if it did."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": [row.to_dict() for row in self.rows],
            "selected": self.selected.model_dump(),
            "trained": self.trained.to_dict(),
            "ended": self.ended,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "SweepResult":
        rows = tuple(TrialRow(**row | {"scores": tuple(row["scores"])}) for row in value["rows"])
        selected, trained = TrainingConfig.model_validate(value["selected"]), TrainingResult(**value["trained"])
        return cls(rows, selected, trained, value["ended"])


def sweep(
    section: TuningConfig, *, training: TrainingConfig, task: TrainingTask, goal: Target, uri: str, relay: Any = None
) -> SweepResult:
    """Runs the trials and selects one on validation; everything it leaves lies under `uri`.

    Run again after the driver died, it goes on: finished trials are not trained again, others go on from their
    checkpoints. `relay` is an actor with a `tell(event)` method. Raises TrainingFailed when no trial ran to an export.
    """
    known = _known_trials(uri)
    desk = ray.remote(TrialBroker).options(num_cpus=0, max_concurrency=1000, label_selector=on_this_node())
    desk = desk.remote(keep=_keeper(uri), known=known)
    num_rows = len(task.validation)
    config = {"section": training, "task": ray.put(task), "desk": desk, "relay": relay, "uri": uri}
    at_once = section.trials_at_once(room=groups_that_fit(training))
    with _worker_groups(config, num_groups=at_once, desk=desk) as errors:
        stopper = FutilityStopper(goal, desk=desk, num_trials=section.num_trials, num_rows=num_rows)
        tuner = build_tuner(
            section, training=training, stopper=stopper, desk=desk, known=known, at_once=at_once, uri=uri
        )
        tuner.fit()
    journal = ray.get(desk.journal.remote())
    return _result(journal, training=training, goal=goal, num_rows=num_rows, errors=errors, uri=uri)


def _journal(uri: str) -> str:
    return f"{uri}/journal.json"


def _keeper(uri: str) -> Callable[[Journal], None]:
    """Writes the journal. Patiently, as workers are: a report waits for it, and would fail with it."""
    return partial(write_json, _journal(uri), retry_policy=PERSISTENT)


def _known_trials(uri: str) -> list[TrialRecord]:
    """The trials of a sweep that was interrupted; what its Tune and Train runs left goes, or they would go on by it."""
    for name in ("tune", "groups"):
        delete_folder(f"{uri}/{name}")
    if not exists(_journal(uri)):
        return []
    return [TrialRecord.from_dict(value) for value in read_json(_journal(uri))["trials"]]


@contextmanager
def _worker_groups(config: dict[str, Any], *, num_groups: int, desk: Any) -> Iterator[list[str]]:
    """Groups that take trials until the block ends; the list gets the error of each that ended before its time."""
    start = ray.remote(num_cpus=0, max_retries=0, label_selector=on_this_node())(_run_group)
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
                with suppress(ray.exceptions.RayActorError):  # the sweep was interrupted, and the desk with it
                    ray.get(desk.lose.remote(running[ended], error, last=not left))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield errors
    except BaseException:
        ray.kill(desk)  # what is cut short now must not go down in the journal as finished
        raise
    ray.get(desk.close.remote())
    watcher.join()  # a group that waits for CPUs gets those of the others, and goes home


def _error_of(group: Any) -> str | None:
    try:
        error: str | None = ray.get(group)
    except ray.exceptions.RayError as died:
        return f"a worker group's process died: {died}"
    return error


class RequeueOnFailure(UserCallback):  # type: ignore[misc]
    """Ray Train's word that workers of a group failed: its trial is for whoever comes first.

    The group itself comes back when it has its CPUs again, which may be long, or never: its node is gone, and the
    other groups hold theirs while they wait for a trial.
    """

    def __init__(self, desk: Any, group: str, *, uri: str) -> None:
        self._desk, self._group, self._uri = desk, group, uri

    def after_exception(self, *, worker_exceptions: dict[int, Exception], **_: Any) -> None:
        told = describe_failure(WorkerGroupError("", worker_exceptions), uri=self._uri)
        self._desk.put_back.remote(self._group, told)


def _run_group(config: dict[str, Any]) -> str | None:
    """One group's whole life; the value is the error it ended with, if any."""
    section: TrainingConfig = config["section"]
    group, desk = config["group"], config["desk"]
    heard = RequeueOnFailure(desk, group, uri=config["uri"])
    trainer = build_torch_trainer(
        train_trials, config, section=section, uri=f"{config['uri']}/groups/{group}", callbacks=[heard]
    )
    try:
        trainer.fit()
    except Exception as error:
        return f"worker group failed {section.max_failures + 1} times: {describe_failure(error, uri=config['uri'])}"
    return None


def _result(
    journal: Journal, *, training: TrainingConfig, goal: Target, num_rows: int, errors: Sequence[str], uri: str
) -> SweepResult:
    records = [TrialRecord.from_dict(value) for value in journal["trials"]]
    rows = [TrialRow(kind, {}, score, (), 0.0, "pretrained") for kind, score in goal.rungs.items()]
    for record in records:
        epochs = trial_config(training, record.config).epochs
        scores = tuple(epoch["score"] for epoch in record.epochs)
        rows.append(
            TrialRow(
                trial=record.trial,
                config=record.config,
                score=scores[-1] if scores else 0.0,
                scores=scores,
                seconds=sum(epoch["step_seconds"] for epoch in record.epochs),
                status=_status(record, epochs=epochs, to_beat=goal.to_beat, num_rows=num_rows),
            )
        )
    best = _best(records)
    if best is None:
        failures = [*errors, *(record.failure for record in records if record.failure)]
        raise TrainingFailed(f"no trial was trained to an export: {'; '.join(failures) or 'see the job log'}")
    assert best.outcome is not None
    for record in records:
        if record is not best:
            delete_folder(f"{uri}/trial-{record.trial}")
    delete_folder(f"{uri}/checkpoints")
    return SweepResult(
        rows=tuple(sorted(rows, key=lambda row: -row.score)),
        selected=trial_config(training, best.config),
        trained=TrainingResult(**best.outcome),
        ended=journal["ended"],
    )


def _best(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The best of those with weights; one that ran to its end before one that was stopped."""
    kept = [record for record in records if record.outcome and record.outcome["weights"]]
    return max(kept, key=lambda record: (record.completed, record.epochs[-1]["score"], record.trial), default=None)


def _status(record: TrialRecord, *, epochs: int, to_beat: float, num_rows: int) -> str:
    scores = tuple(epoch["score"] for epoch in record.epochs)
    if record.failure:
        return f"failed: {record.failure}"
    if len(scores) == epochs:
        return "completed"
    if not can_still_reach(TrialScores(scores, epochs - len(scores)), to_beat=to_beat, num_rows=num_rows):
        return "stopped: cannot reach the goal any more"
    if record.with_sweep:
        return "stopped: with the sweep"
    return "stopped: behind the other trials" if scores else "failed: no epoch was finished"
