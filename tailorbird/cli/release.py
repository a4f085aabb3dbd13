"""Commands that put a version into service."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tailorbird.cli.options import (
    AsJson,
    Overrides,
    RecipePath,
    connected_recipe,
    handle_errors,
    print_result,
    read_recipe,
    read_text,
    write_text,
)


@handle_errors
def promote(
    recipe: RecipePath,
    version: Annotated[str | None, typer.Option(help="A version's URI; by default the latest run's winner.")] = None,
    override: Annotated[
        str | None, typer.Option(metavar="REASON", help="Why a verdict that is not confirmatory may stand.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="What runs a classifier on CPU: auto, torch, torch-bfloat16, openvino, onnxruntime-int8."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Makes the winner of a run the champion; where it is served, once it answers test rows as it was evaluated.

    Another engine than torch, which every verdict is about, is tried on the cluster, and taken if it answers as well.

    Example: tailorbird promote recipes/icd10_demo.yaml --engine auto
    """
    from tailorbird.release.promotion import promote_version

    if engine is None:  # which takes no Ray where the task is not served
        champion = promote_version(read_recipe(recipe).task_uri, version=version, override=override)
    else:
        with connected_recipe(recipe, None, as_json=as_json) as (loaded, progress):
            champion = promote_version(
                loaded.task_uri, version=version, override=override, engine=engine, progress=progress
            )
    parity = (
        champion.parity.sentence() if champion.parity else "it is not served yet: `tailorbird serve` asks test rows"
    )
    print_result(
        champion.model_dump(),
        as_json=as_json,
        lines=[f"champion: {champion.version}, {champion.reason.sentence()}", parity],
    )


@handle_errors
def rollback(
    recipe: RecipePath,
    reason: Annotated[str, typer.Option(help="Why, which is kept with the champion.")],
    as_json: AsJson = False,
) -> None:
    """Makes the version that served before the champion the champion again, also of the service where there is one.

    Example: tailorbird rollback recipes/icd10_demo.yaml --reason "complaints about burns"
    """
    from tailorbird.release.promotion import roll_back

    champion = roll_back(read_recipe(recipe).task_uri, reason=reason)
    print_result(
        champion.model_dump(), as_json=as_json, lines=[f"champion: {champion.version}, {champion.reason.sentence()}"]
    )


@handle_errors
def serve(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Serves the champion on Ray Serve, or moves the service to it.

    Examples: tailorbird serve recipes/icd10_demo.yaml serving.max_replicas=2
    tailorbird serve recipes/icd10_demo.yaml 'serving.challenger={version: candidate, canary: 0.1}'
    """
    from serving.deploy.rollout import challenger_digest
    from serving.tasks import SERVED_TASKS
    from tailorbird.release.serving import serve_champion

    loaded = read_recipe(recipe, overrides)
    url, version = serve_champion(loaded.serving, task_uri=loaded.task_uri)
    trial, tried = None, []
    if loaded.serving.challenger:
        trial = challenger_digest(url)
        tried = [f"on trial: {trial}" if trial else "nothing is on trial: the recipe's trial names the champion"]
    print_result(
        {"url": url, "version": version.version, "digest": version.digest, "trial": trial},
        as_json=as_json,
        lines=[
            f"{version.version} answers at {url}{SERVED_TASKS[version.task].route}",
            *tried,
            "to whoever holds a key"
            if loaded.serving.api_keys
            else "on this machine only: serving.api_keys names no keys",
        ],
    )


@handle_errors
def score(
    recipe: RecipePath,
    input: Annotated[str, typer.Option(help="A Parquet file or a folder of them, s3://.")],
    output: Annotated[str, typer.Option(help="A folder, s3://, empty or of this batch as it was interrupted.")],
    model: Annotated[str, typer.Option(help="`champion`, `pretrained`, a version's name or its URI.")] = "champion",
    column: Annotated[str | None, typer.Option(help="With the texts; by default the recipe's.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="What the output has as `id`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sends every row of a Parquet data set through a version, on the cluster; run again, it goes on.

    Example: tailorbird score recipes/icd10_demo.yaml --input s3://lake/icd10/test --output s3://lake/scored
    """
    from dataclasses import asdict

    from serving.batch_jobs.scoring import new_batch, progress_notes, resolve_version, score_batch

    with connected_recipe(recipe, None, as_json=as_json) as (loaded, progress):
        version = resolve_version(loaded.task_uri, model)
        batch = new_batch(
            version, input=input, output=output, column=column or loaded.input_column, id_column=id_column
        )
        done = score_batch(batch, loaded.serving, version=version, on_progress=progress_notes(progress))
    value = asdict(done) | {"version": version.version, "digest": version.digest}
    print_result(value, as_json=as_json, lines=[done.line(), f"manifest: {done.manifest}"])


@handle_errors
def key(
    name: Annotated[str, typer.Argument(help="Who will hold it.")],
    per_minute: Annotated[int | None, typer.Option(help="Requests a minute that a replica answers.")] = None,
    as_json: AsJson = False,
) -> None:
    """Makes an API key, and the line to store where the recipe's serving.api_keys points.

    Example: tailorbird key mobile-app --per-minute 600
    """
    from serving.http.api_keys import new_key

    made, stored = new_key(name, per_minute=per_minute)
    print_result(
        {"key": made, "line": stored.to_line()},
        as_json=as_json,
        lines=[f"key, shown this once: {made}", f"line to store:        {stored.to_line()}"],
    )


@handle_errors
def render(
    recipe: RecipePath,
    to: Annotated[str, typer.Option("--to", help="rayjob, rayservice, promote, prove, watch, serve or submit.")],
    overrides: Overrides = None,
    base: Annotated[
        str | None,
        typer.Option(help="A manifest to write into, as `kubectl kustomize` gives it; - reads it from input."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A file to write, instead of standard output.")] = None,
    as_json: AsJson = False,
) -> None:
    """The recipe as a door's file: KubeRay's manifests, a configuration for `serve deploy`, a body for Ray's job API.

    Example: kubectl kustomize k8s/overlays/prod/job | tailorbird render recipes/my_task.yaml --to rayjob --base -
    """
    from tailorbird.release.manifests import render_manifest

    read = base if base is None else sys.stdin.read() if base == "-" else read_text(base)
    done = render_manifest(read_recipe(recipe, overrides), to=to, base=read)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    if output is not None:
        write_text(output, done.text)
    value = {"to": to, "text": done.text, "notes": list(done.notes)}
    print_result(
        value, as_json=as_json, lines=[done.text.removesuffix("\n")] if output is None else [f"written: {output}"]
    )
