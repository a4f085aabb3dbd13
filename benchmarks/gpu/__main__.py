"""The acceptance test of the GPU path: `make gpu`, or `python -m benchmarks.gpu [--part a|b|c|d] [--reduced]`.

README.md in this folder lists what a machine without a network needs.
"""

import argparse
import importlib
import os
import subprocess
import sys

PARTS = ("a", "b", "c", "d")


def main() -> int:
    """Run a part in this process, or all parts in a process each until one fails. Return the exit code."""
    arguments = _arguments()
    if arguments.part is None:
        return _run_all(sys.argv[1:])
    if arguments.reduced:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported
    from benchmarks.gpu.report import LIMIT_S, Failed, Report, time_limit

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
        with time_limit(LIMIT_S):
            skipped = part.run(report, tuple(arguments.section))
    except Failed as error:
        print(f"FAILED: part {arguments.part}: {error}", flush=True)
        report.finish(str(error))
        return 1
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
    for part in PARTS:
        code = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu", "--part", part, *options], check=False
        ).returncode
        if code:
            return code
    return 0


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
