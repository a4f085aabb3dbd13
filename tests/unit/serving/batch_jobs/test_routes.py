"""Which keys can read and cancel a batch, and what the routes import."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving.batch_jobs import routes
from serving.http.api_keys import new_key
from serving.http.asgi import path_id
from serving.http.schemas import BatchJob
from serving.replica.base import Replica
from tailorbird.config.serving import ServingConfig
from tests.unit.serving.replica.loads import Loads

ROOT = Path(__file__).parents[4]
BATCH_ID = "0" * 24
OWNERS = {
    "app": "scopes=batch",
    "other": "scopes=batch",
    "operator": "scopes=admin",
    "asker": "scopes=answer",
}


def test_the_routes_import_no_torch_which_replicas_of_an_endpoint_do_not_need() -> None:
    code = (
        "import sys, serving.batch_jobs.routes; print(*{'torch', 'transformers'} & "
        "set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def job(owner: str | None) -> BatchJob:
    """Return a job that has ended, so that no runner is started for it."""
    fields: dict[str, Any] = dict.fromkeys(
        ("input", "output", "model", "version", "version_uri", "digest"), "x"
    )
    fields |= {"column": "text", "created_at": "2026-03-01", "updated_at": "2026-03-01"}
    return BatchJob(id=BATCH_ID, status="completed", owner=owner, **fields)


def app(config: ServingConfig) -> TestClient:
    replica: Replica[Any] = Replica(
        Loads().versions(), task="classification", task_uri="s3://models/task", config=config
    )
    return TestClient(replica.asgi_app({}, page="classify"), base_url="http://127.0.0.1")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[dict[str, str], TestClient]:
    """The keys by name, and a service that accepts them."""
    made = {name: new_key(name, options=[options]) for name, options in OWNERS.items()}
    (tmp_path / "keys").write_text("\n".join(stored.to_line() for _, stored in made.values()))
    return {name: key for name, (key, _) in made.items()}, app(
        ServingConfig(api_keys=(tmp_path / "keys").as_uri())
    )


@pytest.mark.parametrize(
    ("name", "read", "cancel"),
    [("app", 200, 409), ("operator", 200, 409), ("other", 404, 404), ("asker", 403, 403)],
)
def test_a_batch_is_visible_only_to_the_key_that_submitted_it_and_to_admins(
    keys: tuple[dict[str, str], TestClient],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    read: int,
    cancel: int,
) -> None:
    monkeypatch.setattr(routes, "read_job", lambda _task_uri, _batch_id: job("app"))
    monkeypatch.setattr(routes, "update_job", lambda _task_uri, _batch_id, _change: job("app"))
    by_name, client = keys
    headers = {"authorization": f"Bearer {by_name[name]}"}
    assert client.get(f"/v1/batches/{BATCH_ID}", headers=headers).status_code == read
    assert client.post(f"/v1/batches/{BATCH_ID}/cancel", headers=headers).status_code == cancel


def test_requests_for_batches_leave_threads_to_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def hanging(_task_uri: str, _batch_id: str) -> BatchJob:
        assert go.wait(60)
        return job(None)

    monkeypatch.setattr(routes, "read_job", hanging)
    no_engine: Any = None
    batches: Any = routes.BatchRoutes(
        no_engine, task_uri="s3://models/task", config=ServingConfig()
    )

    async def scenario() -> list[int]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(routes.THREADS + 1))
        path_id.set(BATCH_ID)
        waiting = [asyncio.create_task(batches._get(b"", "r")) for _ in range(8)]
        await asyncio.sleep(0)
        try:
            await asyncio.wait_for(
                asyncio.to_thread(lambda: None), 20
            )  # for example, to reload the keys
        finally:
            go.set()
        return [status for status, _ in await asyncio.gather(*waiting)]

    assert asyncio.run(scenario()) == [200] * 8


def test_a_batch_of_another_key_and_an_unknown_batch_have_the_same_answer(
    keys: tuple[dict[str, str], TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_name, client = keys
    answers = []
    for stored in (
        job("app"),
        job(None),
        None,
    ):  # a batch without an owner was submitted when there were no keys
        monkeypatch.setattr(routes, "read_job", lambda _task_uri, _batch_id, stored=stored: stored)
        headers = {"authorization": f"Bearer {by_name['other']}"}
        answers.append(client.get(f"/v1/batches/{BATCH_ID}", headers=headers).json())
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["error"]["type"] == "unknown_batch"


@pytest.mark.parametrize("owner", [None, "app"])
def test_without_keys_every_batch_is_visible(
    monkeypatch: pytest.MonkeyPatch, owner: str | None
) -> None:
    monkeypatch.setattr(routes, "read_job", lambda _task_uri, _batch_id: job(owner))
    assert app(ServingConfig()).get(f"/v1/batches/{BATCH_ID}").json()["owner"] == owner


def test_only_keys_with_the_scope_can_submit_a_batch(
    keys: tuple[dict[str, str], TestClient],
) -> None:
    by_name, client = keys
    statuses = {
        name: client.post(
            "/v1/batches", json={}, headers={"authorization": f"Bearer {key}"}
        ).status_code
        for name, key in by_name.items()
    }
    assert statuses == {
        "app": 404,
        "other": 404,
        "operator": 403,
        "asker": 403,
    }  # 404: batches are not enabled
