"""Take the pictures of pages in README and docs from a real run: `make demo KEEP=1`, then `make
screenshots`."""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import quote

import tailorbird
from cluster.local import stack
from cluster.local.folder import default_folder
from serving.console_server import ConsoleServer
from serving.deploy import serve_client
from serving.deploy.application import application_name
from tailorbird.cli.pages import fetch_page, save_page
from tailorbird.config.loader import load_recipe
from tailorbird.demo import RECIPE
from tailorbird.registry.champion import read_champion

IMAGES = Path(__file__).parent / "images"
THEMES = ("light", "dark")
WIDTH, HEIGHT, RUN_HEIGHT, TABLE_HEIGHT = 1200, 800, 680, 320  # CSS pixels
MAX_BYTES = 200_000
TIMEOUT_MS = 300_000


class Picture(NamedTuple):
    """A page, a selector of what it must show first, the height in CSS pixels, and the themes."""

    address: str
    shown: str
    height: int = HEIGHT
    themes: tuple[str, ...] = ("light",)


def main() -> int:
    """Take the pictures of the demo's report, service, console and answers. Return 1 if that is not
    possible."""
    from playwright.sync_api import sync_playwright

    browser, state = shutil.which("chromium"), stack.status(default_folder())
    if browser is None or state is None:
        print(
            "chromium is not installed"
            if browser is None
            else "no demo is running; run `make demo KEEP=1` first"
        )
        return 1
    os.environ.update(state.environment())
    pages = demo_pages(Path(tempfile.mkdtemp()))
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        written = take(
            pages, chromium=playwright.chromium.launch(executable_path=browser, args=options)
        )
    large = [path for path in written if path.stat().st_size > MAX_BYTES]
    for path in large:
        print(f"{path} is larger than {MAX_BYTES:,} bytes; take a picture of a smaller part")
    return int(bool(large))


def demo_pages(folder: Path) -> dict[str, Picture]:
    """Return the pictures by name. The report and the answers are written to the folder; a console
    is started."""
    recipe = load_recipe(RECIPE)
    stored = read_champion(recipe.task_uri)
    assert stored is not None, "the demo has promoted a champion"
    champion = stored[0]
    report = save_page(fetch_page(champion.run)[0], output=folder / "report.html")
    answers = folder / "answers.html"
    predicted = tailorbird.load(champion.uri).predict(list(recipe.serving.examples))
    answers.write_text(
        f"<!DOCTYPE html><title>Answers</title>{predicted._repr_html_()}", encoding="utf-8"
    )
    console = ConsoleServer(recipe.task_uri.rpartition("/")[0], port=0)
    Thread(target=console.run, daemon=True).start()
    service = serve_client.declared_applications()[application_name(recipe.task_uri)]
    text = quote(recipe.serving.examples[0])
    return {
        "report": Picture(report.as_uri(), "main", themes=THEMES),
        "page": Picture(f"{serve_client.application_url(service)}/#text={text}", "#both section"),
        "console": Picture(
            f"{console.url}/{recipe.name}/runs/{champion.run.rpartition('/')[2]}",
            "main",
            RUN_HEIGHT,
        ),
        "answers": Picture(answers.as_uri(), "iframe", TABLE_HEIGHT),
    }


def take(pages: Mapping[str, Picture], *, chromium: Any, folder: Path = IMAGES) -> list[Path]:
    """Write `<name>-<theme>.png` of each page in each of its themes to the folder, and return the
    files.

    `chromium` is a browser of Playwright.
    """
    written = []
    for name, picture in pages.items():
        for theme in picture.themes:
            context = chromium.new_context(
                viewport={"width": WIDTH, "height": picture.height}, color_scheme=theme
            )
            context.set_default_timeout(TIMEOUT_MS)
            page = context.new_page()
            page.goto(picture.address)
            page.locator(picture.shown).first.wait_for()
            written.append(folder / f"{name}-{theme}.png")
            page.screenshot(path=written[-1])
            context.close()
    return written


if __name__ == "__main__":
    sys.exit(main())
