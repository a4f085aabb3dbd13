"""The message of a failed training has the cause and the remedy."""

import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)

from tailorbird.storage.s3 import StorageError
from training.errors import DiskFull, OutOfMemory, describe_failure, staging_directory
from training.preemption import Interrupted
from training.trainer import EndAtOutOfMemory

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
            group(
                raised(RuntimeError("Connection closed by peer")),
                raised(torch.OutOfMemoryError("CUDA out of memory. GPU 0 has x")),
            ),
            "^worker 1: CUDA out of memory; set several of training",
        ),
        (
            ControllerError(OSError("AWS Error NETWORK_CONNECTION during PutObject: curlCode: 7")),
            f"{URI}: .* is not reachable; check AWS_ENDPOINT_URL",
        ),
    ],
)
def test_the_message_has_the_cause_and_the_remedy(error: Exception, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(describe_failure(error, uri=URI))


def test_a_run_ends_with_the_smallest_limit_of_its_workers_and_retries_other_failures() -> None:
    failures = [raised(pickle.loads(pickle.dumps(OutOfMemory(limit)))) for limit in (1024, 512)]
    callback = EndAtOutOfMemory()
    lost = RuntimeError("Connection closed by peer")
    row_too_long = torch.OutOfMemoryError("CUDA out of memory")
    callback.after_exception(worker_exceptions={0: lost, 1: raised(row_too_long)})
    with pytest.raises(OutOfMemory) as error:
        callback.after_exception(worker_exceptions={0: lost, **dict(enumerate(failures, start=1))})
    assert error.value.batch_tokens == 512
    assert "512" in str(error.value)


def test_a_full_disk_raises_disk_full() -> None:
    folder = tempfile.gettempdir()
    with (
        pytest.raises(DiskFull, match=f"the disk is full: {folder} has .* left "),
        staging_directory(),
    ):
        Path("/dev/full").write_bytes(b"weights")
