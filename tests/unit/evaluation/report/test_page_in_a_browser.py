"""Tests of the HTML report in a real browser, at the width of a small phone (WCAG 2.1, 1.4.10) and of a desktop."""

import html
import re
import struct
from pathlib import Path

import pytest

from tailorbird.evaluation.report.html import to_html
from tailorbird.evaluation.verdict.formatting import points
from tests.browser import BROWSER, chromium
from tests.unit.evaluation.report.test_html import SIMULATIONS, evidence_for

PROBE = """<!DOCTYPE html><body style="margin:0">
<iframe id=page src="report.html" style="width:{width}px;height:900px;border:0"></iframe>
<pre id=result>nothing</pre><script>
document.getElementById("page").onload = (event) => {{
  const root = event.target.contentDocument;
  const across = root.documentElement.scrollWidth;
  document.getElementById("result").textContent = [root.defaultView.innerWidth, across, root.body.innerText].join("|");
}};
</script></body>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed; run `apt-get install chromium`")


@pytest.mark.parametrize("outcome", SIMULATIONS)
@pytest.mark.parametrize("width", [320, 1280])
def test_the_page_shows_outcome_and_interval_without_overflow(tmp_path: Path, outcome: str, width: int) -> None:
    evidence = evidence_for(outcome)
    (tmp_path / "report.html").write_text(to_html(evidence), encoding="utf-8")
    (tmp_path / "probe.html").write_text(PROBE.format(width=width), encoding="utf-8")
    dump = chromium(tmp_path, "--dump-dom", "--virtual-time-budget=3000", (tmp_path / "probe.html").as_uri())
    match = re.search(r"<pre id=.?result.?>(.*?)</pre>", dump, re.DOTALL)
    assert match is not None
    inner, across, text = html.unescape(match.group(1)).split("|", 2)
    assert int(inner) == width
    assert int(across) <= width
    low, high = evidence.verdict.interval
    for expected in (outcome, points(low), points(high), f"n = {evidence.verdict.n:,}"):
        assert expected in text


def test_a_screenshot_of_the_page_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(to_html(evidence_for("HYBRID")), encoding="utf-8")
    shot = tmp_path / "shot.png"
    chromium(tmp_path, "--window-size=1280,900", f"--screenshot={shot}", (tmp_path / "report.html").as_uri())
    content = shot.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1280, 900)
    assert len(content) > 10_000  # a screenshot of an empty page is smaller
