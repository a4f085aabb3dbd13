"""Commands for jobs on a cluster."""

import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from tailorbird import PROJECT_ROOT
from tailorbird.cli import options

jobs_app = typer.Typer(
    no_args_is_help=True, help="Manage the jobs of a Ray cluster (see `tailorbird submit`)."
)


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
        _follow(submission.job.id, value={"how": submission.how}, first=submission.line())
    lines = [
        submission.line(),
        f"to follow its log: tailorbird jobs logs {submission.job.id} --follow",
    ]
    return submission.job.to_dict() | {"how": submission.how}, lines


@jobs_app.command("list")
@options.with_json
def list_jobs(_address: options.Address = None) -> options.Result:
    """List the jobs that were submitted to the cluster, with their exit codes, in order of their
    start.

    Example: tailorbird jobs list --json
    """
    from cluster import jobs

    with options.activity("reading the jobs of the cluster"):
        submitted = jobs.list_jobs()
    lines = [job.line() for job in submitted] or [
        "no jobs; run `tailorbird submit RECIPE` to submit one"
    ]
    return {"jobs": [job.to_dict() for job in submitted]}, lines


@jobs_app.command("status")
@options.with_json
def job_status(job: options.JobId, _address: options.Address = None) -> options.Result:
    """Print the status of a job and Ray's message.

    Example: tailorbird jobs status icd10-demo-0f3a9c21d4e7
    """
    from cluster import jobs

    with options.activity(f"reading the status of {job}"):
        status = jobs.read_job(job)
    return status.to_dict(), [status.line(), status.message]


@jobs_app.command()
@options.with_json
def logs(
    job: options.JobId,
    _address: options.Address = None,
    follow: options.Follow = False,
) -> options.Result:
    """Print the log of a job.

    Example: tailorbird jobs logs icd10-demo-0f3a9c21d4e7 --follow
    """
    from cluster import jobs

    if follow:
        _follow(job, value={})
    with options.activity(f"reading the log of {job}"):
        text = jobs.read_log(jobs.read_job(job).id)
    return {"job": job, "log": text}, [text.rstrip("\n")]


@jobs_app.command("stop")
@options.with_json
def stop_job(job: options.JobId, _address: options.Address = None) -> options.Result:
    """Stop a job. Submitted again, the recipe resumes after the last finished stage.

    Example: tailorbird jobs stop icd10-demo-0f3a9c21d4e7
    """
    from cluster import jobs

    with options.activity(f"waiting until {job} has stopped"):
        status = jobs.stop(job)
    return status.to_dict(), [status.line()]


def _follow(job_id: str, *, value: dict[str, Any], first: str | None = None) -> None:
    """Print the log until the job ends and exit with its code; on Ctrl-C, exit without stopping the
    job.

    Everything but the log is printed to standard error: `first` before it, the job's status while
    it has no new lines, and the final status. With --json, the log is printed there too, and the
    final status to standard output.
    """
    from cluster import jobs
    from cluster.display.console import display
    from cluster.display.control_characters import printable
    from cluster.progress import LineEvent

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

            if first is not None:
                progress.note(first)
            progress.activity(f"reading the status of {job_id}")
            job = jobs.follow(job_id, write=write, on_status=show_status)
            write("\n" if rest else "")
    except KeyboardInterrupt:
        follow = f"tailorbird jobs logs {job_id} --follow"
        stop = f"tailorbird jobs stop {job_id}"
        print(
            f"\n{job_id} continues; run `{follow}` to see its log or `{stop}` to stop it",
            file=sys.stderr,
        )
        raise typer.Exit(options.ExitCode.INTERRUPTED) from None
    assert job.exit_code is not None  # it has ended
    options.print_result(job.to_dict() | value, [])
    if not options.is_json():
        print(printable(job.line()), file=sys.stderr)
    raise typer.Exit(job.exit_code)
