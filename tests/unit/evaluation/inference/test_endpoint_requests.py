"""Stored answers of an endpoint: a resumed run sends no request twice, and spend and concurrency
are limited."""

import asyncio
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.progress import RowsEvent, reporting_to
from tailorbird import storage
from tailorbird.evaluation.inference.endpoint_requests import (
    RequestLimits,
    StoredAnswers,
    fetch_answers,
    request_sha256,
)
from tailorbird.evaluation.inference.endpoint_spend import SpendLimit, largest_price
from tailorbird.models.endpoint import errors
from tailorbird.models.endpoint.client import Body, RetryPolicy
from tailorbird.models.endpoint.completion import EndpointAnswer
from tailorbird.models.endpoint.prompts import chat_body
from tailorbird.registry.endpoint import Endpoint
from tests.endpoint_server import (
    MODEL,
    Reply,
    Server,
    completion,
    endpoint_server,
    question,
    refusal,
)
from tests.progress import ProgressRecorder

RETRY = RetryPolicy(max_attempts=2, first_delay_s=0.01, max_delay_s=0.02)
PRICED = {
    "prices": (0.0, 500.0),
}  # an answer of 2 output tokens, the maximum, costs 1


def limits_of(**fields: Any) -> RequestLimits:
    return RequestLimits(retry=RETRY, **fields)


def bodies(*numbers: int) -> list[Body]:
    return [chat_body((("user", str(number)),), model="m", max_tokens=2) for number in numbers]


def texts(
    server: Server, task: Path, *numbers: int, limits: RequestLimits | None = None, **fields: Any
) -> list[str]:
    endpoint = Endpoint(url=server.url, model="m", **(PRICED | fields))
    answers = fetch_answers(
        bodies(*numbers),
        endpoint=endpoint,
        parent=task.as_uri(),
        limits=limits or limits_of(),
    )
    return [answer.text for answer in answers]


def echo(body: dict[str, Any], _: int) -> Reply:
    return completion(question(body))


def test_answers_have_the_order_of_the_requests_and_no_request_is_sent_twice(
    tmp_path: Path,
) -> None:
    two = limits_of(max_concurrency=2)
    with endpoint_server(echo) as server:
        assert texts(server, tmp_path, 3, 1, 2, 3, limits=two) == ["3", "1", "2", "3"]
        assert sorted(map(question, server.bodies)) == ["1", "2", "3"]
        assert texts(server, tmp_path, 2, 4, 3, limits=two) == ["2", "4", "3"]
        assert [question(body) for body in server.bodies[3:]] == ["4"]
        texts(server, tmp_path, *range(20), limits=two)
        assert server.max_at_once <= 2
        assert len(server.bodies) == 20


def test_the_number_of_answers_is_reported_also_in_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.progress.REPORT_INTERVAL_S", 0.0)

    async def cell(server: Server) -> list[str]:
        return texts(server, tmp_path, 4, 5, 6)

    with endpoint_server(echo) as server:
        for in_notebook in (False, True):
            recorder = ProgressRecorder()
            with reporting_to(recorder):
                if in_notebook:
                    asyncio.run(cell(server))
                else:
                    texts(server, tmp_path, 1, 2, 3)
            done = [
                (event.done, event.total, event.unit)
                for event in recorder.events
                if isinstance(event, RowsEvent)
            ]
            assert done == [(1, 3, "requests"), (2, 3, "requests")]


def test_an_interrupted_cell_sends_no_further_requests(tmp_path: Path) -> None:
    main = threading.get_ident()

    def interrupts_at_2(body: dict[str, Any], number: int) -> Reply:
        if number == 2:
            signal.pthread_kill(main, signal.SIGINT)
        return Reply(waits=True) if number >= 2 else completion(question(body))

    async def cell(server: Server) -> list[str]:
        return texts(server, tmp_path, *range(50), limits=limits_of(max_concurrency=1))

    # unlike `asyncio.run`, it leaves the handler of the interruption as it is
    loop = asyncio.new_event_loop()
    with endpoint_server(interrupts_at_2) as server:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(cell(server))
        assert len(server.bodies) == 3
    loop.close()
    assert len(storage.list_files(tmp_path.as_uri())) == 2


