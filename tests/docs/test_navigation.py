"""The menu of the site."""

import re
from pathlib import Path

import mkdocs.config
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def menu() -> list[str]:
    return re.findall(
        r"'([\w./-]+\.md)'", str(mkdocs.config.load_config(str(ROOT / "mkdocs.yml")).nav)
    )


def test_each_page_is_in_the_menu_once(menu: list[str]) -> None:
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(menu) == sorted(pages)
