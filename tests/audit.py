"""Part of `make check`: known vulnerabilities of what is installed, as pip-audit hears of them from PyPI.

Where the advisories cannot be had it says so and is content: a check must pass without a network.
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
"""By id of the advisory: why it does not touch us, or what is waited for."""
PROBE = "requests"
"""Asked for alone first: a service that does not answer for it is not asked two hundred times."""
SOCKET_TIMEOUT_S = 5
AUDIT_TIMEOUT_S = 120
OURS = "tailorbird"

Found = Mapping[str, Any]
"""A dependency as pip-audit reports it: name, and version with advisories, or why it was skipped."""


def main() -> int:
    """Prints what was found; 1 where an advisory is about what is installed, else 0."""
    pins = installed()
    probed = query_advisories([pins[PROBE]])
    packages = query_advisories(list(pins.values())) if probed and is_answered(probed[0]) else None
    if packages is None:
        print("advisories were not asked: their service cannot be reached from here")
        return 0
    lines, failed = assess(packages, ignored=IGNORED)
    print("\n".join(lines))
    return int(failed)


def installed() -> dict[str, str]:
    """A pin of each installed distribution, by name; a build's own mark (`+cpu`) is left out, since PyPI knows none."""
    named = {one.metadata["Name"].lower(): one.version for one in distributions()}
    return {name: f"{name}=={version.partition('+')[0]}" for name, version in named.items() if name != OURS}


def query_advisories(pins: Sequence[str]) -> list[Found] | None:
    """What pip-audit says of these pins; None where it cannot say."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text("\n".join(pins))
        options = ["--no-deps", "--disable-pip", "--format=json", "--desc=off", "--progress-spinner=off"]
        command = [sys.executable, "-m", "pip_audit", *options, f"--timeout={SOCKET_TIMEOUT_S}", f"-r{requirements}"]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_TIMEOUT_S)
            packages: list[Found] = json.loads(ended.stdout)["dependencies"]
        except (subprocess.TimeoutExpired, ValueError):
            return None
    return packages


def is_answered(packages: Found) -> bool:
    """Whether the service knew the dependency in this version."""
    return "vulns" in packages


def assess(packages: Sequence[Found], *, ignored: Mapping[str, str]) -> tuple[list[str], bool]:
    """Lines to print, and whether one of the advisories is not among the ignored ones."""
    lines, failed = [], False
    for one in packages:
        for advisory in one.get("vulns", ()):
            ids = [advisory["id"], *advisory.get("aliases", ())]
            reason = next((ignored[name] for name in ids if name in ignored), None)
            mended = ", ".join(advisory["fix_versions"]) or "no version yet"
            failed = failed or reason is None
            lines.append(
                f"{one['name']} {one['version']}: {advisory['id']}, "
                + (f"ignored: {reason}" if reason else f"mended in {mended}; raise the range in pyproject.toml")
            )
    skipped = [one["name"] for one in packages if not is_answered(one)]
    unknown = f"; unknown to the service: {', '.join(skipped)}" if skipped else ""
    lines.append(f"advisories asked for {len(packages) - len(skipped)} of {len(packages)} installed packages{unknown}")
    return lines, failed


if __name__ == "__main__":
    sys.exit(main())
