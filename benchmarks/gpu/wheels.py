"""Fetch the wheels that parts a to c need on a machine without a network: `python -m
benchmarks.gpu.wheels FOLDER`.

The wheels are for Python 3.12 on x86_64 Linux, in the versions of locks/cpu.txt, in folders of at
most 53 MiB. DeepSpeed is published as source only, so its wheel is built here. Unused parts of
Ray's wheel are removed.
"""

import argparse
import csv
import importlib.metadata
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PLATFORMS = ("2_34", "2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")
MAX_SET_BYTES = 53 << 20
"""Together with the 9 MiB of the project, less than the 64 MiB that may be copied at once."""
PREINSTALLED = re.compile(
    r"(torch|triton|numpy|sympy|mpmath|networkx|setuptools|nvidia-.*|cuda-.*)=="
)
"""Packages of the machine: torch, and large ones that torch requires.

Its transformers 5.17 is replaced by the version of the lock, because some fields have other names
there, for example `ContinuousBatchingConfig.page_size`.
"""
UNUSED = re.compile(
    r"(onnx.*|hf-xet|flatbuffers|ml-dtypes|cryptography|py-spy|tensorboardx|boto3|s3transfer)=="
)
"""Packages of the lock that the acceptance test does not use."""
SOURCE_ONLY = re.compile(r"deepspeed==")
RAY_UNUSED = ("ray/jars/", "ray/rllib/", "ray/cpp/")


def main(folder: Path, *, installed: str) -> None:
    """Download, build and repack the wheels, and divide them into sets."""
    wheels = folder / "all"
    wheels.mkdir(parents=True)
    locked = missing(
        requirements((ROOT / "locks" / "cpu.txt").read_text(encoding="utf-8")), installed=installed
    )
    _download([line for line in locked if not SOURCE_ONLY.match(line)], wheels)
    for line in filter(SOURCE_ONLY.match, locked):
        _pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={wheels}", line)
    for ray in wheels.glob("ray-*.whl"):
        without(ray, RAY_UNUSED)
    for number, names in enumerate(
        sets({path.name: path.stat().st_size for path in wheels.glob("*.whl")}), 1
    ):
        target = folder / f"set-{number}"
        target.mkdir()
        for name in names:
            (wheels / name).rename(target / name)
        size = sum(path.stat().st_size for path in target.iterdir())
        print(f"{target}: {len(names)} wheels, {size / 2**20:.1f} MiB")
    wheels.rmdir()


def requirements(lock: str) -> list[str]:
    """Return the lines `name==version` of a lock that the machine needs in addition to its own
    packages."""
    lines = re.findall(r"^([A-Za-z0-9._-]+==[^ ;\\\n]+)", lock, re.MULTILINE)
    return [line for line in lines if not PREINSTALLED.match(line) and not UNUSED.match(line)]


def missing(lines: Sequence[str], *, installed: str) -> list[str]:
    """Return the lines `name==version` without those that the machine has in a version that all
    packages here allow.

    `installed` is the output of `pip freeze` on the machine.
    """
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", installed, re.MULTILINE)
    versions = {canonicalize_name(name): version for name, version in pinned}
    needs = [
        Requirement(text)
        for own in importlib.metadata.distributions()
        for text in own.requires or ()
    ]
    for need in needs:
        version = versions.get(canonicalize_name(need.name))
        applies = need.marker is None or need.marker.evaluate({"extra": ""})
        if (
            version is not None
            and applies
            and not need.specifier.contains(version, prereleases=True)
        ):
            del versions[canonicalize_name(need.name)]
    return [line for line in lines if canonicalize_name(line.partition("==")[0]) not in versions]


def sets(sizes: dict[str, int]) -> list[list[str]]:
    """Divide files into sets of at most `MAX_SET_BYTES`, largest first (first-fit decreasing)."""
    result: list[tuple[int, list[str]]] = []
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        for index, (size, names) in enumerate(result):
            if size + sizes[name] <= MAX_SET_BYTES:
                result[index] = size + sizes[name], [*names, name]
                break
        else:
            result.append((sizes[name], [name]))
    return [names for _, names in result]


def without(wheel: Path, folders: Sequence[str]) -> None:
    """Remove the files in these folders from a wheel and from its RECORD."""
    with tempfile.TemporaryDirectory(dir=wheel.parent) as temporary:
        smaller = Path(temporary) / wheel.name
        with (
            zipfile.ZipFile(wheel) as source,
            zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as target,
        ):
            for info in source.infolist():
                if info.filename.startswith(tuple(folders)):
                    continue
                content = source.read(info)
                if info.filename.endswith(".dist-info/RECORD"):
                    content = _record_without(content.decode(), folders).encode()
                target.writestr(info, content, compress_type=zipfile.ZIP_DEFLATED)
        smaller.replace(wheel)


def _record_without(record: str, folders: Sequence[str]) -> str:
    output = io.StringIO()
    rows = (
        row
        for row in csv.reader(io.StringIO(record))
        if row and not row[0].startswith(tuple(folders))
    )
    csv.writer(output, lineterminator="\n").writerows(rows)
    return output.getvalue()


def _download(lines: Sequence[str], folder: Path) -> None:
    platforms = [f"--platform=manylinux_{version}_x86_64" for version in PLATFORMS]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64"]
    options = ["--python-version=3.12", "--only-binary=:all:", "--no-deps", f"--dest={folder}"]
    _pip("download", *options, *platforms, *lines)


def _pip(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        check=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.wheels", description=__doc__)
    parser.add_argument("folder", type=Path, help="new folder for the wheels")
    parser.add_argument(
        "--installed", type=Path, help="file with the output of `pip freeze` on the machine"
    )
    given = parser.parse_args()
    main(
        given.folder,
        installed=given.installed.read_text(encoding="utf-8") if given.installed else "",
    )
