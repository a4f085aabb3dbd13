"""Pages of the console that update themselves while a run is under way."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serving.console_server import ConsoleServer
from tailorbird import storage
from tailorbird.storage.paths import TaskPaths
from tests import console_registry as made
from tests.browser import OpenPage, accessibility_faults

RUN = "0f3a9c21d4e70f3a"


@pytest.fixture
def paths(tmp_path: Path) -> TaskPaths:
    """Return a task with a run under way."""
    paths = TaskPaths(f"{tmp_path.as_uri()}/icd10-chapters")
    add_progress(paths, stage="sweep")
    return paths


@pytest.fixture
def server(paths: TaskPaths, monkeypatch: pytest.MonkeyPatch) -> Iterator[ConsoleServer]:
    monkeypatch.setattr("tailorbird.console.pages.LIVE_S", 0.2)
    server = ConsoleServer(paths.registry, port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield server
    server._server.should_exit = True
    thread.join(60)


def add_progress(paths: TaskPaths, *, stage: str) -> None:
    """Write the progress of a run that is in this stage."""
    now = datetime.now(UTC)
    record = made.add_progress(paths, RUN, started=now - timedelta(minutes=9), updated=now)
    order = [each.name for each in record.stages]
    states = (
        ["finished"] * order.index(stage)
        + ["running"]
        + ["planned"] * (len(order) - order.index(stage) - 1)
    )
    stages = [
        each.model_copy(update={"state": state})
        for each, state in zip(record.stages, states, strict=True)
    ]
    changed = record.model_copy(update={"stages": tuple(stages), "activity": f"step of {stage}"})
    storage.write_bytes(paths.progress(RUN), changed.model_dump_json().encode())


def test_the_page_of_a_run_follows_it_to_its_verdict_and_keeps_the_focus(
    open_page: OpenPage, paths: TaskPaths, server: ConsoleServer
) -> None:
    page = open_page(f"{server.url}/icd10-chapters/runs/{RUN}")
    page.evaluate("window.loadedOnce = true")
    button = page.get_by_role("button", name="Pause updates")
    button.focus()
    add_progress(paths, stage="test")
    page.get_by_text("Now: test").wait_for()
    assert page.get_by_text("step of test").count() == 1
    assert button.evaluate("node => node === document.activeElement")
    assert accessibility_faults(page) == []
    evidence = made.add_run(paths, RUN, at=datetime.now(UTC))
    page.get_by_text(f"Now: finished with {evidence.verdict.outcome}").wait_for()
    assert page.get_by_text(evidence.verdict.sentence()).count() == 1
    assert button.count() == 0
    assert page.evaluate("document.activeElement.id") == "content"
    assert page.evaluate("window.loadedOnce")


def test_updates_can_be_paused_with_the_keyboard(
    open_page: OpenPage, paths: TaskPaths, server: ConsoleServer
) -> None:
    page = open_page(server.url)
    page.get_by_role("button", name="Pause updates").press("Enter")
    page.get_by_text("Updates are paused.").wait_for()
    add_progress(paths, stage="test")
    page.wait_for_timeout(1000)  # five times the time between two updates
    assert page.get_by_text("step of sweep").count() == 1
    assert accessibility_faults(page) == []
    page.get_by_role("button", name="Resume updates").press("Enter")
    page.get_by_text("step of test").wait_for()
    assert page.get_by_role("button", name="Pause updates").evaluate(
        "node => node === document.activeElement"
    )


def test_an_update_that_fails_is_reported_and_repeated(
    open_page: OpenPage, paths: TaskPaths, server: ConsoleServer
) -> None:
    page = open_page(f"{server.url}/icd10-chapters")
    page.route("**/icd10-chapters", lambda route: route.fulfill(status=503, body="none"))
    page.get_by_text("The page could not be updated: 503 Service Unavailable.").wait_for()
    page.unroute("**/icd10-chapters")
    add_progress(paths, stage="test")
    page.get_by_text("step of test").first.wait_for()
    page.get_by_text("The page could not be updated").wait_for(state="detached")
