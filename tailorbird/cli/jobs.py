"""The command `submit`. `ray job` manages the jobs that it starts."""

import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tailorbird import PROJECT_ROOT
from tailorbird.cli import options

if TYPE_CHECKING:
    from cluster.jobs import Submitted


def submit(
    recipe: options.RecipePath,
    overrides: options.Overrides = None,
    _address: options.Address = None,
    follow: options.Follow = False,
    again: Annotated[
        bool, typer.Option("--again", help="Start a new job even if an earlier one succeeded.")
    ] = False,
    driver_memory: Annotated[
        float,
        typer.Option(min=0.1, help="Memory (GiB) of the head node that the job's driver reserves."),
    ] = 2.0,
) -> options.Result:
    """Submit a recipe as a job to a Ray cluster, with the code of this checkout.

    A second submission of the same recipe and code starts no second job.

    Example: tailorbird submit recipes/icd10_demo.yaml tuning.num_trials=4 --address
    http://127.0.0.1:8265 --follow
    """
    from cluster import jobs

    loaded = options.read_recipe(recipe, overrides)
    with options.activity("packing this checkout and submitting the job"):
        submission = jobs.submit(
            loaded, root=PROJECT_ROOT, again=again, driver_memory_gib=driver_memory
        )
    if follow:
        _follow(submission)
    lines = [submission.line(), f"to follow its log: {_ray_job('logs', submission)} --follow"]
    return submission.job.to_dict() | {"how": submission.how}, lines


def _follow(submission: "Submitted") -> None:
    """Print the log until the job ends and exit with its code; on Ctrl-C, exit without stopping the
    job.

    Everything but the log is printed to standard error: the effect of the submission, the job's
    status while the log has no new lines, and the final status. With --json, the log is printed
    there too, and the final status to standard output.
    """
    from cluster import jobs
    from cluster.display.console import display
    from cluster.display.control_characters import printable
    from cluster.progress import LineEvent

    job_id = submission.job.id
    rest = ""
    activity = ""
    try:
        with display(Console(stderr=True), as_json=options.is_json(), lines=Console()) as progress:

            def write(text: str) -> None:
                nonlocal rest
                *lines, rest = (rest + text).split("\n")
                for line in lines:
                    progress.report(LineEvent(line))

            def show_status(job: jobs.Job) -> None:
                nonlocal activity
                if job.activity() != activity:
                    activity = job.activity()
                    progress.activity(activity)

            progress.note(submission.line())
            progress.activity(f"reading the status of {job_id}")
            job = jobs.follow(job_id, write=write, on_status=show_status)
            write("\n" if rest else "")
    except KeyboardInterrupt:
        print(
            f"\n{job_id} continues. To see its log: {_ray_job('logs', submission)} --follow\n"
            f"To stop it: {_ray_job('stop', submission)}",
            file=sys.stderr,
        )
        raise typer.Exit(options.ExitCode.INTERRUPTED) from None
    assert job.exit_code is not None  # it has ended
    options.print_result(job.to_dict() | {"how": submission.how}, [])
    if not options.is_json():
        print(printable(job.line()), file=sys.stderr)
    raise typer.Exit(job.exit_code)


def _ray_job(verb: str, submission: "Submitted") -> str:
    """Return the command of Ray's CLI with the variables for the cluster of the job.

    Ray's CLI sends a token only if RAY_AUTH_MODE is set, and prefers the variable with the address
    to its option --address.
    """
    from cluster.auth import DASHBOARD, read_token
    from cluster.dashboard import dashboard_url

    variables = {DASHBOARD: dashboard_url()}
    if read_token():
        variables["RAY_AUTH_MODE"] = "token"
        path = os.environ.get("RAY_AUTH_TOKEN_PATH")
        if path:
            variables["RAY_AUTH_TOKEN_PATH"] = path
    settings = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return " ".join([*settings, "ray job", verb, submission.job.id])
