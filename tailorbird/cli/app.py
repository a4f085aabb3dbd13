"""The command line: one function a verb, no logic."""

from collections.abc import Callable

import typer

from tailorbird.cli import jobs, local, operate, registry, release, train
from tailorbird.cli.options import stack_folder

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
COMMANDS: tuple[Callable[..., None], ...] = (
    train.init,
    train.preflight,
    train.run,
    train.baseline,
    train.sweep,
    train.evaluate,
    release.promote,
    release.rollback,
    release.serve,
    release.score,
    release.key,
    release.render,
    registry.models,
    registry.verify,
    registry.report,
    registry.compare,
    operate.watch,
    operate.reevaluate,
    jobs.submit,
    local.doctor,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(local.stack_app, name="stack")
app.add_typer(local.data_app, name="data")
app.add_typer(operate.audit_app, name="audit")
app.add_typer(jobs.jobs_app, name="jobs")


@app.callback()
def find_stack(context: typer.Context) -> None:
    """Adapts a pretrained model to your data, proves whether it deserves to replace the one you had, serves it."""
    if context.invoked_subcommand == "doctor":  # which tells of packages that do not load, and needs none
        return
    from cluster.connection import use_stack

    use_stack(stack_folder(None))  # before any verb imports Ray, which reads its token's place once


def main() -> None:
    """Entry point of the command `tailorbird`."""
    app()
