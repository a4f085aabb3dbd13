"""`tailorbird doctor`: report what is missing on this machine with the command that fixes it; imports nothing heavy."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.requirements import ALWAYS, Package, fits, mismatches, requirements
from tailorbird.checks.result import CheckResult, State, fault, note, ok, passes, to_json, to_lines

GIB = 1 << 30
LITTLE_MEMORY, LITTLE_DISK, NO_DISK, LITTLE_SHM = 6 * GIB, 10 * GIB, GIB, GIB
STACK_PORTS, STACK_BLOCK = (11_000, 20_000), 256
"""As in `cluster.local.ports`, which imports psutil: where a stack looks for a block of free ports."""
RAY_PORTS = {
    6379: "Ray's GCS",
    8000: "Serve's HTTP",
    8265: "Ray's dashboard",
    8404: "HAProxy's statistics",
    9101: "HAProxy's metrics",
    10001: "Ray's client",
}
"""Ports of a Ray that is started by hand."""
EXTRAS = {
    "stack": "the embedded stack of one machine and the demo's data",
    "engines": "OpenVINO and ONNX Runtime for classifiers on CPU (promote --engine)",
    "mlflow": "trials in MLflow (tuning.trackers)",
    "tensorboard": "trials in TensorBoard (tuning.trackers)",
    "gpu": "chat answers by vLLM on GPUs (serving.engine)",
    "dev": "the tests and checks of this project",
}
"""Purpose of each optional group of packages."""
PROGRAMS = {
    "git": "to have the code in versions",
    "make": "for `make demo` and the other targets",
    "chromium": "for the tests of the pages in a browser",
}
"""Purpose of each program that is not a Python package."""
SETTINGS = re.compile(r"(AWS|RAY|TAILORBIRD|MLFLOW|HF)_[A-Z0-9_]+")


@dataclass(frozen=True)
class Machine:
    """Facts about this machine; None where there is no such thing, or it cannot be read."""

    python: str
    wanted_python: str
    python_fits: bool
    packages: tuple[Package, ...]
    extras: Mapping[str, tuple[Package, ...]]  # packages of each optional group
    memory_bytes: int
    disk_bytes: int  # free where the stack keeps its data
    shm_bytes: int | None  # size of /dev/shm
    cores: int
    programs: Mapping[str, str | None]  # path of each program, by its name
    listening: frozenset[int] | None  # ports in use
    stack: str | None  # addresses of the running embedded stack
    settings: frozenset[str]  # names, not values, of the environment variables that we, S3 or Ray read
    gpu: str | None  # the GPU's name by its driver
    torch_sees_gpu: bool | None


def check_machine(machine: Machine) -> tuple[CheckResult, ...]:
    """Return the result of every check, in the order in which faults are best fixed."""
    parts = (_python, _packages, _extras, _hardware, _programs, _ports, _stack, _environment, _gpu)
    return tuple(result for part in parts for result in part(machine))


def check_this_machine() -> tuple[CheckResult, ...]:
    """Check this machine, with the stack's folder that the environment names."""
    return check_machine(inspect_machine(Path(os.environ.get("TAILORBIRD_HOME") or ".tailorbird").absolute()))


def _python(machine: Machine) -> Iterator[CheckResult]:
    text = f"{machine.python}, wanted {machine.wanted_python}"
    if machine.python_fits:
        yield ok("Python", text)
    else:
        yield fault("Python", text, "make setup PYTHON=python3.11, or another that fits")


def _packages(machine: Machine) -> Iterator[CheckResult]:
    wrong = [package for package in machine.packages if not package.fits]
    if wrong:
        yield fault("packages", mismatches(wrong), "pip install " + " ".join(f"'{p.line}'" for p in wrong))
    else:
        yield ok("packages", f"all {len(machine.packages)} are installed, at versions that fit")


def _extras(machine: Machine) -> Iterator[CheckResult]:
    for name, packages in machine.extras.items():
        purpose = EXTRAS.get(name, "see pyproject.toml")
        missing = [package for package in packages if not package.fits]
        if missing:
            names = ", ".join(f"{p.name} {p.installed}" if p.installed else p.name for p in missing)
            text = f"incomplete ({names} missing or of another version); for {purpose}"
            yield note(f"extra {name}", text, f"in the project's folder: pip install --editable '.[{name}]'")
        else:
            yield ok(f"extra {name}", f"installed; for {purpose}")


def _hardware(machine: Machine) -> Iterator[CheckResult]:
    yield ok("cores", str(machine.cores))
    text = f"{machine.memory_bytes / GIB:.1f} GiB"
    if machine.memory_bytes < LITTLE_MEMORY:
        text += "; a stack with two small training workers takes about 5 GiB"
        yield note("memory", text, "set training.num_workers to 1, or take a larger machine")
    else:
        yield ok("memory", text)
    text = f"{machine.disk_bytes / GIB:.1f} GiB free"
    if machine.disk_bytes < LITTLE_DISK:
        state: State = "fault" if machine.disk_bytes < NO_DISK else "note"
        yield CheckResult("disk", state, text, "free some, or set TAILORBIRD_HOME to a folder on a larger disk")
    else:
        yield ok("disk", text)
    if machine.shm_bytes is not None and machine.shm_bytes < LITTLE_SHM:
        text = f"/dev/shm has {machine.shm_bytes / GIB:.2f} GiB; Ray's objects go to the disk, which is slow"
        yield note("shared memory", text, "in a container, start it with --shm-size=2g")
    elif machine.shm_bytes is not None:
        yield ok("shared memory", f"/dev/shm has {machine.shm_bytes / GIB:.1f} GiB")


