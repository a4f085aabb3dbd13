"""Part of `make check`: report known vulnerabilities of the installed packages, with pip-audit.

Without a network, the check prints a note and passes.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

IGNORED: Mapping[str, str] = {}
"""Reasons to ignore an advisory, by its id."""
PROBE = "requests"
"""Queried first: if there is no answer, the other two hundred packages are not queried."""
SOCKET_TIMEOUT_S = 5
AUDIT_TIMEOUT_S = 120
OURS = "tailorbird"

Found = Mapping[str, Any]
"""A dependency in the output of pip-audit: name, and version with advisories or a reason to skip it."""


def main() -> int:
    """Print the advisories; return 1 if one applies to an installed package, or else 0."""
    pins = installed()
    probed = query_advisories([pins[PROBE]])
    packages = query_advisories(list(pins.values())) if probed and is_answered(probed[0]) else None
    if packages is None:
        print("advisories were not queried: their service cannot be reached")
        return 0
    lines, failed = assess(packages, ignored=IGNORED)
    print("\n".join(lines))
    return int(failed)


def installed() -> dict[str, str]:
    """Return a pin of each installed distribution by name, without local version labels (`+cpu`)."""
    versions = {package.metadata["Name"].lower(): package.version for package in distributions()}
    return {name: f"{name}=={version.partition('+')[0]}" for name, version in versions.items() if name != OURS}


def query_advisories(pins: Sequence[str]) -> list[Found] | None:
    """Return the results of pip-audit for these pins; None if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text("\n".join(pins))
        options = ["--no-deps", "--disable-pip", "--format=json", "--desc=off", "--progress-spinner=off"]
        command = [sys.executable, "-m", "pip_audit", *options, f"--timeout={SOCKET_TIMEOUT_S}", f"-r{requirements}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_TIMEOUT_S)
            packages: list[Found] = json.loads(done.stdout)["dependencies"]
        except (subprocess.TimeoutExpired, ValueError):
            return None
    return packages


def is_answered(packages: Found) -> bool:
    """True if the service knows the dependency in this version."""
    return "vulns" in packages


def assess(packages: Sequence[Found], *, ignored: Mapping[str, str]) -> tuple[list[str], bool]:
    """Return the lines to print, and True if there is an advisory that is not ignored."""
    lines, failed = [], False
    for package in packages:
        for advisory in package.get("vulns", ()):
            ids = [advisory["id"], *advisory.get("aliases", ())]
            reason = next((ignored[name] for name in ids if name in ignored), None)
            fixed = ", ".join(advisory["fix_versions"]) or "no version yet"
            failed = failed or reason is None
            lines.append(
                f"{package['name']} {package['version']}: {advisory['id']}, "
                + (f"ignored: {reason}" if reason else f"fixed in {fixed}; raise the range in pyproject.toml")
            )
    skipped = [package["name"] for package in packages if not is_answered(package)]
    unknown = f"; unknown to the service: {', '.join(skipped)}" if skipped else ""
    lines.append(
        f"advisories queried for {len(packages) - len(skipped)} of {len(packages)} installed packages{unknown}"
    )
    return lines, failed


if __name__ == "__main__":
    sys.exit(main())
