"""The acceptance test of the GPU path: `make gpu`, or `python -m benchmarks.gpu [PART ...]
[--strict] [--reduced]`.

Each case runs in a process of its own. A crash, or the end of a part's time, ends its case only.
The results so far are written to `gpu-results.json` after every case.
"""

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.gpu.ray_head import local_ray
from benchmarks.gpu.report import Figure, from_line
from tailorbird.config.training import TrainingConfig
from training.trainer import worker_environment

RESULTS = Path("gpu-results.json")
PARTS = {
    "smoke": ("training.smoke_lora", "training.smoke_zero3", "cluster.smoke_vllm"),
    "training": ("training.lora_8b", "training.full_1b", "training.encoder"),
    "resume": ("training.resumes", "cluster.killed_worker", "cluster.trials"),
    "run": ("cluster.run_chat", "cluster.run_classification"),
    "vllm": ("cluster.serve_vllm",),
    "memory": ("training.memory_8_ranks", "training.memory_32_ranks"),
}
"""Cases by part, by module and function; the parts with the most value come first."""
PART_LIMIT_S = 480
REDUCED_LIMIT_S = 1200
"""Limit of a part in the reduced form, which may share its machine with other tests."""
STOP_S = 60


def main() -> int:
    """Run the parts, and return 1 if a case crashed or missed a required bound."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--strict", action="store_true", help="stop at the first missed bound")
    parser.add_argument("--reduced", action="store_true", help="tiny models on a CPU")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    # On SIGTERM, servers are stopped and files removed on the way.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if given.case:
        name, folder = given.case
        run_case(name, folder=Path(folder), reduced=given.reduced)
        return 0
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    if given.reduced:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""

    is_good = True
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tailorbird-gpu-") as folder:
        for part in given.parts or PARTS:
            ends_at = time.monotonic() + (REDUCED_LIMIT_S if given.reduced else PART_LIMIT_S)
            for name in PARTS[part]:
                options = {"reduced": given.reduced, "strict": given.strict}
                try:
                    result = measure_case(name, folder=folder, ends_at=ends_at, **options)
                except RuntimeError as error:  # Ray does not start
                    result = {"benchmark": f"gpu {name}", "failed": str(error), "holds": False}
                results.append(result)
                RESULTS.write_text(json.dumps(results, indent=1), encoding="utf-8")
                print(json.dumps(result), flush=True)
                is_good = is_good and result["holds"]
                if given.strict and not is_good:
                    return 1
    return 0 if is_good else 1


def run_case(name: str, *, folder: Path, reduced: bool) -> None:
    """Print the figures of a case, in this process."""
    module, _, function = name.partition(".")
    case = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
    for figure in case(folder, reduced):
        print(figure.to_line(), flush=True)


def measure_case(
    name: str, *, folder: str, ends_at: float, reduced: bool, strict: bool
) -> dict[str, Any]:
    """Run a case in a process until `ends_at`, and return its result."""
    print(f"== {name}", flush=True)
    started = time.monotonic()
    config = TrainingConfig(num_workers=1, gpus_per_worker=0 if reduced else 1)
    command = [sys.executable, "-m", "benchmarks.gpu", "--case", name, folder]
    if reduced:
        command.append("--reduced")
    with ExitStack() as running:
        if name.startswith("cluster."):
            # Ray reads its settings on import, so it runs before the process of a case starts.
            running.enter_context(local_ray(Path(folder)))
        figures, code = _figures_of(command, config=config, ends_at=ends_at)
    missed = [figure for figure in figures if figure.is_missed]
    is_good = not any(strict or not figure.is_hardware for figure in missed)
    return {
        "benchmark": f"gpu {name}",
        "device": _device(reduced),
        "seconds": round(time.monotonic() - started, 1),
        "figures": {figure.name: round(figure.value, 5) for figure in figures},
        "bounds": {figure.name: figure.bound for figure in figures if figure.bound},
        "missed": [figure.name for figure in missed],
        "exit_code": code,
        "holds": code == 0 and is_good,
    }


def _figures_of(
    command: list[str], *, config: TrainingConfig, ends_at: float
) -> tuple[list[Figure], int]:
    """Run the process of a case until `ends_at`; print its output, and return its figures and exit
    code."""
    seconds = max(1.0, ends_at - time.monotonic())
    limited = ["timeout", f"--kill-after={STOP_S}", f"{seconds:.0f}", *command]
    environment = os.environ | worker_environment(config)
    figures: list[Figure] = []
    with subprocess.Popen(limited, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                figure = from_line(line)
                if figure is None:
                    print(line, end="", flush=True)
                    continue
                figures.append(figure)
                print(f"{figure.name}: {figure.value:,.4g} (bound {figure.bound})", flush=True)
        except BaseException:
            process.terminate()
            raise
    return figures, process.returncode


def _device(reduced: bool) -> str:
    """Return the name of the GPU, or the processor's architecture in the reduced form."""
    if reduced:
        return f"{platform.machine()} CPU"
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
