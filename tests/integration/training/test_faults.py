"""Faults during training do not change the losses of the epochs."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ray.util import state as ray_state

from cluster.connection import connect
from cluster.event_queue import forward_events
from cluster.local import ports, s3_server
from cluster.progress import EpochEvent, ProgressEvent, ProgressReporter, StepEvent
from tailorbird.config.training import TrainingConfig
from tests.integration.small import REGISTRY, ROOT, write_data
from tests.integration.training.nodes import NUM_ROWS, steps
from tests.integration.training.test_training import training_task, worker_pid
from tests.progress import ProgressRecorder
from training import trainer
from training.task import TrainingTask
from training.trainer import TrainingFailed, finetune

BATCH_SIZE = 8
DOWN_S = 20


def config_of(**fields: Any) -> TrainingConfig:
    values = {"method": "lora", "epochs": 2, "batch_size": BATCH_SIZE, "learning_rate": 1e-3}
    return TrainingConfig.model_validate(values | fields)


def ends(recorder: ProgressRecorder) -> set[tuple[int, float, float]]:
    return {(event.epoch, event.loss, event.score) for event in recorder.of_kind(EpochEvent)}


class FaultInjector(ProgressRecorder):
    """Recorder that injects a fault once, at the first event of an epoch from `step` on."""

    def __init__(self, inject: Callable[[], None], *, epoch: int = 1, step: int = 2) -> None:
        super().__init__()
        self.inject, self.epoch, self.step, self.injected = inject, epoch, step, False

    def record(self, event: ProgressEvent) -> None:
        super().record(event)
        due = isinstance(event, StepEvent) and event.epoch == self.epoch and event.step >= self.step
        if due and not self.injected:
            self.injected = True
            self.inject()


def run(
    config: TrainingConfig,
    task: TrainingTask,
    *,
    recorder: ProgressReporter,
    uri: str | None = None,
) -> None:
    with connect(), forward_events(recorder) as events:
        finetune(
            config, task=task, uri=uri or f"{REGISTRY}/training-{uuid.uuid4().hex}", events=events
        )
    if isinstance(recorder, FaultInjector):
        assert recorder.injected


def num_workers_started() -> int:
    return len(ray_state.list_actors(filters=[("class_name", "=", "RayTrainWorker")], limit=1000))


@pytest.fixture(scope="module")
def task(small_data: str) -> TrainingTask:
    return training_task(small_data, num_rows=NUM_ROWS)


@pytest.fixture(scope="module")
def undisturbed(task: TrainingTask) -> set[tuple[int, float, float]]:
    """Epoch, loss and score of each epoch of training without faults."""
    recorder = ProgressRecorder()
    run(config_of(), task, recorder=recorder)
    return ends(recorder)


@pytest.mark.long
def test_sigterm_checkpoints_the_current_step_and_training_resumes_from_it(
    task: TrainingTask, undisturbed: set[tuple[int, float, float]]
) -> None:
    recorder = FaultInjector(lambda: os.kill(worker_pid(), signal.SIGTERM))
    with connect():
        before = num_workers_started()
        run(config_of(), task, recorder=recorder)
        assert (
            num_workers_started() == before + 2 * 2
        )  # the workers left after the notice, and others resumed
    assert ends(recorder) == undisturbed
    numbers = steps(recorder, epoch=1)
    assert numbers == sorted(
        set(numbers)
    )  # no step was computed twice, although the previous checkpoint was at the start of the epoch


@pytest.mark.long
def test_ray_46814_workers_killed_at_any_moment_do_not_change_the_losses(
    task: TrainingTask, undisturbed: set[tuple[int, float, float]]
) -> None:
    seed = random.randrange(1 << 30)
    generator, kills = random.Random(seed), 3
    ticks = threading.Event()
    recorder = ProgressRecorder()
    num_steps = NUM_ROWS // BATCH_SIZE
    due = [generator.randrange(int(1.6 * num_steps)) for _ in range(kills)]

    def report(event: ProgressEvent) -> None:
        recorder.record(event)
        if due and isinstance(event, StepEvent) and event.epoch * num_steps + event.step > min(due):
            ticks.wait(
                generator.random()
            )  # so that the kill is within a step, a checkpoint or its upload
            with suppress(
                IndexError, ProcessLookupError
            ):  # the worker group of this step may have ended
                os.kill(worker_pid(), signal.SIGKILL)
                due.remove(min(due))

    run(
        config_of(checkpoint_interval_s=1, max_failures=kills),
        task,
        recorder=ProgressReporter(report),
    )
    assert due == [], f"seed {seed}"
    assert ends(recorder) == undisturbed, f"seed {seed}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: Any) -> Iterator["Server"]:
    """A separate S3 server for the driver and the workers of a test."""
    assert stack.s3_endpoint
    base, claim = ports.claim_ports()
    own = Server(tmp_path, base=base)
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{base}",
        "TAILORBIRD_CACHE": str(tmp_path / "cache"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(trainer, "worker_environment", patched(environment))
    own.start()
    yield own
    own.kill()
    own.over.set()
    claim.close()


def patched(variables: dict[str, str]) -> Callable[[TrainingConfig], dict[str, str]]:
    environment = trainer.worker_environment
    return lambda config: environment(config) | variables


class Server:
    """A real S3 server that can be killed and restarted on its port and data."""

    def __init__(self, folder: Path, *, base: int) -> None:
        self.folder, self.base, self.over = folder, base, threading.Event()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        temp_dir = Path(tempfile.mkdtemp(prefix="tb-", dir="/tmp"))
        self.process = s3_server.start_s3(self.folder, base=self.base, temp_dir=temp_dir)
        while not s3_server.s3_answers(self.base, pid=self.process.pid):
            assert self.process.poll() is None
            threading.Event().wait(0.2)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def fail_temporarily(self) -> None:
        """Stop the server for 20 s, and return immediately."""
        self.kill()

        def restart() -> None:
            threading.Event().wait(DOWN_S)
            self.start()
            self.over.wait()  # the kernel ends the server when the thread that started it ends

        threading.Thread(target=restart, daemon=True).start()


@pytest.mark.long
def test_an_outage_of_s3_for_20_s_during_checkpoints_fails_no_worker(
    undisturbed: set[tuple[int, float, float]], server: Server
) -> None:
    write_data("s3://lake/small")
    task = training_task("s3://lake/small", num_rows=NUM_ROWS)
    recorder = FaultInjector(server.fail_temporarily)
    # Ray Train's controller also reads the S3 settings from its environment.
    with connect(runtime_env={"env_vars": {"AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}}):
        before = num_workers_started()
        run(config_of(checkpoint_interval_s=5), task, recorder=recorder)
        assert num_workers_started() == before + 2
    assert ends(recorder) == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of 64 MB for the temporary files of the workers."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted: {mounted.stderr.decode().strip()}")
    monkeypatch.setattr(trainer, "worker_environment", patched({"TMPDIR": str(folder)}))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.long
def test_a_full_disk_is_reported_and_training_resumes_from_the_last_checkpoint(
    task: TrainingTask, small_disk: Path, undisturbed: set[tuple[int, float, float]]
) -> None:
    uri, filler, over = (
        f"{REGISTRY}/training-{uuid.uuid4().hex}",
        small_disk / "filler",
        threading.Event(),
    )

    def keep_full() -> None:
        with filler.open("ab", buffering=0) as stream:
            while not over.wait(0.02):
                with suppress(
                    OSError
                ):  # the disk is full; it has space again when an incomplete checkpoint is deleted
                    stream.write(bytes(1 << 20))

    def fill() -> None:
        threading.Thread(target=keep_full, daemon=True).start()

    recorder = FaultInjector(fill)
    config = config_of(
        checkpoint_interval_s=5, max_failures=0
    )  # in a retry, Python would use another folder with space
    with pytest.raises(
        TrainingFailed,
        match=rf"after 0 retries: worker .*the disk is full: {small_disk} has .* left",
    ):
        run(config, task, recorder=recorder, uri=uri)
    over.set()
    filler.unlink()
    resumed = ProgressRecorder()
    run(config, task, recorder=resumed, uri=uri)
    assert steps(resumed, epoch=0) == []
    assert ends(recorder) | ends(resumed) == undisturbed


def nodes(kind: str) -> dict[str, Any]:
    """Train on changing nodes and return the report. A separate process is used, since this one is
    connected to Ray."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.integration.training.nodes", kind],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    reported: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return reported


@pytest.mark.long
def test_training_on_a_drained_node_is_checkpointed_at_the_current_step(
    small_data: str, undisturbed: set[tuple[int, float, float]]
) -> None:
    assert small_data == "s3://lake/small"
    reported = nodes("drained")
    assert {tuple(end) for end in reported["ends"]} == undisturbed
    assert reported["num_workers"] == 2 * 2  # the workers left after the notice, and others resumed
    assert reported["steps"] == sorted(set(reported["steps"]))


@pytest.mark.long
def test_elastic_training_grows_and_shrinks_with_the_nodes(small_data: str) -> None:
    assert small_data == "s3://lake/small"
    reported = nodes("elastic")
    assert reported["group_sizes"] == [1, 2, 1]
    epochs, losses, _ = zip(*reported["ends"], strict=True)
    assert list(epochs) == sorted(epochs)  # training resumed each time and did not start again
    assert set(epochs) == set(range(len(set(epochs))))
    assert losses[-1] < losses[0]
