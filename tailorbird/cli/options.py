"""Arguments, options, output and error handling shared by all commands."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from enum import IntEnum
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cluster.display.control_characters import printable
from tailorbird.checks.result import CheckResult, passes, to_json, to_lines
from tailorbird.config.loader import load_recipe, parse_recipe
from tailorbird.config.recipe import Recipe

RecipePath = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Path or URI of the recipe (YAML).")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Override values of the recipe."),
]
RunOrVersion = Annotated[str, typer.Argument(metavar="URI", help="URI of a run or a version.")]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object to standard output, and progress as lines of JSON."
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        help="Folder of the stack. Default: $TAILORBIRD_HOME, or .tailorbird here or above.",
    ),
]
Result = tuple[dict[str, Any], Sequence[str]]
"""What a command prints: a value with --json, and lines for people without."""
_is_json: ContextVar[bool] = ContextVar("is_json", default=False)


class ExitCode(IntEnum):
    FAILURE = 1
    """The command failed, or a check found a fault."""
    USER_ERROR = 2
    """The command line, the recipe or the data is invalid."""
    REEVALUATION_DUE = 3
    """`watch` recommends a re-evaluation."""
    INTERRUPTED = 130
    """Ctrl-C. Finished stages are stored."""
    TERMINATED = 143
    """SIGTERM. Finished stages are stored."""


@contextmanager
def handle_errors() -> Iterator[None]:
    """Print an expected error as one message and exit with its `ExitCode`; let unexpected errors
    propagate."""
    try:
        yield
    except typer.Exit:
        raise  # it is a RuntimeError, which the next clause would handle
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except Exception as error:
        is_of_library = type(error).__module__.startswith(("ray.", "safetensors"))
        if not isinstance(error, ValueError | RuntimeError) and not is_of_library:
            raise
        print(f"error: {printable(str(error))}", file=sys.stderr)
        names = {kind.__name__ for kind in type(error).__mro__}  # the classes are not imported here
        if names & {"SessionError", "StorageError"}:
            from cluster.connection import stack_hint

            hint = stack_hint(stack_folder(None))
            if hint:
                print(f"hint: {hint}", file=sys.stderr)
        code = ExitCode.FAILURE
        if isinstance(error, ValueError):
            code = ExitCode.USER_ERROR
        raise typer.Exit(code) from error


@contextmanager
def connected_recipe(
    path: str, overrides: list[str] | None, *, queued: bool = False
) -> Iterator[tuple[Recipe, Any]]:
    """Connect to Ray; yield the recipe and a progress reporter for the terminal.

    Ctrl-C and SIGTERM end the command with a message that says how to resume.

    If `queued` is true, wait until no other queued command uses the embedded stack.
    """
    recipe = read_recipe(path, overrides)
    from cluster.connection import Terminated, connect, sigterm_raises
    from cluster.display.console import display
    from cluster.local.run_queue import stack_in_use, turn

    command = shlex.join(["tailorbird", *sys.argv[1:]])
    folder = stack_in_use() if queued else None
    try:
        with (
            sigterm_raises(),
            display(Console(stderr=is_json()), as_json=is_json()) as progress,
            turn(folder, command=command, note=progress.wait),
        ):
            progress.activity("connecting to Ray")
            with connect():
                progress.activity("loading PyTorch and transformers")
                yield recipe, progress
                progress.activity("disconnecting from Ray")
    except (KeyboardInterrupt, Terminated) as error:
        what = "interrupted"
        code = ExitCode.INTERRUPTED
        if isinstance(error, Terminated):
            what = "terminated"
            code = ExitCode.TERMINATED
        print(
            f"\n{what}; the results of finished stages are stored. To resume: {command}",
            file=sys.stderr,
        )
        raise typer.Exit(code) from None


@contextmanager
def deploy_progress() -> Iterator[Any]:
    """Yield a progress reporter that prints to standard error; for commands that need no connection
    to Ray."""
    from cluster.display.console import display

    with display(Console(stderr=True), as_json=is_json()) as progress:
        yield progress


@contextmanager
def activity(text: str) -> Iterator[None]:
    """Print to standard error that the command does `text` if the block takes more than a few
    seconds.

    Wrap also the imports of a command: on a busy machine they take seconds.
    """
    with deploy_progress() as progress:
        progress.activity(text)
        yield


def read_recipe(path: str, overrides: list[str] | None = None) -> Recipe:
    changes = tuple(overrides or ())
    if "://" not in path:
        return load_recipe(path, overrides=changes)
    from cluster.progress import SILENT, current_progress

    with ExitStack() as stack:
        if current_progress() is SILENT:
            stack.enter_context(activity(f"reading {path}"))
        from tailorbird import storage

        return parse_recipe(storage.read_bytes(path), path=path, overrides=changes)


def read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror or error}; give the path of a readable file, or - for "
            "standard input"
        ) from None


def write_file(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror or error}; give the path of a writable file"
        ) from None


def stack_folder(folder: Path | None) -> Path:
    from cluster.local.folder import default_folder

    return folder or default_folder()


def with_json(command: Callable[..., Result | None]) -> Callable[..., None]:
    """Return a command with the option --json, which prints the result that `command` returns."""

    @wraps(command)
    def run(*, as_json: bool = False, **arguments: Any) -> None:
        token = _is_json.set(as_json)
        try:
            result = command(**arguments)
            if result is not None:
                print_result(*result)
        finally:
            _is_json.reset(token)

    option = Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=AsJson)
    run.__signature__ = Signature([*signature(command).parameters.values(), option])  # type: ignore[attr-defined]
    return run


def is_json() -> bool:
    """Return True if the current command has the option --json."""
    return _is_json.get()


def print_result(value: dict[str, Any], lines: Sequence[str]) -> None:
    for line in [json.dumps(value)] if is_json() else lines:
        print(printable(line))


def print_panel(console: Console, lines: Sequence[str], *, title: str) -> None:
    """Print lines between two rules on a terminal, and after an empty line elsewhere.

    The panel has no sides, and its lines are not wrapped, so that commands can be copied.
    """
    if console.is_terminal:
        console.rule(f"[bold]{title}[/bold]", align="left", characters="─")
    else:
        console.print()
    for number, line in enumerate(lines):
        is_first = number == 0 and console.is_terminal
        style = "bold" if is_first else None
        console.print(printable(line), style=style, markup=False, highlight=False, soft_wrap=True)
    if console.is_terminal:
        console.rule(characters="─")


def print_checks(results: Sequence[CheckResult]) -> None:
    """Print the results of checks; exit with FAILURE if there is a fault."""
    print_result(to_json(results), to_lines(results))
    if not passes(results):
        raise typer.Exit(ExitCode.FAILURE)
