"""Pictures of pages are taken in light and dark."""

import struct
from pathlib import Path

from docs.screenshots import HEIGHT, THEMES, WIDTH, Picture, take
from tailorbird.evaluation.report.html import to_html
from tests.browser import Browser
from tests.unit.evaluation.report.test_html import evidence_for


def test_a_page_is_taken_in_light_and_dark(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(to_html(evidence_for("HYBRID")), encoding="utf-8")
    pages = {"report": Picture((tmp_path / "report.html").as_uri(), "main", themes=THEMES)}
    light, dark = browser.run(take, pages, chromium=browser.chromium, folder=tmp_path)
    assert (light.name, dark.name) == ("report-light.png", "report-dark.png")
    contents = [path.read_bytes() for path in (light, dark)]
    assert [struct.unpack(">II", content[16:24]) for content in contents] == [(WIDTH, HEIGHT)] * 2
    assert min(map(len, contents)) > 10_000  # a picture of an empty page is smaller
    assert contents[0] != contents[1]
