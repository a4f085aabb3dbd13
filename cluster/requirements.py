"""Required and installed packages, from their metadata, without importing them."""

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

from tailorbird import PROJECT_ROOT

ALWAYS = ""  # group of the packages that are not optional


@dataclass(frozen=True)
class Package:
    name: str
    wanted: str  # version specifier, such as `>=2.60,<2.61`
    installed: str | None  # installed version; None if not installed
    features: str = (
        ""  # required extras, such as `[serve,train]`; their installation is not checked
    )

    @property
    def fits(self) -> bool:
        return self.installed is not None and fits(self.installed, self.wanted)

    @property
    def line(self) -> str:
        """The requirement in pip's syntax."""
        return f"{self.name}{self.features}{self.wanted}"


@dataclass(frozen=True)
class Requirements:
    python: str  # version specifier, such as `>=3.11,<3.14`
    packages: dict[str, tuple[tuple[str, str], ...]]
    """Name and version specifier of each package, by optional group or `ALWAYS`."""
    features: dict[str, str]  # required extras, such as `[serve,train]`, by package

    def group(self, name: str) -> tuple[Package, ...]:
        """Return the packages of a group with their installed versions."""
        return tuple(
            Package(
                package,
                wanted,
                installed=installed_version(package),
                features=self.features.get(package, ""),
            )
            for package, wanted in self.packages[name]
        )


def requirements(root: Path = PROJECT_ROOT) -> Requirements:
    """Return the requirements in pyproject.toml next to the code or, without one, those of the
    installed distribution.

    The file is preferred since the metadata of an editable installation can be outdated. Raises
    PackageNotFoundError if neither exists.
    """
    if not (root / "pyproject.toml").is_file():
        installed = metadata("tailorbird")
        return _grouped(str(installed["Requires-Python"]), installed.get_all("Requires-Dist") or [])
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra, packages in project["optional-dependencies"].items():
        lines += [f'{line}; extra == "{extra}"' for line in packages]
    return _grouped(project["requires-python"], lines)


def mismatches(packages: Iterable[Package]) -> str:
    """Return a text with the installed and the required version of each package."""
    return "; ".join(
        f"{p.name} is {p.installed or 'not installed'}, required {p.wanted or 'any'}"
        for p in packages
    )


def installed_version(name: str) -> str | None:
    """Return a package's installed version; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def fits(version_text: str, wanted: str) -> bool:
    """Return True if a version satisfies a version specifier."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:  # `packaging` is a requirement too, so its absence is reported
        return True
    return SpecifierSet(wanted).contains(version_text, prereleases=True)


def _grouped(python: str, lines: Sequence[str]) -> Requirements:
    """Parse lines like `ray[serve,train]<2.61,>=2.60; extra == "dev"`; skip references to the
    project's own extras."""
    groups: dict[str, list[tuple[str, str]]] = {ALWAYS: []}
    features: dict[str, str] = {}
    for line in lines:
        needed, _, marker = line.partition(";")
        extra = re.search(r"extra *== *['\"]([^'\"]+)", marker)
        parts = re.fullmatch(r"([A-Za-z0-9._-]+) *(\[[^]]*\])? *\(?([^)]*)\)?", needed.strip())
        if parts and parts[1] != "tailorbird":
            groups.setdefault(extra[1] if extra else ALWAYS, []).append(
                (parts[1], parts[3].strip())
            )
            features |= {parts[1]: parts[2]} if parts[2] else {}
    return Requirements(
        python, {name: tuple(packages) for name, packages in groups.items()}, features
    )
