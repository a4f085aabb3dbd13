"""Stored pickles are not loaded, and runs write no secrets to storage or logs."""

import os
import pickle
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from cluster.connection import connect
from cluster.event_queue import forward_events
from cluster.local import stack as stacks
from cluster.progress import ProgressEvent, ProgressReporter, StepEvent
from cluster.ray_private import exclude_from_tune_actors
from tailorbird import storage
from tailorbird.config.training import TrainingConfig
from tailorbird.storage import s3
from tests.integration.leaks import leaks, secrets_of
from tests.integration.small import REGISTRY, SmallRun
from tests.integration.training.test_training import training_task, worker_pid
from training.trainer import TrainingFailed, finetune
from tuning.tuner import ErrorsAsText


class Payload:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


class Sabotage(tune.Callback):  # type: ignore[misc]
    """A callback that replaces the stored error of a failed trial by the payload, which Tune copies
    to S3."""

    def __init__(self, marker: Path) -> None:
        self._content = pickle.dumps(Payload(marker))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        (Path(trial.local_path) / "error.pkl").write_bytes(self._content)


def fail(_: dict[str, Any]) -> None:
    raise ValueError("expected failure")


@pytest.mark.long
def test_tunes_pickles_on_s3_are_not_loaded_and_contain_no_secret(
    stack: stacks.StackState, bucket: str, tmp_path: Path
) -> None:
    marker = tmp_path / "it-ran"
    store, path = s3.filesystem(bucket)
    exclude_from_tune_actors("AWS_")
    with connect():
        tuner = tune.Tuner(
            tune.with_resources(fail, {"CPU": 0, "memory": 128 << 20}),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=path,
                storage_filesystem=store,
                callbacks=[Sabotage(marker), ErrorsAsText()],
                verbose=0,
            ),
        )
        assert "expected failure" in str(tuner.fit()[0].error)
    assert not marker.exists()
    left = {uri.rpartition("/")[2]: storage.read_bytes(uri) for uri in storage.list_files(bucket)}
    assert {"tuner.pkl", "error.pkl"} <= set(left)
    assert [
        name
        for name, content in left.items()
        if any(secret in content for secret in secrets_of(stack).values())
    ] == []
    assert leaks(stack, {}) == []
    pickle.loads(left["error.pkl"])
    assert marker.exists()  # the payload was stored, and works


def test_a_run_writes_no_secret_to_s3_or_logs(
    stack: stacks.StackState, small_run: SmallRun
) -> None:
    secrets = secrets_of(stack).values()
    files = storage.list_files(small_run.recipe.task_uri)
    assert [
        uri for uri in files if any(secret in storage.read_bytes(uri) for secret in secrets)
    ] == []
    assert leaks(stack, {}) == []


@pytest.mark.long
def test_a_training_with_code_in_its_checkpoint_fails_at_once_and_names_the_file(
    small_data: str, tmp_path: Path
) -> None:
    task = training_task(small_data, num_rows=200)
    config = TrainingConfig(epochs=50, batch_size=16, max_failures=0)
    uri, marker = f"{REGISTRY}/training-{uuid.uuid4().hex}", tmp_path / "it-ran"
    killed: list[int] = []

    def report(event: ProgressEvent) -> None:
        # Ray Train resumes from a checkpoint only if its controller has written this snapshot.
        if (
            not killed
            and isinstance(event, StepEvent)
            and storage.exists(f"{uri}/train/checkpoint_manager_snapshot.json")
        ):
            killed.append(worker_pid())
            os.kill(killed[0], signal.SIGKILL)

    with connect():
        with (
            forward_events(ProgressReporter(report)) as events,
            pytest.raises(TrainingFailed, match="run it again to resume from the last checkpoint"),
        ):
            finetune(config, task=task, uri=uri, events=events)
        states = [name for name in storage.list_files(f"{uri}/train") if "/state-" in name]
        assert states
        for name in states:
            storage.write_bytes(name, pickle.dumps(Payload(marker)))
        with pytest.raises(TrainingFailed) as refused:
            finetune(config, task=task, uri=uri)
    message = str(refused.value)
    assert any(f"{name} is truncated" in message for name in states)
    assert message.endswith(f"to start a new training, delete {uri}/train and run again")
    assert not marker.exists()
