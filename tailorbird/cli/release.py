"""Commands that put a version into service."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tailorbird.cli import options


def promote(
    recipe: options.RecipePath,
    version: Annotated[str | None, typer.Option(help="A version's URI; by default the latest run's winner.")] = None,
    override: Annotated[
        str | None, typer.Option(metavar="REASON", help="Accept a verdict that is not confirmatory.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="Classifier on CPU: auto, torch, torch-bfloat16, openvino, onnxruntime-int8.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Make the winner of a run the champion; a service takes it once it answers test rows as it was evaluated.

    Verdicts are about torch. Another engine is tried on the cluster, and used if it answers as well.

    Example: tailorbird promote recipes/icd10_demo.yaml --engine auto
    """
    from tailorbird.release.promotion import promote_version

    if engine is None:  # needs no Ray if the task is not served
        champion = promote_version(options.read_recipe(recipe).task_uri, version=version, override=override)
    else:
        with options.connected_recipe(recipe, None, as_json=as_json) as (loaded, progress):
            request = {"version": version, "override": override, "engine": engine}
            champion = promote_version(loaded.task_uri, progress=progress, **request)
    lines = [f"champion: {champion.version}, {champion.reason.sentence()}"]
    lines += [champion.parity.sentence() if champion.parity else "it is not served yet; `tailorbird serve` does it"]
    options.print_result(champion.model_dump(), as_json=as_json, lines=lines)


def rollback(
    recipe: options.RecipePath,
    reason: Annotated[str, typer.Option(help="Why; stored with the champion.")],
    as_json: options.AsJson = False,
) -> None:
    """Make the version before the champion the champion again, also in a running service.

    Example: tailorbird rollback recipes/icd10_demo.yaml --reason "complaints about burns"
    """
    from tailorbird.release.promotion import roll_back

    champion = roll_back(options.read_recipe(recipe).task_uri, reason=reason)
    lines = [f"champion: {champion.version}, {champion.reason.sentence()}"]
    options.print_result(champion.model_dump(), as_json=as_json, lines=lines)


def serve(recipe: options.RecipePath, overrides: options.Overrides = None, as_json: options.AsJson = False) -> None:
    """Serve the champion on Ray Serve, or update a running service.

    Examples: tailorbird serve recipes/icd10_demo.yaml serving.max_replicas=2
    tailorbird serve recipes/icd10_demo.yaml 'serving.challenger={version: candidate, canary: 0.1}'
    """
    from serving.deploy.rollout import challenger_digest
    from serving.tasks import SERVED_TASKS
    from tailorbird.release.serving import serve_champion

    loaded = options.read_recipe(recipe, overrides)
    url, version = serve_champion(loaded.serving, task_uri=loaded.task_uri)
    lines, challenger = [f"{version.version} answers at {url}{SERVED_TASKS[version.task].route}"], None
    if loaded.serving.challenger:
        challenger = challenger_digest(url)
        lines += [f"challenger: {challenger or 'none, since the recipe names the champion'}"]
    lines += ["clients need a key" if loaded.serving.api_keys else "on this machine only: serving.api_keys is not set"]
    value = {"url": url, "version": version.version, "digest": version.digest, "challenger": challenger}
    options.print_result(value, as_json=as_json, lines=lines)


def score(
    recipe: options.RecipePath,
    input: Annotated[str, typer.Option(help="A Parquet file or a folder of them, s3://.")],
    output: Annotated[str, typer.Option(help="A folder, s3://: empty, or with this batch's earlier output.")],
    model: Annotated[str, typer.Option(help="`champion`, `pretrained`, a version's name or its URI.")] = "champion",
    column: Annotated[str | None, typer.Option(help="Column with the texts; by default the recipe's.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="Column that the output has as `id`.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Score every row of a Parquet data set with a version, on the cluster; run again, it resumes.

    Example: tailorbird score recipes/icd10_demo.yaml --input s3://lake/icd10/test --output s3://lake/scored
    """
    from dataclasses import asdict

    from serving.batch_jobs.scoring import new_batch, progress_notes, resolve_version, score_batch

    with options.connected_recipe(recipe, None, as_json=as_json) as (loaded, progress):
        version = resolve_version(loaded.task_uri, model)
        column = column or loaded.input_column
        batch = new_batch(version, input=input, output=output, column=column, id_column=id_column)
        done = score_batch(batch, loaded.serving, version=version, on_progress=progress_notes(progress))
    value = asdict(done) | {"version": version.version, "digest": version.digest}
    options.print_result(value, as_json=as_json, lines=[done.line(), f"manifest: {done.manifest}"])


def key(
    name: Annotated[str, typer.Argument(help="Name of its holder.")],
    per_minute: Annotated[int | None, typer.Option(help="Requests a minute that a replica accepts.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Make an API key, and the line to store where the recipe's serving.api_keys points.

    Example: tailorbird key mobile-app --per-minute 600
    """
    from serving.http.api_keys import new_key

    made, stored = new_key(name, per_minute=per_minute)
    lines = [f"key, shown this once: {made}", f"line to store:        {stored.to_line()}"]
    options.print_result({"key": made, "line": stored.to_line()}, as_json=as_json, lines=lines)


def render(
    recipe: options.RecipePath,
    to: Annotated[str, typer.Option("--to", help="rayjob, rayservice, promote, prove, watch, serve or submit.")],
    overrides: options.Overrides = None,
    base: Annotated[str | None, typer.Option(help="A manifest to write into; - reads standard input.")] = None,
    output: Annotated[Path | None, typer.Option(help="A file to write, instead of standard output.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Render the recipe as KubeRay's manifests, a configuration for `serve deploy` or a body for Ray's job API.

    Example: kubectl kustomize k8s/overlays/prod/job | tailorbird render recipes/my_task.yaml --to rayjob --base -
    """
    from tailorbird.release.manifests import render_manifest

    template = base if base is None else sys.stdin.read() if base == "-" else options.read_text(base)
    done = render_manifest(options.read_recipe(recipe, overrides), to=to, base=template)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    lines = [done.text.removesuffix("\n")]
    if output is not None:
        options.write_text(output, done.text)
        lines = [f"written: {output}"]
    options.print_result({"to": to, "text": done.text, "notes": list(done.notes)}, as_json=as_json, lines=lines)
