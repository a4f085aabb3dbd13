"""Results in a notebook are pages in a frame, without scripts and external resources."""

import re
from dataclasses import replace
from html import unescape

import pytest

from tailorbird.interface.answer import Answer
from tailorbird.interface.answers import Answers
from tailorbird.interface.notebook import BASE, framed
from tests.unit.evaluation.report.test_html import Page

ANSWER = Answer("Fear of <b>flying</b>", "a & b", 0.875, "probe-1")


def page_in(frame: str) -> str:
    """Return the page in a frame, whose attributes have no other quotes and brackets."""
    shown = re.fullmatch(
        r'<iframe sandbox="" title="[^"<>]*" style="[^"<>]*" srcdoc="([^"<>]*)"></iframe>', frame
    )
    assert shown is not None
    page = unescape(shown[1])
    assert page.count(BASE) == page.count("<head>")
    return page.replace(BASE, "")


def test_answers_are_a_table_in_which_texts_are_escaped() -> None:
    page = page_in(Answers([ANSWER, replace(ANSWER, confidence=None)])._repr_html_())
    assert "<td>Fear of &lt;b&gt;flying&lt;/b&gt;</td>" in page
    assert '<th scope="row">a &amp; b</th>' in page
    assert page.count('<meter value="0.875"') == 1
    assert "not known" in page
    assert ">Answers of probe-1</h1>" in page
    assert "answered by" not in page
    Page(page)
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", page)


@pytest.mark.parametrize("text", ['"><script>', "a & b", "<p>it's</p>"])
def test_a_frame_contains_any_page_and_title(text: str) -> None:
    assert page_in(framed(text, title=text, height=10)) == text
