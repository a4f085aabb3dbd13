"""Baselines on an external endpoint, with a real server on the loopback interface that answers by a
rule."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.rows import DataError
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.baselines.chat import store_versions
from tailorbird.evaluation.baselines.endpoint_baselines import (
    EndpointContender,
    fit_endpoint_baseline,
)
from tailorbird.evaluation.gates.calibration import has_confidences
from tailorbird.evaluation.gates.cost import Tokens
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits, fetch_answers
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.inference.serving_cost import measure_serving
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.models.endpoint.errors import EndpointAnswersMissing
from tailorbird.models.endpoint.prompts import label_answer, label_conversations, label_prompting
from tailorbird.models.errors import ModelError
from tailorbird.models.loading import load_artifact
from tailorbird.models.retrieval.files import index_files, index_sha256
from tailorbird.models.retrieval.index import build_index
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.versions import (
    Prompting,
    Retrieval,
    read_artifact_config,
    register,
)
from tailorbird.storage.node_cache import local_copy
from tests import build
from tests.endpoint_server import (
    MODEL,
    Answer,
    Reply,
    completion,
    endpoint_server,
    question,
    refusal,
)

PAIRS = (("blue sky", "sky"), ("blue skies", "sky"), ("green leaf", "leaf"), ("red rose", "rose"))
VALIDATION = (("a blue sky", "sky"), ("leaf of green", "leaf"), ("azure", "sky"), ("roses", "rose"))
TEST = (("the sky", "sky"), ("a leaf", "leaf"))
CLASSES = ("leaf", "rose", "sky")
CONFIG = EvaluationConfig(prompt_shots=2, prompt_draws=2)


def fit(
    url: str,
    task: Path,
    *,
    chat: bool = False,
    pairs: tuple[tuple[str, str], ...] = VALIDATION,
    **changes: Any,
) -> Baseline:
    """Return the stored baseline, whose artifact is in a stage of the task; `pairs` are the
    validation rows."""
    train = build.pairs(PAIRS, chat=chat)
    validation = build.pairs(pairs, chat=chat)
    settings = CONFIG if pairs == VALIDATION else FEW_SETTINGS
    index = build_index(train if chat else label_conversations(train), seed=0)
    files = index_files(index)
    retrieval = Retrieval(num_examples=1, max_prompt_tokens=2048, index_sha256=index_sha256(files))
    prompting = Prompting(system="s", max_new_tokens=8) if chat else label_prompting(CLASSES)
    config = build.version_config(
        classes=() if chat else CLASSES,
        base_model="s3://m/base",
        prompting=prompting if chat else None,
    ).model_copy(update=changes)
    result = fit_endpoint_baseline(
        EndpointContender(
            name="hosted",
            endpoint=Endpoint(url=url, model="m"),
            prompting=prompting,
            index=index,
            retrieval=retrieval,
            config=config,
        ),
        train=train,
        validation=validation,
        config=settings.model_copy(update={"metric": "token_f1"}) if chat else settings,
        seed=0,
        fetch_answers=lambda bodies, endpoint: fetch_answers(
            bodies, endpoint=endpoint, parent=task.as_uri(), limits=RequestLimits(max_concurrency=2)
        ),
    )
    stage = f"{task.as_uri()}/stages/endpoint-0"
    return store_versions(stage, [result], index_files=files)[0]


def by_word(body: dict[str, Any], _: int) -> Reply:
    """Answer with the class that is a word of the text, and else with the class of the first
    example."""
    examples = [turn["content"] for turn in body["messages"] if turn["role"] == "assistant"]
    named = next((label for label in CLASSES if label in question(body).split()), None)
    return completion(label_answer(named) if named else (examples or ["I do not know"])[-1])


def test_a_classifier_chooses_labels_and_a_stored_baseline_is_a_version_with_its_predictions(
    tmp_path: Path,
) -> None:
    def with_logprobs(body: dict[str, Any], number: int) -> Reply:
        content = json.loads(by_word(body, number).content)
        return completion(content["choices"][0]["message"]["content"], logprobs=(-0.1, -0.2))

    with endpoint_server(with_logprobs) as server:
        baseline = fit(server.url, tmp_path)
        num_requests = len(server.bodies)
        assert fit(server.url, tmp_path) == baseline  # with the same artifact
        uri = str(baseline.uri)
        config = read_artifact_config(uri)
        assert config.endpoint is not None
        assert (config.task, config.endpoint.reported_model) == ("classification", MODEL)
        table = predict_rows(uri, rows=build.pairs(VALIDATION))
        assert score_table("accuracy", table) == baseline.validation
        np.testing.assert_allclose(table.calibrated, np.exp(-0.3))
        version = register(tmp_path.as_uri(), local_copy(uri))
        # The answers of a version are those of its artifact.
        assert predict_rows(version.uri, rows=build.pairs(VALIDATION)).outputs == table.outputs
        tokens = Tokens("m", (1.0,) * 5, (2.0,) * 5)
        costs = measure_serving(
            {"incumbent": uri, "candidate": version.uri},
            rows=build.pairs(VALIDATION),
            tokens={"incumbent": tokens, "candidate": tokens},
        ).serving
        assert (costs["incumbent"].tokens, costs["incumbent"].gpu_s) == (tokens, None)
        assert len(server.bodies) == num_requests
        with pytest.raises(ModelError):
            load_artifact(uri)
        assert predict_rows(version.uri, rows=build.pairs(TEST)).outputs == ("sky", "leaf")

    # Only retrieved examples show the classes of `azure` and `roses`.
    assert (baseline.kind, version.kind) == ("hosted", "endpoint_retrieved")
    assert baseline.validation >= 0.75
    num_shots = [len(body["messages"]) // 2 - 1 for body in server.bodies]
    assert {0, CONFIG.prompt_shots, 1} <= set(num_shots)  # each kind of prompt was tried
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["label"]["enum"] == list(CLASSES)


def test_a_chat_endpoint_is_scored_by_the_words_of_its_answers(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], _: int) -> Reply:
        text = f"it is {question(body)}"
        return completion(text, logprobs=(-1.0,), finish_reason="length")

    with endpoint_server(answer) as server:
        baseline = fit(server.url, tmp_path, chat=True)
        config = read_artifact_config(str(baseline.uri))
        assert (config.task, config.kind) == ("chat", "endpoint_zero_shot")  # all prompts are equal
        table = predict_rows(str(baseline.uri), rows=build.pairs(VALIDATION, chat=True))
    assert score_table("token_f1", table) == baseline.validation > 0
    assert "4 of 4 rows with an answer that ends at max_tokens, 0 of" in str(baseline.note)
    np.testing.assert_allclose(table.confidences, np.exp(-1.0))
    assert not {"sky", "it is azure"} & {*table.outputs, *table.labels}  # hashes
    assert "response_format" not in server.bodies[0]
    assert server.bodies[0]["messages"][0] == {"role": "system", "content": "s"}


def test_a_label_that_the_endpoint_cannot_name_is_refused_before_the_first_request(
    tmp_path: Path,
) -> None:
    with endpoint_server(by_word) as server:
        with pytest.raises(DataError):
            fit(server.url, tmp_path, classes=("", "sky"))
        assert server.bodies == []


MANY = tuple((f"sky number {number}", "sky") for number in range(50))
FEW_SETTINGS = CONFIG.model_copy(update={"prompt_draws": 1})


def only_at(*numbers: int, reply: Reply) -> Answer:
    """Return an endpoint with another reply to the rows of `MANY` with these numbers."""
    return lambda body, number: (
        reply if int(question(body).split()[-1]) in numbers else by_word(body, number)
    )


CUT = completion(None, finish_reason="length")  # as of a model that reasons
FILTERED = refusal(400, "filtered", code="content_filter")


def test_a_truncated_and_a_refused_row_are_wrong_and_stated_and_refused_parameters_are_pinned(
    tmp_path: Path,
) -> None:
    def answer(body: dict[str, Any], number: int) -> Reply:
        if question(body).endswith(" 0"):  # the first request
            return FILTERED
        if "logprobs" in body:
            return refusal(400, "logprobs are not supported here")
        return only_at(3, reply=CUT)(body, number)

    with endpoint_server(answer) as server:
        zero_shot = fit(server.url, tmp_path, pairs=MANY)
        num_requests = len(server.bodies)
        table = predict_rows(
            str(zero_shot.uri), rows=build.pairs((*MANY, ("sky number 50", "sky")))
        )
        assert not any("logprobs" in body for body in server.bodies[num_requests:])
        assert len(server.bodies) == num_requests + 1
    note = str(zero_shot.note)
    assert "1 of 50 rows refused for the text" in note
    assert "1 of 50 rows with an answer that ends at max_tokens, 1 of" in note
    assert "sent without logprobs" in note
    assert zero_shot.validation == 0.96
    assert not has_confidences(table)
    assert table.outputs[:4] == ("", "sky", "sky", "")


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("reply", [CUT, FILTERED])
def test_many_validation_rows_without_a_result_end_the_run_and_their_texts_are_not_named(
    tmp_path: Path, chat: bool, reply: Reply
) -> None:
    with endpoint_server(only_at(4, 7, reply=reply)) as server:
        for _ in range(2):
            with pytest.raises(EndpointAnswersMissing) as raised:
                fit(server.url, tmp_path, chat=chat, pairs=MANY)
            assert len(server.bodies) == len(MANY)
    assert "sky" not in str(raised.value)


CUT_LABEL = completion('{"label": "sk', finish_reason="length")


@pytest.mark.parametrize(
    ("chat", "reply"),
    [(True, CUT), (True, FILTERED), (True, completion("")), (False, CUT_LABEL)],
)
def test_rows_without_a_result_are_wrong_and_do_not_remove_the_confidences_of_others(
    tmp_path: Path, chat: bool, reply: Reply
) -> None:
    def answer(body: dict[str, Any], _: int) -> Reply:
        if question(body) in ("azure", "some sky", "no sky"):
            return reply
        return completion(label_answer("sky"), logprobs=(-0.5,))

    with endpoint_server(answer) as server:
        zero_shot = fit(server.url, tmp_path, chat=chat)
        uri = str(zero_shot.uri)
        table = predict_rows(uri, rows=build.pairs(VALIDATION, chat=chat))
        content = [("sky", "sky"), ("some sky", "sky"), ("no sky", "sky")]
        test = predict_rows(uri, rows=build.pairs(content, chat=chat))
    assert has_confidences(table)
    np.testing.assert_allclose(table.confidences[[1, 2]], [np.exp(-0.5), 0.0])
    scores = test.measures["token_f1"] if chat else test.scores
    assert (scores > 0).tolist() == [True, False, False]
