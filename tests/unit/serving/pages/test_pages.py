"""The pages of services in a real browser, with replicas of tiny real models."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
import requests

from serving.replica.chat import Chat
from serving.replica.classifier import Classifier
from tailorbird.config.serving import ServingConfig
from tailorbird.models.endpoint.prompts import label_answer
from tailorbird.registry.versions import ModelVersion
from tests.browser import WIDTHS, OpenPage, accessibility_faults, keyboard_faults, overflow
from tests.endpoint_server import (
    MODEL,
    Reply,
    completion,
    endpoint_server,
    event,
    last_events,
    refusal,
    stream,
)
from tests.unit.serving.pages import replicas
from tests.unit.serving.replica.loads import stored_keys

EXAMPLES = ("a cat <b>sleeps</b>", "snow and rain")
QUESTIONS = ("what is a cat", "what is rain")
VERDICT = "Keep the <b>bag-of-words</b> model (91.0%)."
AGREED, DISAGREED = "snow and rain", "a cat sleeps"
"""Texts on which the two classifiers agree or not."""


@dataclass(frozen=True)
class Models:
    """Two classifiers and two chat models of a task in a folder."""

    folder: Path
    bag: ModelVersion
    swapped: ModelVersion
    chat: ModelVersion
    nearest: ModelVersion

    @property
    def log(self) -> str:
        return (self.folder / "log").as_uri()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    task = (folder / "registry" / "letters").as_uri()
    base = replicas.save_chat_base(folder / "base")
    return Models(
        folder=folder,
        bag=replicas.register_bag(task, folder / "bag"),
        swapped=replicas.register_bag(task, folder / "swapped", swapped=True),
        chat=replicas.register_chat(task, folder / "chat", base=base),
        nearest=replicas.register_nearest(task, folder / "nearest", base=base),
    )


Serve = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def serve(models: Models, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Return a function that serves a champion and other versions by name, with fields of
    `ServingConfig`."""
    for module in ("classifier", "chat"):
        monkeypatch.setattr(
            f"serving.replica.{module}.configure_process", ServingConfig.model_validate_json
        )

    @contextmanager
    def serve(
        champion: ModelVersion, *, fields: dict[str, Any], **others: ModelVersion
    ) -> Iterator[str]:
        service = Chat if champion.task == "chat" else Classifier
        replica = replicas.replica_of(
            service, (models.folder / "registry" / "letters").as_uri(), **fields
        )
        config = replicas.user_config(champion, verdict=VERDICT, **others)
        with replicas.served(replica, config) as url:
            yield url

    return serve


@pytest.fixture
def classifiers(serve: Serve, models: Models) -> Iterator[str]:
    """Yield the URL of a service with two classifiers, examples and a request log."""
    fields = {"request_log": models.log, "examples": EXAMPLES}
    with serve(models.bag, fields=fields, baseline=models.swapped) as url:
        yield url


@pytest.fixture
def chats(serve: Serve, models: Models) -> Iterator[str]:
    """Yield the URL of a service with two chat models, examples and a request log."""
    fields = {"request_log": models.log, "examples": QUESTIONS}
    with serve(models.chat, fields=fields, baseline=models.nearest) as url:
        yield url


def link(url: str, text: str) -> str:
    return f"{url}#text={quote(text)}"


def faults(page: Any) -> list[str]:
    """Return what is wrong with the page's present state in all widths."""
    wide = [
        f"{width}: {over} px too wide"
        for width in WIDTHS
        if (over := overflow(page, width=width)) > 0
    ]
    return [*accessibility_faults(page), *wide]


def test_the_page_shows_who_answers_and_why_and_data_is_never_html(
    open_page: OpenPage, classifiers: str, models: Models
) -> None:
    page = open_page(link(classifiers, DISAGREED))
    page.get_by_text("The models disagree.").wait_for()
    with page.expect_request("**/v1/classify") as request:
        page.get_by_role("button", name="Classify").click()
    assert request.value.post_data_json["model"] == models.bag.version  # no request of a report
    page.get_by_text("The models disagree.").wait_for()
    who = page.get_by_role("region", name="Who answers, and why")
    answers = f"The champion answers: bag-of-words model ({models.bag.version})"
    assert who.inner_text().split("\n\n") == [answers, VERDICT]
    assert page.get_by_role("group", name="Examples").get_by_role(
        "button"
    ).all_inner_texts() == list(EXAMPLES)
    champion, other = page.locator("#both section").all()
    for card, role, version, label in (
        (champion, "Champion", models.bag, "animals"),
        (other, "Baseline", models.swapped, "plants"),
    ):
        assert f"{role}: {version.version}" in card.inner_text()
        first = card.locator("li").first
        assert re.fullmatch(rf"{label}\s+\d+\.\d%", first.inner_text())
        assert (replicas.COST in card.inner_text()) == (version is models.bag)


