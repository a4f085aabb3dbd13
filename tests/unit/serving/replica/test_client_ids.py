"""Clients that choose their ids do not choose what is audited, and which version answers them."""

import asyncio
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from starlette.types import Message

from serving.http.asgi import ASGIApp
from serving.replica.config import Challenger
from tailorbird.monitoring.label_audit import export_answers
from tests.unit.monitoring.test_daily_report import Task
from tests.unit.serving.replica.loads import SECRET, config
from tests.unit.serving.replica.test_classifier import new_classifier

NUM_REQUESTS, NUM_TEXTS, NUM_OWN, NUM_AUDITED = 99, 20, 20, 30


def hash_of(message: str) -> int:
    """Return a hash without a secret, which clients can compute."""
    return int.from_bytes(hashlib.blake2b(message.encode(), digest_size=8).digest(), "big")


async def classify(app: ASGIApp, texts: list[str], *, own_id: str) -> Any:
    """Send a request with the header X-Request-Id and return the response."""
    messages: list[Message] = [
        {"type": "http.request", "body": json.dumps({"input": texts}).encode()}
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"x-request-id", own_id.encode())]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/classify",
        "headers": headers,
        "query_string": b"",
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 200
    return json.loads(sent[1]["body"])


def test_a_client_with_1_percent_of_the_answers_that_picks_its_ids_gets_about_1_percent_of_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the draw hashed the client's ids without a secret, these ids would get 67% of the
    audit."""
    task = Task(tmp_path)
    ids = sorted(
        (f"mine-{number}" for number in range(20_000)), key=lambda own_id: hash_of(f"{own_id}|0")
    )[:NUM_OWN]

    async def scenario() -> None:
        classifier = new_classifier(
            monkeypatch, task_uri=task.recipe.task_uri, request_log=task.log.as_uri()
        )
        await classifier.reconfigure(config("one"))
        app = classifier.__serve_build_asgi_app__()
        for number in range(NUM_REQUESTS):
            await classify(app, ["theirs"] * NUM_TEXTS, own_id=f"theirs-{number}")
        answers = [await classify(app, ["mine"], own_id=own_id) for own_id in ids]
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