def test_a_run_that_failed_continues_with_the_missing_requests(tmp_path: Path) -> None:
    def fails_at_5(body: dict[str, Any], _: int) -> Reply:
        return refusal(500, "broken") if question(body) == "5" else completion(question(body))

    with endpoint_server(fails_at_5) as server:
        with pytest.raises(errors.EndpointUnreachable):
            texts(server, tmp_path, *range(10), limits=limits_of(max_concurrency=1))
        assert [question(body) for body in server.bodies] == ["0", "1", "2", "3", "4", "5", "5"]
        url = server.url
        with endpoint_server(echo) as repaired:
            stored = Endpoint(url=url, model="m")
            [answer] = fetch_answers(
                bodies(4), endpoint=stored, parent=tmp_path.as_uri(), limits=RequestLimits()
            )
            assert answer.text == "4"
            assert texts(repaired, tmp_path, 4) == ["4"]  # another URL is another endpoint
            assert len(repaired.bodies) == 1


def test_requests_that_have_started_are_stored_if_another_one_fails(tmp_path: Path) -> None:
    def refuses_1(body: dict[str, Any], _: int) -> Reply:
        return refusal(404, "gone") if question(body) == "1" else completion(question(body))

    with endpoint_server(refuses_1) as server:
        with pytest.raises(errors.EndpointRefused):
            texts(server, tmp_path, *range(10), limits=limits_of(max_concurrency=4))
        sent = {question(body) for body in server.bodies} - {"1"}
        stored = storage.list_files(tmp_path.as_uri())
        assert len(stored) == len(sent)
        assert len(server.bodies) < 10


@pytest.mark.parametrize("max_concurrency", [1, 32])
def test_the_answers_never_cost_more_than_max_spend_and_a_higher_limit_continues(
    tmp_path: Path, max_concurrency: int
) -> None:
    def limits(spend: float) -> RequestLimits:
        return limits_of(max_concurrency=max_concurrency, max_spend=spend)

    with endpoint_server(echo) as server:
        with pytest.raises(errors.EndpointSpendExceeded):
            texts(server, tmp_path, *range(50), limits=limits(3.5))
        assert len(server.bodies) == 3
        with pytest.raises(errors.EndpointSpendExceeded):  # stored answers count
            texts(server, tmp_path, *range(50), limits=limits(3.5))
        assert len(server.bodies) == 3
        paid = [int(question(body)) for body in server.bodies]
        assert texts(server, tmp_path, *paid, limits=limits(3.5)) == list(map(str, paid))
        # The limit can be reached exactly.
        assert len(texts(server, tmp_path, *range(50), limits=limits(50))) == 50
        assert len(server.bodies) == 50


def test_requests_of_an_endpoint_that_charges_more_than_the_largest_price_count_with_what_it_charges(
    tmp_path: Path,
) -> None:
    with endpoint_server(
        lambda *_: completion("yes", tokens=(10, 6))
    ) as server:  # 3 instead of up to 1
        limits = limits_of(max_concurrency=32, max_spend=9.0)
        with pytest.raises(errors.EndpointSpendExceeded):
            texts(server, tmp_path, *range(50), limits=limits)
        assert len(server.bodies) == 3


def test_the_largest_price_of_a_request_counts_a_token_for_each_byte_and_the_longest_answer() -> (
    None
):
    endpoint = Endpoint(url="http://h/v1", model="m", prices=(1.0, 1000.0))
    [short], long = bodies(1), chat_body((("user", "ü\ud800" * 1000),), model="m", max_tokens=2)
    assert 2.0 < largest_price(short, endpoint=endpoint) < 2.5
    assert 7.0 < largest_price(long, endpoint=endpoint) < 7.5


def test_spend_cannot_be_limited_without_the_tokens_of_an_answer(tmp_path: Path) -> None:
    with endpoint_server(lambda *_: completion("yes", tokens=None)) as server:
        with pytest.raises(errors.EndpointAnswerInvalid):
            texts(server, tmp_path, 1, 2, limits=limits_of(max_spend=10))
        assert texts(server, tmp_path, 1, 2) == ["yes", "yes"]
        before = len(server.bodies)
        limited = limits_of(max_spend=10)
        assert texts(server, tmp_path, 1, 2, limits=limited) == ["yes", "yes"]
        with pytest.raises(errors.EndpointAnswerInvalid):
            texts(server, tmp_path, 1, 3, limits=limited)  # the stored answers have no known price
        assert len(server.bodies) == before


