"""All stored pages in a real browser: accessible, without overflow and requests, and usable with
the keyboard alone."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from serving.replica.chat import Chat
from serving.replica.classifier import Classifier
from tailorbird.config.serving import ServingConfig
from tailorbird.evaluation.report.html import to_html
from tailorbird.interface.answers import Answers
from tailorbird.monitoring.recommendation import recommend
from tailorbird.monitoring.render import render_page
from tailorbird.monitoring.report import Report
from tailorbird.registry.endpoint import Endpoint
from tailorbird.storage.paths import TaskPaths
from tests import console_registry as made
from tests.browser import (
    WIDTHS,
    OpenPage,
    accessibility_faults,
    broken_links,
    keyboard_faults,
    overflow,
)
from tests.unit.console.test_states import NOW, RUN, add_champion, add_progress, html_of
from tests.unit.evaluation.report.test_first_screen import (
    CASCADE,
    PARTLY_PRICED,
)
from tests.unit.evaluation.report.test_html import SIMULATIONS, evidence_for
from tests.unit.evaluation.simulated import Simulation, evidence_of
from tests.unit.interface.test_notebook import ANSWER, page_in
from tests.unit.monitoring.test_recommendation import ALARM, TODAY, day_of, decided, failing, report
from tests.unit.serving.http.application import application, request

EXPIRED = "2026-01-01T00:00:00+00:00"
ENDPOINT = Endpoint(url="https://api.example.org/v1", model="m", reported_model="m-2026-01-01")


def report_page(outcome: str, _folder: Path) -> str:
    return to_html(evidence_for(outcome))


def answers_page(_folder: Path) -> str:
    return page_in(Answers([ANSWER, replace(ANSWER, confidence=None)])._repr_html_())


def watch_page(*reports: Report, expires: str | None = None) -> str:
    decision = decided(*reports) if any(day.challenger for day in reports) else None
    recommendation = recommend(reports, expires=expires, today=TODAY, challenger=decision)
    return render_page("letters", reports, recommendation=recommendation)


def docs_page(service: type, _folder: Path) -> str:
    app = application(service, ServingConfig())
    with ThreadPoolExecutor(1) as thread:  # that of the browser runs an event loop already
        status, _, body = thread.submit(request, app, "GET", "/docs").result()
    assert status == 200
    return body


def console_page(
    path: str | None, write: Callable[[TaskPaths], object], folder: Path, *, status: int = 200
) -> str:
    """Return the page of the console at a path, of a registry that `write` fills."""
    paths = TaskPaths(f"{folder.as_uri()}/icd10-chapters")
    write(paths)
    return html_of(paths, path, status=status)


def add_watched_champion(paths: TaskPaths) -> None:
    add_champion(paths, days_ago=40)
    made.add_reports(paths, until=NOW, num_days=5, alarm=True)
    expires = NOW + timedelta(days=300)
    made.add_watch(
        paths, at=NOW, reasons=["share of far texts: 0.031"], challenger_days=3, expires=expires
    )


def add_watched_chat(paths: TaskPaths) -> None:
    add_champion(paths, days_ago=40, chat=True)
    made.add_reports(paths, until=NOW, num_days=5, chat=True)
    made.add_watch(paths, at=NOW, expires=NOW + timedelta(days=300))


def add_many_runs(paths: TaskPaths) -> None:
    """Write runs for three pages of the list."""
    times = (NOW - timedelta(hours=hours) for hours in range(40, 0, -1))
    made.add_looks(
        paths, *(made.add_run(paths, f"{number:016x}", at=at) for number, at in enumerate(times))
    )


def add_damaged_run(paths: TaskPaths) -> None:
    """Write a champion whose run has a damaged progress record and evidence."""
    add_champion(paths, days_ago=8)
    add_progress(paths, RUN, minutes_ago=9)
    for uri in (paths.progress(RUN), f"{paths.run(RUN)}/evidence.json"):
        Path(uri.removeprefix("file://")).write_text("{", encoding="utf-8")


def add_priced_run(paths: TaskPaths, *, simulation: Simulation) -> None:
    made.add_run(paths, RUN, at=NOW, evidence=evidence_of(simulation))


def nothing(_paths: TaskPaths) -> None:
    """Write nothing."""


TASK, PAGE_OF_RUN = "icd10-chapters", f"icd10-chapters/runs/{RUN}"
PAGES: dict[str, Callable[[Path], str]] = {
    **{f"report {outcome}": partial(report_page, outcome) for outcome in SIMULATIONS},
    "report with a cost that is not known": lambda _: to_html(evidence_of(PARTLY_PRICED)),
    "report of a cascade": lambda _: to_html(evidence_of(CASCADE)),
    "answers in a notebook": answers_page,
    "watch without answers": lambda _: watch_page(),
    "watch without alarms": lambda _: watch_page(report(day="2026-03-07"), report()),
    "watch with alarms": lambda _: watch_page(
        report(day="2026-03-07"), report(drift=(ALARM,), groups=failing())
    ),
    "watch of a challenger": lambda _: watch_page(day_of("2026-03-06", requests=range(70))),
    "watch of an expired verdict": lambda _: watch_page(report(), expires=EXPIRED),
    "API of a classifier": partial(docs_page, Classifier),
    "API of a chat model": partial(docs_page, Chat),
    "console, empty": partial(console_page, None, nothing),
    "console, tasks": partial(console_page, None, add_watched_champion),
    "console, task": partial(console_page, TASK, add_watched_champion),
    "console, chat task": partial(console_page, TASK, add_watched_chat),
    "console, expired": partial(console_page, TASK, partial(add_champion, days_ago=400)),
    "console, many runs": partial(console_page, TASK, add_many_runs),
    "console, no champion": partial(
        console_page, TASK, lambda paths: made.add_run(paths, RUN, at=NOW)
    ),
    "console, tasks during a run": partial(
        console_page, None, lambda paths: add_progress(paths, RUN, minutes_ago=1)
    ),
    "console, finished run": partial(console_page, PAGE_OF_RUN, partial(add_champion, days_ago=8)),
    "console, run with a cost that is not known": partial(
        console_page, PAGE_OF_RUN, partial(add_priced_run, simulation=PARTLY_PRICED)
    ),
    "console, running": partial(
        console_page, PAGE_OF_RUN, lambda paths: add_progress(paths, RUN, minutes_ago=1)
    ),
    "console, stale": partial(
        console_page, PAGE_OF_RUN, lambda paths: add_progress(paths, RUN, minutes_ago=600)
    ),
    "console, failed": partial(
        console_page,
        PAGE_OF_RUN,
        lambda paths: add_progress(
            paths, RUN, minutes_ago=9, status="failed", error="TrainingFailed: " + "x" * 200
        ),
    ),
    "console, damaged records": partial(console_page, None, add_damaged_run),
    "console, run with damaged records": partial(console_page, PAGE_OF_RUN, add_damaged_run),
    "console, missing": partial(console_page, "none", nothing, status=404),
}
"""Stored pages by name and state, each as a function of a folder that returns its HTML."""
OTHER_FIGURES = (
    "report STAY",
    "report INSUFFICIENT_EVIDENCE",
    "report with a cost that is not known",
    "console, run with a cost that is not known",
    "console, many runs",
)
"""Pages with the elements of another page and other figures, which are tested before a release."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long) if name in OTHER_FIGURES else name
        for name in PAGES
    ],
)
def test_a_page_is_accessible_and_fits_each_width(
    open_page: OpenPage, tmp_path: Path, name: str
) -> None:
    (tmp_path / "page.html").write_text(PAGES[name](tmp_path), encoding="utf-8")
    page = open_page((tmp_path / "page.html").as_uri())
    assert accessibility_faults(page) == []
    assert {width: over for width in WIDTHS if (over := overflow(page, width=width)) > 0} == {}
    assert keyboard_faults(page) == []
    assert broken_links(page) == []


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("report ")])
def test_the_four_answers_of_a_report_are_on_the_first_screen(
    open_page: OpenPage, tmp_path: Path, name: str
) -> None:
    (tmp_path / "page.html").write_text(PAGES[name](tmp_path), encoding="utf-8")
    page = open_page((tmp_path / "page.html").as_uri())
    page.set_viewport_size({"width": 1200, "height": 800})
    ends = page.evaluate(
        """Object.fromEntries([...document.querySelectorAll(".verdict, .answers > section")]
        .map(part => [part.querySelector("h2").firstChild.textContent.trim(), part.getBoundingClientRect().bottom]))"""
    )
    assert list(ends) == [
        "What should I do?",
        "How sure is this?",
        "What does it cost?",
        "What would change it?",
    ]
    assert {question: end for question, end in ends.items() if end > 800} == {}


