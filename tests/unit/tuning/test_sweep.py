"""What a sweep hears of its worker groups, without Ray."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError

from tailorbird import storage
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import TuningConfig
from tailorbird.storage import s3
from tuning.sweep import RequeueOnFailure, _keeper
from tuning.tuner import build_tuner


def test_a_group_that_failed_puts_its_trial_back_with_the_cause() -> None:
    told: list[Any] = []
    desk = SimpleNamespace(put_back=SimpleNamespace(remote=lambda *given: told.append(given)))
    callback = RequeueOnFailure(desk, "group-0", uri="s3://models/sweep")
    error = OutOfMemoryError("Task was killed due to the node running low on memory.")
    callback.after_exception(run_context=None, worker_exceptions={1: error})
    assert [group for group, _ in told] == ["group-0"]
    assert told[0][1].startswith("worker 1: ")
    assert "memory" in told[0][1]


def test_a_sweep_s_journal_and_tune_s_own_files_wait_for_s3_as_workers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    attempts: list[int] = []

    def note(uri: str, **options: Any) -> Any:
        store, path = s3.filesystem(uri, **options)
        attempts.append(store.chosen.num_attempts)
        raise OSError(path)

    monkeypatch.setattr(storage, "filesystem", note)
    monkeypatch.setattr("tuning.tuner.filesystem", note)
    with pytest.raises(OSError, match=r"journal\.json"):
        _keeper("s3://models/sweep")({"trials": [], "ended": None})
    asked: Any = {"stopper": None, "desk": None, "known": (), "at_once": 1, "uri": "s3://models/sweep"}
    monkeypatch.setattr("tuning.tuner.on_this_node", dict)
    with pytest.raises(OSError, match="models/sweep"):
        build_tuner(TuningConfig(), training=TrainingConfig(), **asked)
    assert attempts == [s3.PERSISTENT.min_attempts] * 2
