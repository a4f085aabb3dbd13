"""Events of training workers, written to a file on this machine with the memory of the worker."""

import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.progress import EpochEvent, ProgressEvent, StepEvent, TrialEvent


@dataclass(frozen=True)
class WorkerLog:
    """Replacement for the handle of an EventQueue: `put.remote(event)` runs in the worker and
    appends a line.

    The first step event of epoch `kill_in_epoch` kills the worker with SIGKILL instead, once.
    """

    path: Path
    kill_in_epoch: int | None = None

    @property
    def put(self) -> "WorkerLog":
        return self

    def remote(self, event: ProgressEvent) -> None:
        if isinstance(event, StepEvent) and event.epoch == self.kill_in_epoch and not self.killed:
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        line = {"kind": type(event).__name__, "allocated": allocated_bytes()} | asdict(event)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    @property
    def _mark(self) -> Path:
        return self.path.with_suffix(".killed")

    @property
    def killed(self) -> bool:
        """True if the worker was killed."""
        return self._mark.exists()

    def lines(
        self, kind: type[EpochEvent] | type[StepEvent] | type[TrialEvent]
    ) -> list[dict[str, Any]]:
        """Return the events of this kind in the order in which they were written."""
        events = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return [event for event in events if event["kind"] == kind.__name__]


def allocated_bytes() -> int:
    """Return the bytes of this process's tensors on the GPU, or its resident memory without a
    GPU."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return int(psutil.Process().memory_info().rss)
