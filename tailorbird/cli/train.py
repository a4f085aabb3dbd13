"""Commands that lead from data to a verdict.

The pipeline imports torch, which takes seconds. Commands import it after they have read the recipe.
"""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tailorbird.cli import options

if TYPE_CHECKING:
    from tailorbird.evaluation.report.evidence import Evidence


def init(
    parquet: Annotated[
        str,
        typer.Argument(
            metavar="PARQUET", help="Parquet file or folder: a path, file:// or s3:// URI."
        ),
    ],
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("recipes/my_task.yaml"),
    text: Annotated[str | None, typer.Option(help="Text column. Default: guessed.")] = None,
    label: Annotated[str | None, typer.Option(help="Label column. Default: guessed.")] = None,
    registry: Annotated[str, typer.Option(help="URI for models and evidence.")] = "s3://models",
    base_model: Annotated[
        str | None, typer.Option(help="Base model. Default: a small one.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> options.Result:
    """Draft a commented recipe from a sample of the data.

    Example: tailorbird init s3://lake/my-data --output recipes/my_task.yaml --label topic
    """
    with options.deploy_progress():
        from tailorbird.init.inspect_data import DraftOptions
        from tailorbird.init.recipe_writer import write_recipe

        draft_options = DraftOptions(
            text=text, label=label, registry=registry, base_model=base_model
        )
        draft = write_recipe(parquet, output, options=draft_options, force=force)
    lines = [f"{output}: recipe for a {draft.recipe.task} task, with guessed values"]
    lines += [f"warning: {warning}" for warning in draft.warnings]
    lines += [f"review it, then run: tailorbird preflight {output} && tailorbird run {output}"]
    value = {
        "recipe": str(output),
        "warnings": draft.warnings,
        "content": draft.recipe.model_dump(mode="json"),
    }
    return value, lines


def preflight(
    recipe: options.RecipePath,
    overrides: options.Overrides = None,
    without_cluster: Annotated[
        bool,
        typer.Option(
            "--without-cluster", help="Check only data, base model, registry and endpoints."
        ),
    ] = False,
) -> None:
    """Check the data, the base model, the registry and the cluster for a run. Exit with 1 if a
    check fails.

    Without a fault, also read and check the rows, and report whether the task is worth fine-tuning
    and what to try first.

    Example: tailorbird preflight recipes/icd10_demo.yaml training.num_workers=4
    """
    loaded = options.read_recipe(recipe, overrides)
    with options.deploy_progress() as progress:
        from tailorbird.checks.preflight import check_recipe

        results = check_recipe(loaded, without_cluster=without_cluster, progress=progress)
    options.print_checks(results)


def run(
    recipe: options.RecipePath,
    overrides: options.Overrides = None,
) -> None:
    """Run the whole pipeline: data, baselines, sweep, seed runs, verdict, registry.

    A rerun resumes after the last finished stage. No training starts if the baselines leave less
    than the minimum gain.

    In a log, a line about the current activity is printed after 5 s without output, and then at
    least every 15 s.

    Example: tailorbird run recipes/icd10_demo.yaml tuning.num_trials=4
    """
    with options.connected_recipe(recipe, overrides, queued=True) as (loaded, progress):
        from tailorbird.pipeline.run import run_pipeline

        result = run_pipeline(loaded, progress=progress)
    print_verdict(result.evidence, recipe=recipe)


def baseline(recipe: options.RecipePath, overrides: options.Overrides = None) -> options.Result:
    """Evaluate the baselines on the validation rows and select the incumbent.

    Example: tailorbird baseline recipes/icd10_demo.yaml
    """
    from dataclasses import asdict

    with options.connected_recipe(recipe, overrides, queued=True) as (loaded, progress):
        from tailorbird.evaluation.baselines.baseline import select_incumbent
        from tailorbird.pipeline.run import baselines_only

        baselines = baselines_only(loaded, progress=progress)
    incumbent = select_incumbent(baselines).kind
    value = {"baselines": [asdict(baseline) for baseline in baselines], "incumbent": incumbent}
    return value, [f"incumbent: {incumbent}"]


def sweep(
    recipe: options.RecipePath,
    overrides: options.Overrides = None,
) -> options.Result:
    """Run only the baselines and the sweep, and print all trials.

    No model predicts the test rows. Exit with 2 if the baselines leave less than the minimum gain.

    Example: tailorbird sweep recipes/icd10_demo.yaml tuning.num_trials=8
    """
    with options.connected_recipe(recipe, overrides, queued=True) as (loaded, progress):
        from cluster.display.state import trial_name
        from tailorbird.evaluation.report.evidence import BASELINE
        from tailorbird.pipeline.run import sweep_only

        swept = sweep_only(loaded, progress=progress)
    lines = []
    for row in swept.rows:
        name = row.trial if row.status == BASELINE else trial_name(row.trial)
        lines.append(f"{row.score:.4f}  {name:<16} {row.status:<48} {row.config or ''}")
    return swept.model_dump(mode="json"), lines


def print_verdict(evidence: "Evidence", *, recipe: str) -> None:
    """Print the verdict of a run, what is served next, and the commands that follow; the report has
    the reasons.

    Commands without overrides act on the task of the recipe as it is in the file. If overrides have
    changed the task, the commands that read the recipe are omitted.
    """
    from tailorbird.cli.next_steps import after_run
    from tailorbird.config.base import RecipeError
    from tailorbird.evaluation.report.console import verdict_panel

    run = evidence.run
    winner = evidence.winner.uri
    if options.is_json():
        verdict = evidence.verdict.model_dump(mode="json")
        options.print_result({"run": run, "winner": winner, "verdict": verdict}, ())
        return

    path = None
    # The recipe may only be valid with the overrides, or have changed during the run.
    with suppress(RecipeError):
        if options.read_recipe(recipe).task_uri == evidence.recipe.task_uri:
            path = recipe
    steps = after_run(run, winner=winner, champion=evidence.champion, recipe=path)
    options.print_panel(
        Console(), [*verdict_panel(evidence), *steps], title=f"verdict: {evidence.verdict.outcome}"
    )
