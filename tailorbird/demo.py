"""`make demo`: the whole pipeline on one machine, from data to answers over HTTP."""

import argparse
import os
import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import requests
from rich.console import Console

from tailorbird import resource_folder

if TYPE_CHECKING:
    from tailorbird.evaluation.report.evidence import Evidence

RECIPE = resource_folder("recipes") / "icd10_demo.yaml"
DATA = "s3://lake/icd10"
TERMS = (
    "Kinking and stricture of ureter without hydronephrosis",
    "Farmer's lung",
    "Fear of flying",
)
BIN = ".venv/bin/"
COMMAND = f"{BIN}tailorbird"


def main() -> None:
    """Start the stack, run the recipe, serve and query the winner; stop everything unless `--keep`
    is given."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--keep", action="store_true", help="leave the stack and the service running"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override values of the recipe"
    )
    arguments = parser.parse_args()

    from cluster.display.console import display
    from cluster.local import stack
    from cluster.local.folder import default_folder

    console = Console(highlight=False)
    folder = default_folder()
    start = time.monotonic()
    started_here = stack.status(folder) is None
    with display(console) as progress:
        progress.stage(f"stack: an S3 server and a local Ray cluster, in {folder.name}/")
        state = stack.up(folder)
    is_kept = arguments.keep or not started_here
    try:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "RAY_AUTH_TOKEN"):
            os.environ.pop(name, None)  # the demo uses only its own S3 server and Ray
        os.environ.update(state.environment())
        evidence, url = _run_demo(console, overrides=tuple(arguments.overrides))
    finally:
        if not is_kept:
            with display(console) as progress:
                progress.activity("stopping the stack")
                stack.down(folder)
            console.print(
                f"\nstopped the stack; data, models and evidence are kept in {folder.name}/"
            )
    console.print(f"\n[bold]done in {(time.monotonic() - start) / 60:.1f} minutes[/bold]")
    print_end(console, evidence, url=url if is_kept else None, overrides=arguments.overrides)


def print_end(
    console: Console, evidence: "Evidence", *, url: str | None, overrides: Sequence[str] = ()
) -> None:
    """Print the panel at the end: the verdict, what is served next, and the commands that follow.

    `url` is that of the running service; None if the stack is stopped.
    """
    from tailorbird.cli.next_steps import aligned, show_page
    from tailorbird.cli.options import print_panel
    from tailorbird.evaluation.report.console import verdict_panel

    if url is None:
        steps = {
            "start the stack": f"{COMMAND} stack up",
            "read the report": f"{BIN}{show_page(evidence.run)}",
            "serve the champion": shlex.join(
                [COMMAND, "serve", os.path.relpath(RECIPE), *overrides]
            ),
        }
    else:
        steps = {
            "read the report": f"{BIN}{show_page(evidence.run)}",
            "query the "
            "service": f"""curl -s {url}/v1/classify -d '{{"input": "Fear of flying"}}'""",
            "stop the stack": f"{COMMAND} stack down",
            "the service's page": f"{url}/",
        }
    lines = [*verdict_panel(evidence, promoted=True), "next steps:", *aligned(steps)]
    print_panel(console, lines, title=f"verdict: {evidence.verdict.outcome}")


def _run_demo(console: Console, *, overrides: tuple[str, ...]) -> tuple["Evidence", str]:
    """Return the evidence of the run and the URL of the service."""
    from cluster.connection import connect
    from cluster.display.console import display
    from tailorbird.config.loader import load_recipe

    recipe = load_recipe(RECIPE, overrides=overrides)
    with display(console) as progress, connect():
        progress.activity("loading PyTorch and transformers")
        from tailorbird.data.datasets.icd10 import write
        from tailorbird.pipeline.run import run_pipeline
        from tailorbird.release.promotion import promote_version
        from tailorbird.release.serving import serve_champion

        rows = ", ".join(
            f"{count:,} {name}" for name, count in write(DATA).items()
        )  # the same bytes in every run
        progress.stage(f"ICD-10-CM as Parquet at {DATA}: {rows} rows")
        result = run_pipeline(recipe, progress=progress)
        champion = promote_version(recipe.task_uri, version=result.winner)
        progress.stage(f"serving {champion.version} on Ray Serve", name="serving")
        url, _ = serve_champion(recipe.serving, task_uri=recipe.task_uri)
    console.print(f"\n[bold]POST {url}/v1/classify[/bold]")
    for term, (label, score) in zip(TERMS, _classify(url, TERMS), strict=True):
        console.print(f"  {term:<56} {label}  ({score:.2f})", markup=False, soft_wrap=True)
    return result.evidence, url


def _classify(url: str, terms: tuple[str, ...]) -> list[tuple[str, float]]:
    """Return the label and the score of each term."""
    response = requests.post(f"{url}/v1/classify", json={"input": list(terms)}, timeout=30)
    response.raise_for_status()
    return [(answer["label"], answer["score"]) for answer in response.json()["results"]]


if __name__ == "__main__":
    main()
