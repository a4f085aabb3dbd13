"""The sweep: Ray Tune samples configurations, worker groups train them, and the best one on
validation is selected."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ray
from pydantic import BaseModel

from cluster.remote import this_node_selector
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import TuningConfig
from tailorbird.storage import delete_folder, list_folder
from tailorbird.storage.stage_cache import new_name
from tailorbird.storage.stored_model import StoredModel
from training.reports import TrainingResult
from training.task import TrainingTask
from training.tokenization import with_tokenized_rows
from training.trainer import TrainingFailed
from tuning.search_space import base_model_of, trial_config
from tuning.trial_broker import TrialBroker, WorkerGroupJob
from tuning.trial_record import (
    SampledValues,
    SweepJournal,
    TrialRecord,
    read_journal,
    write_journal,
)
from tuning.tuner import build_tuner
from tuning.worker_groups import num_groups_that_fit, run_worker_groups


class TrialRow(BaseModel, frozen=True):
    """A row of the sweep's table: a trial, or a baseline (`trial` is then its kind, and `config` is
    empty)."""

    trial: str
    config: SampledValues
    score: float  # validation score after the last finished epoch
    scores: tuple[float, ...]  # validation score after each epoch
    seconds: float  # time in training steps
    status: str  # `baseline`, `completed`, `stopped: …` or `failed: …`


class SweepResult(StoredModel):
    """The sweep's table, best row first, and the trial selected on validation."""

    rows: tuple[TrialRow, ...]
    base_model: str  # name of the selected trial's base model
    selected: TrainingConfig
    trained: TrainingResult


def sweep(
    config: TuningConfig,
    *,
    training: TrainingConfig,
    tasks: Mapping[str, TrainingTask],
    baselines: Mapping[str, float],
    uri: str,
    events: Any = None,
) -> SweepResult:
    """Run the trials and select one on validation; all files are stored in `uri`.

    `tasks` are those of the base models by name, in the order in which they are tried first.
    `baselines` are the validation scores by kind of baseline, for the table.
    If the driver fails, another call resumes: finished trials are not trained again, and others
    resume from their checkpoints. `events` is the handle of an EventQueue, or None. Raises
    TrainingFailed if no trial was exported.
    """
    # Otherwise Tune and Train would resume their own runs of an interrupted sweep.
    for name in ("tune", "groups"):
        delete_folder(f"{uri}/{name}")
    known = read_journal(uri).trials
    actor = ray.remote(TrialBroker).options(
        num_cpus=0, max_concurrency=1000, label_selector=this_node_selector()
    )
    broker = actor.remote(
        keep=partial(write_journal, uri=uri), num_trials=config.num_trials, known=known
    )
    base_models = tuple(tasks)
    num_groups = config.trials_at_once(room=num_groups_that_fit(training))
    job = WorkerGroupJob(
        "",
        training,
        tasks={name: ray.put(with_tokenized_rows(task)) for name, task in tasks.items()},
        broker=broker,
        events=events,
        uri=uri,
        run=new_name(),
        num_trials=config.num_trials,
    )
    with run_worker_groups(job, num_groups=num_groups) as errors:
        tuner = build_tuner(
            config,
            training=training,
            base_models=base_models,
            broker=broker,
            known=known,
            max_concurrent=num_groups,
            uri=uri,
        )
        tuner.fit()
    journal = ray.get(broker.journal.remote())
    trained = select_trial(journal, errors=errors)
    delete_folder(f"{uri}/checkpoints")
    assert trained.result is not None
    return SweepResult(
        rows=table(journal, training=training, baselines=baselines),
        base_model=base_model_of(trained.config, base_models),
        selected=trial_config(training, trained.trained_config),
        trained=trained.result,
    )


def delete_other_weights(trained: TrainingResult) -> None:
    """Delete the other weights of the stage of `trained`: of trials not selected, or of other
    drivers of a training.

    Call it when the result is stored: until then, another driver of the same stage may return some
    of these weights.
    """
    folder, _, selected = trained.weights.rpartition("/")
    prefix = f"{selected.partition('-')[0]}-"  # `trial-` or `weights-`
    for entry in list_folder(folder):
        # Calibrated copies of the selected weights (`set_decision`) have names that start with the
        # same name.
        if entry.name.startswith(prefix) and not entry.name.startswith(selected):
            delete_folder(entry.uri)


def table(
    journal: SweepJournal, *, training: TrainingConfig, baselines: Mapping[str, float]
) -> tuple[TrialRow, ...]:
    """Return a row for each baseline and each trial, in descending order of score."""
    rows = [
        TrialRow(trial=kind, config={}, score=score, scores=(), seconds=0.0, status="baseline")
        for kind, score in baselines.items()
    ]
    for record in journal.trials:
        num_epochs = trial_config(training, record.config).epochs
        rows.append(
            TrialRow(
                trial=record.trial,
                config=record.trained_config,
                score=record.scores[-1] if record.scores else 0.0,
                scores=record.scores,
                seconds=sum(epoch.step_seconds for epoch in record.epochs),
                status=_status(record, num_epochs=num_epochs),
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.score))


def select_trial(journal: SweepJournal, *, errors: Sequence[str]) -> TrialRecord:
    """Return the best exported trial, completed trials before stopped ones; the first of equal
    trials. Raises TrainingFailed if there is none."""
    exported = [record for record in journal.trials if record.exported_rank is not None]
    if not exported:
        failures = [*errors, *(record.failure for record in journal.trials if record.failure)]
        raise TrainingFailed(
            f"no trial produced weights: {'; '.join(failures) or 'see the job log'}"
        )
    return max(exported, key=lambda record: record.exported_rank or ())


def _status(record: TrialRecord, *, num_epochs: int) -> str:
    if record.failure:
        return f"failed: {record.failure}"
    if len(record.scores) == num_epochs:
        return "completed"
    if record.scores:
        return "stopped: worse than other trials"
    return "failed: no epoch was finished"
