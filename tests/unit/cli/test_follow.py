"""The log of a job that is followed, and the status of the job while its log has no new lines."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Never

import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from cluster import jobs
from cluster.display import console
from cluster.display.console import Display
from tailorbird.cli.app import app
from tests.unit.cluster.dashboard import dashboard_of_a_job
from tests.unit.cluster.test_jobs import job_details, job_of

REASON = "Job has not started yet. It may be waiting for resources."
LOG = "a line with :warning: and [b]\n\x1b[31mred\x1b[0m\n\x1b]0;title\x07 \x9b2J\r\u202e"
PRINTED = "a line with :warning: and [b]\nred\n\ufffd]0;title\ufffd \ufffd2J\ufffd\ufffd\n"
RECIPE = str(Path(__file__).parents[3] / "recipes" / "icd10_demo.yaml")


class Dashboard:
    """A stand-in for Ray's dashboard with one job, which is pending, then running, and then prints
    `LOG` and exits with 7.

    It keeps each status until the display has looked at its clock twice after the status was read.
    """

    def __init__(self) -> None:
        self.statuses, self.num_ticks = ["PENDING", "RUNNING", "FAILED"], 0

    async def serve_job(self, _: web.Request) -> web.Response:
        status = self.statuses[0]
        message = REASON if status == "PENDING" else "Job is currently running."
        code = 7 if status == "FAILED" else None
        job = job_details(
            submission_id="some", status=status, message=message, driver_exit_code=code
        )
        return web.json_response(job)

    async def serve_log(self, _: web.Request) -> web.Response:
        num_ticks = self.num_ticks
        if self.statuses[0] == "FAILED":
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
    submission = jobs.Submitted(job_of(submission_id="some"), "running")
    monkeypatch.setattr(jobs, "submit", lambda *_, **__: submission)

    with dashboard_of_a_job(job=dashboard.serve_job, log=dashboard.serve_log) as address:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        yield address


def follow(*options: str) -> Result:
    done = CliRunner().invoke(app, ["submit", RECIPE, "--follow", *options])
    assert not set(done.output) & set("\x1b\x07\x9b\r\u202e")
    return done


@pytest.mark.usefixtures("address")
def test_the_status_of_a_job_is_shown_while_its_log_has_no_new_lines() -> None:
    done = follow()
    assert (done.exit_code, done.stdout) == (7, PRINTED)
    *shown, status = [
        line.removeprefix("  … ").partition(" (start: ")[0] for line in done.stderr.splitlines()
    ]
    assert "some is already waiting or running" in done.stderr
    assert status == "some: FAILED, exit code 7"
    expected = [
        f"some is pending: {REASON.rstrip('.')}",
        "some is running; its log has no new line",
    ]
    assert [text for text in dict.fromkeys(shown) if text.startswith("some is ")] == expected


@pytest.mark.usefixtures("address")
def test_with_json_the_log_and_the_status_are_events() -> None:
    done = follow("--json")
    lines = [line for line in done.stderr.splitlines() if line]
    events = [json.loads(line) for line in lines]
    result = json.loads(done.stdout)
    assert (result["status"], result["how"], result["exit_code"]) == ("FAILED", "running", 7)
    assert [event["text"] for event in events if event["event"] == "line"] == LOG.split("\n")
    assert [event["text"] for event in events if event["event"] == "activity"][-3:] == [
        "reading the status of some",
        f"some is pending: {REASON.rstrip('.')}",
        "some is running; its log has no new line",
    ]


def test_ctrl_c_prints_rays_commands_for_the_cluster_of_the_job(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> Never:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "follow", interrupt)
    variables = f"RAY_API_SERVER_ADDRESS={address}"
    done = follow()
    assert done.exit_code == 130
    assert f"some continues. To see its log: {variables} ray job logs some --follow" in done.stderr

    token = tmp_path / "token"
    token.write_text("secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    variables += f" RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token}"
    assert f"To stop it: {variables} ray job stop some" in follow().stderr
