"""The acceptance test of the GPU path: `make gpu`, or `python -m benchmarks.gpu [--part a|b|c|d] [--reduced]`.

README.md in this folder lists what a machine without a network needs.
"""

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

PARTS = ("a", "b", "c", "d")


def main() -> int:
    """Run a part in this process, or all parts until one fails, each in a process. Return the exit code."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # servers and files are removed on the way
    if arguments.reduced:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported
    if arguments.part is None:
        return _run_all(sys.argv[1:])
    from benchmarks.gpu.report import LIMIT_S, REDUCED_LIMIT_S, Failed, Report, time_limit

    report = Report(arguments.part, reduced=arguments.reduced)
    if not arguments.reduced and not _has_gpu():
        report.finish("torch finds no GPU on this machine; use --reduced")
        return 1
    part = importlib.import_module(f"benchmarks.gpu.part_{arguments.part}")
    unknown = set(arguments.section) - set(getattr(part, "SECTIONS", ()))
    if unknown:
        report.finish(f"part {arguments.part} has no section {', '.join(sorted(unknown))}")
        return 2
    try:
        with time_limit(REDUCED_LIMIT_S if arguments.reduced else LIMIT_S):
            skipped = part.run(report, tuple(arguments.section))
    except Exception as error:
        text = str(error)
        if not isinstance(error, Failed):
            traceback.print_exc()
            text = f"{type(error).__name__}: {(text.splitlines() or [''])[0]}"
        print(f"FAILED: part {arguments.part}: {text}", flush=True)
        report.finish(text)
        return 1
    if skipped is not None:
        print(f"SKIPPED: part {arguments.part}: {skipped}", flush=True)
    report.finish(skipped=skipped)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--part", choices=PARTS, help="run only this part")
    parser.add_argument("--section", action="append", default=[], help="run only this section of part a or c")
    parser.add_argument("--reduced", action="store_true", help="run tiny models on the CPU, to test this script")
    arguments = parser.parse_args()
    if arguments.section and arguments.part is None:
        parser.error("--section requires --part")
    return arguments


def _run_all(options: list[str]) -> int:
    from benchmarks.gpu.local_ray import local_ray
    from benchmarks.gpu.report import Failed

    first, *with_ray = PARTS
    try:
        if code := _run_part(first, options):
            return code
        with tempfile.TemporaryDirectory(prefix="tailorbird-gpu-") as folder, local_ray(Path(folder)):
            return next(filter(None, (_run_part(part, options) for part in with_ray)), 0)
    except Failed as error:  # Ray does not start
        print(f"FAILED: {error}", flush=True)
        return 1


def _run_part(part: str, options: list[str]) -> int:
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.gpu", "--part", part, *options])
    try:
        return process.wait()
    except SystemExit:  # SIGTERM reached this process only; Ctrl-C reaches both
        process.terminate()
        raise
    finally:
        process.wait()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
