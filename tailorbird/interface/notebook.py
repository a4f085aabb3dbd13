"""HTML of results in a notebook, from the components of the report."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment
from markupsafe import escape

from tailorbird.interface.answer import Answer
from tailorbird.pages.environment import environment

if TYPE_CHECKING:
    from tailorbird.evaluation.report.evidence import Evidence

REPORT_HEIGHT = 640
MAX_HEIGHT = 480
# of a table
HEAD_HEIGHT = 140
ROW_HEIGHT = 62
MAX_ROWS = 100
# without it, a link `#name` opens the notebook's address in the frame
BASE = '<base href="about:srcdoc">'


def report_html(evidence: "Evidence") -> str:
    """Return the report of a run in a frame."""
    from tailorbird.evaluation.report.html import to_html

    return framed(
        to_html(evidence), title=f"Report of the run {evidence.run}", height=REPORT_HEIGHT
    )


def answers_html(answers: Sequence[Answer]) -> str:
    """Return the first `MAX_ROWS` answers of a version as a table in a frame, with confidences as
    bars from 0 to 1."""
    shown = answers[:MAX_ROWS]
    parts = any(answer.answered_by for answer in shown)
    page = (
        _templates()
        .get_template("answers.html")
        .render(rows=shown, num_answers=len(answers), parts=parts)
    )
    height = min(MAX_HEIGHT, HEAD_HEIGHT + ROW_HEIGHT * len(shown))
    return framed(page, title=f"{len(answers)} answers", height=height)


def framed(page: str, *, title: str, height: int) -> str:
    """Return a frame with a page, `height` pixels high, so that the styles of page and notebook do
    not mix.

    No script runs in the frame, and it cannot access the notebook. Links within the page work.
    """
    content = page.replace("<head>", f"<head>{BASE}", 1)
    style = f"width: 100%; height: {height}px; border: 0"
    return (
        f'<iframe sandbox="" title="{escape(title)}" style="{style}" '
        f'srcdoc="{escape(content)}"></iframe>'
    )


@cache
def _templates() -> Environment:
    return environment(Path(__file__).parent / "templates")
