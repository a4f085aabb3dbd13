"""`tailorbird doctor`: check the installation on this machine, without importing heavy packages."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from cluster.local.folder import default_folder
from cluster.requirements import ALWAYS, Package, fits, mismatches, requirements
from tailorbird.checks.result import CheckResult, State, fault, note, ok, passes, to_json, to_lines

GIB = 1 << 30
LITTLE_MEMORY = 6 * GIB
LITTLE_DISK = 10 * GIB
NO_DISK = GIB
LITTLE_SHM = GIB
EXTRAS = {
    "stack": "the embedded stack and the data of the demo",
    "gpu": "serving chat models with vLLM on GPUs (serving.engine)",
    "dev": "the tests and checks of this project",
}
"""Purpose of each optional group of packages."""
SETTINGS = re.compile(r"(AWS|RAY|TAILORBIRD|HF)_[A-Z0-9_]+")


@dataclass(frozen=True)
class Machine:
    """Facts about this machine. A fact is None if it does not apply or cannot be read."""

    python: str
    wanted_python: str
    python_fits: bool
    packages: tuple[Package, ...]
    extras: Mapping[str, tuple[Package, ...]]  # packages of each optional group
    memory_bytes: int
    disk_bytes: int  # free disk space for the data of the stack
    shm_bytes: int | None  # size of /dev/shm
    cores: int
    stack: str | None  # addresses of the running embedded stack
    settings: frozenset[str]
    """Names of environment variables of Tailorbird, S3 or Ray, without values."""
    gpu: str | None  # name of the GPU, from its driver
    torch_sees_gpu: bool | None


def check_machine(machine: Machine) -> tuple[CheckResult, ...]:
    """Return the results of all checks, in the order in which to fix the faults."""
    parts = (_python, _packages, _extras, _hardware, _stack, _environment, _gpu)
    return tuple(chain.from_iterable(part(machine) for part in parts))


def check_this_machine() -> tuple[CheckResult, ...]:
    """Check this machine; the stack's folder is `default_folder`."""
    return check_machine(inspect_machine(default_folder()))


def _python(machine: Machine) -> Iterator[CheckResult]:
    text = f"{machine.python}, required {machine.wanted_python}"
    if machine.python_fits:
        yield ok("Python", text)
    else:
        yield fault("Python", text, "make setup PYTHON=python3.11, or another supported version")


def _packages(machine: Machine) -> Iterator[CheckResult]:
    wrong = [package for package in machine.packages if not package.fits]
    if wrong:
        yield fault(
            "packages", mismatches(wrong), "pip install " + " ".join(f"'{p.line}'" for p in wrong)
        )
    else:
        yield ok("packages", f"all {len(machine.packages)} are installed in supported versions")


def _extras(machine: Machine) -> Iterator[CheckResult]:
    for name, packages in machine.extras.items():
        purpose = EXTRAS.get(name, "see pyproject.toml")
        missing = [package for package in packages if not package.fits]
        if missing:
            names = ", ".join(f"{p.name} {p.installed}" if p.installed else p.name for p in missing)
            text = f"incomplete ({names}: missing or unsupported version); for {purpose}"
            yield note(
                f"extra {name}",
                text,
                f"in the project's folder, run: pip install --editable '.[{name}]'",
            )
        else:
            yield ok(f"extra {name}", f"installed; for {purpose}")


def _hardware(machine: Machine) -> Iterator[CheckResult]:
    yield ok("cores", str(machine.cores))
    text = f"{machine.memory_bytes / GIB:.1f} GiB"
    if machine.memory_bytes < LITTLE_MEMORY:
        text += "; a stack with two small training workers needs about 5 GiB"
        yield note("memory", text, "set training.num_workers to 1, or use a larger machine")
    else:
        yield ok("memory", text)
    text = f"{machine.disk_bytes / GIB:.1f} GiB free"
    if machine.disk_bytes < LITTLE_DISK:
        state: State = "fault" if machine.disk_bytes < NO_DISK else "note"
        yield CheckResult(
            name="disk",
            state=state,
            message=text,
            remedy="free disk space, or set TAILORBIRD_HOME to a folder on a larger disk",
        )
    else:
        yield ok("disk", text)
    if machine.shm_bytes is not None and machine.shm_bytes < LITTLE_SHM:
        text = (
            f"/dev/shm has {machine.shm_bytes / GIB:.2f} GiB; Ray's object store uses the disk "
            "instead, which is slow"
        )
        yield note("shared memory", text, "in a container, start it with --shm-size=2g")
    elif machine.shm_bytes is not None:
        yield ok("shared memory", f"/dev/shm has {machine.shm_bytes / GIB:.1f} GiB")


