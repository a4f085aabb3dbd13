"""Report known vulnerabilities of the locked packages, with pip-audit: part of `make check`.

A known vulnerability fails the check. Advisories that cannot be read are reported; with `--strict`,
for a release, they fail the check too.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locks.generate import FOLDER, split_packages

SETS = (("setup.txt",), ("development.txt", "torch.txt"), ("cpu.txt",), ("gpu.txt",))
"""Locks that are queried together, because their versions are equal. If the service knows no
package of the first lock, the others are not queried."""
IGNORED: Mapping[str, str] = {}
"""Reasons to ignore an advisory, by its id."""
SOCKET_TIMEOUT_S = 5
AUDIT_TIMEOUT_S = 300

Found = Mapping[str, Any]
"""A package in the output of pip-audit: name, and version with advisories or a reason to skip
it."""


def main() -> int:
    """Print the advisories; return 1 if one applies, or if advisories are required (`--strict`) and
    cannot be read."""
    strict = "--strict" in sys.argv[1:]
    for advisory, reason in IGNORED.items():
        print(f"{advisory} is ignored: {reason}")
    failed = False
    for names in SETS:
        packages = query_advisories([FOLDER / name for name in names])
        lines, vulnerable, unread = assess(packages, locks=" and ".join(names))
        print("\n".join(lines))
        failed = failed or vulnerable or (strict and (unread > 0 or not packages))
        if unread == len(packages):
            print("the advisory service cannot be read; the other locks were not queried")
            break
    return int(failed)


def query_advisories(locks: Sequence[Path]) -> list[Found]:
    """Return the results for the packages of these locks, for all versions of Python and all
    platforms.

    If pip-audit fails, print why and return none.
    """
    packages: list[Found] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "packages.txt"
        for text in without_markers("".join(lock.read_text(encoding="utf-8") for lock in locks)):
            path.write_text(text, encoding="utf-8")
            found = run_pip_audit(path)
            if not found:
                return []
            packages += found
    return packages


def without_markers(lock: str) -> list[str]:
    """Return locks with the same packages for every Python; pip-audit reads only what applies to
    its own.

    It refuses two versions of a package, so the second lock has the second versions, and so on.
    """
    text = re.sub(r" ; .*(?= \\\n)", "", lock)
    versions: dict[str, list[str]] = {}
    for pin in split_packages(text):
        pins = versions.setdefault(pin.partition("==")[0], [])
        if pin not in pins:
            pins.append(pin)
    further = [pins[1:] for pins in versions.values()]
    for pin in itertools.chain(*further):
        text = text.replace(pin, "")
    return [text, *map("".join, itertools.zip_longest(*further, fillvalue=""))]


def run_pip_audit(lock: Path) -> list[Found]:
    """Return the results of pip-audit for the packages of a lock; if it fails, print why and return
    none."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--require-hashes",
        "--disable-pip",
        "--format=json",
        "--desc=off",
    ]
    command += ["--progress-spinner=off", f"--timeout={SOCKET_TIMEOUT_S}"]
    command += [f"--ignore-vuln={advisory}" for advisory in IGNORED] + [f"--requirement={lock}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_TIMEOUT_S)
        packages: list[Found] = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        print(f"pip-audit did not end within {AUDIT_TIMEOUT_S} s")
        return []
    except ValueError:
        lines = done.stderr.strip().splitlines() or ["it printed no error"]
        print(
            "pip-audit failed: "
            f"{next((line for line in lines if line.startswith('ERROR')), lines[-1])}"
        )
        return []
    return packages


def assess(packages: Sequence[Found], *, locks: str) -> tuple[list[str], bool, int]:
    """Return the lines to print, True if there is an advisory, and the number of packages without
    an answer."""
    lines = []
    for package in packages:
        for advisory in package.get("vulns", ()):
            fixed = ", ".join(advisory["fix_versions"]) or "no version yet"
            lines.append(
                f"{package['name']} {package['version']} in {locks}: {advisory['id']}, fixed in "
                f"{fixed}; raise the range in pyproject.toml if necessary, and run `make lock "
                "UPGRADE=1`"
            )
    vulnerable = bool(lines)
    skipped = [package["name"] for package in packages if "vulns" not in package]
    unknown = f"; unknown to the service: {', '.join(skipped)}" if skipped else ""
    lines.append(
        f"advisories read for {len(packages) - len(skipped)} of {len(packages)} packages of "
        f"{locks}{unknown}"
    )
    return lines, vulnerable, len(skipped)


if __name__ == "__main__":
    sys.exit(main())
