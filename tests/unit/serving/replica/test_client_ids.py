"""Clients that choose their ids do not choose what is audited, and which version answers them."""

import asyncio
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from serving.http.asgi import ASGIApp
from serving.replica.config import Challenger
from tailorbird.monitoring.label_audit import export_answers
from tests.unit.monitoring.log_task import Task
from tests.unit.serving.http.application import chunks, exchange
from tests.unit.serving.replica.loads import SECRET, config
from tests.unit.serving.replica.test_classifier import new_classifier

NUM_REQUESTS, NUM_TEXTS, NUM_OWN, NUM_AUDITED = 99, 20, 20, 30


def hash_of(message: str) -> int:
    """Return a hash without a secret, which clients can compute."""
    return int.from_bytes(hashlib.blake2b(message.encode(), digest_size=8).digest(), "big")


async def classify(app: ASGIApp, texts: list[str], *, client_id: str) -> Any:
    """Send a request with the header X-Request-Id and return the response."""
    body = chunks(json.dumps({"input": texts}).encode())
    headers = {b"host": b"localhost", b"x-request-id": client_id.encode()}
    start, answer = await exchange(app, "POST", "/v1/classify", body=body, headers=headers)
    assert start["status"] == 200
    return json.loads(answer["body"])


def test_a_client_with_1_percent_of_the_answers_that_picks_its_ids_gets_about_1_percent_of_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the draw hashed the client's ids without a secret, these ids would get 67% of the
    audit."""
    task = Task(tmp_path)
    ids = sorted(
        (f"mine-{number}" for number in range(20_000)), key=lambda name: hash_of(f"{name}|0")
    )[:NUM_OWN]

    async def scenario() -> None:
        classifier = new_classifier(
            monkeypatch, task_uri=task.recipe.task_uri, request_log=task.log.as_uri()
        )
        await classifier.reconfigure(config("one"))
        app = classifier.__serve_build_asgi_app__()
        for number in range(NUM_REQUESTS):
            await classify(app, ["other"] * NUM_TEXTS, client_id=f"other-{number}")
        answers = [await classify(app, ["mine"], client_id=client_id) for client_id in ids]
        assert not {answer["request_id"] for answer in answers} & set(ids)
        assert classifier._replica.log is not None
        await classifier._replica.log.close()

    asyncio.run(scenario())
    rows = pq.read_table(task.log / "answers").to_pylist()
    own = {row["request_id"] for row in rows if row["x_request_id"] in ids}
    assert (len(own), len(rows)) == (NUM_OWN, NUM_REQUESTS * NUM_TEXTS + NUM_OWN)
    to, today = tmp_path / "audit.parquet", datetime.now(UTC).date()
    days = [today - timedelta(days=1), today]  # the test may run at midnight
    assert (
        export_answers(task.recipe, digest="d-one", days=days, num_rows=NUM_AUDITED, to=to.as_uri())
        == NUM_AUDITED
    )
    drawn = [
        request_id
        for request_id in pq.read_table(to)["request_id"].to_pylist()
        if request_id in own
    ]
    assert len(drawn) <= 5  # 0.3 expected; more than 5 have a probability of 1e-6


def test_a_client_that_picks_its_subjects_gets_the_canary_as_often_as_others() -> None:
    challenger = Challenger(uri="s3://c", digest="d", canary=0.05)

    def included_without_secret(number: int) -> bool:
        digest = hashlib.sha256(f"canary|d|subject {number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < 0.05 * 2**64

    picked = [number for number in range(40_000) if included_without_secret(number)]
    units = [f"subject {number}" for number in picked]
    num_included = sum(challenger.receives("canary", unit, secret=SECRET) for unit in units)
    assert len(picked) > 1500
    assert num_included / len(picked) == pytest.approx(0.05, abs=0.03)  # five standard errors
