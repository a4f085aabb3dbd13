"""Commands for this machine: checks, the embedded stack and data."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.progress import byte_reporter
from tailorbird.cli.options import (
    Folder,
    Result,
    activity,
    deploy_progress,
    print_checks,
    stack_folder,
    with_json,
)

stack_app = typer.Typer(
    no_args_is_help=True, help="Manage the embedded stack: an S3 server and a local Ray cluster."
)
data_app = typer.Typer(no_args_is_help=True, help="Upload and download data.")


def doctor() -> None:
    """Check the installation on this machine and print a fix for each fault. Exit with 1 if there
    is a fault.

    Example: tailorbird doctor
    """
    with activity("checking this machine"):
        from tailorbird.checks.doctor import check_this_machine

        results = check_this_machine()
    print_checks(results)


@data_app.command()
@with_json
def icd10(
    prefix: Annotated[
        str | None,
        typer.Argument(
            help="URI to write to. Default: s3://lake/icd10, or s3://lake/icd10_coder with --coder."
        ),
    ] = None,
    coder: Annotated[
        bool, typer.Option(help="Write a chat task instead: codes and titles as answers.")
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the split into train, validation and test.")
    ] = 0,
) -> Result:
    """Write the US ICD-10-CM inclusion terms as Parquet, labelled with their chapters.

    Example: tailorbird data icd10 s3://lake/icd10
    """
    if prefix is None:
        prefix = "s3://lake/icd10_coder" if coder else "s3://lake/icd10"
    with activity(f"writing ICD-10-CM to {prefix}"):
        from tailorbird.data.datasets.icd10 import write

        counts = write(prefix, coder=coder, seed=seed)
    return _written(prefix, counts)


@data_app.command()
@with_json
def medquad(
    folder: Annotated[
        Path, typer.Argument(help="Folder of `git clone https://github.com/abachaa/MedQuAD`.")
    ],
    prefix: Annotated[str, typer.Argument(help="URI to write to.")] = "s3://lake/medquad",
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the split into train, validation and test.")
    ] = 0,
) -> Result:
    """Write questions of patients, with answers of NIH web pages (MedQuAD, CC BY 4.0), as Parquet.

    Example: tailorbird data medquad ./MedQuAD
    """
    with activity(f"writing MedQuAD to {prefix}"):
        from tailorbird.data.datasets.medquad import build
        from tailorbird.data.datasets.writing import write_splits

        counts = write_splits(build(folder, seed=seed), prefix=prefix)
    return _written(prefix, counts)


def _written(prefix: str, counts: Mapping[str, int]) -> Result:
    lines = [f"{prefix}/{name}: {count} rows" for name, count in counts.items()]
    return {"prefix": prefix, "rows": dict(counts)}, lines


@data_app.command()
@with_json
def put(
    source: Annotated[
        Path, typer.Argument(help="Local file, or folder of files: .parquet, .jsonl, .csv or .tsv.")
    ],
    prefix: Annotated[str, typer.Argument(help="URI of the folder to upload to.")],
) -> Result:
    """Upload data to S3. JSON Lines and CSV files are checked and converted to Parquet.

    JSON Lines can contain conversations in the formats of OpenAI, ShareGPT or Alpaca, or plain
    columns.

    Example: tailorbird data put ./banking77 s3://lake/banking77

    Example: tailorbird data put support.jsonl s3://lake/support
    """
    with deploy_progress() as progress:
        from tailorbird.data.upload import upload_data

        files = upload_data(source, prefix, report=byte_reporter(progress))
    lines = []
    for file in files:
        columns = ", ".join(file.columns)
        lines.append(f"{file.uri}: {file.num_rows:,} rows ({file.format}: {columns})")
    lines += [f"to draft a recipe: tailorbird init {shlex.quote(prefix)}"]
    value = {"files": [file.uri for file in files], "contents": [asdict(file) for file in files]}
    return value, lines


@data_app.command()
@with_json
def get(
    uri: Annotated[str, typer.Argument(metavar="URI", help="URI of a file or a folder.")],
    folder: Annotated[Path, typer.Argument(help="New local folder.")],
) -> Result:
    """Download a file, or all files of a folder, into a new local folder.

    Example: tailorbird data get s3://lake/banking77 ./banking77
    """
    with activity(f"downloading {uri}"):
        from tailorbird import storage

        storage.download_folder(uri, folder)
    files = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    return {"files": files}, files


@stack_app.command()
@with_json
def up(
    folder: Folder = None,
    num_cpus: Annotated[
        int | None, typer.Option(help="Number of CPUs for Ray. Default: all.")
    ] = None,
) -> Result:
    """Start the stack if it is not running.

    Example: tailorbird stack up
    """
    with activity("starting the S3 server and Ray"):
        from cluster.local import stack

        state = stack.up(stack_folder(folder), num_cpus=num_cpus)
    return state.model_dump(exclude=stack.SECRET_FIELDS), _stack_lines(state)


@stack_app.command()
@with_json
def down(folder: Folder = None) -> Result:
    """Stop the stack and keep its data.

    Example: tailorbird stack down
    """
    with activity("stopping Ray and the S3 server"):
        from cluster.local import stack

        stack.down(stack_folder(folder))
    return {"running": False}, ["the stack is stopped; its data are kept"]


@stack_app.command()
@with_json
def status(
    folder: Folder = None,
    export: Annotated[
        bool,
        typer.Option("--export", help="Print shell commands that set its environment variables."),
    ] = False,
) -> Result:
    """Print the status and the addresses of the stack.

    Example: eval "$(tailorbird stack status --export)"
    """
    from cluster.connection import stack_hint
    from cluster.local import stack

    state = stack.status(stack_folder(folder))
    if state is None:
        hint = stack_hint(stack_folder(folder)) or "run `tailorbird stack up` to start one"
        text = f"no stack is running in {stack_folder(folder)}; {hint}"
        if export:
            raise ValueError(text)
        return {"running": False}, [text]
    lines = _stack_lines(state)
    if export:
        lines = [
            f"export {name}={shlex.quote(value)}" for name, value in state.environment().items()
        ]
    return {"running": True} | state.model_dump(exclude=stack.SECRET_FIELDS), lines


def _stack_lines(state: Any) -> list[str]:
    return [
        f"S3 {state.s3_endpoint}",
        f"Ray {state.ray_address}, dashboard {state.dashboard_url}",
        f"Serve http://127.0.0.1:{state.serve_port} (after `tailorbird serve`)",
    ]
