"""The pages of the console in a real browser: widths, landmarks, and use by keyboard."""

import html
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tailorbird.console.site import Site, page_at
from tailorbird.storage.paths import TaskPaths
from tests import console_registry as made
from tests.browser import BROWSER, chromium

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
WIDTHS = (320, 390, 820, 1440)
PROBE = """<!DOCTYPE html><body style="margin:0">{frames}<pre id=result>[]</pre><script>
const result = document.getElementById("result");
for (const frame of document.querySelectorAll("iframe")) {{ frame.onload = () => {{
  const page = frame.contentDocument, all = selector => [...page.querySelectorAll(selector)];
  const boxes = all("a, summary, [tabindex]").filter(each => each.getClientRects().length);
  const facts = {{
    name: frame.name, width: page.defaultView.innerWidth, across: page.documentElement.scrollWidth,
    headings: all("h1").length, mains: all("main").length, language: page.documentElement.lang,
    unnamed: all("svg:not([aria-label]), a:empty, section:not([aria-labelledby])").length,
    twice: all("[id]").map(each => each.id).filter((id, index, ids) => ids.indexOf(id) < index),
    broken: all('a[href^="#"]').filter(each => !page.getElementById(each.hash.slice(1))).length,
    scripts: all("script, [onclick], [style]").length, first: boxes[0].textContent,
  }};
  result.textContent = JSON.stringify([...JSON.parse(result.textContent), facts]);
}}; frame.src = `${{frame.name}}.html`; }}
</script></body>"""
FRAME = '<iframe name="{name}" style="width:{width}px;height:700px;border:0"></iframe>'

pytestmark = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed; run `apt-get install chromium`")


def test_every_page_fits_its_width_and_has_landmarks_names_and_no_scripts(tmp_path: Path) -> None:
    paths = TaskPaths(f"{tmp_path.as_uri()}/registry/icd10-chapters")
    evidence = made.add_run(paths, "1" * 16, at=NOW)
    uri = made.add_version(paths, "full-1", kind="bag_of_words", at=NOW, evidence=evidence)
    made.add_champion(paths, uri, at=NOW - timedelta(days=20), evidence=evidence)
    made.add_reports(paths, until=NOW, num_days=20, alarm=True)
    made.add_watch(paths, at=NOW, reasons=["drift"], challenger_days=9, expires=NOW + timedelta(days=90))
    made.add_looks(paths, evidence)
    made.add_progress(paths, "2" * 16, started=NOW - timedelta(minutes=9), updated=NOW)
    made.add_progress(paths, "3" * 16, started=NOW, updated=NOW, status="failed", error="TrainingFailed: " + "x" * 200)
    shown = {"tasks": None, "task": "icd10-chapters", "versions": "icd10-chapters/versions", "none": "other"}
    shown |= {f"run-{number}": f"icd10-chapters/runs/{number * 16}/paused" for number in "123"}
    site = Site(paths.registry)
    for name, path in shown.items():
        (tmp_path / f"{name}.html").write_text(page_at(site, path, now=NOW)[1], encoding="utf-8")
    frames = "".join(FRAME.format(name=name, width=width) for name in shown for width in WIDTHS)
    (tmp_path / "probe.html").write_text(PROBE.format(frames=frames), encoding="utf-8")
    dump = chromium(tmp_path, "--dump-dom", "--virtual-time-budget=8000", (tmp_path / "probe.html").as_uri())
    match = re.search(r"<pre id=.?result.?>(.*?)</pre>", dump, re.DOTALL)
    assert match is not None
    pages = json.loads(html.unescape(match.group(1)))
    assert {(page["name"], page["width"]) for page in pages} == {(name, width) for name in shown for width in WIDTHS}
    for page in pages:
        assert page["across"] <= page["width"], page
        assert (page["headings"], page["mains"], page["language"]) == (1, 1, "en"), page
        assert (page["unnamed"], page["twice"], page["broken"], page["scripts"]) == (0, [], 0, 0), page
        assert page["first"] == "Skip to the content"
