"""What a request may be, and what is said about one that is not."""

import json

import pytest

from serving.protocol import ClassifyAnswer, RequestError, parse_request, write_answer


def test_one_text_becomes_a_list_of_one() -> None:
    request = parse_request(b'{"input": "fever"}', max_texts=4)
    assert request.texts == ["fever"]
    assert request.model == "champion"
    assert request.scores is False


def test_a_list_keeps_its_order() -> None:
    assert parse_request(b'{"input": ["b", "a", ""]}', max_texts=4).texts == ["b", "a", ""]


@pytest.mark.parametrize("body", [b"", b"{", b'{"input": "a"', b"\xff\xfe", b"input=fever"])
def test_what_is_no_json_is_a_400(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(body, max_texts=4)
    assert (caught.value.status, caught.value.type) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("body", "named"),
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
    ],
)
def test_what_does_not_fit_is_a_422_that_names_the_field(body: object, named: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(json.dumps(body).encode(), max_texts=4)
    assert caught.value.status == 422
    assert named in caught.value.message


def test_an_error_has_one_shape() -> None:
    assert json.loads(RequestError(404, "unknown_model", "no model").body) == {
        "error": {"type": "unknown_model", "message": "no model"}
    }


def test_a_refusal_never_repeats_the_text_it_was_given() -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(b'{"input": {"patient": "Jane Doe"}}', max_texts=4)
    assert "Jane" not in caught.value.message


def test_the_answer_written_is_the_answer_described() -> None:
    written = write_answer(
        {
            "request_id": "r",
            "model": "m",
            "version": "v",
            "results": [{"label": "é", "score": 0.5, "scores": {"é": 0.5}}],
        }
    )
    assert ClassifyAnswer.model_validate_json(written).results[0].scores == {"é": 0.5}