CHARTS = [
    *(f"report {outcome}" for outcome in SIMULATIONS),
    "report with a cost that is not known",
    "report of a cascade",
    "console, finished run",
    "console, run with a cost that is not known",
]
"""Pages with the chart of the contenders."""
OVERLAPS = """() => {
    const chart = document.querySelector("svg.rows"), frame = chart.getBoundingClientRect();
    const boxes = name => [...chart.querySelectorAll(name)].map(node => [node, node.getBoundingClientRect()]);
    const overlap = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    const name = node => node.textContent || node.outerHTML;
    const dots = boxes("circle"), texts = boxes("text");
    const faults = [];
    for (const [index, [dot, box]] of dots.entries()) {
        const middle = (box.left + box.right) / 2;
        if (middle < frame.left - 1 || middle > frame.right + 1) faults.push(`${name(dot)} is outside of the chart`);
        for (const [other, its] of [...texts, ...dots.slice(index + 1)])
            if (overlap(box, its)) faults.push(`${name(other)} covers ${name(dot)}`);
    }
    for (const [index, [text, box]] of texts.entries())
        for (const [other, its] of texts.slice(index + 1))
            if (overlap(box, its)) faults.push(`${name(other)} covers ${name(text)}`);
    return [dots.length, faults];
}"""
"""Returns the number of dots, and the labels and dots of the chart that cover a dot or a label."""


@pytest.mark.parametrize("name", CHARTS)
def test_no_label_and_no_dot_covers_a_dot_of_the_contenders(
    open_page: OpenPage, tmp_path: Path, name: str
) -> None:
    (tmp_path / "page.html").write_text(PAGES[name](tmp_path), encoding="utf-8")
    page = open_page((tmp_path / "page.html").as_uri())
    for width in (*WIDTHS, 360, 1200):
        page.set_viewport_size({"width": width, "height": 900})
        num_dots, faults = page.evaluate(OVERLAPS)
        assert num_dots > 1
        assert (width, faults) == (width, [])
