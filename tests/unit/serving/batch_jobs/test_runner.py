"""One runner per application, and the check of a job's locations before it runs."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from serving.batch_jobs import runner
from serving.http.schemas import BatchJob
from tests.unit.serving.batch_jobs.test_locations import CONFIG, TASK_URI


def queued(id: str, *, owner: str = "app") -> Any:
    return SimpleNamespace(id=id, owner=owner, status="queued", created_at=id)


def test_a_runner_waits_for_its_predecessors_and_ends_for_a_successor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = iter([{"old", "me"}, {"old", "me"}, {"me"}, {"me"}, {"me"}, {"me", "new"}])
    calls: list[str] = []
    monkeypatch.setattr(runner, "POLL_S", 0.0)
    monkeypatch.setattr(runner, "running_runners", lambda _task_uri: next(running))
    monkeypatch.setattr(runner, "unfinished_jobs", lambda _task_uri: [queued(f"b{len(calls)}")])
    monkeypatch.setattr(runner, "require_shipped_code", lambda: None)
    monkeypatch.setattr(runner.BatchRunner, "_run", lambda _self, batch_id: calls.append(batch_id))
    monkeypatch.setattr(
        ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_name=lambda: "me")
    )
    monkeypatch.setattr(ray.actor, "exit_actor", lambda: calls.append("exit"))
    runner.BatchRunner(TASK_URI, CONFIG, {"old"}).work()
    assert calls == ["b0", "b1", "exit"]
    assert next(running, None) is None


def test_a_runner_runs_the_jobs_of_different_owners_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = [queued(f"a{number}", owner="many") for number in range(3)] + [queued("b", owner="few")]
    ran: list[str] = []

    def run(_self: Any, batch_id: str) -> None:
        ran.append(batch_id)
        jobs[:] = [job for job in jobs if job.id != batch_id]

    monkeypatch.setattr(runner, "running_runners", lambda _task_uri: set())
    monkeypatch.setattr(runner, "unfinished_jobs", lambda _task_uri: [*jobs])
    monkeypatch.setattr(runner, "require_shipped_code", lambda: None)
    monkeypatch.setattr(runner.BatchRunner, "_run", run)
    monkeypatch.setattr(
        ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_name=lambda: "me")
    )
    monkeypatch.setattr(ray.actor, "exit_actor", lambda: None)
    runner.BatchRunner(TASK_URI, CONFIG, set()).work()
    assert ran == ["a0", "b", "a1", "a2"]


def test_a_manipulated_state_on_s3_gives_no_access_to_other_locations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = {
        name: "x" for name in BatchJob.model_fields if BatchJob.model_fields[name].is_required()
    }
    fields |= {"status": "running", "input": "s3://lake/pre/in", "output": "s3://lake/secrets"}
    job = BatchJob.model_validate(fields)
    monkeypatch.setattr(runner, "read_job", lambda *_: job)
    monkeypatch.setattr(runner, "score_batch", None)  # not reached
    error = runner.run_job(TASK_URI, "0" * 24, CONFIG)
    assert error is not None
    assert "s3://lake/secrets is not under a prefix" in error
