"""The message of a failed training has the cause and the remedy."""

import pickle
import tempfile
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)

from tailorbird.config.training import TrainingConfig
from tailorbird.storage.s3 import StorageError
from training.errors import (
    DiskFull,
    OutOfMemory,
    describe_failure,
    restart_is_expected,
    temporary_directory,
)
from training.preemption import Interrupted
from training.trainer import no_retry_callback

URI = "s3://models/task/train"


def died(text: str) -> Exception:
    error = ActorDiedError()
    error.error_msg = text
    wrapped: Exception = WorkerHealthCheckFailedError("Failed to check worker", failure=error)
    return wrapped


def raised(error: Exception) -> Exception:
    wrapped: Exception = UserExceptionWithTraceback(error, "Traceback (most recent call last): ...")
    return wrapped


def group(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("long", dict(enumerate(failures)))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            group(died("The actor died.\nThe actor died because its node has died. Node Id: 7f")),
            "its node was lost",
        ),
        (
            group(died("x\nWorker exit type: SYSTEM_ERROR Worker exit detail: End of file.")),
            "out-of-memory .* dmesg",
        ),
        (
            group(died("Task was killed due to the node running low on memory.")),
            "out of memory; set training.gradient",
        ),
        (
            group(raised(StorageError("s3://a cannot be reached"))),
            "worker 0: s3://a cannot be reached",
        ),
        (
            group(raised(Interrupted("the worker received SIGTERM"))),
            "worker 0: the worker received SIGTERM",
        ),
        (group(raised(ZeroDivisionError("by zero"))), "worker 0: ZeroDivisionError: by zero"),
        (
            ControllerError(OSError("AWS Error NETWORK_CONNECTION during PutObject: curlCode: 7")),
            f"{URI}: .* is not reachable; check AWS_ENDPOINT_URL",
        ),
    ],
)
def test_the_message_has_the_cause_and_the_remedy(error: Exception, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(describe_failure(error, uri=URI))


def test_a_gpu_out_of_memory_ends_the_run_without_a_retry() -> None:
    callback = no_retry_callback(TrainingConfig(num_workers=2))
    lost, full = (
        raised(RuntimeError("Connection closed by peer")),
        raised(OutOfMemory("CUDA out of memory; set x", 2)),
    )
    callback.after_exception(run_context=None, worker_exceptions={0: lost})
    with pytest.raises(OutOfMemory, match=r"^worker 1: CUDA out of memory; set x$"):
        callback.after_exception(run_context=None, worker_exceptions={0: lost, 1: full})
    error = ControllerError(OutOfMemory("worker 1: CUDA out of memory; set x", 2))
    assert describe_failure(error, uri=URI) == "worker 1: CUDA out of memory; set x"
    assert describe_failure(group(lost, full), uri=URI) == "worker 1: CUDA out of memory; set x"


def test_a_gpu_out_of_memory_is_final_only_with_the_maximum_number_of_workers() -> None:
    """Workers of a group that lost a node hold more of the sharded states than those of a full
    group."""
    callback = no_retry_callback(
        TrainingConfig.model_validate({"num_workers": {"min": 2, "max": 4}})
    )
    smaller, full = (
        pickle.loads(pickle.dumps(OutOfMemory("CUDA out of memory", number))) for number in (2, 4)
    )
    callback.after_exception(run_context=None, worker_exceptions={0: raised(smaller)})
    with pytest.raises(OutOfMemory, match=r"^worker 0: CUDA out of memory$"):
        callback.after_exception(run_context=None, worker_exceptions={0: raised(full)})


def preempted() -> Exception:
    error = died("its node was preempted")
    error.health_check_failure._preempted = True  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (raised(OutOfMemory("CUDA out of memory", 2)), True),
        (OutOfMemoryError("Task was killed due to the node running low on memory."), True),
        (died("Task was killed due to the node running low on memory."), True),
        (raised(Interrupted("the worker received SIGTERM")), True),
        (preempted(), True),
        (died("The actor died because its node has died. Node Id: 7f"), False),
        (raised(StorageError("s3://a cannot be reached")), False),
        (raised(ModuleNotFoundError("No module named 'x'")), False),
    ],
)
def test_a_restart_is_expected_after_a_lack_of_memory_or_a_preemption_of_any_worker(
    error: Exception, expected: bool
) -> None:
    assert (
        restart_is_expected([raised(RuntimeError("Connection closed by peer")), error]) is expected
    )


def test_the_message_names_the_dead_worker_and_not_lost_connections() -> None:
    error = group(
        raised(RuntimeError("Connection closed by peer")), died("Worker exit detail: End of file.")
    )
    assert "Connection closed" not in describe_failure(error, uri=URI)
    assert describe_failure(error, uri=URI).startswith("worker 1: ")


def test_a_full_disk_raises_disk_full() -> None:
    folder = tempfile.gettempdir()
    with (
        pytest.raises(DiskFull, match=f"the disk is full: {folder} has .* left "),
        temporary_directory(),
    ):
        Path("/dev/full").write_bytes(b"weights")


def test_another_error_passes_through_temporary_directory() -> None:
    with pytest.raises(ZeroDivisionError), temporary_directory():
        raise ZeroDivisionError
