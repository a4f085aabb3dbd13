"""Take the pictures of pages in README and docs from a real run: `make demo KEEP=1`, then `make screenshots`."""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cluster.local import stack
from cluster.local.folder import default_folder
from serving.deploy import serve_client
from serving.deploy.application import application_name
from tailorbird.cli.pages import fetch_page, save_page
from tailorbird.config.loader import load_recipe
from tailorbird.demo import RECIPE
from tailorbird.registry.champion import read_champion

IMAGES = Path(__file__).parent / "images"
THEMES = ("light", "dark")
WIDTH, HEIGHT = 1200, 800  # CSS pixels
MAX_BYTES = 200_000
TIMEOUT_MS = 300_000


def main() -> int:
    """Take the pictures of the demo's report and of the page of its service. Return 1 if that is not possible."""
    from playwright.sync_api import sync_playwright

    browser, state = shutil.which("chromium"), stack.status(default_folder())
    if browser is None or state is None:
        print("chromium is not installed" if browser is None else "no demo is running; run `make demo KEEP=1` first")
        return 1
    os.environ.update(state.environment())
    pages = demo_pages()
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        written = take(pages, chromium=playwright.chromium.launch(executable_path=browser, args=options))
    large = [path for path in written if path.stat().st_size > MAX_BYTES]
    for path in large:
        print(f"{path} is larger than {MAX_BYTES:,} bytes; take a picture of a smaller part")
    return int(bool(large))


def demo_pages() -> dict[str, tuple[str, str]]:
    """Return, by the name of the picture, the address of a page and a selector of what the page must show first."""
    recipe = load_recipe(RECIPE)
    stored = read_champion(recipe.task_uri)
    assert stored is not None, "the demo has promoted a champion"
    report = save_page(fetch_page(stored[0].run)[0], output=Path(tempfile.mkdtemp()) / "report.html")
    service = serve_client.declared_applications()[application_name(recipe.task_uri)]
    text = quote(recipe.serving.examples[0])
    return {
        "report": (report.as_uri(), "main"),
        "page": (f"{serve_client.application_url(service)}/#text={text}", "#both section"),
    }


def take(pages: Mapping[str, tuple[str, str]], *, chromium: Any, folder: Path = IMAGES) -> list[Path]:
    """Write `<name>-light.png` and `<name>-dark.png` of each page to the folder, and return the files.

    `chromium` is a browser of Playwright.
    """
    written = []
    for name, (address, shown) in pages.items():
        for theme in THEMES:
            context = chromium.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=theme)
            context.set_default_timeout(TIMEOUT_MS)
            page = context.new_page()
            page.goto(address)
            page.locator(shown).first.wait_for()
            written.append(folder / f"{name}-{theme}.png")
            page.screenshot(path=written[-1])
            context.close()
    return written


if __name__ == "__main__":
    sys.exit(main())
