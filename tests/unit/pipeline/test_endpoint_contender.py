"""The endpoint of a recipe: its first request, before other baselines, and the limit of its
answers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tailorbird.data.rows import DataError, Splits
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.inference.endpoint_coverage import AnswerCounts
from tailorbird.models.endpoint import errors
from tailorbird.models.endpoint.prompts import label_answer
from tailorbird.pipeline.cost import endpoint_answers
from tailorbird.pipeline.endpoint_contender import (
    endpoint_baseline,
    first_answer,
    predict_contender,
    request_limits,
)
from tailorbird.pipeline.prepare import RunContext
from tailorbird.pipeline.run import require_endpoints
from tailorbird.registry.versions import read_artifact_config
from tests import build
from tests.endpoint_server import Reply, Server, completion, endpoint_server, question, refusal
from tests.progress import ProgressRecorder
from tests.unit.pipeline.contexts import context_of, recipe_at, splits_of


def by_last_letter(body: dict[str, Any], _: int) -> Reply:
    return completion(label_answer(question(body)[-1]))


def context_at(
    server: Server,
    folder: Path,
    *,
    splits: Splits | None = None,
    prompt: dict[str, str] | None = None,
    data: dict[str, Any] | None = None,
    **fields: Any,
) -> RunContext:
    """Return a context whose recipe has the endpoint of the server."""
    contender: dict[str, Any] = {"endpoint": {"url": server.url, "model": "m"} | fields}
    if prompt is not None:
        contender["prompt"] = prompt
    recipe = recipe_at(
        folder,
        evaluation={"contenders": {"hosted": contender}, "prompt_draws": 1},
        data={"train": "s3://lake/x"} | (data or {}),
    )
    return context_of(recipe, splits or splits_of())


def require(context: RunContext) -> None:
    require_endpoints(context, progress=ProgressRecorder())


def fitted(context: RunContext) -> Baseline:
    config = context.task.version_config("zero_shot", dtype="float32")
    return endpoint_baseline(context.inputs, "hosted", baselines=(), config=config)


def notes(context: RunContext) -> str:
    """Return what the start of a run states about the endpoint."""
    recorder = ProgressRecorder()
    require_endpoints(context, progress=recorder)
    return " ".join(map(str, recorder.events))


def test_the_first_request_is_sent_before_the_baselines_and_not_again(tmp_path: Path) -> None:
    with endpoint_server(by_last_letter) as server:
        context = context_at(server, tmp_path)
        require(context)
        [first] = server.bodies
        assert question(first) == context.splits.validation.texts[0]
        require(context)
        assert len(server.bodies) == 1
        baseline = fitted(context)
        assert len(server.bodies) == len({json.dumps(body) for body in server.bodies}) == 24
    assert (baseline.kind, baseline.validation) == ("hosted", 1.0)


def test_a_request_for_the_shortest_row_that_is_refused_as_too_long_ends_the_run_at_once(
    tmp_path: Path,
) -> None:
    too_long = refusal(400, "This model's maximum context length is 4096 tokens")
    validation = build.pairs([("a long row of a", "a"), ("of b", "b"), ("a row of a", "a")])
    splits = replace(splits_of(), validation=validation)
    with endpoint_server(lambda *_: too_long) as server:
        context = context_at(server, tmp_path, splits=splits, max_tokens=5000)
        message = r"the shortest validation row as too long .* an answer of 5,000 tokens. Lower .*max_tokens"
        for _ in range(2):
            with pytest.raises(errors.EndpointAnswersMissing, match=message):
                require(context)
        assert [question(body) for body in server.bodies] == ["of b"]


@pytest.mark.parametrize(("fields", "limit"), [({}, 30), ({"max_tokens": 400}, 400)])
def test_max_tokens_is_the_limit_of_all_requests_and_of_the_version(
    tmp_path: Path, fields: dict[str, Any], limit: int
) -> None:
    """A model that reasons needs 300 tokens before its answer."""

    def reasons(body: dict[str, Any], number: int) -> Reply:
        if "max_tokens" in body:
            return refusal(400, "use max_completion_tokens instead of max_tokens")
        enough = body["max_completion_tokens"] > 300
        return by_last_letter(body, number) if enough else completion(None, finish_reason="length")

    with endpoint_server(reasons) as server:
        context = context_at(server, tmp_path, **fields)
        assert ("A model that reasons needs a higher max_tokens" in notes(context)) is (not fields)
        if fields:
            baseline = fitted(context)
            assert baseline.validation == 1.0
            stored = read_artifact_config(str(baseline.uri))
            assert stored.prompting is not None
            assert stored.prompting.max_new_tokens == limit
        else:
            with pytest.raises(errors.EndpointAnswersMissing, match="100% of the answers of 'm'"):
                fitted(context)
        limits = {
            body.get("max_tokens", body.get("max_completion_tokens")) for body in server.bodies
        }
    assert limits == {limit}


def test_an_empty_label_is_refused_before_the_first_request(tmp_path: Path) -> None:
    train, validation, test = (build.rows([f"{name} a", f"{name} b"], ["", "b"]) for name in "xyz")
    with endpoint_server(by_last_letter) as server:
        context = context_at(server, tmp_path, splits=Splits(train, validation, test))
        with pytest.raises(DataError, match="a label is empty"):
            require(context)
        assert server.bodies == []


PROMPT = {"system": "You sort rows.", "template": "Labels: {labels}\nRow: {text}"}


OTHER_PROMPT = {"system": "You are a poet.", "template": "Rhyme on {text}"}


@pytest.mark.parametrize("of_the_endpoint", [False, True])
def test_the_prompt_of_the_recipe_is_sent_and_stored_with_each_version(
    tmp_path: Path, of_the_endpoint: bool
) -> None:
    with endpoint_server(by_last_letter) as server:
        data = OTHER_PROMPT if of_the_endpoint else PROMPT
        context = context_at(
            server,
            tmp_path,
            prompt=PROMPT if of_the_endpoint else None,
            data=data | {"label_descriptions": {"a": "the first letter"}},
        )
        require(context)
        baseline = fitted(context)
        table = predict_contender(context.inputs, str(baseline.uri), rows=context.splits.test)
    assert (baseline.kind, baseline.validation) == ("hosted", 1.0)
    assert table.outputs == context.splits.test.labels
    start = 'Labels: "a": "the first letter"\n"b"\nRow: '
    texts = {*context.splits.train.texts, *context.splits.validation.texts}
    texts |= set(context.splits.test.texts)
    for body in server.bodies:
        system, *turns = body["messages"]
        assert system == {"role": "system", "content": "You sort rows."}
        users = [turn["content"] for turn in turns if turn["role"] == "user"]
        assert users
        assert {text.removeprefix(start) for text in users} <= texts
    stored = read_artifact_config(str(baseline.uri)).prompting
    assert stored is not None
    assert (stored.system, stored.template) == ("You sort rows.", f"{start}{{text}}")


def test_an_endpoint_of_a_chat_task_has_its_own_prompt_with_the_limits_of_the_task(
    tmp_path: Path,
) -> None:
    splits = [
        build.pairs(
            [(f"a question of {name}, {number}", "an answer") for number in "0123"], chat=True
        )
        for name in ("train", "validation", "test")
    ]
    with endpoint_server(lambda *_: completion("an answer")) as server:
        endpoint = {"url": server.url, "model": "m"}
        contenders = {"hosted": {"endpoint": endpoint, "prompt": OTHER_PROMPT}}
        recipe = recipe_at(
            tmp_path,
            task="chat",
            data={"train": "s3://lake/x", "system": "You sort rows.", "max_new_tokens": 50},
            evaluation={"contenders": contenders, "metric": "exact_match"},
        )
        context = context_of(recipe, Splits(*splits))
        first_answer(
            context.inputs,
            "hosted",
            config=context.task.version_config("zero_shot", dtype="float32"),
        )
        [body] = server.bodies
    assert [turn["content"] for turn in body["messages"]] == [
        "You are a poet.",
        "Rhyme on a question of validation, 0",
    ]
    assert body["max_tokens"] == 50


def test_the_answers_of_an_endpoint_that_ignores_the_template_are_wrong_and_counted(
    tmp_path: Path,
) -> None:
    with endpoint_server(lambda *_: completion("I like rows.")) as server:
        context = context_at(server, tmp_path, data=PROMPT)
        assert "has no label and counts as wrong" in notes(context)
        baseline = fitted(context)
        uri = str(baseline.uri)
        test = context.splits.test
        table = predict_contender(context.inputs, uri, rows=test)
        counts = endpoint_answers(
            {"incumbent": uri},
            rows=test,
            tables={"incumbent": table},
            predict=lambda _: table,
            limits=request_limits(context.inputs),
        )
    assert baseline.validation == 0.0
    assert "4 of 4 rows with a complete answer" in str(baseline.note)
    assert not table.scores.any()
    expected = AnswerCounts(len(test), refused=0, truncated=0, empty=0, invalid=len(test))
    assert counts == {"incumbent": expected}
