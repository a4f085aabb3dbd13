"""`make demo`: the whole way on one machine, from an empty folder to answers over HTTP."""

import argparse
import os
import time
from typing import Any

import requests
from rich.console import Console

from tailorbird import resource_folder

RECIPE = resource_folder("recipes") / "icd10_demo.yaml"
DATA = "s3://lake/icd10"
TERMS = (
    "Kinking and stricture of ureter without hydronephrosis",
    "Farmer's lung",
    "Fear of flying",
)


def main() -> None:
    """Starts the stack, runs the main job, serves the winner, asks it, and stops everything unless told to keep it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the stack and the service running")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    arguments = parser.parse_args()

    from cluster.local import stack

    console, folder, begun = Console(highlight=False), stack.default_folder(), time.monotonic()
    ours = stack.status(folder) is None
    console.print(f"[bold]stack: a real S3 server and a local Ray, in {folder.name}/[/bold]")
    state = stack.up(folder)
    try:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "RAY_AUTH_TOKEN"):
            os.environ.pop(name, None)  # of somebody else's S3 or Ray: the demo writes to its own
        os.environ.update(state.environment())
        url = _whole_way(console, overrides=tuple(arguments.overrides))
        console.print(f"\n[bold]done in {(time.monotonic() - begun) / 60:.1f} minutes[/bold]")
        if arguments.keep:
            console.print(_how_to_go_on(url), soft_wrap=True)
    finally:
        if ours and not arguments.keep:
            stack.down(folder)
            console.print(f"stopped all that was started; data, models and evidence stay in {folder.name}/")


def _whole_way(console: Console, *, overrides: tuple[str, ...]) -> str:
    from cluster.connection import connect
    from cluster.progress import display
    from tailorbird.config.loader import load_recipe
    from tailorbird.data.datasets.icd10 import write
    from tailorbird.evaluation.report.console import verdict_lines
    from tailorbird.pipeline import run
    from tailorbird.release.promotion import promote_version
    from tailorbird.release.serving import serve_champion

    recipe = load_recipe(RECIPE, overrides=overrides)
    with connect(), display(console) as show:
        rows = ", ".join(f"{count:,} {name}" for name, count in write(DATA).items())  # the same bytes each time
        show({"event": "stage", "text": f"ICD-10-CM as Parquet at {DATA}: {rows} rows"})
        done = run.run_pipeline(recipe, show=show)
        # Run again after the code changed, the demo looks at its test rows once more, and says so with the champion.
        override = None if done.verdict.confirmatory else "the demo was run again"
        champion = promote_version(recipe.task_uri, version=done.winner, override=override)
        show({"event": "stage", "text": f"serving {champion.version} on Ray Serve"})
        url, _ = serve_champion(recipe.serving, task_uri=recipe.task_uri)
    console.print()
    for line in verdict_lines(done.evidence):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"\n[bold]POST {url}/v1/classify[/bold]")
    for term, answer in zip(TERMS, _ask(url, TERMS), strict=True):
        console.print(f"  {term:<56} {answer['label']}  ({answer['score']:.2f})", markup=False, soft_wrap=True)
    console.print(f"\nevidence: {done.run}/ (evidence.json, report.html, predictions/)", soft_wrap=True)
    return url


def _ask(url: str, terms: tuple[str, ...]) -> list[dict[str, Any]]:
    answer = requests.post(f"{url}/v1/classify", json={"input": list(terms)}, timeout=30)
    answer.raise_for_status()
    return list(answer.json()["results"])


def _how_to_go_on(url: str) -> str:
    return (
        f"""it serves on. Ask it:   curl -s {url}/v1/classify -d '{{"input": "Fear of flying"}}'\n"""
        f"in a browser:           {url}/\n"
        "stop it:                .venv/bin/tailorbird stack down"
    )


if __name__ == "__main__":
    main()
