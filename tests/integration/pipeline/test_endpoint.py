"""An external endpoint as contender: faults during a run, the resumed run, the verdict, and the
registered version."""

import json
from collections import Counter
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import requests

from cluster.connection import connect
from cluster.progress import SILENT
from serving.deploy.application import application_name
from serving.deploy.rollout import undeploy
from tailorbird import storage
from tailorbird.checks.verify import verify_evidence
from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.report.evidence_files import load_all_predictions
from tailorbird.evaluation.verdict.decide import Outcome
from tailorbird.models.endpoint import errors
from tailorbird.models.endpoint.prompts import label_answer
from tailorbird.pipeline.evaluate import RunResult
from tailorbird.pipeline.prepare import prepare
from tailorbird.pipeline.run import run_pipeline
from tailorbird.registry.champion import read_champion
from tailorbird.registry.test_set_ledger import read_test_accesses
from tailorbird.registry.versions import read_version
from tailorbird.release.parity import ParityRefused
from tailorbird.release.promotion import promote_version
from tailorbird.release.serving import serve_champion
from tests.endpoint_server import MODEL, Reply, completion, endpoint_server, question, refusal
from tests.integration.small import small_recipe
from tests.unit.serving.endpoint.versions import KEY, VARIABLE

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.long]

OVERRIDES = (
    "data.max_train_rows=64",
    "tuning.num_trials=1",
    "tuning.space={}",
    "training.batch_size=16",
    "training.num_workers=1",
    "evaluation.prompt_draws=1",
    "evaluation.gates.counterfactual=null",
    "evaluation.gates.robustness=null",
    "evaluation.contenders.hosted.endpoint.model=m",
    f"evaluation.contenders.hosted.endpoint.api_key=env://{VARIABLE}",
    "evaluation.contenders.hosted.endpoint.prices=[0, 1]",  # an answer of 2 output tokens costs 0.002
    "evaluation.cost={value_of_correct: 1, requests_per_month: 1000, price_per_cpu_hour: 0.05}",
)


class Service:
    """An endpoint that knows the labels of most texts."""

    def __init__(self) -> None:
        self.labels: dict[str, str] = {}
        self.model = MODEL
        self.num_refused = 0

    def answer(self, body: dict[str, Any], number: int) -> Reply:
        if number == 20:
            self.num_refused += 1
            return refusal(429, "slow down", Retry_After="0")
        text = question(body)
        known = label_answer(self.labels[text]) if crc32(text.encode()) % 20 else "I do not know"
        return completion(known, model=self.model)


def run_with(
    folder: Path, *overrides: str, data: str, service: Service
) -> tuple[Recipe, RunResult]:
    recipe = small_recipe(
        folder, name="with-endpoint", data=data, overrides=(*OVERRIDES, *overrides)
    )
    with connect():
        if not service.labels:
            splits = prepare(recipe, progress=SILENT).splits
            for rows in (splits.train, splits.validation, splits.test):
                service.labels |= dict(zip(rows.texts, rows.labels, strict=True))
        return recipe, run_pipeline(recipe, progress=SILENT)