def test_the_prices_of_the_recipe_apply_to_its_endpoint_if_that_was_registered_without_prices(
    tmp_path: Path,
) -> None:
    unpriced = {"prices": None}
    with endpoint_server(echo) as server:
        recipe = Endpoint.model_validate({"url": server.url, "model": "m"} | PRICED)
        limits = RequestLimits(max_spend=2.5, max_concurrency=1, retry=RETRY, recipe=recipe)
        with pytest.raises(errors.EndpointSpendExceeded):
            texts(server, tmp_path, *range(10), limits=limits, **unpriced)
        num_requests = len(server.bodies)
        other = replace(limits, recipe=recipe.model_copy(update={"model": "n"}))
        with pytest.raises(ValueError, match="max_spend"):
            texts(server, tmp_path, *range(10), limits=other, **unpriced)
        assert len(server.bodies) == num_requests
        # It is stored, so there is nothing to pay.
        assert texts(server, tmp_path, 0, limits=other, **unpriced) == ["0"]


def test_the_limit_of_a_version_holds_unless_the_recipe_names_its_endpoint(tmp_path: Path) -> None:
    with endpoint_server(echo) as server:
        endpoint = Endpoint.model_validate({"url": server.url, "model": "m"} | PRICED)
        other = endpoint.model_copy(update={"model": "n"})
        for limits in (RequestLimits(), RequestLimits(max_spend=9.0, recipe=other)):
            with pytest.raises(errors.EndpointSpendExceeded):
                texts(server, tmp_path, *range(5), limits=limits, max_spend=2.0)
        assert len(server.bodies) == 2
        with pytest.raises(errors.EndpointSpendExceeded):
            texts(
                server,
                tmp_path,
                *range(5),
                limits=RequestLimits(max_spend=3.0, recipe=endpoint),
                max_spend=2.0,
            )
        without = RequestLimits(recipe=endpoint)  # the recipe sets no limit
        assert len(texts(server, tmp_path, *range(5), limits=without, max_spend=2.0)) == 5


def test_a_model_that_changes_during_a_run_ends_it_and_its_answers_are_not_stored(
    tmp_path: Path,
) -> None:
    def changes(body: dict[str, Any], number: int) -> Reply:
        return completion(question(body), model="m-1" if number < 3 else "m-2")

    with endpoint_server(changes) as server:
        one = limits_of(max_concurrency=1)
        with pytest.raises(errors.EndpointModelChanged):
            texts(server, tmp_path, *range(10), limits=one)
        assert len(server.bodies) == 4
        with pytest.raises(errors.EndpointModelChanged):
            texts(server, tmp_path, 0, 9, limits=one)
        assert texts(server, tmp_path, 0, 1, 2) == ["0", "1", "2"]
        with pytest.raises(errors.EndpointModelChanged):  # evaluated with another model
            texts(server, tmp_path, 0, reported_model="m-2")


def test_another_revision_uses_no_answer_of_the_former_model_but_what_they_cost_counts(
    tmp_path: Path,
) -> None:
    model = "m-1"
    with endpoint_server(lambda body, _: completion(question(body), model=model)) as server:
        limits = limits_of(max_spend=5.0)
        assert texts(server, tmp_path, 0, 1, limits=limits) == ["0", "1"]
        model = "m-2"
        with pytest.raises(errors.EndpointModelChanged):
            texts(server, tmp_path, 0, 1, 2, limits=limits)
        number = len(server.bodies)
        assert texts(server, tmp_path, 0, 1, 2, limits=limits, revision="2") == ["0", "1", "2"]
        assert len(server.bodies) == number + 3
        assert texts(server, tmp_path, 0, 1, 2, limits=limits, revision="2") == ["0", "1", "2"]
        champion = texts(server, tmp_path, 0, 1, limits=limits, reported_model="m-1")
        assert champion == ["0", "1"]
        assert len(server.bodies) == number + 3
        with pytest.raises(errors.EndpointSpendExceeded):
            texts(server, tmp_path, 3, limits=limits, revision="2")


