"""`make demo`: the whole pipeline on one machine, by the commands that a user runs."""

import argparse
import os
import shlex
import subprocess
import sys
import time

import requests

from tailorbird import resource_folder

RECIPE = resource_folder("recipes") / "icd10_demo.yaml"
COMMANDS = (
    ("stack", "up"),
    ("data", "icd10", "s3://lake/icd10"),
    ("run", os.path.relpath(RECIPE)),
    ("promote", os.path.relpath(RECIPE)),
    ("serve", os.path.relpath(RECIPE)),
)
TERMS = ("Glue ear", "Farmer's lung", "Swimmer's itch")
LEAST_SURE = 0.5  # calibrated confidence; below it, an answer is more often wrong than right


def main() -> None:
    """Start the stack, run the recipe, serve and query the winner; stop everything unless `--keep`
    is given."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--keep", action="store_true", help="leave the stack and the service running"
    )
    is_left_running = parser.parse_args().keep

    from cluster.local import stack
    from cluster.local.folder import default_folder

    start = time.monotonic()
    if stack.status(default_folder()) is not None:
        is_left_running = True  # the demo did not start this stack
    try:
        for command in COMMANDS:
            tailorbird(*command)
        state = stack.status(default_folder())
        assert state is not None  # `serve` has just used it
        url = f"http://127.0.0.1:{state.serve_port}/v1/classify"
        print(f"\nPOST {url}")
        response = requests.post(url, json={"input": list(TERMS)}, timeout=30)
        response.raise_for_status()
        for term, answer in zip(TERMS, response.json()["results"], strict=True):
            score = float(answer["score"])
            note = ", not sure" if score < LEAST_SURE else ""
            print(f"  {term:<16} {answer['label']}  ({score:.2f}{note})")
    finally:
        if not is_left_running:
            tailorbird("stack", "down")
    print(f"\ndone in {(time.monotonic() - start) / 60:.1f} minutes")
    if is_left_running:
        print("to stop the stack and the service: tailorbird stack down")
    else:
        print("to start the stack again, with its data: tailorbird stack up")


def tailorbird(*arguments: str) -> None:
    """Print and run a command, with the embedded stack; exit with its code if it fails."""
    print(f"\n$ tailorbird {shlex.join(arguments)}", flush=True)
    # Settings of another S3 server or cluster have precedence over the stack.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))
    }
    process = subprocess.run(
        [sys.executable, "-m", "tailorbird", *arguments], env=environment, check=False
    )
    if process.returncode:
        raise SystemExit(process.returncode)


if __name__ == "__main__":
    main()
