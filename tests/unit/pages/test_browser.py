"""The checks of pages in a browser report what they look for."""

from pathlib import Path

import pytest

from tests.browser import Browser, OpenPage, accessibility_faults, keyboard_faults, overflow

IMAGE = "http://127.0.0.1:9/image.png"
PAGE = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>a page</title><style>
@media (prefers-color-scheme: dark) { p { color: #888888; background: #777777; } }
button { outline: none; } div { width: 400px; }
</style><main><h1>a page</h1><p>a text</p><div><button>first</button><a href="#end" tabindex="5">second</a></div></main>
"""


def test_a_request_to_another_origin_is_an_error(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><title>a page</title><img src='{IMAGE}'>")
    with pytest.raises(AssertionError, match=f"request to {IMAGE}"), browser.windows() as open_page:
        browser.run(open_page, (tmp_path / "page.html").as_uri())


def test_contrast_in_dark_mode_width_order_and_focus_are_checked(
    open_page: OpenPage, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(PAGE)
    page = open_page((tmp_path / "page.html").as_uri())
    faults = accessibility_faults(page)
    assert [fault for fault in faults if fault.startswith("dark, 1280 px: ") and "['p']" in fault]
    assert not [fault for fault in faults if fault.startswith("light, ") and "contrast" in fault]
    assert overflow(page, width=320) > 0
    assert overflow(page, width=768) == 0
    wrong = " ".join(keyboard_faults(page))
    assert "not reached: <button>first" in wrong
    assert "no visible focus: " in wrong
