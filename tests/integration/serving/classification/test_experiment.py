"""A challenger that answers mirrored requests."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import requests

from serving.deploy import rollout, serve_client
from serving.deploy.application import AdditionalVersions
from tailorbird.config.serving import ServingConfig
from tailorbird.registry import versions as registry
from tests.integration.serving.classification.service import (
    CONFIG,
    TEXTS,
    Service,
    replica_pids,
    wait_until,
)


@pytest.mark.long
def test_a_challenger_gets_mirrored_requests_while_the_champion_serves(
    service: Service, tmp_path: Path
) -> None:
    fields = {"request_log": f"{tmp_path.as_uri()}/requests"}
    task_uri = "s3://models/serving-experiment"

    def serve(challenger: registry.ModelVersion | None, **share: float) -> str:
        section = challenger and {"version": challenger.version, **share}
        config = ServingConfig.model_validate(
            CONFIG.model_dump() | fields | {"challenger": section}
        )
        additional = AdditionalVersions(challenger=challenger)
        return rollout.deploy(
            config, task_uri=task_uri, version=service.first, additional=additional
        )

    def ask(**more: Any) -> dict[str, Any]:
        answer = requests.post(f"{url}/v1/classify", json={"input": TEXTS} | more, timeout=60)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    try:
        url = serve(service.swapped, shadow=1.0)
        models = requests.get(f"{url}/v1/models", timeout=60).json()["data"]
        assert [(model["id"], model["digest"]) for model in models] == [
            ("champion", service.first.digest),
            ("challenger", service.swapped.digest),
        ]
        replicas = replica_pids(task_uri)
        shadowed = [ask() for _ in range(8)]
        assert {answer["version"] for answer in shadowed} == {service.first.version}
        wait_until(lambda: _num_rows(tmp_path, "shadow") >= 8 * len(TEXTS))
        over = threading.Event()
        with ThreadPoolExecutor(1) as client:  # requests a version by name, so belongs to no arm
            requests_by_name = client.submit(
                lambda: [ask(model=service.first.version) for _ in iter(over.is_set, True)]
            )
            serve(service.swapped, shadow=0.5)
            over.set()
            assert requests_by_name.result()
        broken = service.second.model_copy(update={"digest": "0" * 64})
        with pytest.raises(
            serve_client.ChallengerError,
            match=f"without the challenger .* has digest {service.second.digest}",
        ):
            serve(broken, shadow=1.0)
        assert ask()["version"] == service.first.version
        assert "challenger" in requests.get(f"{url}/readyz", timeout=60).json()["absent"]
        serve(None)
        assert "absent" not in requests.get(f"{url}/readyz", timeout=60).json()
        assert replica_pids(task_uri) == replicas
    finally:
        rollout.undeploy("serving-experiment")
    rows = pq.read_table(tmp_path / "requests" / "answers").to_pylist()
    rows_by_arm = {(row["request_id"], row["row"], row["arm"]): row for row in rows}
    assert len(rows_by_arm) == len(rows)
    for answer in shadowed:
        for row, result in enumerate(answer["results"]):
            mine, shadow = (
                rows_by_arm[answer["request_id"], row, arm] for arm in ("champion", "shadow")
            )
            assert (mine["label"], mine["digest"]) == (result["label"], service.first.digest)
            assert shadow["digest"] == service.swapped.digest
    assert _num_rows(tmp_path, "shadow") == 8 * len(TEXTS)
    assert {row["arm"] for row in rows} == {"champion", "shadow", None}


def _num_rows(folder: Path, arm: str) -> int:
    files = (folder / "requests" / "answers").rglob("*.parquet")
    return sum(pq.read_table(file, columns=["arm"])["arm"].to_pylist().count(arm) for file in files)
