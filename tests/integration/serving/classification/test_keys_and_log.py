"""API keys and the request log."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import requests

from cluster.local import stack
from serving.deploy import rollout
from serving.http.api_keys import new_key
from tailorbird import storage
from tests.integration.leaks import leaks
from tests.integration.serving.classification.service import (
    CONFIG,
    TEXTS,
    Service,
    wait_until,
)

FORGED = "203.0.113.9"
"""An address in a header that the service must not take for the client's."""


def events_of(task: str, stack: stack.StackState) -> list[dict[str, Any]]:
    """Return the events in the logs of the task's replicas."""
    logs = [
        path.read_text(errors="replace") for path in Path(stack.temp_dir).rglob("replica_*.log")
    ]
    events = [json.loads(event) for log in logs for event in re.findall(r'\{"event": .*\}', log)]
    return [event for event in events if event["task"] == task]


def test_only_requests_with_a_valid_key_are_answered_and_keys_change_without_a_restart(
    service: Service, stack: stack.StackState
) -> None:
    source = "s3://models/serving-keys/keys"
    (key, stored), (other, new) = (
        new_key("app"),
        new_key("app", options=["scopes=answer", "requests=2"]),
    )
    storage.write_bytes(source, stored.to_line().encode())
    config = CONFIG.model_copy(update={"api_keys": source})

    text = "Fracture of a bone that no log names"

    def ask(key: str | None) -> requests.Response:
        headers = {"X-Forwarded-For": FORGED} | (
            {} if key is None else {"Authorization": f"Bearer {key}"}
        )
        return requests.post(
            f"{url}/v1/classify", json={"input": text}, headers=headers, timeout=60
        )

    try:
        url = rollout.deploy(
            config, task_uri="s3://models/serving-keys", version=service.first
        )  # /readyz needs no key
        assert requests.get(f"{url}/v1/models", timeout=60).status_code == 401
        refused = ask(None)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert ask(other).status_code == 401
        assert ask(key).json()["results"][0]["label"] == "a broken bone"
        assert (
            leaks(
                stack,
                {"a key": key, "its hash": stored.sha256, "a wrong key": other, "a text": text},
            )
            == []
        )
        storage.write_bytes(source, new.to_line().encode())
        wait_until(lambda: ask(key).status_code == 401)
        headers = {"Authorization": f"Bearer {other}"}
        assert (
            requests.post(f"{url}/v1/feedback", json={}, headers=headers, timeout=60).status_code
            == 403
        )
        assert [ask(other).status_code for _ in range(3)] == [200, 200, 429]
    finally:
        rollout.undeploy("serving-keys")  # replicas log their last refusals
    events = events_of("serving-keys", stack)
    refusals = {
        (event["client"], f"{event['status']} {event['type']}")
        for event in events
        if event["event"] == "refusal"
    }
    assert {reason for client, reason in refusals if client == "key app"} == {
        "403 missing_scope",
        "429 rate_limited",
    }
    assert {reason for client, reason in refusals if client != "key app"} == {
        "401 missing_api_key",
        "401 invalid_api_key",
    }
    assert {client for client, _ in refusals if client != "key app"} == {
        "address 127.0.0.1"
    }  # of HAProxy
    start, change = (event for event in events if event["event"] == "keys")
    assert (start["at_start"], start["after"]) == (True, {"app": ["scopes=answer,feedback"]})
    assert change["before"] == {"app": ["scopes=answer,feedback"]}
    assert change["after"] == {"app": ["scopes=answer requests=2"]}
    (configuration,) = (event for event in events if event["event"] == "configuration")
    assert configuration["serving"]["api_keys"] == source
    assert configuration["versions"]["champion"]["digest"] == service.first.digest
    texts = json.dumps(events)
    assert not any(secret in texts for secret in (key, other, stored.sha256, new.sha256, text))
    assert service.ask({"input": TEXTS[0]})["version"] == service.first.version


@pytest.mark.long
def test_answers_are_logged_and_no_row_is_lost_when_the_service_is_removed(
    service: Service, tmp_path: Path
) -> None:
    uri = f"{tmp_path.as_uri()}/requests"
    fields = {"request_log": uri}
    task_uri = "s3://models/serving-log"
    url = rollout.deploy(CONFIG.model_copy(update=fields), task_uri=task_uri, version=service.first)
    body = {"input": TEXTS, "attributes": {"sex": "f"}}
    try:
        answers = [
            requests.post(f"{url}/v1/classify", json=body, timeout=60).json() for _ in range(20)
        ]
        right = {"request_id": answers[0]["request_id"], "row": 2, "label": "an infection"}
        assert requests.post(f"{url}/v1/feedback", json=right, timeout=60).status_code == 202
        wrong = requests.post(f"{url}/v1/feedback", json={"request_id": "r", "row": -1}, timeout=60)
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (422, "invalid_request")
    finally:
        rollout.undeploy("serving-log")  # before the buffered rows are written
    rows = pq.read_table(tmp_path / "requests" / "answers").to_pylist()
    (feedback,) = pq.read_table(tmp_path / "requests" / "feedback").to_pylist()
    assert {name: feedback[name] for name in right} == right
    results = {
        (answer["request_id"], row): result
        for answer in answers
        for row, result in enumerate(answer["results"])
    }
    assert {(row["request_id"], row["row"]): row["label"] for row in rows} == {
        key: result["label"] for key, result in results.items()
    }
    assert len(rows) == 20 * len(TEXTS)
    assert {row["digest"] for row in rows} == {service.first.digest}
    assert {row["text"] for row in rows} == {None}
    rejected = requests.post(f"{service.url}/v1/feedback", json=right, timeout=60)
    assert (rejected.status_code, rejected.json()["error"]["type"]) == (404, "no_request_log")