def test_a_stored_answer_contains_neither_the_request_nor_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-secret")
    with endpoint_server(lambda *_: completion("yes")) as server:
        endpoint = Endpoint(url=server.url, model="m", api_key="env://THE_KEY")
        fetch_answers(
            bodies(12345), endpoint=endpoint, parent=tmp_path.as_uri(), limits=RequestLimits()
        )
        assert server.authorizations == ["Bearer sk-secret"]
    [uri] = storage.list_files(tmp_path.as_uri())
    content = storage.read_bytes(uri).decode()
    assert request_sha256(bodies(12345)[0], url=server.url) in uri
    assert "12345" not in content
    assert "sk-secret" not in content + uri


def test_answers_above_their_largest_price_at_the_same_time_raise_later_reservations_once() -> None:
    fields = {"url": "http://h/v1", "model": "m", "max_spend": 2 * 6 + 7}
    endpoint = Endpoint.model_validate(fields | PRICED)
    (body,) = bodies(0)  # costs at most 1
    answer = EndpointAnswer(
        "text", None, input_tokens=0, output_tokens=12, model="m", logprobs=None
    )  # costs 6

    async def is_granted() -> bool:
        limit = SpendLimit(endpoint, spent=0.0)
        async with limit.reserved(body) as first, limit.reserved(body) as second:
            assert first is not None
            assert second is not None
            first(answer)
            second(answer)
        async with limit.reserved(body) as third:
            return third is not None

    assert asyncio.run(is_granted())


@pytest.mark.parametrize(
    "reply",
    [
        refusal(400, "no", code="content_filter"),
        refusal(400, "no", code="invalid_prompt"),
        refusal(400, "This model's maximum context length is 8 tokens"),
        completion(None, finish_reason="content_filter"),
    ],
)
def test_a_request_that_is_refused_because_of_its_texts_has_an_empty_answer_that_is_stored(
    tmp_path: Path, reply: Reply
) -> None:
    def refuses(body: dict[str, Any], number: int) -> Reply:
        return reply if question(body) in "03" else echo(body, number)

    with endpoint_server(refuses) as server:
        limits = limits_of(max_spend=100.0)  # their price is known: 0, or that of their tokens
        endpoint = Endpoint.model_validate({"url": server.url, "model": "m"} | PRICED)
        for _ in range(2):
            answers = fetch_answers(
                bodies(0, 1, 2, 3), endpoint=endpoint, parent=tmp_path.as_uri(), limits=limits
            )
            assert [answer.text for answer in answers] == ["", "1", "2", ""]
            assert [answer.refused for answer in answers] == [True, False, False, True]
        assert len(server.bodies) == 4
        assert texts(server, tmp_path, 0, limits=limits, reported_model=MODEL) == [""]


def test_the_model_is_that_of_the_first_answer_that_is_not_refused(tmp_path: Path) -> None:
    def changes(body: dict[str, Any], number: int) -> Reply:
        if number < 1:
            return refusal(400, "no", code="content_filter")
        return completion(question(body), model="m-1" if number < 4 else "m-2")

    with endpoint_server(changes) as server:
        with pytest.raises(errors.EndpointModelChanged):
            texts(server, tmp_path, *range(8))
        assert texts(server, tmp_path, 0, 1) == ["", "1"]


def test_the_list_of_the_stored_answers_is_read_once_and_again_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists: list[str] = []
    list_files = storage.list_files

    def counted(uri: str, *, missing_ok: bool = False) -> list[str]:
        lists.append(uri)
        return list_files(uri, missing_ok=missing_ok)

    monkeypatch.setattr(storage, "list_files", counted)
    listed: dict[str, StoredAnswers] = {}

    def ask(server: Server, number: int, *, spend: float) -> str:
        endpoint = Endpoint.model_validate({"url": server.url, "model": "m"} | PRICED)
        limits = limits_of(max_spend=spend)
        task_uri = tmp_path.as_uri()
        [answer] = fetch_answers(
            bodies(number), endpoint=endpoint, parent=task_uri, limits=limits, listed=listed
        )
        return answer.text

    with endpoint_server(echo) as server:
        for number in (1, 2, 1, 2):
            assert ask(server, number, spend=2.0) == str(number)
        assert (len(lists), len(server.bodies)) == (1, 2)
        with pytest.raises(errors.EndpointSpendExceeded):
            ask(server, 3, spend=2.0)
        assert ask(server, 3, spend=3.0) == "3"
        assert (len(lists), len(server.bodies)) == (2, 3)
