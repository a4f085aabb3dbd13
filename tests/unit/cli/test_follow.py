"""The log of a job that is followed, and the status of the job while its log has no new lines."""

import asyncio
import json
import time
from collections.abc import Iterator

import pytest
from aiohttp import web
from typer.testing import CliRunner

from cluster import jobs
from cluster.display import console
from cluster.display.console import Display
from tailorbird.cli.app import app
from tests.unit.cluster.dashboard import dashboard_of_a_job
from tests.unit.cluster.test_jobs import job_details

REASON = "Job has not started yet. It may be waiting for resources."
LOG = "a line with :warning: and [b]\nthe rest"


class Dashboard:
    """A stand-in for Ray's dashboard with one job, which is pending, then running, and then prints
    `LOG` and ends.

    It keeps each status until the display has looked at its clock twice after the status was read.
    """

    def __init__(self) -> None:
        self.statuses, self.num_ticks = ["PENDING", "RUNNING", "SUCCEEDED"], 0

    async def serve_job(self, _: web.Request) -> web.Response:
        status = self.statuses[0]
        message = REASON if status == "PENDING" else "Job is currently running."
        return web.json_response(job_details(submission_id="some", status=status, message=message))

    async def serve_log(self, _: web.Request) -> web.Response:
        num_ticks = self.num_ticks
        if self.statuses[0] == "SUCCEEDED":
            return web.json_response({"logs": LOG})
        while self.num_ticks < num_ticks + 2:
            await asyncio.sleep(0.01)
        del self.statuses[0]
        return web.json_response({"logs": ""})


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a dashboard. The display's clock is fast: each tick is later than the longest
    silence."""
    dashboard, tick, started = Dashboard(), Display.tick, time.monotonic()

    def counted_tick(log: Display) -> None:
        tick(log)
        dashboard.num_ticks += 1

    def clock() -> float:
        return 2 * console.LOG_INTERVAL_S * (time.monotonic() - started) / console.TICK_S

    monkeypatch.setattr(console, "TICK_S", 0.01)
    monkeypatch.setattr(Display, "tick", counted_tick)
    monkeypatch.setitem(console.display.__wrapped__.__kwdefaults__, "clock", clock)  # type: ignore[attr-defined]
    monkeypatch.setattr(jobs, "POLL_S", 0.01)
    monkeypatch.setenv(
        "RAY_API_SERVER_ADDRESS", "http://127.0.0.1:2"
    )  # the option --address overrides it

    with dashboard_of_a_job(job=dashboard.serve_job, log=dashboard.serve_log) as address:
        yield address


def test_the_status_of_a_job_is_shown_while_its_log_has_no_new_lines(address: str) -> None:
    done = CliRunner().invoke(app, ["jobs", "logs", "some", "--follow", "--address", address])
    assert done.stdout == f"{LOG}\n"
    *shown, status = [
        line.removeprefix("  … ").partition(" (start: ")[0] for line in done.stderr.splitlines()
    ]
    assert status.split()[:2] == ["some", "SUCCEEDED"]
    expected = [
        f"some is pending: {REASON.rstrip('.')}",
        "some is running; its log has no new line",
    ]
    assert [text for text in dict.fromkeys(shown) if text.startswith("some is ")] == expected


def test_with_json_the_log_and_the_status_are_events(address: str) -> None:
    done = CliRunner().invoke(
        app, ["jobs", "logs", "some", "--follow", "--json", "--address", address]
    )
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert json.loads(done.stdout)["status"] == "SUCCEEDED"
    assert [event["text"] for event in events if event["event"] == "line"] == LOG.splitlines()
    assert [event["text"] for event in events if event["event"] == "activity"] == [
        "reading the status of some",
        f"some is pending: {REASON.rstrip('.')}",
        "some is running; its log has no new line",
    ]
    assert {event["event"] for event in events} == {"activity", "alive", "line"}
