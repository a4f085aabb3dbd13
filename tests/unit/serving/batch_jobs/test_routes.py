"""Which keys can read and cancel a batch."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving.batch_jobs import routes
from serving.http.asgi import path_id
from serving.http.schemas import BatchJob
from tailorbird.config.serving import ServingConfig
from tests.unit.serving.batch_jobs.test_runner import job_of
from tests.unit.serving.replica.loads import client_of, new_replica, stored_keys

BATCH_ID = "0" * 24
OWNERS = {
    "app": "scopes=batch",
    "other": "scopes=batch",
    "operator": "scopes=admin",
    "asker": "scopes=answer",
}
Ask = Callable[..., Any]


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> dict[str, BatchJob | None]:
    """The job that is stored, `job`, which has ended, so that no runner is started for it."""
    stored: dict[str, BatchJob | None] = {"job": job_of(status="completed", owner="app")}
    monkeypatch.setattr(routes, "read_job", lambda *_: stored["job"])
    monkeypatch.setattr(routes, "update_job", lambda *_: stored["job"])
    return stored


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Return a function that sends a request for batches with a key of `OWNERS`."""
    uri, keys = stored_keys(tmp_path, **OWNERS)
    client = client_of(new_replica(api_keys=uri))

    def ask(method: str, path: str, *, key: str) -> Any:
        headers = {"authorization": f"Bearer {keys[key]}"}
        return client.request(method, f"/v1/batches{path}", headers=headers, json={})

    return ask


# 404 of a submission: batches are not enabled.
@pytest.mark.parametrize(
    ("key", "read", "cancel", "submit"),
    [
        ("app", 200, 409, 404),
        ("operator", 200, 409, 403),
        ("other", 404, 404, 404),
        ("asker", 403, 403, 403),
    ],
)
@pytest.mark.usefixtures("stored")
def test_a_batch_is_visible_only_to_the_key_that_submitted_it_and_to_admins(
    ask: Ask, key: str, read: int, cancel: int, submit: int
) -> None:
    assert ask("GET", f"/{BATCH_ID}", key=key).status_code == read
    assert ask("POST", f"/{BATCH_ID}/cancel", key=key).status_code == cancel
    assert ask("POST", "", key=key).status_code == submit


def test_requests_for_batches_leave_threads_to_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def hanging(_task_uri: str, _batch_id: str) -> BatchJob:
        assert go.wait(60)
        return job_of(status="completed")

    monkeypatch.setattr(routes, "read_job", hanging)
    no_engine: Any = None
    batches = routes.BatchRoutes(no_engine, task_uri="s3://models/task", config=ServingConfig())

    async def scenario() -> list[int]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(routes.THREADS + 1))
        path_id.set(BATCH_ID)
        waiting = [asyncio.create_task(batches._get(b"", "r")) for _ in range(8)]
        await asyncio.sleep(0)
        other = asyncio.to_thread(lambda: None)  # for example, to reload the keys
        try:
            await asyncio.wait_for(other, 20)
        finally:
            go.set()
        return [status for status, _ in await asyncio.gather(*waiting)]

    assert asyncio.run(scenario()) == [200] * 8


def test_a_batch_of_another_key_and_an_unknown_batch_have_the_same_answer(
    ask: Ask, stored: dict[str, BatchJob | None]
) -> None:
    answers = []
    # A batch without an owner was submitted when there were no keys.
    for job in (stored["job"], job_of(status="completed"), None):
        stored["job"] = job
        answers.append(ask("GET", f"/{BATCH_ID}", key="other").json())
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["error"]["type"] == "unknown_batch"
