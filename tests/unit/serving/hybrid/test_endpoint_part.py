"""A cascade whose second part is an endpoint: it is sent only what the first part does not
answer."""

import pytest

from serving.http.metrics import ENDPOINT_SPEND, Meter
from tests.endpoint_server import completion, endpoint_server, refusal
from tests.unit.serving.endpoint.clients import engine_of as endpoint_engine
from tests.unit.serving.endpoint.test_chat_engine import counts
from tests.unit.serving.endpoint.versions import KEY, VARIABLE
from tests.unit.serving.engines.test_nearest_engine import engine_of as nearest_engine
from tests.unit.serving.hybrid.test_chat_engine import KNOWN, SIMILAR, answers_of, hybrid_of


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def test_only_the_rows_below_the_threshold_cost_tokens_of_the_endpoint() -> None:
    meter = Meter()
    with endpoint_server(lambda *_: completion("a b", tokens=(21, 3))) as server:
        second = endpoint_engine(server, meter=meter, prices=(1.0, 10.0))
        engine = hybrid_of(nearest_engine(), second, timeout_s=5)
        known, other = answers_of(engine, KNOWN)[-1], answers_of(engine, SIMILAR)[-1]
        assert len(server.bodies) == 1
    assert (known.answered_by, known.is_fallback) == ("first", False)
    assert (other.text, other.answered_by, other.is_fallback) == ("a b", "second", False)
    assert (other.num_prompt_tokens, other.num_tokens) == (21, 3)  # the endpoint's counts
    assert sum(counts(meter, ENDPOINT_SPEND).values()) == pytest.approx(0.021 + 0.03)


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
@pytest.mark.parametrize("streaming", [False, True])
def test_the_stored_answer_is_returned_if_the_endpoint_refuses(
    status: int, streaming: bool
) -> None:
    with endpoint_server(lambda *_: refusal(status, "no")) as server:
        engine = hybrid_of(nearest_engine(), endpoint_engine(server), timeout_s=5)
        (answer,) = answers_of(engine, SIMILAR, streaming=streaming)
    assert (answer.text, answer.answered_by, answer.is_fallback) == (
        "Blue\u2014as ever!",
        "first",
        True,
    )
