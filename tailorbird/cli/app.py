"""The `tailorbird` command and its subcommands. The logic of a subcommand is in the library."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tailorbird import __version__
from tailorbird.cli import console, local, operate, registry, release, train
from tailorbird.cli.options import Result, handle_errors, stack_folder, with_json


class CommandGroup(TyperGroup):
    """A command group that handles the errors of its commands."""

    def invoke(self, ctx: Any) -> Any:
        with handle_errors():
            return super().invoke(ctx)


app = typer.Typer(cls=CommandGroup, no_args_is_help=True, pretty_exceptions_enable=False)
COMMANDS: tuple[Callable[..., Result | None], ...] = (
    train.init,
    train.preflight,
    train.run,
    train.baseline,
    train.sweep,
    release.promote,
    release.rollback,
    release.serve,
    release.score,
    release.key,
    release.render,
    release.iam,
    registry.models,
    registry.verify,
    registry.report,
    registry.compare,
    registry.export,
    console.console,
    operate.watch,
    operate.reevaluate,
    local.doctor,
)
for command in COMMANDS:
    app.command()(with_json(command))
app.add_typer(local.stack_app, name="stack")
app.add_typer(local.data_app, name="data")
app.add_typer(operate.audit_app, name="audit")


def print_version(requested: bool) -> None:
    """Print the version and exit if `--version` is given."""
    if requested:
        print(f"tailorbird {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Fine-tune a pretrained model on your data, test it against the model in service, and serve
    the winner."""
    if context.invoked_subcommand == "doctor":  # reports packages that cannot be imported
        return
    from cluster.connection import use_stack

    # Before any import of Ray, which reads the location of its token once.
    use_stack(stack_folder(None))


def main() -> None:
    """Run the command line."""
    app()
