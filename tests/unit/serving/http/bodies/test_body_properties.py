"""Any body of a POST request is answered below 500, as JSON, and its values are counted."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.http import openapi
from serving.http.asgi import ASGIApp
from serving.http.json_values import has_more_values
from serving.replica.chat import Chat
from serving.replica.classifier import Classifier
from tailorbird.config.serving import ServingConfig
from tests.unit.serving.http.application import application, request
from tests.unit.serving.replica.fake_engine import FakeEngine
from tests.unit.serving.replica.test_classifier import FakePool

CONFIG = ServingConfig(max_new_tokens=64)
OPERATIONS = {path: each for path, each in openapi.OPERATIONS.items() if each.request is not None}
TEXTS = st.text(max_size=8) | st.sampled_from(
    ("champion", "user", "system", "assistant", "text", "s3://a/../b", "</s>")
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
PARTS = st.lists(
    st.dictionaries(st.sampled_from(("type", "text", "image_url")), TEXTS, max_size=2), max_size=2
)
TURN = st.fixed_dictionaries(
    {"role": TEXTS, "content": TEXTS | PARTS | st.none()}, optional={"name": TEXTS}
)
CHANGES = st.dictionaries(st.integers(0, 40), VALUES | st.lists(TURN, max_size=3), max_size=3)


@pytest.fixture(scope="module")
def apps() -> dict[str, ASGIApp]:
    no_pool: Any = None
    classifier = application(Classifier, CONFIG, FakePool.load(no_pool, "v", "d"))
    engine = FakeEngine("a b</s>")
    engine.max_length = 1024
    chat = application(Chat, CONFIG, engine)
    return {path: chat if "completions" in path else classifier for path in OPERATIONS}


def status_of(app: ASGIApp, path: str, body: bytes) -> int:
    status, _, text = request(app, "POST", path, body=body)
    assert status < 500, text
    assert text.startswith("data: ") or isinstance(json.loads(text), dict)
    return status


@given(path=st.sampled_from(sorted(OPERATIONS)), changes=CHANGES)
def test_any_value_of_a_field_is_answered_below_500(
    path: str, changes: dict[int, Any], apps: dict[str, ASGIApp]
) -> None:
    operation: Any = OPERATIONS[path]
    names = list(operation.request.model_fields)
    content = dict(operation.example)
    for index, value in changes.items():
        content[names[index % len(names)]] = value
    status_of(apps[path], path, json.dumps(content).encode())


@given(body=st.binary(max_size=40))
@example(body=b'{"messages": [{"role": "user", "content": "\\udc00"}]}')
def test_any_bytes_are_answered_below_500(body: bytes, apps: dict[str, ASGIApp]) -> None:
    for path, app in apps.items():
        status_of(app, path, body)


JSON_TEXTS = st.text(alphabet='a,:[]{}"\\ \né0', max_size=6)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | JSON_TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(JSON_TEXTS, inner, max_size=4),
    max_leaves=20,
)
MANY = 1_000_000


def number_of_values(value: Any) -> int:
    """Return the number of values and names, as the JSON parser sees them."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(number_of_values, value.values()))
    return 1 + sum(map(number_of_values, value)) if isinstance(value, list) else 1


@given(value=JSON_VALUES, indent=st.sampled_from((None, 2)), ascii=st.booleans())
@example(value={"a": ["\\", '"', "[1, 2]", -1.5e3, None, {}, []]}, indent=2, ascii=False)
def test_values_and_names_are_counted_as_in_json(
    value: Any, indent: int | None, ascii: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii).encode()
    number = number_of_values(value)
    assert not has_more_values(text, number)
    assert has_more_values(text, number - 1)


@pytest.mark.parametrize("part", [b'"', b"[", b"{", b"1,", b"[],", b'"",', b'"":'])
def test_many_values_are_found_in_an_invalid_text(part: bytes) -> None:
    assert has_more_values(part * MANY, MANY // 3)
