"""Versions of an endpoint and hybrids with one predict through requests, as in the evaluation."""

from pathlib import Path
from typing import Any

import pytest

import tailorbird
from tailorbird.data.rows import DataError
from tailorbird.models.endpoint import errors
from tailorbird.models.endpoint.prompts import label_answer, label_prompting
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.hybrids import hybrid_config
from tailorbird.registry.versions import ModelVersion, Prompting
from tests.endpoint_server import MODEL, Server, completion, endpoint_server, question
from tests.unit.serving.endpoint.versions import KEY, VARIABLE, endpoint_of, register_config
from tests.unit.serving.engines.test_model_pool import registered
from tests.unit.serving.engines.tiny_versions import TEXTS, base

__all__ = ["base"]  # a fixture


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def endpoint_at(server: Server, **fields: Any) -> Endpoint:
    return Endpoint(
        url=server.url, model="m", api_key=f"env://{VARIABLE}", reported_model=MODEL, **fields
    )


def classifier_of(server: Server, first: ModelVersion, folder: Path, **fields: Any) -> ModelVersion:
    endpoint = endpoint_at(server, **fields)
    config = endpoint_of(first, label_prompting(first.classes), endpoint=endpoint)
    return register_config(folder, "endpoint", config)


def test_a_classifier_sends_each_text_once_and_an_answer_without_a_class_is_empty(
    base: Path, tmp_path: Path
) -> None:
    first = registered(base, tmp_path)
    label = first.classes[1]

    def answer(body: dict[str, Any], _: int) -> Any:
        return completion(
            "I do not know" if question(body) == "other" else label_answer(label), logprobs=(-0.5,)
        )

    with endpoint_server(answer) as server:
        version = classifier_of(server, first, tmp_path)
        model = tailorbird.load(version.uri)
        answers = model.predict(["one", "other"])
        assert [each.output for each in answers] == [label, ""]
        assert [each.reported_model for each in answers] == [MODEL] * 2
        assert answers[0].confidence == pytest.approx(0.6065, abs=1e-4)
        assert model.predict("one").output == label  # stored
        assert len(server.bodies) == 2
        assert server.authorizations == [f"Bearer {KEY}"] * 2


def test_without_the_key_a_version_is_not_loaded(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with endpoint_server(lambda *_: completion("x")) as server:
        version = classifier_of(server, registered(base, tmp_path), tmp_path)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(errors.EndpointKeyMissing, match=VARIABLE):
        tailorbird.load(version.uri)


def test_a_cascade_sends_only_the_inputs_on_which_the_first_part_is_not_confident(
    base: Path, tmp_path: Path
) -> None:
    first = registered(base, tmp_path)
    alone = tailorbird.load(first.uri).predict(list(TEXTS))
    confidences = sorted(answer.confidence or 0.0 for answer in alone)
    threshold = (confidences[0] + confidences[-1]) / 2
    routed = [(answer.confidence or 0.0) < threshold for answer in alone]
    assert 0 < sum(routed) < len(routed)
    with endpoint_server(lambda *_: completion(label_answer(first.classes[0]))) as server:
        second = classifier_of(server, first, tmp_path)
        config = hybrid_config(
            first, second=second, routing=Routing(by="cascade", threshold=threshold)
        )
        hybrid = register_config(tmp_path, "hybrid", config)
        answers = tailorbird.load(hybrid.uri).predict(list(TEXTS))
        sent = {question(body) for body in server.bodies}
    assert sent == {text for text, to_second in zip(TEXTS, routed, strict=True) if to_second}
    assert [answer.answered_by for answer in answers] == [
        "second" if each else "first" for each in routed
    ]
    expected = [
        first.classes[0] if each else answer.output
        for each, answer in zip(routed, alone, strict=True)
    ]
    assert [answer.output for answer in answers] == expected
    assert {answer.version for answer in answers} == {hybrid.version}
    assert [answer.row for answer in answers] == list(range(len(TEXTS)))


def test_a_chat_model_answers_prompts_and_conversations(base: Path, tmp_path: Path) -> None:
    chat = registered(base, tmp_path).model_copy(update={"classes": ()})
    with endpoint_server(lambda body, _: completion(f"re: {question(body)}")) as server:
        config = endpoint_of(
            chat, Prompting(system="s", max_new_tokens=8), endpoint=endpoint_at(server)
        )
        model = tailorbird.load(register_config(tmp_path, "chat", config).uri)
        conversation = [{"role": "system", "content": "own"}, {"role": "user", "content": "b"}]
        answers = model.predict(["a", conversation])
        assert [(each.output, each.finish_reason) for each in answers] == [
            ("re: a", "stop"),
            ("re: b", "stop"),
        ]
        with pytest.raises(DataError, match="row 0 does not end with a user message"):
            model.predict([[{"role": "assistant", "content": "b"}]])