def _programs(machine: Machine) -> Iterator[CheckResult]:
    for name, path in machine.programs.items():
        if path:
            yield ok(name, path)
        else:
            yield note(name, f"not installed; {PROGRAMS[name]}", f"apt-get install {name}")


def _ports(machine: Machine) -> Iterator[CheckResult]:
    if machine.listening is None:
        yield note("ports", "which are taken cannot be told on this system")
        return
    first, last = STACK_PORTS
    blocks = (range(base, base + STACK_BLOCK) for base in range(first, last, STACK_BLOCK))
    if any(machine.listening.isdisjoint(block) for block in blocks):
        yield ok("ports", f"{STACK_BLOCK} in a row are free for a stack")
    else:
        text = f"no {STACK_BLOCK} in a row are free between {first:,} and {last:,}, as the embedded stack wants"
        yield note("ports", text, "end what holds them (ss -ltnp shows it), or use another Ray and S3")
    taken = ", ".join(f"{port} ({RAY_PORTS[port]})" for port in sorted(machine.listening & RAY_PORTS.keys()))
    if taken:
        text = f"taken: {taken}. The embedded stack uses others; a Ray that is started by hand wants these"
        yield note("Ray's usual ports", text)


def _stack(machine: Machine) -> Iterator[CheckResult]:
    if machine.stack:
        yield ok("stack", f"runs: {machine.stack}")
    elif machine.settings & {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"}:
        yield ok("stack", "none runs, and the environment names a Ray")
    else:
        yield note("stack", "none runs, and the environment names no Ray", "tailorbird stack up")


def _environment(machine: Machine) -> Iterator[CheckResult]:
    names = sorted(machine.settings)
    keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    variables = ", ".join(name for name in names if name.startswith("AWS_"))
    if len(keys - machine.settings) == 1:
        (missing,), (present,) = keys - machine.settings, keys & machine.settings
        yield fault(
            "S3", f"{present} is set and {missing} is not", f"export {missing}=..., or unset both to use a role"
        )
    elif variables:
        yield ok("S3", f"set: {variables} (values not shown)")
    else:
        yield ok("S3", "nothing is set: the running stack's, or a role's, credentials are used")
    variables = ", ".join(name for name in names if not name.startswith("AWS_"))
    text = f"set: {variables} (values not shown)" if variables else "no variable of Ray or Tailorbird is set"
    yield ok("environment", text)


def _gpu(machine: Machine) -> Iterator[CheckResult]:
    if machine.gpu is None:
        yield ok("GPU", "none; training and serving run on CPU")
    elif machine.torch_sees_gpu:
        yield ok("GPU", f"{machine.gpu}, and torch sees it")
    else:
        todo = "pip install --force-reinstall torch from the index of the CUDA version that nvidia-smi shows"
        yield note("GPU", f"{machine.gpu}, but torch does not see it; everything runs on CPU", todo)


def inspect_machine(folder: Path) -> Machine:
    """Collect the facts; `folder` is where the embedded stack keeps its data."""
    wanted, gpu = requirements(), _gpu_name()
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
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        programs={name: shutil.which(name) for name in PROGRAMS},
        listening=_listening(),
        stack=_running_stack(folder),
        settings=frozenset(name for name in os.environ if SETTINGS.fullmatch(name)),
        gpu=gpu,
        torch_sees_gpu=_torch_sees_gpu() if gpu else None,
    )


def _listening() -> frozenset[int] | None:
    """Return the ports on which something listens; only Linux reports them without further packages."""
    ports: set[int] = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        except OSError:
            if name == "tcp":
                return None
            continue
        fields = (line.split() for line in lines)
        ports |= {int(field[1].rpartition(":")[2], 16) for field in fields if field[3] == "0A"}
    return frozenset(ports)


def _running_stack(folder: Path) -> str | None:
    """Return the addresses of the folder's stack; None also if our own packages do not load, as `packages` reports."""
    try:
        from cluster.local.stack import status

        state = status(folder)
    except Exception:  # whatever a broken package raises
        return None
    return f"S3 {state.s3_endpoint}, Ray {state.ray_address}" if state else None


def _gpu_name() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "an NVIDIA GPU without its driver's programs" if Path("/dev/nvidia0").exists() else None
    names = _output([program, "--query-gpu=name", "--format=csv,noheader"])
    return ", ".join(names.split("\n")) if names else None


def _torch_sees_gpu() -> bool | None:
    available = _output([sys.executable, "-c", "import torch; print(torch.cuda.is_available())"])
    return None if available is None else available == "True"


def _output(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def main() -> None:
    """Entry point of `python -m tailorbird.checks.doctor`, for an environment in which `tailorbird` does not start."""
    results = check_this_machine()
    print(json.dumps(to_json(results)) if "--json" in sys.argv else "\n".join(to_lines(results)))
    sys.exit(0 if passes(results) else 1)


if __name__ == "__main__":
    main()
