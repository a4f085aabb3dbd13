"""Stored answers of an endpoint: a resumed run sends no request twice, and spend and concurrency
are limited."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.progress import RowsEvent, reporting_to
from tailorbird import storage
from tailorbird.config.endpoint import EndpointConfig
from tailorbird.evaluation.inference.endpoint_requests import (
    RequestLimits,
    StoredAnswers,
    fetch_answers,
    request_sha256,
)
from tailorbird.evaluation.inference.endpoint_spend import largest_price
from tailorbird.models.endpoint import errors
from tailorbird.models.endpoint.client import Body, RetryPolicy
from tailorbird.models.endpoint.prompts import chat_body
from tailorbird.registry.endpoint import Endpoint
from tests.endpoint_server import (
    MODEL,
    Answer,
    Reply,
    Server,
    completion,
    endpoint_server,
    question,
    refusal,
)
from tests.progress import ProgressRecorder

RETRY = RetryPolicy(max_attempts=2, first_delay_s=0.01, max_delay_s=0.02)
ONE = RequestLimits(retry=RETRY, max_concurrency=1)
MANY = replace(ONE, max_concurrency=32)
FILTERED = refusal(400, "no", code="content_filter")
FIELDS = {"url": "http://h/v1", "model": "m", "prices": (0.0, 500.0)}
"""An answer of 2 output tokens, the maximum, costs 1."""


def bodies(*numbers: int) -> list[Body]:
    return [chat_body((("user", str(number)),), model="m", max_tokens=2) for number in numbers]


def echo(body: dict[str, Any], _: int = 0) -> Reply:
    return completion(question(body))


@dataclass(frozen=True)
class Asked:
    """An endpoint that answers by a rule, and a task that stores its answers."""

    server: Server
    task_uri: str

    def endpoint(self, **fields: Any) -> Endpoint:
        return Endpoint.model_validate(FIELDS | {"url": self.server.url} | fields)

    def __call__(
        self,
        *numbers: int,
        limits: RequestLimits = ONE,
        listed: dict[str, StoredAnswers] | None = None,
        **fields: Any,
    ) -> list[str]:
        """Return the answers to requests with these numbers as texts."""
        answers = fetch_answers(
            bodies(*numbers),
            endpoint=self.endpoint(**fields),
            parent=self.task_uri,
            limits=limits,
            listed=listed,
        )
        return [answer.text for answer in answers]

    @property
    def sent(self) -> list[str]:
        """The requests that the server received."""
        return [question(body) for body in self.server.bodies]


@contextmanager
def asking(task: Path, answer: Answer = echo) -> Iterator[Asked]:
    with endpoint_server(answer) as server:
        yield Asked(server, task.as_uri())


def test_answers_have_the_order_of_the_requests_and_no_request_is_sent_twice(
    tmp_path: Path,
) -> None:
    two = replace(ONE, max_concurrency=2)
    with asking(tmp_path) as ask:
        assert ask(3, 1, 2, 3, limits=two) == ["3", "1", "2", "3"]
        assert sorted(ask.sent) == ["1", "2", "3"]
        assert ask(2, 4, 3, limits=two) == ["2", "4", "3"]
        assert ask.sent[3:] == ["4"]
        ask(*range(20), limits=two)
        assert ask.server.max_at_once <= 2
        assert len(ask.sent) == 20


def test_the_number_of_answers_is_reported_also_in_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.progress.REPORT_INTERVAL_S", 0.0)
    recorder = ProgressRecorder()
    with asking(tmp_path) as ask, reporting_to(recorder):

        async def cell() -> list[str]:
            return ask(1, 2, 3)

        asyncio.run(cell())
    events = [event for event in recorder.events if isinstance(event, RowsEvent)]
    assert [(event.done, event.total) for event in events] == [(1, 3), (2, 3)]


def test_an_interrupted_cell_sends_no_further_requests(tmp_path: Path) -> None:
    main = threading.get_ident()

    def interrupts_at_2(body: dict[str, Any], number: int) -> Reply:
        if number == 2:
            signal.pthread_kill(main, signal.SIGINT)
        return Reply(waits=True) if number >= 2 else echo(body)

    # unlike `asyncio.run`, it leaves the handler of the interruption as it is
    loop = asyncio.new_event_loop()
    with asking(tmp_path, interrupts_at_2) as ask:

        async def cell() -> list[str]:
            return ask(*range(50))

        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(cell())
        assert len(ask.sent) == 3
    loop.close()
    assert len(storage.list_files(tmp_path.as_uri())) == 2


def test_a_run_that_failed_continues_with_the_missing_requests(tmp_path: Path) -> None:
    def fails_at_5(body: dict[str, Any], _: int) -> Reply:
        return refusal(500, "broken") if question(body) == "5" else echo(body)

    with asking(tmp_path, fails_at_5) as ask, asking(tmp_path) as repaired:
        with pytest.raises(errors.EndpointUnreachable):
            ask(*range(10))
        assert ask.sent == ["0", "1", "2", "3", "4", "5", "5"]
        assert ask(4) == ["4"]
        assert len(ask.sent) == 7
        assert repaired(4) == ["4"]  # another URL is another endpoint
        assert repaired.sent == ["4"]


def test_requests_that_have_started_are_stored_if_another_one_fails(tmp_path: Path) -> None:
    def refuses_1(body: dict[str, Any], _: int) -> Reply:
        return refusal(404, "gone") if question(body) == "1" else echo(body)

    with asking(tmp_path, refuses_1) as ask:
        with pytest.raises(errors.EndpointRefused):
            ask(*range(10), limits=replace(ONE, max_concurrency=4))
        stored = storage.list_files(tmp_path.as_uri())
        assert len(stored) == len({*ask.sent} - {"1"})
        assert len(ask.sent) < 10


@pytest.mark.parametrize("limits", [ONE, MANY])
def test_the_answers_never_cost_more_than_max_spend_and_a_higher_limit_continues(
    tmp_path: Path, limits: RequestLimits
) -> None:
    with asking(tmp_path) as ask:
        for _ in range(2):  # stored answers count
            with pytest.raises(errors.EndpointSpendExceeded):
                ask(*range(50), limits=limits, max_spend=3.5)
            assert len(ask.sent) == 3
        assert ask(*map(int, ask.sent), limits=limits, max_spend=3.5) == ask.sent
        # The limit can be reached exactly.
        assert len(ask(*range(50), limits=limits, max_spend=50)) == 50
        assert len(ask.sent) == 50


def test_requests_that_cost_more_than_their_largest_price_count_with_what_they_cost(
    tmp_path: Path,
) -> None:
    # 3 instead of up to 1
    with asking(tmp_path, lambda *_: completion("yes", tokens=(10, 6))) as ask:
        with pytest.raises(errors.EndpointSpendExceeded):
            ask(*range(50), limits=MANY, max_spend=9.0)
        assert len(ask.sent) == 3


def test_the_largest_price_of_a_request_counts_a_token_for_each_byte_and_the_longest_answer() -> (
    None
):
    endpoint = Endpoint(url="http://h/v1", model="m", prices=(1.0, 1000.0))
    [short] = bodies(1)
    long = chat_body((("user", "ü\ud800" * 1000),), model="m", max_tokens=2)
    assert 2.0 < largest_price(short, endpoint=endpoint) < 2.5
    assert 7.0 < largest_price(long, endpoint=endpoint) < 7.5


def test_spend_cannot_be_limited_without_the_tokens_of_an_answer(tmp_path: Path) -> None:
    with asking(tmp_path, lambda *_: completion("yes", tokens=None)) as ask:
        with pytest.raises(errors.EndpointAnswerInvalid):
            ask(1, 2, max_spend=10)
        assert ask(1, 2) == ["yes", "yes"]
        num_requests = len(ask.sent)
        assert ask(1, 2, max_spend=10) == ["yes", "yes"]
        with pytest.raises(errors.EndpointAnswerInvalid):
            ask(1, 3, max_spend=10)  # the stored answers have no known price
        assert len(ask.sent) == num_requests


def test_the_prices_and_the_limit_of_the_recipe_apply_to_its_endpoint_only(tmp_path: Path) -> None:
    with asking(tmp_path) as ask:

        def named(model: str = "m", **limit: float) -> RequestLimits:
            config = EndpointConfig.model_validate(
                FIELDS | {"url": ask.server.url, "model": model, "max_concurrency": 1} | limit
            )
            return replace(ONE, named=(config,))

        # The endpoint was registered without prices.
        with pytest.raises(errors.EndpointSpendExceeded):
            ask(*range(10), limits=named(max_spend=2.5), prices=None)
        with pytest.raises(ValueError, match="max_spend"):
            ask(*range(10), limits=named("n", max_spend=2.5), prices=None, max_spend=2.5)
        assert len(ask.sent) == 2
        # It is stored, so there is nothing to pay.
        assert ask(0, limits=named("n"), prices=None) == ["0"]

        # The version was registered with a limit.
        for limits in (ONE, named("n", max_spend=9.0)):
            with pytest.raises(errors.EndpointSpendExceeded):
                ask(*range(5), limits=limits, max_spend=3.0)
        assert len(ask.sent) == 3
        with pytest.raises(errors.EndpointSpendExceeded):
            ask(*range(5), limits=named(max_spend=4.0), max_spend=3.0)
        assert len(ask.sent) == 4
        # The recipe sets no limit.
        assert len(ask(*range(5), limits=named(), max_spend=3.0)) == 5


def test_a_model_that_changes_during_a_run_ends_it_and_its_answers_are_not_stored(
    tmp_path: Path,
) -> None:
    def changes(body: dict[str, Any], number: int) -> Reply:
        if number == 0:
            return FILTERED  # which names no model
        return completion(question(body), model="m-1" if number < 4 else "m-2")

    with asking(tmp_path, changes) as ask:
        with pytest.raises(errors.EndpointModelChanged):
            ask(*range(10))
        assert len(ask.sent) == 5
        with pytest.raises(errors.EndpointModelChanged):
            ask(1, 9)
        assert ask(0, 1, 2, 3) == ["", "1", "2", "3"]
        with pytest.raises(errors.EndpointModelChanged):  # evaluated with another model
            ask(1, reported_model="m-2")


def test_another_revision_uses_no_answer_of_the_model_before_but_what_they_cost_counts(
    tmp_path: Path,
) -> None:
    model = "m-1"
    with asking(tmp_path, lambda body, _: completion(question(body), model=model)) as ask:
        ask(0, 1, max_spend=5.0)
        model = "m-2"
        with pytest.raises(errors.EndpointModelChanged):
            ask(0, 1, 2, max_spend=5.0)
        num_requests = len(ask.sent)
        for _ in range(2):
            assert ask(0, 1, 2, max_spend=5.0, revision="2") == ["0", "1", "2"]
            assert len(ask.sent) == num_requests + 3
        assert ask(0, 1, max_spend=5.0, reported_model="m-1") == ["0", "1"]  # the champion
        with pytest.raises(errors.EndpointSpendExceeded):
            ask(3, max_spend=5.0, revision="2")
        assert len(ask.sent) == num_requests + 3


def test_a_stored_answer_contains_neither_the_request_nor_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-secret")
    with asking(tmp_path, lambda *_: completion("yes")) as ask:
        ask(12345, api_key="env://THE_KEY")
        assert ask.server.authorizations == ["Bearer sk-secret"]
    [uri] = storage.list_files(tmp_path.as_uri())
    content = storage.read_bytes(uri).decode()
    assert request_sha256(bodies(12345)[0], url=ask.server.url) in uri
    assert "12345" not in content
    assert "sk-secret" not in content + uri


@pytest.mark.parametrize(
    "reply",
    [
        FILTERED,
        completion(None, finish_reason="content_filter"),
    ],
)
def test_a_request_that_is_refused_because_of_its_texts_has_an_empty_answer_that_is_stored(
    tmp_path: Path, reply: Reply
) -> None:
    def refuses(body: dict[str, Any], _: int) -> Reply:
        return reply if question(body) in "03" else echo(body)

    with asking(tmp_path, refuses) as ask:
        for _ in range(2):
            answers = fetch_answers(
                bodies(0, 1, 2, 3),
                endpoint=ask.endpoint(max_spend=100.0),  # their price is known
                parent=ask.task_uri,
                limits=ONE,
            )
            assert [answer.text for answer in answers] == ["", "1", "2", ""]
            assert [answer.refused for answer in answers] == [True, False, False, True]
        assert ask(0, max_spend=100.0, reported_model=MODEL) == [""]
        assert len(ask.sent) == 4


def test_the_list_of_the_stored_answers_is_read_once_and_again_after_an_error(
    tmp_path: Path,
) -> None:
    listed: dict[str, StoredAnswers] = {}
    with asking(tmp_path) as ask:
        for number in (1, 2, 1, 2):
            assert ask(number, max_spend=2.0, listed=listed) == [str(number)]
        [stored] = listed.values()
        assert (stored.spent, len(ask.sent)) == (2.0, 2)
        with pytest.raises(errors.EndpointSpendExceeded):
            ask(3, max_spend=2.0, listed=listed)
        assert listed == {}
        assert ask(3, max_spend=3.0, listed=listed) == ["3"]
        assert len(ask.sent) == 3
