"""Commands from data to a verdict."""

from pathlib import Path
from typing import Annotated

import typer

from tailorbird.cli import options


def init(
    parquet: Annotated[str, typer.Argument(metavar="PARQUET", help="A file or a folder: a path, file:// or s3://.")],
    output: Annotated[Path, typer.Option(help="Where the recipe goes.")] = Path("recipes/my_task.yaml"),
    text: Annotated[str | None, typer.Option(help="Column with the text, if it is not to be guessed.")] = None,
    label: Annotated[str | None, typer.Option(help="Column with the label, if it is not to be guessed.")] = None,
    registry: Annotated[str, typer.Option(help="Where models and evidence go.")] = "s3://models",
    base_model: Annotated[str | None, typer.Option(help="The pretrained model, in place of a small one.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a recipe that is there.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Draft a recipe, with comments, from what the rows look like.

    Example: tailorbird init s3://lake/my-data --output recipes/my_task.yaml --label topic
    """
    from tailorbird.init.inspect_data import DraftOptions
    from tailorbird.init.recipe_writer import write_recipe

    draft_options = DraftOptions(text=text, label=label, registry=registry, base_model=base_model)
    draft = write_recipe(parquet, output, options=draft_options, force=force)
    lines = [f"{output}: a {draft.task} task, every value a guess"]
    lines += [f"read it, then: tailorbird preflight {output}; tailorbird run {output}"]
    value = {"recipe": str(output), "content": draft.model_dump(mode="json")}
    options.print_result(value, as_json=as_json, lines=lines)


def preflight(recipe: options.RecipePath, overrides: options.Overrides = None, as_json: options.AsJson = False) -> None:
    """Report what would go wrong in a run, before it costs anything; exit with 1 if something would.

    Example: tailorbird preflight recipes/icd10_demo.yaml training.num_workers=4
    """
    from tailorbird.checks.preflight import check_recipe

    options.print_checks(check_recipe(options.read_recipe(recipe, overrides)), as_json=as_json)


def run(recipe: options.RecipePath, overrides: options.Overrides = None, as_json: options.AsJson = False) -> None:
    """Run the whole pipeline: data, baselines, sweep, seeds, verdict, registry. Resumes after the last finished stage.

    Example: tailorbird run recipes/icd10_demo.yaml tuning.num_trials=4
    """
    from tailorbird.evaluation.report.console import verdict_lines
    from tailorbird.pipeline.run import run_pipeline

    with options.connected_recipe(recipe, overrides, as_json=as_json) as (loaded, progress):
        result = run_pipeline(loaded, progress=progress)
    value = {"run": result.run, "winner": result.winner, "verdict": result.verdict.model_dump(mode="json")}
    lines = [*verdict_lines(result.evidence), f"evidence: {result.run}/report.html"]
    options.print_result(value, as_json=as_json, lines=lines)


def baseline(recipe: options.RecipePath, overrides: options.Overrides = None, as_json: options.AsJson = False) -> None:
    """Score what works without fine-tuning, on the validation rows.

    Example: tailorbird baseline recipes/icd10_demo.yaml
    """
    from dataclasses import asdict

    from tailorbird.evaluation.baselines.baseline import select_incumbent
    from tailorbird.pipeline.prepare import prepare
    from tailorbird.pipeline.run import fit_baselines

    with options.connected_recipe(recipe, overrides, as_json=as_json) as (loaded, progress):
        baselines = fit_baselines(prepare(loaded, progress=progress), progress=progress)
    incumbent = select_incumbent(baselines).kind
    value = {"baselines": [asdict(baseline) for baseline in baselines], "incumbent": incumbent}
    options.print_result(value, as_json=as_json, lines=[f"incumbent: {incumbent}"])


def sweep(recipe: options.RecipePath, overrides: options.Overrides = None, as_json: options.AsJson = False) -> None:
    """Run baselines and sweep only, and print their table; no model reads the test rows.

    Example: tailorbird sweep recipes/icd10_demo.yaml tuning.num_trials=8
    """
    from tailorbird.pipeline.run import sweep_only

    with options.connected_recipe(recipe, overrides, as_json=as_json) as (loaded, progress):
        swept = sweep_only(loaded, progress=progress)
    lines = [f"{row.score:.4f}  {row.trial:<16} {row.status:<48} {row.config or ''}" for row in swept.rows]
    lines += [f"the sweep ended itself: {swept.ended}"] if swept.ended else []
    options.print_result(swept.model_dump(mode="json"), as_json=as_json, lines=lines)


def evaluate(recipe: options.RecipePath, overrides: options.Overrides = None, as_json: options.AsJson = False) -> None:
    """Reach the verdict on models that are trained already: like `run`, but refuses to train.

    Example: tailorbird evaluate recipes/icd10_demo.yaml
    """
    from tailorbird.evaluation.report.console import verdict_lines
    from tailorbird.pipeline.run import run_pipeline

    with options.connected_recipe(recipe, overrides, as_json=as_json) as (loaded, progress):
        result = run_pipeline(loaded, progress=progress, may_train=False)
    value = {"run": result.run, "verdict": result.verdict.model_dump(mode="json")}
    options.print_result(value, as_json=as_json, lines=verdict_lines(result.evidence))
