"""The commands that follow a command, as lines for the terminal."""

import shlex


def show_page(uri: str) -> str:
    """Return the command that opens the report of a run or a version, or a stored page, in a
    browser."""
    return f"tailorbird report {shlex.quote(uri)} --open"


def after_run(run: str, *, winner: str, champion: str | None, recipe: str | None) -> list[str]:
    """Return the two or three commands that follow a run, with their purpose.

    `winner` and `champion` are URIs of versions. `recipe` is the path that `promote` and `serve`
    read; None if they would not act on this run.
    """
    steps = {"read the report": show_page(run)}
    if recipe is not None:
        if winner != champion:
            steps[f"make {winner.rpartition('/')[2]} the champion"] = (
                f"tailorbird promote {shlex.quote(recipe)}"
            )
        steps["serve the champion"] = f"tailorbird serve {shlex.quote(recipe)}"
    if len(steps) < 3:
        steps["recompute the verdict"] = f"tailorbird verify {shlex.quote(run)}"
    width = max(map(len, steps)) + 1
    lines = [f"  {purpose + ':':<{width}} {command}" for purpose, command in steps.items()]
    return ["next steps:", *lines]
