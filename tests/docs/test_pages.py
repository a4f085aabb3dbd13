"""The pages are short, their links lead somewhere, their commands exist, and the generated ones are
current."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from docs.generate_reference import FOLDER, pages
from docs.screenshots import MAX_BYTES
from tailorbird.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "k8s" / "README.md",
    ROOT / "recipes" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
WRITTEN = [page for page in PAGES if page.parent != FOLDER]
MAX_WORDS = {"README.md": 900, "CHANGELOG.md": 200}
MAX_WORDS_OF_A_PAGE = 2600
MAX_WORDS_OF_A_CELL = 25
MAX_PAGES = 28
MAX_WORDS_OF_ALL_PAGES = 42_000
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
SHELL = {"", "sh", "bash", "console"}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """Return the page's text without blocks of code."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of the page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {
        re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings
    }


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each `tailorbird` or `make` command in the text's blocks of shell
    code."""
    for language, block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines() if language in SHELL else ():
            command = re.sub(r"^\s*(\$ )?(\.venv/bin/)?", "", line)
            if re.match(r"(tailorbird|make) ", command):
                yield shlex.split(re.split(r" [|>&;]", command)[0], comments=True)


def unknown_part(arguments: list[str]) -> str | None:
    """Return the first verb, option or make target that does not exist."""
    program, *rest = arguments
    if program == "make":
        targets = re.findall(
            r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE
        )
        return next((part for part in rest if "=" not in part and part not in targets), None)
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if not rest or rest[0].startswith("-"):
            break
        verb, *rest = rest
        if verb not in command.commands:
            return verb
        command = command.commands[verb]
    options = {
        option
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    return next(
        (
            part
            for part in rest
            if part.startswith("--") and part.split("=")[0] not in options | {"--help"}
        ),
        None,
    )


def test_generated_pages_are_current() -> None:
    stored = {page.name: page.read_text(encoding="utf-8") for page in FOLDER.glob("*.md")}
    assert stored == pages(), "run `make docs`"


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_a_written_page_is_short(page: Path) -> None:
    words = len(page.read_text(encoding="utf-8").split())
    assert words <= MAX_WORDS.get(name(page), MAX_WORDS_OF_A_PAGE)


def test_the_documentation_as_a_whole_is_short() -> None:
    pages = list((ROOT / "docs").rglob("*.md"))
    assert len(pages) <= MAX_PAGES
    words = sum(len(page.read_text(encoding="utf-8").split()) for page in pages)
    assert words <= MAX_WORDS_OF_ALL_PAGES


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_table_cell_is_short(page: Path) -> None:
    rows = [line for line in prose(page).splitlines() if line.startswith("|")]
    cells = [cell.strip() for row in rows for cell in re.split(r"(?<!\\)\|", row)]
    assert [cell for cell in cells if len(cell.split()) > MAX_WORDS_OF_A_CELL] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_pages_and_headings(page: Path) -> None:
    broken = []
    for target in (first or second for first, second in LINK.findall(prose(page))):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if re.match(r"https?://", target):
            continue
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert broken == []


def test_pictures_are_small() -> None:
    assert [
        path.name
        for path in (ROOT / "docs" / "images").iterdir()
        if path.stat().st_size > MAX_BYTES
    ] == []


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_commands_exist(page: Path) -> None:
    unknown = {
        " ".join(parts): unknown_part(parts) for parts in commands(page.read_text(encoding="utf-8"))
    }
    assert {command: part for command, part in unknown.items() if part} == {}


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("tailorbird run recipes/a.yaml tuning.num_trials=4 --json", None),
        ("tailorbird runn recipes/a.yaml", "runn"),
        ("tailorbird stack rest", "rest"),
        ("tailorbird promote RECIPE --fast", "--fast"),
        ("make demo KEEP=1", None),
        ("make demos", "demos"),
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str, part: str | None) -> None:
    assert [unknown_part(parts) for parts in commands(f"```\n{command}  # why\n```\n")] == [part]