def test_an_endpoint_that_fails_in_a_run_is_compared_when_the_run_is_resumed_and_stays_the_incumbent(
    small_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    service = Service()
    with endpoint_server(service.answer) as server:
        url = f"evaluation.contenders.hosted.endpoint.url={server.url}"

        def run(spend: float) -> tuple[Recipe, RunResult]:
            limit = f"evaluation.contenders.hosted.endpoint.max_spend={spend}"
            return run_with(tmp_path, url, limit, data=small_data, service=service)

        with pytest.raises(
            errors.EndpointSpendExceeded, match=r"max_spend of the endpoint is 0\.5"
        ):  # on the validation rows
            run(0.5)
        task_uri = small_recipe(tmp_path, name="with-endpoint", data=small_data).task_uri
        accesses = len(read_test_accesses(task_uri))
        with pytest.raises(
            errors.EndpointSpendExceeded, match=r"max_spend of the endpoint is 3\.9"
        ):  # on the test rows
            run(3.9)
        assert len(read_test_accesses(task_uri)) == accesses + 1
        assert not storage.exists(f"{task_uri}/versions")
        service.model = "m-2026-09-09"
        with pytest.raises(
            errors.EndpointModelChanged, match="now answers 'm' with the model 'm-2026-09-09'"
        ):
            run(100)
        service.model = MODEL
        recipe, result = run(100)

        # Only the request that was refused (429) and the one that another model answered were sent
        # twice.
        sent = Counter(json.dumps(body, sort_keys=True) for body in server.bodies)
        assert (service.num_refused, sum(sent.values()) - len(sent)) == (1, 2)
        assert set(server.authorizations) == {f"Bearer {KEY}"}
        evidence, verdict = result.evidence, result.verdict
        assert evidence.test_access.number == read_test_accesses(task_uri)[accesses].number
        assert len(read_test_accesses(task_uri)) == accesses + 1
        assert (verdict.outcome, verdict.selected) == (Outcome.STAY, "incumbent")
        assert evidence.versions["incumbent"].kind == "endpoint_zero_shot"
        assert verdict.incumbent.score > 0.9 > verdict.model("candidate").score
        answers = evidence.endpoint_answers["incumbent"]
        assert (answers.rows, answers.refused, answers.truncated) == (
            evidence.data.report.num_test,
            0,
            0,
        )
        assert evidence.reliability["incumbent"] == ()
        assert evidence.cost.serving is not None
        tokens = evidence.cost.serving["incumbent"].tokens
        assert tokens is not None
        assert (set(tokens.input), set(tokens.output)) == ({10_000}, {2000})
        assert evidence.cost.serving["candidate"].tokens is None
        costs = {cost.role: cost for cost in verdict.costs}
        assert costs["incumbent"].tokens == pytest.approx(12_000 * 0.002)
        assert all(cost.total and cost.replicas for cost in costs.values())
        assert {role for role, cost in costs.items() if cost.training} == {"candidate"}
        assert any("To serve, the candidate costs" in text for text in verdict.sentences)

        version = read_version(result.winner)
        assert (version.kind, version.task) == ("endpoint_zero_shot", "classification")
        assert version.endpoint is not None
        assert (version.endpoint.url, version.endpoint.reported_model) == (server.url, MODEL)
        # The stored baseline has the limit of the first run.
        assert version.endpoint.max_spend == 100
        num_requests = len(server.bodies)
        with connect():
            rows = prepare(recipe, progress=SILENT).splits.test
        again = predict_rows(version.uri, rows=rows)
        assert again.outputs == load_all_predictions(result.run)["incumbent"].outputs
        assert "" in again.outputs
        assert len(server.bodies) == num_requests

        promote_version(task_uri)
        service.model = "m-2026-09-09"
        with pytest.raises(ParityRefused, match="now reports the model 'm-2026-09-09'"):
            serve_champion(recipe.serving, task_uri=task_uri)
        service.model = MODEL
        num_requests = len(server.bodies)
        url, served = serve_champion(recipe.serving, task_uri=task_uri)
        try:
            stored = read_champion(task_uri)
            assert stored is not None
            assert stored[0].parity is not None
            assert (stored[0].parity.rows, stored[0].parity.matching) == (8, 8)
            assert (stored[0].parity.requires_equality, len(server.bodies)) == (
                False,
                num_requests + 8,
            )
            text = rows.texts[again.outputs.index(rows.labels[0])]
            answer = requests.post(f"{url}/v1/classify", json={"input": text}, timeout=60).json()
            assert answer["version"] == served.version == version.version
            assert answer["results"] == [
                {"label": rows.labels[0], "score": None, "reported_model": MODEL}
            ]
        finally:
            undeploy(application_name(task_uri))
    assert verify_evidence(result.run) == ()  # without the endpoint
    assert verify_evidence(result.winner) == ()
    assert [
        uri for uri in storage.list_files(task_uri) if KEY.encode() in storage.read_bytes(uri)
    ] == []
    for page in ("report.html", "MODEL_CARD.md"):
        content = storage.read_bytes(f"{result.winner}/{page}").decode()
        assert MODEL in content or page == "MODEL_CARD.md"
        assert "external endpoint" in content