def test_if_one_model_fails_the_answer_of_the_other_is_shown_with_the_error(
    open_page: OpenPage, classifiers: str, models: Models
) -> None:
    def fail(route: Any) -> None:
        if route.request.post_data_json["model"] == models.swapped.version:
            route.fulfill(status=429, json={"error": {"message": "too many requests"}})
        else:
            route.continue_()

    page = open_page(link(classifiers, DISAGREED))
    page.get_by_text("The models disagree.").wait_for()
    page.route("**/v1/classify", fail)
    page.get_by_role("button", name="Classify").click()
    page.get_by_text("Baseline: too many requests").wait_for()
    assert models.bag.version in page.locator("#both section").inner_text()  # fails for two cards
    assert page.locator("#agreement").inner_text() == ""
    assert page.get_by_text("Which class is right?").is_visible()
    assert faults(page) == []
    page.route("**/v1/classify", lambda route: route.abort())
    page.get_by_label("Text to classify").fill(AGREED)
    page.get_by_role("button", name="Classify").click()
    page.locator("#both section").wait_for(state="detached")  # the answer to another text
    assert page.locator("#error").inner_text() != ""
    assert not page.get_by_text("Which class is right?").is_visible()


def test_feedback_is_written_to_the_request_log_with_the_keyboard_alone(
    open_page: OpenPage, serve: Serve, models: Models
) -> None:
    log = models.folder / "feedback"
    with serve(models.bag, fields={"request_log": log.as_uri()}, baseline=models.swapped) as url:
        page = open_page(f"{url}letters")  # a prefix without a slash at its end
        page.get_by_text("Names of classes").wait_for()
        assert keyboard_faults(page) == []
        page.get_by_label("Text to classify").focus()
        page.keyboard.type(DISAGREED)
        page.keyboard.press("Control+Enter")
        page.get_by_text("Which class is right?").wait_for()
        while page.evaluate("document.activeElement.textContent") != "animals":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.get_by_text("Saved: animals").wait_for()
    answers, feedback = (pq.read_table(log / kind).to_pylist() for kind in ("answers", "feedback"))
    assert {row["request_id"] for row in feedback} == {row["request_id"] for row in answers}
    assert [row["label"] for row in feedback] == ["animals"] * 2
    assert sorted(row["label"] for row in answers) == ["animals", "plants"]


def test_a_service_with_keys_asks_for_one(
    open_page: OpenPage, serve: Serve, models: Models
) -> None:
    uri, keys = stored_keys(models.folder, app="")
    with serve(models.bag, fields={"api_keys": uri}, baseline=models.swapped) as url:
        page = open_page(url)
        page.get_by_text("This service requires an API key.").wait_for()
        assert faults(page) == []
        page.get_by_label("API key").fill(keys["app"])
        page.keyboard.press("Enter")
        page.get_by_text("The champion answers").wait_for()
        page.keyboard.type(AGREED)  # the focus is in the text
        page.keyboard.press("Control+Enter")
        page.get_by_text("Both models answer: weather").wait_for()
        assert page.locator("#error").text_content() == ""


def test_the_page_of_a_chat_is_accessible_in_each_state(open_page: OpenPage, chats: str) -> None:
    page = open_page(chats)
    page.get_by_text("System prompt").wait_for()
    assert keyboard_faults(page) == []
    page.get_by_text("System prompt").click()
    assert page.get_by_text(replicas.SYSTEM).is_visible()
    assert faults(page) == []
    page.get_by_role("button", name=QUESTIONS[0]).click()
    page.get_by_role("button", name="Copy").nth(1).wait_for()
    assert faults(page) == []


def test_both_models_answer_side_by_side_and_feedback_is_logged(
    open_page: OpenPage, serve: Serve, models: Models
) -> None:
    log = models.folder / "chat feedback"
    with serve(models.chat, fields={"request_log": log.as_uri()}, baseline=models.nearest) as url:
        page = open_page(link(url, QUESTIONS[0]))
        page.get_by_role("button", name="Good").nth(1).wait_for()
        second = page.locator(".reply").nth(1)
        assert second.locator("h2").inner_text() == "Baseline: answer of the nearest training row"
        assert f"{models.nearest.version}; similarity 1.00; " in second.inner_text()
        second.get_by_role("button", name="Bad").click()
        page.get_by_text("Saved: bad").wait_for()
        page.get_by_label("Your message").fill(
            QUESTIONS[1]
        )  # each model gets its own earlier answer
        with page.expect_request("**/v1/chat/completions") as sent:
            page.keyboard.press("Enter")
        assert [turn["role"] for turn in sent.value.post_data_json["messages"]] == [
            "user",
            "assistant",
            "user",
        ]
        page.get_by_role("button", name="Copy").nth(3).wait_for()
    answers, feedback = (pq.read_table(log / kind).to_pylist() for kind in ("answers", "feedback"))
    rated = {row["request_id"]: row["label"] for row in feedback}
    assert [row["version"] for row in answers if row["request_id"] in rated] == [
        models.nearest.version
    ]
    assert list(rated.values()) == ["bad"]


