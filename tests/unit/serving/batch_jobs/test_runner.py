"""One runner per application, and the locations that a batch may read and write."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from serving.batch_jobs import runner
from serving.batch_jobs.locations import location_error, normalized_locations
from serving.batch_jobs.schema import BatchError
from serving.http.schemas import BatchJob
from tailorbird.config.serving import ServingConfig


def job_of(id: str = "0" * 24, **fields: Any) -> BatchJob:
    """Return a running job with these fields."""
    content = {name: "x" for name, field in BatchJob.model_fields.items() if field.is_required()}
    return BatchJob.model_validate(content | {"id": id, "status": "running"} | fields)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs that a runner named `me` ran so far, and its exit."""
    ran: list[str] = []
    context = SimpleNamespace(get_actor_name=lambda: "me")
    monkeypatch.setattr(runner, "POLL_S", 0.0)
    monkeypatch.setattr(runner, "require_shipped_code", lambda: None)
    monkeypatch.setattr(runner.BatchRunner, "_run", lambda _self, batch_id: ran.append(batch_id))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray.actor, "exit_actor", lambda: ran.append("exit"))
    return ran


def test_a_runner_waits_for_its_predecessors_and_ends_for_a_successor(
    monkeypatch: pytest.MonkeyPatch, ran: list[str]
) -> None:
    running = iter([{"old", "me"}, {"old", "me"}, {"me"}, {"me"}, {"me"}, {"me", "new"}])
    monkeypatch.setattr(runner, "running_runners", lambda _task_uri: next(running))
    monkeypatch.setattr(runner, "unfinished_jobs", lambda _task_uri: [job_of(f"b{len(ran)}")])
    runner.BatchRunner(TASK_URI, CONFIG, {"old"}).work()
    assert ran == ["b0", "b1", "exit"]
    assert next(running, None) is None


def test_a_runner_runs_the_jobs_of_different_owners_in_turn(
    monkeypatch: pytest.MonkeyPatch, ran: list[str]
) -> None:
    owners = {"a0": "many", "a1": "many", "a2": "many", "b": "few"}
    jobs = [job_of(id, owner=owner, status="queued", created_at=id) for id, owner in owners.items()]
    jobs[2] = jobs[2].model_copy(update={"status": "running"})  # continues first
    monkeypatch.setattr(runner, "running_runners", lambda _task_uri: set())
    monkeypatch.setattr(
        runner, "unfinished_jobs", lambda _task_uri: [job for job in jobs if job.id not in ran]
    )
    runner.BatchRunner(TASK_URI, CONFIG, set()).work()
    assert ran == ["a2", "b", "a0", "a1", "exit"]


def test_a_manipulated_state_on_s3_gives_no_access_to_other_locations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = job_of(input="s3://lake/pre/in", output="s3://lake/secrets")
    monkeypatch.setattr(runner, "read_job", lambda *_: job)
    monkeypatch.setattr(runner, "score_batch", None)  # not reached
    error = runner.run_job(TASK_URI, "0" * 24, CONFIG)
    assert error is not None
    assert "s3://lake/secrets" in error


TASK_URI = "s3://models/task"
CONFIG = ServingConfig(
    batch_prefixes=("s3://lake/pre", "s3://models"), request_log="s3://lake/pre/requests"
)
REFUSED = [
    "s3://lake/prefix/in",
    "s3://lake/pre-/in",
    "s3://lake/Pre/in",
    "s3://lake",
    "s3://lake2/pre/in",
    "s3://lake/pre%2Fin",
    "s3://lake/\\pre/in",
    "s3://lake/\0/pre/in",
    "s3://models/task/versions/full-1",
    "s3://models/other",
    "s3://models",
    "s3://lake/pre/requests/day=1",
    "s3://lake/pre",
]
"""Locations that are refused. The last ones overlap the registry or the request log."""
AMBIGUOUS = [
    "s3://lake/pre/../x",
    "s3://lake/pre/./x",
    "s3://lake/pre//x",
    "s3://lake/pre/x\nERROR forged",
    "s3://lake/pre/\x1b[2Jx",
    "file:///etc",
    "/etc",
    "S3://lake/pre/x",
    "s3://",
]


@pytest.mark.parametrize("uri", REFUSED)
def test_a_location_outside_the_prefixes_or_in_the_registry_or_the_log_is_refused(uri: str) -> None:
    error = location_error(uri, task_uri=TASK_URI, config=CONFIG)
    assert error is not None
    assert not re.search(
        r"s3://(lake/pre|models)\b", error.removeprefix(uri)
    )  # the client may not know them


@pytest.mark.parametrize(
    ("input", "output"),
    [(uri, "s3://lake/pre/out") for uri in AMBIGUOUS]
    + [
        ("s3://lake/in", "out"),
        ("s3://lake/in", "s3://lake/../models/out"),
        ("s3://lake/in", "s3://lake/in/"),
        ("s3://lake/in", "s3://lake/in/out"),
        ("s3://lake/out/in", "s3://lake/out"),
    ],
)
def test_an_ambiguous_or_overlapping_location_is_refused(input: str, output: str) -> None:
    with pytest.raises(BatchError):
        normalized_locations(input=input, output=output)
