"""Commands for this machine: checks, the embedded stack and data."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from tailorbird.cli.options import AsJson, ExitCode, Folder, handle_errors, print_result, stack_folder

stack_app = typer.Typer(no_args_is_help=True, help="The embedded stack: a real S3 server and a local Ray.")
data_app = typer.Typer(no_args_is_help=True, help="Puts data where a recipe reads it.")


@handle_errors
def doctor(as_json: AsJson = False) -> None:
    """What is missing on this machine, and the command that mends it; 1 where it keeps Tailorbird from running.

    Example: tailorbird doctor
    """
    from tailorbird.checks.doctor import check_machine, inspect_machine
    from tailorbird.checks.result import passes, to_json, to_lines

    folder = Path(os.environ.get("TAILORBIRD_HOME") or ".tailorbird").absolute()
    results = check_machine(inspect_machine(folder))
    print_result(to_json(results), as_json=as_json, lines=to_lines(results))
    if not passes(results):
        raise typer.Exit(ExitCode.FAILURE)


@data_app.command()
@handle_errors
def icd10(
    prefix: Annotated[
        str | None, typer.Argument(help="Where to; else s3://lake/icd10 or s3://lake/icd10_coder.")
    ] = None,
    coder: Annotated[bool, typer.Option(help="The chat task: terms to codes with their titles.")] = False,
    as_json: AsJson = False,
) -> None:
    """Writes the US ICD-10-CM inclusion terms as Parquet: to chapters, split by category, or to codes and titles.

    Example: tailorbird data icd10 s3://lake/icd10
    """
    from tailorbird.data.datasets.icd10 import write

    prefix = prefix or ("s3://lake/icd10_coder" if coder else "s3://lake/icd10")
    counts = write(prefix, coder=coder)
    print_result(
        {"prefix": prefix, "rows": counts},
        as_json=as_json,
        lines=[f"{prefix}/{name}: {count} rows" for name, count in counts.items()],
    )


@data_app.command()
@handle_errors
def put(
    folder: Annotated[Path, typer.Argument(help="A local folder with Parquet files.")],
    prefix: Annotated[str, typer.Argument(help="Where to.")],
    as_json: AsJson = False,
) -> None:
    """Uploads a folder of Parquet files.

    Example: tailorbird data put ./banking77 s3://lake/banking77
    """
    from tailorbird.data.upload import upload_parquet_folder

    uris = upload_parquet_folder(folder, prefix)
    print_result({"files": uris}, as_json=as_json, lines=uris)


@stack_app.command()
@handle_errors
def up(
    folder: Folder = None,
    num_cpus: Annotated[int | None, typer.Option(help="CPUs Ray may use; by default all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Starts the stack, or finds it running.

    Example: tailorbird stack up
    """
    from cluster.local import stack

    state = stack.up(stack_folder(folder), num_cpus=num_cpus)
    print_result(state.model_dump(), as_json=as_json, lines=_stack_lines(state))


@stack_app.command()
@handle_errors
def down(folder: Folder = None, as_json: AsJson = False) -> None:
    """Stops the stack; its data stay.

    Example: tailorbird stack down
    """
    from cluster.local import stack

    stack.down(stack_folder(folder))
    print_result({"running": False}, as_json=as_json, lines=["the stack is down; its data stay"])


@stack_app.command()
@handle_errors
def status(
    folder: Folder = None,
    export: Annotated[bool, typer.Option("--export", help="Print shell lines that set its environment.")] = False,
    as_json: AsJson = False,
) -> None:
    """Whether the stack runs, and where.

    Example: eval "$(tailorbird stack status --export)"
    """
    from cluster.local import stack

    state = stack.status(stack_folder(folder))
    if state is None:
        if export:
            raise ValueError("no stack is running; `tailorbird stack up` starts one")
        print_result(
            {"running": False}, as_json=as_json, lines=["no stack is running; `tailorbird stack up` starts one"]
        )
        return
    lines = [f"export {name}={value}" for name, value in state.environment().items()] if export else _stack_lines(state)
    print_result({"running": True} | state.model_dump(), as_json=as_json, lines=lines)


def _stack_lines(state: Any) -> list[str]:
    return [
        f"S3 {state.s3_endpoint}",
        f"Ray {state.ray_address}, dashboard {state.dashboard_url}",
        f"Serve http://127.0.0.1:{state.serve_port} (once something is served)",
    ]
