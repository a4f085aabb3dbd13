"""Contrast of the colors of the stylesheet, in light and dark mode and in print (WCAG 2.1, 1.4.3
and 1.4.11)."""

import re

import pytest

from tailorbird.pages.environment import COMPONENTS

THEMES = re.findall(
    r":root \{(.*?)\}", (COMPONENTS / "style.css").read_text(encoding="utf-8"), re.DOTALL
)
TEXT = ("ink", "soft", "chosen", "go", "stay", "unsure", "both", "error")
GRAPHICS = ("chosen", "incumbent", "bar")


def luminance(color: str) -> float:
    """Return the relative luminance of `#rrggbb`."""
    shares = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_contrast_of_black_and_white_is_21() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark", "print"])
def test_text_and_graphics_have_enough_contrast(theme: str) -> None:
    colors = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", theme))
    low = [
        (name, ground, round(contrast(colors[name], colors[ground]), 2))
        for names, grounds, least in (
            (TEXT, ("paper", "panel"), 4.5),
            (GRAPHICS, ("paper", "band"), 3.0),
        )
        for name in names
        for ground in grounds
        if contrast(colors[name], colors[ground]) < least
    ]
    assert low == []
    assert contrast(colors["on-chosen"], colors["chosen"]) >= 4.5
