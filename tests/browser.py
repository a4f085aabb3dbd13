"""Open pages in a headless Chromium, which Playwright drives in a thread of its own.

Playwright's synchronous interface runs an event loop in its thread for as long as the browser is
open. In the main thread, it would make `asyncio.run` fail in all other tests.
"""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
WIDTHS = (320, 768, 1280)  # CSS pixels: a small phone (WCAG 2.1, 1.4.10), a tablet, a desktop
THEMES = ("light", "dark")
TIMEOUT_MS = 120_000
OPTIONS = ("--no-sandbox", "--disable-gpu", "--allow-file-access-from-files")
FURTHER_ROWS = "tbody tr:nth-child(n+5)"
"""Rows of tables that axe does not check, because they are like the first ones; a report has a
thousand of them."""
AXE = """async enabled =>
    (await axe.run({resultTypes: ["violations"], rules: {"color-contrast": {enabled}}})).violations"""
FOCUSABLE = "a[href], button:enabled, input, select, textarea, summary, [tabindex='0']"

Page = Any  # playwright.sync_api.Page
OpenPage = Callable[..., Page]
"""Opens a URL in a new window: `(url, width=1280, other_origins=False)`."""
T = TypeVar("T")


class Browser:
    """A running Chromium. Use its pages in its thread only, with `run`."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="playwright")
        self.run(self._launch)

    def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return the result of a call in the browser's thread."""
        return self._thread.submit(function, *args, **kwargs).result()

    def close(self) -> None:
        self.run(self.chromium.close)
        self.run(self._playwright.stop)
        self._thread.shutdown()

    @contextmanager
    def windows(self) -> Iterator[OpenPage]:
        """Yield a function that opens a page. After the block, fail if a page sent requests
        elsewhere or had errors."""
        faults: list[str] = []
        contexts: list[Any] = []

        def open_page(url: str, *, width: int = 1280, other_origins: bool = False) -> Page:
            context = self.chromium.new_context(viewport={"width": width, "height": 900})
            contexts.append(context)
            context.set_default_timeout(TIMEOUT_MS)
            page = context.new_page()
            if not other_origins:
                page.on("request", lambda request: faults.extend(_foreign(request.url, page=url)))
            page.on("pageerror", lambda error: faults.append(f"error: {error}"))
            page.on("console", lambda message: faults.extend(_refused(message.text)))
            page.goto(url)
            return page

        try:
            yield open_page
        finally:
            for context in contexts:
                self.run(context.close)
        if faults:
            raise AssertionError("; ".join(faults))

    def _launch(self) -> None:
        from playwright.sync_api import sync_playwright

        self._playwright: Any = sync_playwright().start()
        self.chromium: Any = self._playwright.chromium.launch(
            executable_path=BROWSER, args=OPTIONS, timeout=TIMEOUT_MS
        )


def _foreign(url: str, *, page: str) -> list[str]:
    """Return the URL of a request if it is neither to the page's origin nor contained in the
    page."""
    origins = [urlsplit(one)[:2] for one in (url, page)]
    return (
        []
        if origins[0] == origins[1] or url.startswith(("data:", "about:"))
        else [f"request to {url}"]
    )


def _refused(message: str) -> list[str]:
    """Return a message of the console if it reports a violation of the page's
    Content-Security-Policy."""
    return [message] if "Content Security Policy" in message else []


def accessibility_faults(page: Page) -> list[str]:
    """Return the violations of axe's rules, with the elements, in light and dark mode at each of
    `WIDTHS`.

    Contrast, which takes axe most of its time, is checked at the largest width only: no color
    depends on the width.
    """
    from axe_playwright_python.sync_playwright import Axe

    before, faults = page.viewport_size, []
    page.evaluate(
        "query => document.querySelectorAll(query).forEach(row => { row.hidden = true; })",
        FURTHER_ROWS,
    )
    page.evaluate(Axe().axe_script)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        for theme in THEMES:
            page.emulate_media(color_scheme=theme)
            for violation in page.evaluate(AXE, width == WIDTHS[-1]):
                faults += [
                    f"{theme}, {width} px: {violation['help']}: {node['target']}"
                    for node in violation["nodes"]
                ]
    page.set_viewport_size(before)
    page.evaluate(
        "query => document.querySelectorAll(query).forEach(row => { row.hidden = false; })",
        FURTHER_ROWS,
    )
    return faults


def overflow(page: Page, *, width: int) -> int:
    """Return by how many pixels the page is wider than a window of this width."""
    page.set_viewport_size({"width": width, "height": 900})
    return int(
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    )


def broken_links(page: Page) -> list[str]:
    """Return the links within the page that lead nowhere."""
    links: list[str] = page.evaluate(
        """[...document.querySelectorAll('a[href^="#"]')].map(link => link.hash.slice(1))
        .filter(id => !document.getElementById(id))"""
    )
    return links


def keyboard_faults(page: Page, *, stops: int = 40) -> list[str]:
    """Return elements that Tab does not reach in their order, or that show no focus, among the
    first `stops`."""
    page.evaluate(
        """selector => { window.focusables = [...document.querySelectorAll(selector)]
        .filter(node => node.checkVisibility({visibilityProperty: true})); }""",
        FOCUSABLE,
    )
    expected = page.evaluate("focusables.map(node => node.outerHTML.slice(0, 80))")[:stops]
    faults = []
    for index, html in enumerate(expected):
        page.keyboard.press("Tab")
        reached, outlined = page.evaluate(
            """index => [document.activeElement === focusables[index],
            getComputedStyle(document.activeElement).outlineStyle !== "none"]""",
            index,
        )
        faults += [] if reached else [f"not reached: {html}"]
        faults += [] if outlined else [f"no visible focus: {html}"]
    return faults
