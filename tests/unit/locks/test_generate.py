"""The locks are current, satisfy the requirements of the project, and pin files only by hash."""

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from locks import generate
from locks.generate import (
    FOLDER,
    LOCKS,
    TORCH,
    header,
    outdated_locks,
    requirements,
    split_packages,
)

LOCK_NAMES = (*LOCKS, TORCH)


def locked(*names: str) -> dict[str, set[str]]:
    """Return the versions of each package in some locks; a package can have one for each version of
    Python."""
    pins: dict[str, set[str]] = {}
    for name in names:
        for text in split_packages((FOLDER / name).read_text()):
            pin = Requirement(text.partition("\\")[0])
            pins.setdefault(canonicalize_name(pin.name), set()).add(
                str(pin.specifier).removeprefix("==")
            )
    return pins


def expanded(extras: list[str]) -> list[Requirement]:
    """Return the requirements of the project with these extras."""
    rows = [Requirement(line) for line in requirements()["dependencies"]]
    for extra in extras:
        for line in requirements()["optional-dependencies"][extra]:
            row = Requirement(line)
            rows += expanded(sorted(row.extras)) if row.name == "tailorbird" else [row]
    return rows


def test_the_locks_are_current() -> None:
    assert outdated_locks(FOLDER) == [], "run `make lock`"


def test_a_changed_requirement_makes_the_locks_outdated(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = requirements() | {"dependencies": ["torch>=3"]}
    monkeypatch.setattr(generate, "requirements", lambda: changed)
    assert outdated_locks(FOLDER) == [f"locks/{name}" for name in LOCK_NAMES]


def test_a_check_refuses_other_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "write_lock", lambda *_: pytest.fail("a lock was written"))
    monkeypatch.setattr(sys, "argv", ["generate", "--check", "--upgrade"])
    assert generate.main() == 2
    assert "--check takes no other arguments" in capsys.readouterr().out


def test_a_missing_lock_is_outdated(tmp_path: Path) -> None:
    for name in LOCK_NAMES:
        (tmp_path / name).write_text(header(name))
    assert outdated_locks(tmp_path) == []
    (tmp_path / TORCH).unlink()
    assert outdated_locks(tmp_path) == ["locks/torch.txt"]


@pytest.mark.parametrize("name", LOCK_NAMES)
def test_a_lock_contains_only_versions_and_hashes(name: str) -> None:
    text = (FOLDER / name).read_text()
    first, second, *lines = text.splitlines(keepends=True)
    assert first.startswith("# ")
    assert second.startswith("# requirements: sha256:")
    assert "".join(split_packages(text)) == "".join(lines)
    for line in lines:
        assert re.fullmatch(
            r"[a-z0-9.-]+==[0-9a-z.]+( ; [^\\]+)? \\\n|    --hash=sha256:[0-9a-f]{64}( \\)?\n", line
        )


@pytest.mark.parametrize(
    "name", [name for name, options in LOCKS.items() if "pyproject.toml" in options]
)
def test_a_lock_satisfies_the_requirements_of_the_project(name: str) -> None:
    pins = locked(name) if name == "gpu.txt" else locked(name, TORCH)
    for row in expanded(
        [option.removeprefix("--extra=") for option in LOCKS[name] if option.startswith("--extra=")]
    ):
        versions = pins.get(canonicalize_name(row.name), set())
        assert versions, f"{row.name} is not locked"
        assert {version for version in versions if not row.specifier.contains(version)} == set(), (
            row
        )


def test_torch_and_its_libraries_have_a_lock_of_their_own_so_that_a_build_for_cpus_can_replace_them() -> (
    None
):
    assert {"torch", "triton"} <= locked(TORCH).keys()
    for name in ("development.txt", "demo.txt", "nodes.txt", "setup.txt", "cpu.txt"):
        assert locked(name).keys() & locked(TORCH).keys() == set()


def test_a_demo_becomes_a_development_set_up_without_another_version() -> None:
    development = locked("development.txt")
    for name in ("demo.txt", "nodes.txt", "setup.txt"):
        assert locked(name).items() <= development.items()
