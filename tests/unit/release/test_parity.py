"""Selection of probes, their requests, answers of endpoints, and the message of a refusal."""

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import requests
from pydantic import JsonValue

from serving.deploy.serve_client import DeployError
from tailorbird.data.rows import rows_sha256
from tailorbird.evaluation.prediction_store import save_predictions
from tailorbird.evaluation.statistics.text_metrics import words_sha256
from tailorbird.registry.champion import ParityResult
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.versions import Hybrid, ModelVersion
from tailorbird.release import parity, probe_requests
from tailorbird.release.parity import (
    MAX_PROBES,
    ParityRefused,
    check_parity,
    compare_endpoint,
    select_rows,
)
from tailorbird.release.probe_requests import ParityProbe, ServedAnswer, ServedToken
from tests import build
from tests.endpoint_server import MODEL
from tests.unit.serving.endpoint.versions import endpoint_version

BODY: dict[str, JsonValue] = {"input": "a", "scores": True}


def endpoint_parity(
    answers: list[ServedAnswer], *, classes: tuple[str, ...] = ("eye", "bone")
) -> ParityResult:
    version = endpoint_version("http://127.0.0.1:1/v1", classes=classes)
    sent = ParityProbe("7", "Glaucoma", BODY, "eye", endpoint=version.endpoint)
    return compare_endpoint([(sent, answer) for answer in answers], version=version)


def by_endpoint(output: str, model: str = MODEL) -> ServedAnswer:
    return ServedAnswer(output, output, reported_model=model)


def test_answers_of_an_endpoint_need_not_equal_the_evaluated_ones() -> None:
    parity = endpoint_parity([by_endpoint("eye"), by_endpoint("bone")])
    assert (parity.rows, parity.matching, parity.requires_equality) == (2, 1, False)
    assert endpoint_parity([by_endpoint("other words")] * 2, classes=()).matching == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (by_endpoint("eye", "m-new"), "m-new"),
        (ServedAnswer("", "refused with 400, no"), "refused with 400"),
        (by_endpoint("bone"), "2 of 3"),
    ],
)
def test_an_endpoint_with_another_model_a_refused_row_or_mostly_other_labels_is_refused(
    answer: ServedAnswer, message: str
) -> None:
    with pytest.raises(ParityRefused, match=message):
        endpoint_parity([by_endpoint("eye"), answer, answer])


@pytest.mark.parametrize(
    "answer",
    [
        requests.ReadTimeout(),
        SimpleNamespace(status_code=504, text='{"error":{"type":"endpoint_timeout"}}'),
    ],
)
def test_a_probe_that_an_endpoint_may_have_answered_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    posted: list[str] = []

    def post(url: str, **_: Any) -> Any:
        posted.append(url)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(requests, "post", post)
    with pytest.raises(DeployError, match=r"timeout|ReadTimeout"):
        probe_requests.send_probe("http://127.0.0.1:1/v1/classify", BODY)
    assert len(posted) == 1


def hybrid_with_endpoint(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    routing: Routing,
    unanswered: str = "",
) -> tuple[ModelVersion, tuple[ParityProbe, ...]]:
    """Return a hybrid whose second part is an endpoint, and its probes: confidences of the first
    part rise with the number of the row.

    `unanswered` is the output of the endpoint for the first half of each group.
    """
    outputs = ["bone", "eye"] * 20
    texts = [str(row) for row in range(40)]
    groups = {"ward": ("a",) * 20 + ("b",) * 20}
    rows = build.rows(texts, outputs, groups=groups)
    from_endpoint = endpoint_version("http://127.0.0.1:1/v1", classes=("eye", "bone"))
    model = from_endpoint.model_copy(update={"kind": "full", "endpoint": None, "prompting": None})
    answers = {"incumbent": outputs, "candidate": ([unanswered] * 10 + outputs[:10]) * 2}
    for role, given in answers.items():
        table = build.predictions(given, outputs, confidences=np.linspace(0, 1, 40), groups=groups)
        save_predictions(f"{tmp_path.as_uri()}/predictions/{role}.parquet", table)
    pinned = from_endpoint.pinned
    hybrid = model.model_copy(
        update={
            "kind": "hybrid",
            "hybrid": Hybrid(routing=routing, first=pinned, second=pinned),
            "version": "hybrid-1",
        }
    )
    evidence = SimpleNamespace(
        recipe=SimpleNamespace(data=None, task="classification"),
        data=SimpleNamespace(sha256={"test": rows_sha256(rows)}),
        versions={"hybrid": SimpleNamespace(uri=hybrid.uri)},
        family=SimpleNamespace(
            hybrid=SimpleNamespace(routing=routing, parts=("incumbent", "candidate"))
        ),
    )
    monkeypatch.setattr(parity, "read_test", lambda *_, **__: rows)
    monkeypatch.setattr(parity, "read_parts", lambda _: (model, from_endpoint))
    return hybrid, parity.sample_probes(cast(Any, evidence), uri=tmp_path.as_uri(), version=hybrid)


def checked(probes: tuple[ParityProbe, ...], version: ModelVersion) -> ParityResult:
    return check_parity(probes, url="http://127.0.0.1:1", version=version)


