"""The pages of the console as HTML, from records that are already read. Nothing here reads
storage."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment

from cluster.display.state import duration
from tailorbird.config.metrics import METRICS
from tailorbird.console import charts
from tailorbird.console.history import Change
from tailorbird.console.reader import ListPage
from tailorbird.console.runs import Looks, Run, RunState
from tailorbird.console.task_summaries import TaskSummary
from tailorbird.console.times import parse_time, relative_text
from tailorbird.evaluation.report import charts as report_charts
from tailorbird.evaluation.report import contender_chart
from tailorbird.evaluation.report.figures import FILTERS, FORMS, TONES
from tailorbird.monitoring.render import drift_chart
from tailorbird.pages.environment import environment

MAX_LOOKS = 20  # accesses to test rows on a task's page
LIVE_S = 10  # time between two updates of a page that shows a run under way


@dataclass(frozen=True)
class Frame:
    """What every page needs: the registry, the time, the links, and what could not be read."""

    registry: str
    now: datetime
    depth: int  # slashes in the path after `console`, for links that also work behind a prefix
    problems: Sequence[str] = ()

    def link(self, *segments: str) -> str:
        """Return the address of a page relative to this one; without segments, that of the first
        page."""
        path = "/".join(quote(segment) for segment in ("console", *segments))
        return "../" * self.depth + path

    def ago(self, time: datetime) -> str:
        return relative_text(time, now=self.now)


def tasks_page(frame: Frame, tasks: Sequence[TaskSummary]) -> str:
    """Return the page of all tasks."""
    return _render("tasks.html", frame, live=any(task.active for task in tasks), tasks=tasks)


@dataclass(frozen=True)
class TaskDetails:
    """What the page of a task shows in addition to the summary."""

    runs: ListPage[Run]
    history: Sequence[Change]
    looks: Looks


def task_page(frame: Frame, task: TaskSummary, details: TaskDetails) -> str:
    """Return the page of a task."""
    names: dict[str, str] = {}
    for report in task.reports:
        names |= {statistic.name: statistic.description for statistic in report.drift}
    return _render(
        "task.html",
        frame,
        live=bool(task.active),
        task=task,
        details=details,
        stat_names=names,
    )


def run_page(frame: Frame, task: str, run: Run) -> str:
    """Return the page of a run."""
    return _render(
        "run.html",
        frame,
        live=run.state is RunState.RUNNING,
        task=task,
        run=run,
        evidence=run.evidence,
        verdict=run.evidence.verdict if run.evidence else None,
        validation_rows=_validation_rows(run),
    )


def _validation_rows(run: Run) -> int | None:
    """Return the number of validation rows if a score is the share of correct ones; None if not, or
    if unknown."""
    evidence = run.evidence
    if evidence is not None:
        if METRICS[evidence.verdict.metric].is_share:
            return evidence.data.report.num_validation
        return None
    if run.progress:
        return run.progress.validation_rows
    return None


def error_page(frame: Frame, *, title: str, text: str) -> str:
    """Return a page about a page that does not exist."""
    return _render("error.html", frame, heading=title, text=text)


def _render(template: str, frame: Frame, *, live: bool = False, **values: object) -> str:
    """Return a page; if `live`, with the script that updates it."""
    live_s = LIVE_S if live else None
    page = _templates().get_template(template)
    return page.render(frame=frame, link=frame.link, live_s=live_s, **values)


@cache
def _templates() -> Environment:
    templates = environment(Path(__file__).parent / "templates")
    templates.globals |= {
        "draw": charts,
        "drift_chart": drift_chart,
        "report_draw": report_charts,
        "contender_chart": contender_chart,
        "tones": TONES,
        "states": RunState,
        "max_looks": MAX_LOOKS,
    }
    templates.filters |= FILTERS
    templates.filters |= {
        "parsed": parse_time,
        "time": "{:%Y-%m-%d %H:%M} UTC".format,
        "count": "{:,}".format,
        "percent": FORMS["share"],
        "last": lambda uri: uri.rpartition("/")[2],
        "seconds": duration,
    }
    return templates
