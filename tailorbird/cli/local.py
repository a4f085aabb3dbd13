"""Commands for this machine: checks, the embedded stack and data."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tailorbird.cli.options import AsJson, Folder, print_checks, print_result, stack_folder

stack_app = typer.Typer(no_args_is_help=True, help="The embedded stack: a real S3 server and a local Ray.")
data_app = typer.Typer(no_args_is_help=True, help="Upload data for a recipe.")


def doctor(as_json: AsJson = False) -> None:
    """Report what is missing on this machine, with the command that fixes it; exit with 1 if Tailorbird cannot run.

    Example: tailorbird doctor
    """
    from tailorbird.checks.doctor import check_this_machine

    print_checks(check_this_machine(), as_json=as_json)


@data_app.command()
def icd10(
    prefix: Annotated[str | None, typer.Argument(help="Default: s3://lake/icd10 or s3://lake/icd10_coder.")] = None,
    coder: Annotated[bool, typer.Option(help="The chat task: terms to codes with their titles.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the US ICD-10-CM inclusion terms as Parquet: to chapters, split by category, or to codes and titles.

    Example: tailorbird data icd10 s3://lake/icd10
    """
    from tailorbird.data.datasets.icd10 import write

    prefix = prefix or ("s3://lake/icd10_coder" if coder else "s3://lake/icd10")
    counts = write(prefix, coder=coder)
    lines = [f"{prefix}/{name}: {count} rows" for name, count in counts.items()]
    print_result({"prefix": prefix, "rows": counts}, as_json=as_json, lines=lines)


@data_app.command()
def put(
    folder: Annotated[Path, typer.Argument(help="A local folder with Parquet files.")],
    prefix: Annotated[str, typer.Argument(help="URI to upload it to.")],
    as_json: AsJson = False,
) -> None:
    """Upload a folder of Parquet files.

    Example: tailorbird data put ./banking77 s3://lake/banking77
    """
    from tailorbird.data.upload import upload_parquet_folder

    uris = upload_parquet_folder(folder, prefix)
    print_result({"files": uris}, as_json=as_json, lines=uris)


@stack_app.command()
def up(
    folder: Folder = None,
    num_cpus: Annotated[int | None, typer.Option(help="CPUs Ray may use; by default all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start the stack, unless it runs.

    Example: tailorbird stack up
    """
    from cluster.local import stack

    state = stack.up(stack_folder(folder), num_cpus=num_cpus)
    print_result(state.model_dump(), as_json=as_json, lines=_stack_lines(state))


@stack_app.command()
def down(folder: Folder = None, as_json: AsJson = False) -> None:
    """Stop the stack; its data stay.

    Example: tailorbird stack down
    """
    from cluster.local import stack

    stack.down(stack_folder(folder))
    print_result({"running": False}, as_json=as_json, lines=["the stack is down; its data stay"])


@stack_app.command()
def status(
    folder: Folder = None,
    export: Annotated[bool, typer.Option("--export", help="Print shell lines that set its environment.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show whether the stack runs, and its addresses.

    Example: eval "$(tailorbird stack status --export)"
    """
    from cluster.local import stack

    state = stack.status(stack_folder(folder))
    if state is None:
        text = "no stack is running; `tailorbird stack up` starts one"
        if export:
            raise ValueError(text)
        print_result({"running": False}, as_json=as_json, lines=[text])
        return
    lines = [f"export {name}={value}" for name, value in state.environment().items()] if export else _stack_lines(state)
    print_result({"running": True} | state.model_dump(), as_json=as_json, lines=lines)


def _stack_lines(state: Any) -> list[str]:
    return [
        f"S3 {state.s3_endpoint}",
        f"Ray {state.ray_address}, dashboard {state.dashboard_url}",
        f"Serve http://127.0.0.1:{state.serve_port} (once something is served)",
    ]