def _stack(machine: Machine) -> Iterator[CheckResult]:
    if machine.stack:
        yield ok("stack", f"running: {machine.stack}")
    elif machine.settings & {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"}:
        yield ok("stack", "not running; the environment names another Ray cluster")
    else:
        yield note(
            "stack",
            "not running, and the environment names no other Ray cluster",
            "tailorbird stack up",
        )


def _environment(machine: Machine) -> Iterator[CheckResult]:
    names = sorted(machine.settings)
    keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    variables = ", ".join(name for name in names if name.startswith("AWS_"))
    if len(keys - machine.settings) == 1:
        (missing,) = keys - machine.settings
        (present,) = keys & machine.settings
        yield fault(
            "S3",
            f"{present} is set, but {missing} is not",
            f"export {missing}=..., or unset both to use a role",
        )
    elif variables:
        yield ok("S3", f"set: {variables} (values not shown)")
    else:
        yield ok(
            "S3", "no variable is set; the credentials of the running stack or of a role are used"
        )
    variables = ", ".join(name for name in names if not name.startswith("AWS_"))
    if variables:
        text = f"set: {variables} (values not shown)"
    else:
        text = "no variable of Ray or Tailorbird is set"
    yield ok("environment", text)


def _gpu(machine: Machine) -> Iterator[CheckResult]:
    if machine.gpu is None:
        yield ok("GPU", "none; training and serving run on CPU")
    elif machine.torch_sees_gpu:
        yield ok("GPU", f"{machine.gpu}, detected by torch")
    else:
        remedy = (
            "reinstall torch with pip from the index for the CUDA version that nvidia-smi shows"
        )
        yield note("GPU", f"{machine.gpu}, not detected by torch; everything runs on CPU", remedy)


def inspect_machine(folder: Path) -> Machine:
    """Collect the facts; `folder` is the folder of the embedded stack."""
    wanted = requirements()
    gpu = _gpu_name()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return Machine(
        python=platform.python_version(),
        wanted_python=wanted.python,
        python_fits=fits(platform.python_version(), wanted.python),
        packages=wanted.group(ALWAYS),
        extras={name: wanted.group(name) for name in wanted.packages if name != ALWAYS},
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        disk_bytes=shutil.disk_usage(existing).free,
        shm_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        stack=_running_stack(folder),
        settings=frozenset(name for name in os.environ if SETTINGS.fullmatch(name)),
        gpu=gpu,
        torch_sees_gpu=_torch_sees_gpu() if gpu else None,
    )


def _running_stack(folder: Path) -> str | None:
    """Return the addresses of the running stack; None if there is none, or if a package does not
    load."""
    try:
        from cluster.local.stack import status

        state = status(folder)
    except Exception:  # a broken package may raise anything; `packages` reports it
        return None
    if state:
        return f"S3 {state.s3_endpoint}, Ray {state.ray_address}"
    return None


def _gpu_name() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        if Path("/dev/nvidia0").exists():
            return "an NVIDIA GPU without nvidia-smi"
        return None
    names = _output([program, "--query-gpu=name", "--format=csv,noheader"])
    if names:
        return ", ".join(names.split("\n"))
    return None


def _torch_sees_gpu() -> bool | None:
    available = _output([sys.executable, "-c", "import torch; print(torch.cuda.is_available())"])
    if available is None:
        return None
    return available == "True"


def _output(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def main() -> None:
    """Run the checks by `python -m tailorbird.checks.doctor`, in case the command `tailorbird` does
    not start."""
    results = check_this_machine()
    print(json.dumps(to_json(results)) if "--json" in sys.argv else "\n".join(to_lines(results)))
    sys.exit(0 if passes(results) else 1)


if __name__ == "__main__":
    main()
