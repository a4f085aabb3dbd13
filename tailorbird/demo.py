"""`make demo`: the whole pipeline on one machine, from data to answers over HTTP."""

import argparse
import os
import time

import requests
from rich.console import Console

from tailorbird import resource_folder

RECIPE = resource_folder("recipes") / "icd10_demo.yaml"
DATA = "s3://lake/icd10"
TERMS = ("Kinking and stricture of ureter without hydronephrosis", "Farmer's lung", "Fear of flying")
NEXT_STEPS = """\
The service keeps running.
  query it:        curl -s {url}/v1/classify -d '{{"input": "Fear of flying"}}'
  in a browser:    {url}/
  read the report: .venv/bin/tailorbird report {run} --open
  stop it:         .venv/bin/tailorbird stack down"""


def main() -> None:
    """Start the stack, run the recipe, serve and query the winner; stop everything unless `--keep` is given."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the stack and the service running")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override values of the recipe")
    arguments = parser.parse_args()

    from cluster.local import stack
    from cluster.local.folder import default_folder

    console, folder, start = Console(highlight=False), default_folder(), time.monotonic()
    started_here = stack.status(folder) is None
    console.print(f"[bold]stack: an S3 server and a local Ray cluster, in {folder.name}/[/bold]")
    state = stack.up(folder)
    try:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "RAY_AUTH_TOKEN"):
            os.environ.pop(name, None)  # the demo uses only its own S3 server and Ray
        os.environ.update(state.environment())
        url, run = _run_demo(console, overrides=tuple(arguments.overrides))
        console.print(f"\n[bold]done in {(time.monotonic() - start) / 60:.1f} minutes[/bold]")
        if arguments.keep:
            console.print(NEXT_STEPS.format(url=url, run=run), soft_wrap=True)
        else:
            report = f".venv/bin/tailorbird stack up && .venv/bin/tailorbird report {run} --open"
            console.print(f"to read the report: {report}", soft_wrap=True)
    finally:
        if started_here and not arguments.keep:
            stack.down(folder)
            console.print(f"stopped the stack; data, models and evidence are kept in {folder.name}/")


def _run_demo(console: Console, *, overrides: tuple[str, ...]) -> tuple[str, str]:
    """Return the URL of the service and the URI of the run."""
    from cluster.connection import connect
    from cluster.display.console import display
    from tailorbird.config.loader import load_recipe
    from tailorbird.data.datasets.icd10 import write
    from tailorbird.evaluation.report.console import verdict_lines
    from tailorbird.pipeline.run import run_pipeline
    from tailorbird.release.promotion import promote_version
    from tailorbird.release.serving import serve_champion

    recipe = load_recipe(RECIPE, overrides=overrides)
    with connect(), display(console) as progress:
        rows = ", ".join(f"{count:,} {name}" for name, count in write(DATA).items())  # the same bytes in every run
        progress.stage(f"ICD-10-CM as Parquet at {DATA}: {rows} rows")
        result = run_pipeline(recipe, progress=progress)
        champion = promote_version(recipe.task_uri, version=result.winner)
        progress.stage(f"serving {champion.version} on Ray Serve")
        url, _ = serve_champion(recipe.serving, task_uri=recipe.task_uri)
    console.print()
    for line in verdict_lines(result.evidence):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"\n[bold]POST {url}/v1/classify[/bold]")
    for term, (label, score) in zip(TERMS, _classify(url, TERMS), strict=True):
        console.print(f"  {term:<56} {label}  ({score:.2f})", markup=False, soft_wrap=True)
    console.print(f"\nevidence: {result.run}/ (evidence.json, report.html, predictions/)", soft_wrap=True)
    return url, result.run


def _classify(url: str, terms: tuple[str, ...]) -> list[tuple[str, float]]:
    """Return the label and the score of each term."""
    response = requests.post(f"{url}/v1/classify", json={"input": list(terms)}, timeout=30)
    response.raise_for_status()
    return [(answer["label"], answer["score"]) for answer in response.json()["results"]]


if __name__ == "__main__":
    main()
