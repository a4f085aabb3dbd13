"""Tests of the HTML report in a real browser, at the width of a small phone (WCAG 2.1, 1.4.10) and of a desktop."""

import html
import json
import re
import struct
from pathlib import Path

import pytest

from tailorbird.evaluation.report.html import to_html
from tailorbird.evaluation.verdict.formatting import points
from tests.browser import BROWSER, chromium
from tests.unit.evaluation.report.test_html import SIMULATIONS, evidence_for

WIDTHS = (320, 1280)
PROBE = """<!DOCTYPE html><body style="margin:0">{frames}<pre id=result>{{}}</pre><script>
const result = document.getElementById("result");
for (const frame of document.querySelectorAll("iframe")) frame.onload = () => {{
  const root = frame.contentDocument, shown = [root.documentElement.scrollWidth, root.body.innerText];
  result.textContent = JSON.stringify({{...JSON.parse(result.textContent), [root.defaultView.innerWidth]: shown}});
}};
</script></body>"""
FRAME = '<iframe src="report.html" style="width:{width}px;height:900px;border:0"></iframe>'

pytestmark = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed; run `apt-get install chromium`")


@pytest.mark.parametrize("outcome", SIMULATIONS)
def test_the_page_shows_outcome_and_interval_without_overflow(tmp_path: Path, outcome: str) -> None:
    evidence = evidence_for(outcome)
    (tmp_path / "report.html").write_text(to_html(evidence), encoding="utf-8")
    frames = "".join(FRAME.format(width=width) for width in WIDTHS)
    (tmp_path / "probe.html").write_text(PROBE.format(frames=frames), encoding="utf-8")
    dump = chromium(tmp_path, "--dump-dom", "--virtual-time-budget=3000", (tmp_path / "probe.html").as_uri())
    match = re.search(r"<pre id=.?result.?>(.*?)</pre>", dump, re.DOTALL)
    assert match is not None
    shown = json.loads(html.unescape(match.group(1)))
    assert set(shown) == set(map(str, WIDTHS))
    low, high = evidence.verdict.interval
    for width, (across, text) in shown.items():
        assert across <= int(width)
        for expected in (outcome, points(low), points(high), f"n = {evidence.verdict.n:,}"):
            assert expected in text


def test_a_screenshot_of_the_page_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(to_html(evidence_for("HYBRID")), encoding="utf-8")
    shot = tmp_path / "shot.png"
    chromium(tmp_path, "--window-size=1280,900", f"--screenshot={shot}", (tmp_path / "report.html").as_uri())
    content = shot.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1280, 900)
    assert len(content) > 10_000  # a screenshot of an empty page is smaller
