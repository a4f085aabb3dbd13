"""The pages of the console by path. Every page is made anew from the registry; parsed records are
cached."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tailorbird.console import pages
from tailorbird.console.history import read_history
from tailorbird.console.pages import Frame, TaskDetails
from tailorbird.console.reader import Cache, Reader
from tailorbird.console.runs import RunState, read_looks, read_run, read_runs
from tailorbird.console.task_summaries import read_task, read_tasks, task_names
from tailorbird.evaluation.report.html import to_html
from tailorbird.storage.paths import TaskPaths

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
MAX_LISTED = 20  # changes on a task's page


@dataclass(frozen=True)
class Site:
    """The console of a registry."""

    registry: str  # without a trailing slash
    cache: Cache = field(default_factory=Cache)


def page_at(site: Site, path: str | None, *, now: datetime) -> tuple[int, str]:
    """Return the status and the HTML of the page at a path below `/console/`; None is `/console`
    itself.

    Names in a path that are not valid, or do not exist, give status 404.
    """
    reader = Reader(site.cache)
    depth = 0 if path is None else path.count("/") + 1
    frame = Frame(site.registry, now, depth=depth, problems=reader.problems)
    segments = [segment for segment in (path or "").removesuffix("/").split("/") if segment]
    html = None
    if all(NAME.fullmatch(segment) for segment in segments):
        html = _page(site, segments, reader=reader, frame=frame)
    if html is None:
        text = (
            "The console has no page at this address, or the registry no longer contains what it "
            "showed."
        )
        return 404, pages.error_page(frame, title="Page not available", text=text)
    return 200, html


def _page(site: Site, segments: Sequence[str], *, reader: Reader, frame: Frame) -> str | None:
    """Return the page at a path; None if there is none."""
    names = task_names(reader, site.registry)
    if not segments:
        tasks = read_tasks(reader, site.registry, names=names, now=frame.now)
        return pages.tasks_page(frame, tasks)
    task = next((name for name in names if f"{'/'.join(segments)}/".startswith(f"{name}/")), None)
    if task is None:
        return None
    paths = TaskPaths(f"{site.registry}/{task}")
    match segments[task.count("/") + 1 :]:
        case []:
            return _task_page(reader, frame, paths, task=task, page=1)
        case ["page", number] if number.isdecimal():
            return _task_page(reader, frame, paths, task=task, page=int(number))
        case ["runs", name]:
            return _run_page(reader, frame, paths, task=task, name=name)
        case ["runs", name, "report"]:
            run = read_run(reader, paths, name, now=frame.now)
            if run and run.evidence:
                return to_html(run.evidence)
    return None


def _task_page(reader: Reader, frame: Frame, paths: TaskPaths, *, task: str, page: int) -> str:
    details = TaskDetails(
        runs=read_runs(reader, paths, page=page, now=frame.now),
        history=read_history(reader, paths)[:MAX_LISTED],
        looks=read_looks(reader, paths),
    )
    return pages.task_page(frame, read_task(reader, paths, name=task, now=frame.now), details)


def _run_page(
    reader: Reader, frame: Frame, paths: TaskPaths, *, task: str, name: str
) -> str | None:
    run = read_run(reader, paths, name, now=frame.now)
    if run is None and not reader.problems:
        return None
    if run is None or (run.state is RunState.FINISHED and run.evidence is None):
        return pages.error_page(
            frame, title=f"Run {name}", text="The records of this run cannot be read."
        )
    return pages.run_page(frame, task, run)
