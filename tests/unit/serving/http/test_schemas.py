"""Validation of requests, and the form of errors and responses."""

import asyncio
import json
from typing import Any

import pytest
from pydantic import ValidationError

from serving.http.schemas import (
    MAX_FAULTS,
    MAX_VALUES,
    SCORES_AT_ONCE,
    ClassifyRequest,
    ClassifyResponse,
    CompareResponse,
    FeedbackRequest,
    RequestError,
    parse_body,
    parse_request,
    write_answer,
    write_comparison,
)
from serving.request_log.attributes import MAX_ATTRIBUTES

ID = "2c9a7f40d1e84b5b9f36a0c7e5128d34"


def test_one_text_becomes_a_list_of_one() -> None:
    request = parse_request(b'{"input": "fever"}', max_texts=4, max_text_bytes=100)
    assert request.texts == ["fever"]
    assert request.model == "champion"
    assert request.scores is False


def test_a_list_keeps_its_order() -> None:
    assert parse_request(b'{"input": ["b", "a", ""]}', max_texts=4, max_text_bytes=100).texts == [
        "b",
        "a",
        "",
    ]


NESTED = b'{"input": ' + 5000 * b"[" + 5000 * b"]" + b"}"
LONG_NUMBER = b'{"input": ' + 100_000 * b"9" + b"}"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"input": "a"', b"\xff\xfe", b"input=fever", b"\0", NESTED, LONG_NUMBER],
    ids=lambda body: body[:20],
)
def test_invalid_or_excessively_nested_json_is_a_400(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(body, max_texts=4, max_text_bytes=100)
    assert (caught.value.status, caught.value.type) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "input: Field required"),
        ([], "body"),
        ({"input": 3}, "input: must be a text or a list of texts"),
        ({"input": None}, "input: must be a text"),
        ({"input": ["a", 1]}, "input"),
        ({"input": []}, "input: give 1 to 4 texts, not 0"),
        ({"input": ["a"] * 5}, "input: give 1 to 4 texts, not 5"),
        ({"input": "a", "model": 1}, "model"),
        ({"input": "a", "scores": "yes"}, "scores"),
        ({"input": "a", "modle": "x"}, "modle"),
        ({"input": "a", "attributes": "f"}, "attributes: must be an object, or a list"),
        ({"input": "a", "attributes": {"sex": 1}}, "attributes: must be an object"),
        ({"input": "a", "attributes": {"sex": None}}, "attributes: must be an object"),
        ({"input": "a", "attributes": [None]}, "attributes: must be an object"),
        ({"input": "a", "attributes": [["sex", "f"]]}, "attributes: must be an object"),
        (
            {"input": "a", "attributes": {str(n): "" for n in range(33)}},
            "an object has at most 32 attributes",
        ),
        ({"input": "a", "attributes": {"a" * 257: "f"}}, "at most 256 characters"),
        ({"input": "a", "attributes": [{"sex": "a" * 257}]}, "at most 256 characters"),
        (
            {"input": "a", "attributes": {str(n): "é" * 128 for n in range(8)}},
            "together 2048 bytes",
        ),
        (
            {"input": "a", "attributes": [{str(n): "é" * 128 for n in range(8)}]},
            "together 2048 bytes",
        ),
        (
            {"input": ["a", "b"], "attributes": [{"sex": "f"}]},
            "attributes: give one object for all texts, or a list of 2 objects",
        ),
        ({"input": "a", "attributes": []}, "a list of 1 objects, not 0"),
    ],
)
def test_an_invalid_field_is_a_422_that_names_it(body: object, expected: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(json.dumps(body).encode(), max_texts=4, max_text_bytes=100)
    assert caught.value.status == 422
    assert expected in caught.value.message


def test_an_error_body_has_openais_fields() -> None:
    assert json.loads(RequestError(404, "unknown_model", "no model").body) == {
        "error": {"message": "no model", "type": "unknown_model", "param": None, "code": None}
    }


def test_an_error_does_not_repeat_the_input() -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(b'{"input": {"patient": "Jane Doe"}}', max_texts=4, max_text_bytes=100)
    assert "Jane" not in caught.value.message


@pytest.mark.parametrize(
    "attributes", [{"Jane Doe": 1}, {"sex": ["Jane Doe"]}, [{"Jane Doe" + "a" * 256: "f"}]]
)
def test_an_error_does_not_repeat_an_attribute(attributes: object) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(
            json.dumps({"input": "a", "attributes": attributes}).encode(),
            max_texts=4,
            max_text_bytes=100,
        )
    assert caught.value.message.startswith("attributes: must be")
    assert "Jane" not in caught.value.message


def test_attributes_are_optional_and_apply_to_all_texts_or_to_each() -> None:
    limits = {"k" * 255 + str(number): "v" * 256 for number in range(3)} | {
        f"{number:02}": "" for number in range(29)
    }
    limits["00"] = "v" * 256
    for attributes in (None, {}, {"sex": "f"}, [{"sex": "f"}, {}], limits):
        body = json.dumps({"input": ["a", "b"], "attributes": attributes}).encode()
        assert parse_request(body, max_texts=4, max_text_bytes=100).attributes == attributes
    assert parse_request(b'{"input": "a"}', max_texts=4, max_text_bytes=100).attributes is None
    assert parse_request(
        b'{"input": "a", "attributes": [{"sex": "f"}]}', max_texts=4, max_text_bytes=100
    ).attributes == [{"sex": "f"}]


MANY_FAULTS = {
    "texts": {"input": [1] * 1000},
    "objects": {"input": "a", "attributes": [1] * 1000},
}


@pytest.mark.parametrize("name", MANY_FAULTS)
def test_the_first_fault_of_a_list_ends_its_validation(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ClassifyRequest.model_validate_json(json.dumps(MANY_FAULTS[name]))
    assert caught.value.error_count() <= 3  # one for each type of the union


@pytest.mark.parametrize("num_unknown", [MAX_FAULTS, MAX_FAULTS + 1])
def test_many_faults_are_counted_and_not_described(num_unknown: int) -> None:
    body = {"input": "a", **{f"field {number}": 1 for number in range(num_unknown)}}
    with pytest.raises(RequestError) as caught:
        parse_request(json.dumps(body).encode(), max_texts=4, max_text_bytes=100)
    assert (caught.value.status, caught.value.type) == (422, "invalid_request")
    named = num_unknown <= MAX_FAULTS
    assert ("field 0: Extra inputs are not permitted" in caught.value.message) == named
    assert (
        f"the body has {num_unknown} invalid or unknown fields" in caught.value.message
    ) != named


@pytest.mark.parametrize("item", [1, "a", [], {}])
def test_a_body_with_too_many_values_is_not_validated(
    item: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClassifyRequest, "model_validate_json", None)
    with pytest.raises(RequestError) as caught:
        parse_request(
            json.dumps({"input": [item] * MAX_VALUES}).encode(), max_texts=256, max_text_bytes=100
        )
    assert (caught.value.status, caught.value.type) == (413, "body_too_large")
    assert f"more than {MAX_VALUES:,} JSON values and names" in caught.value.message


@pytest.mark.parametrize("max_texts", [256, 2000])
def test_the_most_texts_with_the_most_attributes_are_accepted(max_texts: int) -> None:
    attributes = [{str(name): "" for name in range(MAX_ATTRIBUTES)}] * max_texts
    fields = {
        "input": ["a"] * max_texts,
        "attributes": attributes,
        "model": "m",
        "scores": True,
        "subject": "s",
    }
    request = parse_request(json.dumps(fields).encode(), max_texts=max_texts, max_text_bytes=100)
    assert len(request.texts) == max_texts


FIELDS = {"request_id": "r", "model": "m", "version": "v"}


def answer_of(results: list[dict[str, object]]) -> bytes:
    return asyncio.run(write_answer(FIELDS, results=results))


def test_a_written_answer_is_valid_for_its_schema() -> None:
    written = answer_of([{"label": "é", "score": 0.5, "scores": {"é": 0.5}}])
    result = ClassifyResponse.model_validate_json(written).results[0]
    assert (result.scores, result.answered_by) == ({"é": 0.5}, None)
    compared = CompareResponse.model_validate_json(
        write_comparison("r", {"baseline": written, "champion": written})
    )
    assert (compared.request_id, compared.champion) == ("r", compared.baseline)
    assert compared.champion.results == [result]


def test_other_requests_run_while_an_answer_with_many_scores_is_written() -> None:
    results = [
        {"label": str(row), "score": 0.5, "scores": dict.fromkeys(map(str, range(1000)), 0.5)}
        for row in range(20)
    ]
    turns = 0

    async def write() -> bytes:
        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        running = asyncio.create_task(others())
        try:
            return await write_answer(FIELDS, results=results)
        finally:
            running.cancel()

    assert json.loads(asyncio.run(write())) == FIELDS | {"results": results}
    assert turns >= 20 * 1000 // (SCORES_AT_ONCE + 1000)


def test_a_hybrid_answer_names_the_model_that_answered() -> None:
    written = answer_of([{"label": "a", "score": 0.5, "answered_by": "second"}])
    assert ClassifyResponse.model_validate_json(written).results[0].answered_by == "second"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"request_id": ID, "label": "b"}, None),
        ({"request_id": f"chatcmpl-{ID}", "label": "b"}, None),
        ({"request_id": ID, "label": "b", "row": 255}, None),
        ({"request_id": ID, "label": -7}, None),
        ({"request_id": ID, "label": 7.5}, 422),
        ({"request_id": ID, "label": True}, 422),
        ({"request_id": ID, "label": "b", "row": 1 << 31}, 422),
        ({"request_id": ID, "label": "b", "row": -1}, 422),
        ({"request_id": "my-own-id", "label": "b"}, 422),
        ({"request_id": f"{ID}a", "label": "b"}, 422),
        ({"request_id": ID, "score": 0.5, "correct_answer": "b"}, None),
        ({"request_id": ID, "score": 1.5}, 422),
        ({"request_id": ID, "correct_answer": ""}, 422),
        ({"request_id": ID, "label": "b", "more": 1}, 422),
    ],
)
def test_feedback_needs_a_request_id_and_values_in_their_range(
    body: dict[str, Any], status: int | None
) -> None:
    content = json.dumps(body).encode()
    if status is None:
        assert parse_body(FeedbackRequest, content).row == body.get("row", 0)
        return
    with pytest.raises(RequestError) as caught:
        parse_body(FeedbackRequest, content)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("task", "fields", "fault"),
    [
        ("classification", {"label": "b"}, None),
        ("classification", {}, "give `label` only"),
        ("classification", {"label": "b", "score": 1.0}, "give `label` only"),
        ("chat", {"label": "good"}, None),
        ("chat", {"label": "bad", "correct_answer": "4"}, None),
        ("chat", {"score": 0.5, "correct_answer": "4"}, None),
        ("chat", {"label": "good", "score": 1.0}, "give `label` or `score`, not both"),
        (
            "chat",
            {"label": "4"},
            "for chat, `label` is good or bad; send a correct answer as `correct_answer`",
        ),
        ("chat", {}, "give `label`, `score` or `correct_answer`"),
    ],
)
def test_feedback_has_a_label_or_for_chat_a_score_or_an_answer(
    task: Any, fields: Any, fault: str | None
) -> None:
    feedback = parse_body(FeedbackRequest, json.dumps({"request_id": ID} | fields).encode())
    if fault is None:
        feedback.require_fields_of(task)
        return
    with pytest.raises(RequestError) as caught:
        feedback.require_fields_of(task)
    assert (caught.value.status, caught.value.message) == (422, fault)


@pytest.mark.parametrize(
    ("texts", "position", "size"), [("a" * 101, 0, 101), (["a" * 100, "é" * 50, "é" * 51], 2, 102)]
)
def test_a_text_that_is_too_large_is_a_422_that_names_its_position_and_the_limit(
    texts: str | list[str], position: int, size: int
) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(json.dumps({"input": texts}).encode(), max_texts=4, max_text_bytes=100)
    assert (caught.value.status, caught.value.type) == (422, "invalid_request")
    error = json.loads(caught.value.body)["error"]
    expected = (
        f"the text at position {position} (from 0) has {size} bytes; a text may have at most 100"
    )
    assert error["message"] == f"input: {expected}"


def test_a_text_with_half_of_a_surrogate_pair_is_not_accepted() -> None:
    with pytest.raises(RequestError):
        parse_request(b'{"input": "\\ud800"}', max_texts=4, max_text_bytes=100)
