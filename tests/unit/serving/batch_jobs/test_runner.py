"""Where a batch may read and write, whoever wrote down that it should."""

from types import SimpleNamespace

import pytest
import ray

from serving.batch_jobs import runner
from serving.batch_jobs.scoring import BatchError, new_batch
from serving.http.schemas import BatchJob
from tailorbird.config.serving import ServingConfig
from tests.unit.serving.batch_jobs.test_scoring import version

HOME = "s3://models/task"
SECTION = ServingConfig(batch_prefixes=("s3://lake/pre", "s3://models"), request_log="s3://lake/pre/requests")
OUTSIDE = [
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
"""The last ones meet the registry or the request log."""
NO_PLACE = [
    "s3://lake/pre/../x",
    "s3://lake/pre/./x",
    "s3://lake/pre//x",
    "file:///etc",
    "/etc",
    "S3://lake/pre/x",
    "s3://",
]


def test_a_desk_waits_for_those_before_it_and_leaves_to_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    living = iter([{"old", "me"}, {"old", "me"}, {"me"}, {"me"}, {"me"}, {"me", "new"}])
    told: list[str] = []
    monkeypatch.setattr(runner, "POLL_S", 0.0)
    monkeypatch.setattr(runner, "running_runners", lambda _home: next(living))
    monkeypatch.setattr(runner, "unfinished_jobs", lambda _home: [SimpleNamespace(id=f"b{len(told)}")])
    monkeypatch.setattr(runner, "require_shipped_code", lambda: None)
    monkeypatch.setattr(runner.BatchRunner, "_do", lambda _self, batch_id: told.append(batch_id))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_name=lambda: "me"))
    monkeypatch.setattr(ray.actor, "exit_actor", lambda: told.append("left"))
    runner.BatchRunner(HOME, SECTION.model_dump(), {"old"}).work()
    assert told == ["b0", "b1", "left"]
    assert next(living, None) is None


@pytest.mark.parametrize("uri", OUTSIDE)
def test_a_place_outside_or_that_meets_what_is_ours_is_refused(uri: str) -> None:
    assert runner.location_error(uri, task_uri=HOME, config=SECTION) is not None


@pytest.mark.parametrize("uri", NO_PLACE)
def test_what_could_be_another_place_than_it_says_is_none(uri: str) -> None:
    with pytest.raises(BatchError, match=r"give s3://bucket/prefix, with no empty part and no `..`"):
        new_batch(version(), input=uri, output="s3://lake/pre/out")


@pytest.mark.parametrize("uri", ["s3://lake/pre/in", "s3://lake/pre/in/%2e%2e/x", "s3://lake/pre/requests-of-may"])
def test_a_prefix_opens_what_lies_under_it_and_a_name_is_never_decoded(uri: str) -> None:
    assert runner.location_error(uri, task_uri=HOME, config=SECTION) is None


def test_a_state_that_somebody_wrote_on_s3_opens_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {name: "x" for name in BatchJob.model_fields if BatchJob.model_fields[name].is_required()}
    told |= {"status": "running", "input": "s3://lake/pre/in", "output": "s3://lake/secrets"}
    status = BatchJob.model_validate(told)
    monkeypatch.setattr(runner, "read_job", lambda *_: (status, "etag"))
    monkeypatch.setattr(runner, "score_batch", None)  # it is not come to that
    refused = runner.run_job(HOME, "0" * 24, SECTION.model_dump())
    assert refused is not None
    assert "s3://lake/secrets is under none of s3://lake/pre" in refused
