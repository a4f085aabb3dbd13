"""The acceptance test of the GPU path: `make gpu`, or `python -m benchmarks.gpu [--part a|b|c|d]
[--reduced]`.

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
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.report import Failed, Report, time_limit

PARTS = ("a", "b", "c", "d")
WITHOUT_RAY = (("a", ("matmul", "combinations", "1.2b")), ("a", ("8b", "memory", "encoder")))
WITH_RAY = (("b", ()), ("c", ()), ("d", ()))
"""Calls of `make gpu`: a part with its sections, all of them if there are none. Each ends within
the time limit."""

Calls = Sequence[tuple[str, tuple[str, ...]]]


def main() -> int:
    """Run a part in this process, or all parts until one fails, each in a process. Return the exit
    code."""
    arguments = _arguments()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # servers and files are removed on the way
    if arguments.reduced:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported
    if arguments.part is None:
        return _run_all(arguments)
    report = Report(arguments.part, reduced=arguments.reduced, keep_going=arguments.keep_going)
    if not arguments.reduced and not _has_gpu():
        return _end(report, "torch finds no GPU on this machine; use --reduced")
    part = importlib.import_module(f"benchmarks.gpu.part_{arguments.part}")
    unknown = set(arguments.section) - set(getattr(part, "SECTIONS", ()))
    if unknown:
        return _end(report, f"there is no section {', '.join(sorted(unknown))}")
    try:
        with time_limit(report.limit_s):
            skipped = part.run(report, tuple(arguments.section))
    except Exception as error:
        text = str(error)
        if not isinstance(error, Failed):
            traceback.print_exc()
            text = f"{type(error).__name__}: {(text.splitlines() or [''])[0]}"
        return _end(report, text)
    if report.missed:  # with --keep-going
        return _end(report, "; ".join(report.missed))
    if skipped is not None:
        print(f"SKIPPED: part {arguments.part}: {skipped}", flush=True)
    report.finish(skipped=skipped)
    return 0 if report.passed else 1


def _end(report: Report, failure: str) -> int:
    print(f"FAILED: part {report.part}: {failure}", flush=True)
    report.finish(failure)
    return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--part", choices=PARTS, help="run only this part")
    parser.add_argument(
        "--section", action="append", default=[], help="run only this section of part a or c"
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="continue after a figure out of its bound"
    )
    parser.add_argument(
        "--reduced", action="store_true", help="run tiny models on the CPU, to test this script"
    )
    arguments = parser.parse_args()
    if arguments.section and arguments.part is None:
        parser.error("--section requires --part")
    return arguments


def _run_all(arguments: argparse.Namespace) -> int:
    from benchmarks.gpu.local_ray import local_ray

    code = _run_calls(WITHOUT_RAY, arguments)
    if code and not arguments.keep_going:
        return code
    try:
        with (
            tempfile.TemporaryDirectory(prefix="tailorbird-gpu-") as folder,
            local_ray(Path(folder)),
        ):
            return max(code, _run_calls(WITH_RAY, arguments))
    except Failed as error:  # Ray does not start
        print(f"FAILED: {error}", flush=True)
        return 1


def _run_calls(calls: Calls, arguments: argparse.Namespace) -> int:
    """Run calls, until one fails unless `--keep-going` is set, and return the exit code."""
    codes = (_run_call(part, sections, arguments) for part, sections in calls)
    return max(codes) if arguments.keep_going else next(filter(None, codes), 0)


def _run_call(part: str, sections: Sequence[str], arguments: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part]
    command += [f"--section={section}" for section in sections]
    command += [
        f"--{name.replace('_', '-')}"
        for name in ("keep_going", "reduced")
        if getattr(arguments, name)
    ]
    process = subprocess.Popen(command)
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