BY_GROUP = Routing(by="group", column="ward", values=("b",))
CASCADE = Routing(by="cascade", threshold=0.5)


@pytest.mark.parametrize(
    ("routing", "unanswered"), [(BY_GROUP, ""), (CASCADE, ""), (CASCADE, words_sha256(""))]
)
def test_few_rows_of_a_hybrid_go_to_its_endpoint_and_they_are_checked_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, routing: Routing, unanswered: str
) -> None:
    _, probes = hybrid_with_endpoint(monkeypatch, tmp_path, routing=routing, unanswered=unanswered)
    paid = {int(each.row_id) for each in probes if each.part == "second"}
    exact = {int(each.row_id) for each in probes if each.part is None}
    start = 20 if routing is BY_GROUP else 0
    assert len(paid) == parity.MAX_ENDPOINT_PROBES
    assert paid < set(range(start + 10, start + 20))  # the service refuses the first ten rows
    assert exact == set(range(40)) - set(range(start, start + 20))
    assert len(probes) == len(paid) + len(exact)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"is_fallback": True}, "as a fallback"),
        ({"answered_by": "first", "reported_model": None}, "by the first part"),
        ({"reported_model": "m-new"}, "m-new"),
        ({"output": "", "text": "refused with 400"}, "refused with 400"),
    ],
)
def test_the_endpoint_of_a_hybrid_must_answer_its_rows_with_the_evaluated_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, Any], message: str | None
) -> None:
    hybrid, probes = hybrid_with_endpoint(monkeypatch, tmp_path, routing=CASCADE)
    by_text = {each.text: each for each in probes}

    def send(_: str, body: Any) -> ServedAnswer:
        sent = by_text[body["input"]]
        if sent.part is None:
            assert sent.confidence is not None
            return ServedAnswer(
                sent.output, sent.output, {sent.output: sent.confidence}, answered_by="first"
            )
        answer = ServedAnswer(sent.output, sent.output, reported_model=MODEL, answered_by="second")
        return answer._replace(**changes)

    monkeypatch.setattr(parity, "send_probe", send)
    if message is None:
        result = checked(probes, hybrid)
        assert (result.rows, result.matching, result.endpoint_rows) == (20, 20, 8)
        return
    with pytest.raises(ParityRefused, match=message):
        checked(probes, hybrid)


def test_a_hybrid_whose_rows_all_go_to_the_endpoint_can_be_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    routing = Routing(by="group", column="ward", values=("a", "b"))
    hybrid, probes = hybrid_with_endpoint(monkeypatch, tmp_path, routing=routing)
    with pytest.raises(ParityRefused, match="hybrid-1"):
        checked((), hybrid)
    answer = ServedAnswer("eye", "eye", reported_model=MODEL, answered_by="second")
    monkeypatch.setattr(parity, "send_probe", lambda *_, **__: answer)
    result = checked(probes, hybrid)
    assert (result.rows, result.requires_equality) == (8, False)


def test_rows_are_selected_from_each_class_in_turn_and_depend_only_on_the_digest() -> None:
    labels = ["common"] * 900 + ["rare"] * 90 + ["once"] * 10
    table = build.predictions(labels, labels)
    rows = range(1000)
    selected = select_rows(table, rows, digest="d1")
    assert selected == select_rows(table, reversed(rows), digest="d1")
    assert selected != select_rows(table, rows, digest="d2")
    assert sorted(selected) == list(rows)
    counts = Counter(table.labels[row] for row in selected[:MAX_PROBES])
    assert counts == {"once": 10, "rare": 27, "common": 27}


def test_the_api_key_takes_precedence_over_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv(probe_requests.KEY, "ours")
    headers = []

    def send(_: object, request: requests.PreparedRequest, **__: object) -> requests.Response:
        headers.append(request.headers["Authorization"])
        raise requests.ConnectionError

    monkeypatch.setattr(requests.Session, "send", send)
    monkeypatch.setattr(probe_requests, "PAUSE_S", 0)
    with pytest.raises(DeployError):
        probe_requests.send_probe("http://127.0.0.1:1/v1/classify", BODY)
    assert set(headers) == {"Bearer ours"}


def test_the_lead_of_a_served_token_is_over_the_second_most_likely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def entry(logprob: float, *others: float) -> dict[str, JsonValue]:
        top: list[JsonValue] = [{"token": "x", "logprob": other, "bytes": None} for other in others]
        return {"token": "x", "logprob": logprob, "bytes": None, "top_logprobs": top}

    content: list[JsonValue] = [entry(-0.5, -0.5, -2.0), entry(-0.1, -0.1)]
    choice = {"message": {"content": "yes"}, "logprobs": {"content": content, "refusal": None}}
    response = requests.Response()
    response.status_code, response._content = 200, json.dumps({"choices": [choice]}).encode()
    monkeypatch.setattr(requests, "post", lambda *_, **__: response)
    answer = probe_requests.send_probe("http://127.0.0.1:1/v1/chat/completions", {})
    assert (answer.output, answer.text) == (words_sha256("yes"), "'yes'")
    assert answer.tokens == (ServedToken(-0.5, 1.5), ServedToken(-0.1, math.inf))