@dataclass
class Cascade:
    """A served cascade whose second part is an endpoint, which fails while `is_away`."""

    url: str
    is_away: bool = False


@pytest.fixture
def cascade(serve: Serve, models: Models) -> Callable[..., AbstractContextManager[Cascade]]:
    """Return a function that serves a cascade over a first part and an endpoint with an answer."""

    @contextmanager
    def cascade(first: ModelVersion, answer: Reply, **options: Any) -> Iterator[Cascade]:
        served = Cascade("")
        task = (models.folder / "registry" / "letters").as_uri()
        folder = models.folder / f"cascade-{first.version}"
        with endpoint_server(lambda *_: refusal(401, "no") if served.is_away else answer) as server:
            hybrid = replicas.register_cascade(task, folder, first=first, url=server.url)
            with serve(hybrid, **options) as served.url:
                yield served

    return cascade


def test_the_page_of_a_hybrid_shows_the_part_a_fallback_and_the_model_of_an_endpoint(
    open_page: OpenPage, cascade: Any, models: Models
) -> None:
    answer = stream([event("a stone"), event(end="stop"), *last_events()])
    with cascade(models.nearest, answer, fields={"examples": QUESTIONS}) as served:
        page = open_page(link(served.url, "which thing is hard and grey"))
        page.get_by_text(f"by the second part; endpoint: {MODEL}").wait_for()
        assert page.locator(".reply .content").inner_text() == "a stone"
        assert "10 tokens in, 2 out" in page.locator(".reply").inner_text()  # by the endpoint
        assert faults(page) == []
        served.is_away = True
        page.get_by_label("Your message").fill("which thing is soft and red")
        page.keyboard.press("Enter")
        page.get_by_text("by the first part (fallback)").wait_for()
        assert faults(page) == []


def test_the_page_of_a_hybrid_classifier_shows_the_part_a_fallback_and_an_unknown_confidence(
    open_page: OpenPage, cascade: Any, models: Models
) -> None:
    answer = completion(label_answer("plants"))  # without log-probabilities
    fields = {"examples": EXAMPLES}
    with cascade(models.bag, answer, fields=fields, baseline=models.bag) as served:
        page = open_page(link(served.url, DISAGREED))
        page.get_by_text("The models disagree.").wait_for()
        both = page.locator("#both section").first
        assert both.locator("li").all_inner_texts() == ["plants\nconfidence not known"]
        assert f"by the second part\nendpoint: {MODEL}" in both.inner_text()
        assert faults(page) == []
        served.is_away = True
        page.get_by_role("button", name="Classify").click()
        page.get_by_text("by the first part (fallback)").wait_for()
        assert page.get_by_text("Both models answer: animals").is_visible()
        assert faults(page) == []


def test_a_request_can_be_stopped_and_a_stream_that_ends_early_is_an_error(
    open_page: OpenPage, chats: str
) -> None:
    page = open_page(chats)
    page.get_by_role("button", name=QUESTIONS[0]).wait_for()  # the page has loaded
    page.route("**/v1/chat/completions", lambda _route: None)  # no answer arrives
    page.get_by_label("Your message").fill(QUESTIONS[1])
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Send").wait_for()
    assert page.get_by_label("Your message").input_value() == QUESTIONS[1]  # to send it again
    page.unroute("**/v1/chat/completions")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body="data: {}\n\n"))
    page.keyboard.press("Enter")
    page.get_by_text("The answer ended before it was complete.").wait_for()
    assert page.locator(".reply").count() == 0


def test_only_keys_that_may_read_get_the_system_prompt_and_the_cost(
    serve: Serve, models: Models
) -> None:
    uri, keys = stored_keys(models.folder, default="", read="scopes=read", admin="scopes=admin")
    details = {}
    with serve(models.chat, fields={"api_keys": uri}) as url:
        for scopes, key in keys.items():
            headers = {"Authorization": f"Bearer {key}"}
            answer = requests.get(f"{url}v1/models", headers=headers, timeout=60)
            (model,) = answer.json()["data"]
            details[scopes] = (model["system"], model["cost"])
    shown = (replicas.SYSTEM, replicas.COST)
    assert details == {"default": (None, None), "read": shown, "admin": shown}
