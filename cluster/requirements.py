"""Which packages the code asks for, and which are installed, by their metadata alone: none of them is imported."""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

from tailorbird import PROJECT_ROOT

ALWAYS = ""
"""Names the packages that every part needs, where an optional group has its own name."""


@dataclass(frozen=True)
class Package:
    """A package that is asked for."""

    name: str
    wanted: str
    """Versions, as `>=2.60,<2.61`."""
    installed: str | None
    """The version that is installed, if one is."""
    features: str = ""
    """Its own optional groups that are asked for, as `[serve,train]`; whether they are installed is not looked at."""

    @property
    def fits(self) -> bool:
        """Whether what is installed is wanted."""
        return self.installed is not None and fits(self.installed, self.wanted)

    @property
    def line(self) -> str:
        """As pip is asked for it."""
        return f"{self.name}{self.features}{self.wanted}"


@dataclass(frozen=True)
class Requirements:
    """What this code asks for."""

    python: str
    """Versions, as `>=3.11,<3.14`."""
    packages: dict[str, tuple[tuple[str, str], ...]]
    """Name and versions of each package, by optional group; `ALWAYS` are those of every part."""
    features: dict[str, str]
    """Of a package that is asked for with optional groups of its own, these, as `[serve,train]`."""


def requirements(root: Path = PROJECT_ROOT) -> Requirements:
    """As the pyproject.toml beside the code says; where there is none, as the installed distribution does.

    In a checkout or a job's folder the file is the truth: an editable installation keeps what was true when it was
    made. Raises PackageNotFoundError where there is neither.
    """
    if not (root / "pyproject.toml").is_file():
        installed = metadata("tailorbird")
        return _grouped(str(installed["Requires-Python"]), installed.get_all("Requires-Dist") or [])
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra, packages in project["optional-dependencies"].items():
        lines += [f'{line}; extra == "{extra}"' for line in packages]
    return _grouped(project["requires-python"], lines)


def installed_packages(packages: Iterable[tuple[str, str]], *, features: Mapping[str, str]) -> tuple[Package, ...]:
    """Packages as they are installed here."""
    return tuple(Package(name, wanted, installed_version(name), features.get(name, "")) for name, wanted in packages)


def installed_version(name: str) -> str | None:
    """A package's version; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def fits(given: str, wanted: str) -> bool:
    """Whether a version is one of those wanted, as pip understands them."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:  # it is among what is asked for, so that it lacks is told
        return True
    return SpecifierSet(wanted).contains(given, prereleases=True)


def _grouped(python: str, lines: Sequence[str]) -> Requirements:
    """From lines as `ray[serve,train]<2.61,>=2.60; extra == "dev"`; ours, which name groups, are left out."""
    groups: dict[str, list[tuple[str, str]]] = {ALWAYS: []}
    features: dict[str, str] = {}
    for line in lines:
        needed, _, marker = line.partition(";")
        extra = re.search(r"extra *== *['\"]([^'\"]+)", marker)
        parts = re.fullmatch(r"([A-Za-z0-9._-]+) *(\[[^]]*\])? *\(?([^)]*)\)?", needed.strip())
        if parts and parts[1] != "tailorbird":
            groups.setdefault(extra[1] if extra else ALWAYS, []).append((parts[1], parts[3].strip()))
            features |= {parts[1]: parts[2]} if parts[2] else {}
    return Requirements(python, {name: tuple(packages) for name, packages in groups.items()}, features)
