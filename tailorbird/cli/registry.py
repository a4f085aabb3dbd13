"""Commands that read the registry."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from tailorbird.cli.options import (
    ExitCode,
    RecipePath,
    Result,
    RunOrVersion,
    activity,
    print_result,
    read_recipe,
)


def models(recipe: RecipePath) -> Result:
    """List the registered versions and mark the champion.

    Example: tailorbird models recipes/icd10_demo.yaml --json
    """
    with activity("reading the registry"):
        from tailorbird.registry.champion import read_champion
        from tailorbird.registry.versions import list_versions

        task_uri = read_recipe(recipe).task_uri
        stored = read_champion(task_uri)
        versions, damaged = list_versions(task_uri)
    value: dict[str, object] = {"champion": None, "parity": None, "damaged": damaged}
    value["versions"] = [version.model_dump() for version in versions]
    if not versions and not damaged:
        return value, [
            f"no version is registered under {task_uri}; run `tailorbird run {recipe}` first"
        ]

    parity = None
    if stored is not None:
        champion, _ = stored
        parity = champion.parity
        value["champion"] = champion.uri
    width = max((len(version.version) for version in versions), default=0)
    lines = []
    for version in versions:
        mark = "*" if version.uri == value["champion"] else " "
        lines.append(f"{mark} {version.version:<{width}}  {version.created_at}  {version.uri}")
    lines += [f"damaged: {uri}: {reason}" for uri, reason in damaged.items()]
    if parity is not None:
        value["parity"] = parity.model_dump()
        lines.append(f"champion: {parity.sentence()}")
    return value, [*lines, "to read a version's report: tailorbird report URI --open"]


def verify(uri: RunOrVersion) -> None:
    """Recompute a verdict from stored predictions and check the hash of every file. Exit with 1 if
    they do not match.

    Example: tailorbird verify s3://models/icd10-chapters/runs/0f3a9c21d4e7
    """
    from tailorbird.cli.next_steps import show_page

    with activity(f"recomputing the verdict at {uri}"):
        from tailorbird.checks.verify import verify_evidence

        faults = verify_evidence(uri)
    value = {"uri": uri, "holds": not faults, "faults": list(faults)}
    if faults:
        print_result(value, [*faults, f"the verdict at {uri} does not hold"])
        raise typer.Exit(ExitCode.FAILURE)
    lines = [f"the verdict at {uri} holds", f"to read its report: {show_page(uri)}"]
    print_result(value, lines)


def report(
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="URI of a run, a version, or a page (.html).")
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the page to this file.")
    ] = None,
    in_browser: Annotated[
        bool, typer.Option("--open", help="Open the page in the default browser.")
    ] = False,
) -> Result:
    """Show the report of a run or a version, or the page that `watch` wrote.

    report.html and MODEL_CARD.md are regenerated from evidence.json if they are not up to date.

    Example: tailorbird report s3://models/icd10-chapters/runs/0f3a9c21d4e7 --open

    Example: tailorbird report s3://models/icd10-chapters/monitoring/monitoring.html --output
    monitoring.html
    """
    with activity(f"reading the report at {uri}"):
        from tailorbird.cli.pages import fetch_page, open_page, save_page

        page, changed = fetch_page(uri)
    lines = [f"rewrote {uri.rstrip('/')}/{name}" for name in changed]
    value = {"uri": uri, "changed": list(changed), "page": page, "file": None}
    if output is None and not in_browser:
        lines.append(f"page: {page}")
        lines.append("to open it, add --open; to write it to a file, add --output FILE")
        return value, lines
    path = save_page(page, output=output)
    if in_browser:
        open_page(path)
    lines.append(f"{page} is in {path}")
    return value | {"file": str(path)}, lines


def compare(
    first: RunOrVersion,
    second: Annotated[
        str, typer.Argument(metavar="URI", help="URI of the run or version to compare with.")
    ],
) -> Result:
    """Compare two versions, or the candidates of two runs, on the same test rows, from stored
    predictions.

    Example: tailorbird compare s3://models/icd10-chapters/versions/full-1
    s3://models/icd10-chapters/versions/lora-2
    """
    from tailorbird.cli.next_steps import show_page

    with activity("comparing the stored predictions"):
        from tailorbird.evaluation.report.version_comparison import compare_versions

        comparison = compare_versions(first, second=second)
    lines = [*comparison.lines(), f"to read the report of the first: {show_page(comparison.first)}"]
    return comparison.model_dump(mode="json"), lines


def export(
    uri: Annotated[str, typer.Argument(metavar="VERSION", help="URI of a version.")],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="New local folder.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="Merge a LoRA adapter into its base model.")
    ] = False,
    encoder_only: Annotated[
        bool, typer.Option("--encoder-only", help="Omit the bag of words of a mixed classifier.")
    ] = False,
) -> Result:
    """Write a version to a folder that transformers, PEFT or sentence-transformers load without
    Tailorbird.

    The folder has the weights, the tokenizer with its chat template, and a model card with the
    verdict and the license.

    Example: tailorbird export s3://models/support/versions/lora-0f3a9c21d4e7 --to support-model
    --merged
    """
    with activity(f"reading {uri}"):
        from tailorbird.release.export import export_version

        exported = export_version(uri.rstrip("/"), to, merged=merged, encoder_only=encoder_only)
    lines = [f"{to}: {exported.library} loads it; {to}/README.md shows how, and has the verdict"]
    lines += exported.notes
    if not exported.contains_training_text:
        lines += [f"to upload it to the Hub: hf upload OWNER/NAME {shlex.quote(str(to))}"]
    value: dict[str, object] = {
        "folder": str(to),
        "library": exported.library,
        "files": list(exported.files),
        "notes": list(exported.notes),
        "contains_training_text": exported.contains_training_text,
    }
    return value, lines
