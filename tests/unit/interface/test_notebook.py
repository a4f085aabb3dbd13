"""Results in a notebook are pages in a frame, without scripts and external resources."""

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from tailorbird.interface.answer import Answer
from tailorbird.interface.answers import Answers
from tailorbird.interface.notebook import BASE, MAX_HEIGHT, MAX_ROWS, framed, report_html
from tests.browser import BROWSER, chromium
from tests.unit.evaluation.report.test_html import Page, evidence_for

ANSWER = Answer("Fear of <b>flying</b>", "a & b", 0.875, "probe-1")

NOTEBOOK = """<!DOCTYPE html><title>Notebook</title>{frame}<pre id=result>nothing</pre><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const link = frame.contentDocument.querySelector("a[href^='#']");
  frame.onload = null;
  link.click();
  setTimeout(() => {{
    const address = frame.contentWindow.location.href, title = frame.contentDocument.title;
    document.getElementById("result").textContent = [link.getAttribute("href"), address, title].join("|");
  }}, 500);
}};
</script>"""


def page_in(frame: str) -> str:
    """Return the page in a frame, whose attributes have no other quotes and brackets."""
    shown = re.fullmatch(r'<iframe sandbox="" title="[^"<>]*" style="[^"<>]*" srcdoc="([^"<>]*)"></iframe>', frame)
    assert shown is not None
    page = unescape(shown[1])
    assert page.count(BASE) == page.count("<head>")
    return page.replace(BASE, "")


def test_answers_are_a_table_in_which_texts_are_escaped() -> None:
    page = page_in(Answers([ANSWER, replace(ANSWER, confidence=None)])._repr_html_())
    assert "<td>Fear of &lt;b&gt;flying&lt;/b&gt;</td>" in page
    assert '<th scope="row">a &amp; b</th>' in page
    assert page.count("<rect") == 1
    assert "not known" in page
    assert "<caption>Answers of probe-1</caption>" in page
    assert "answered by" not in page
    Page(page)
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", page)


def test_the_part_of_a_hybrid_is_shown() -> None:
    page = page_in(Answers([replace(ANSWER, answered_by="second", fallback=True)])._repr_html_())
    assert "<td>second<small>fallback</small></td>" in page


def test_a_long_table_is_cut_and_states_the_number_of_answers() -> None:
    frame = Answers([ANSWER] * 1_234)._repr_html_()
    page = page_in(frame)
    assert page.count("<tr><td>") == MAX_ROWS
    assert f"The first {MAX_ROWS} of 1,234 answers." in page
    assert f"height: {MAX_HEIGHT}px" in frame
    assert "<tr><td>" not in page_in(Answers()._repr_html_())


@pytest.mark.parametrize("text", ['"><script>', "a & b", "<p>it's</p>"])
def test_a_frame_contains_any_page_and_title(text: str) -> None:
    assert page_in(framed(text, title=text, height=10)) == text


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed; run `apt-get install chromium`")
def test_a_link_within_a_page_does_not_open_the_notebook_in_the_frame(tmp_path: Path) -> None:
    # The attribute lets the script of the test click a link and read the address.
    frame = report_html(evidence_for("STAY")).replace(
        'sandbox=""', 'sandbox="allow-same-origin"'
    )  # to read its address
    (tmp_path / "notebook.html").write_text(NOTEBOOK.format(frame=frame), encoding="utf-8")
    dump = chromium(tmp_path, "--dump-dom", "--virtual-time-budget=3000", (tmp_path / "notebook.html").as_uri())
    result = re.search(r'<pre id="result">(.*?)</pre>', dump, re.DOTALL)
    assert result is not None
    link, address, title = unescape(result[1]).split("|", 2)
    assert address == f"about:srcdoc{link}"
    assert title != "Notebook"
