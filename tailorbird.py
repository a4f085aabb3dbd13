"""The command line: one function a verb, no logic."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from recipes.schema import Recipe, load_recipe, parse_recipe

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
stack_app = typer.Typer(no_args_is_help=True, help="The embedded stack: a real S3 server and a local Ray.")
data_app = typer.Typer(no_args_is_help=True, help="Puts data where a recipe reads it.")
jobs_app = typer.Typer(no_args_is_help=True, help="The jobs of a cluster, which `tailorbird submit` starts.")
app.add_typer(stack_app, name="stack")
app.add_typer(data_app, name="data")
audit_app = typer.Typer(no_args_is_help=True, help="Labels for answers that were drawn by lot.")
app.add_typer(audit_app, name="audit")
app.add_typer(jobs_app, name="jobs")

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's YAML file, or its URI.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Changes to it.")]
RunOrVersion = Annotated[str, typer.Argument(metavar="URI", help="A run's or a version's URI.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Address = Annotated[
    str | None, typer.Option("--address", metavar="URL", help="Ray's dashboard, in place of RAY_API_SERVER_ADDRESS.")
]
Follow = Annotated[bool, typer.Option("--follow", help="Show the log until the end; exit with the job's code.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, as `tailorbird jobs list` shows it.")]
Folder = Annotated[
    Path | None,
    typer.Option("--dir", help="The stack's folder; other verbs find it by TAILORBIRD_HOME; by default .tailorbird."),
]

Verb = TypeVar("Verb", bound=Callable[..., None])

USER_ERROR, FAILURE, WANTED, INTERRUPTED = 2, 1, 3, 130


def fails_clearly(verb: Verb) -> Verb:
    """Errors in what the user gave end with 2, failures of the work with 1, each with its message alone."""

    @wraps(verb)
    def wrapped(*arguments: Any, **named: Any) -> None:
        try:
            verb(*arguments, **named)
        except typer.Exit:
            raise  # an end with a code of its own, though typer makes it a RuntimeError
        except ValueError as error:
            _stop(error, code=USER_ERROR)
        except Exception as error:
            if not (isinstance(error, RuntimeError) or type(error).__module__.startswith(("ray.", "safetensors"))):
                raise  # a bug of ours: its traceback is what helps
            _stop(error, code=FAILURE)

    return wrapped  # type: ignore[return-value]


@app.callback()
def find_stack(context: typer.Context) -> None:
    """Adapts a pretrained model to your data, proves whether it deserves to replace the one you had, serves it."""
    if context.invoked_subcommand == "doctor":  # which tells of packages that do not load, and needs none
        return
    from cluster.session import use_stack

    use_stack(_folder(None))  # before any verb imports Ray, which reads its token's place once


@app.command()
@fails_clearly
def doctor(as_json: AsJson = False) -> None:
    """What is missing on this machine, and the command that mends it; 1 where it keeps Tailorbird from running.

    Example: tailorbird doctor
    """
    import doctor as examination

    folder = Path(os.environ.get("TAILORBIRD_HOME") or ".tailorbird").absolute()
    lines = examination.check(examination.look(folder))
    _answer(examination.told(lines), as_json=as_json, lines=examination.shown(lines))
    if not examination.holds(lines):
        raise typer.Exit(FAILURE)


@app.command()
@fails_clearly
def init(
    parquet: Annotated[str, typer.Argument(metavar="PARQUET", help="A file or a folder: a path, file:// or s3://.")],
    output: Annotated[Path, typer.Option(help="Where the recipe goes.")] = Path("recipes/my_task.yaml"),
    text: Annotated[str | None, typer.Option(help="Column with the text, if it is not to be guessed.")] = None,
    label: Annotated[str | None, typer.Option(help="Column with the label, if it is not to be guessed.")] = None,
    registry: Annotated[str, typer.Option(help="Where models and evidence go.")] = "s3://models",
    base_model: Annotated[str | None, typer.Option(help="The pretrained model, in place of a small one.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a recipe that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Drafts a recipe with comments from what the rows look like.

    Example: tailorbird init s3://lake/my-data --output recipes/my_task.yaml --label topic
    """
    from draft import write_recipe
    from glance import Wishes

    wishes = Wishes(text=text, label=label, registry=registry, base_model=base_model)
    drafted = write_recipe(parquet, output, wishes=wishes, force=force)
    following = f"read it, then: tailorbird preflight {output}; tailorbird run {output}"
    value = {"recipe": str(output), "content": drafted.model_dump(mode="json")}
    _answer(value, as_json=as_json, lines=[f"{output}: a {drafted.task} task, every value a guess", following])


@app.command()
@fails_clearly
def preflight(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """What would go wrong in a run, before it costs anything; 1 where something would.

    Example: tailorbird preflight recipes/icd10_demo.yaml training.num_workers=4
    """
    import preflight as checks
    from doctor import holds, shown, told

    lines = checks.preflight(_recipe(recipe, overrides))
    _answer(told(lines), as_json=as_json, lines=shown(lines))
    if not holds(lines):
        raise typer.Exit(FAILURE)


@app.command()
@fails_clearly
def run(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """The main job: data, baselines, sweep, seeds, verdict, registry. Goes on from what is done.

    Example: tailorbird run recipes/icd10_demo.yaml tuning.num_trials=4
    """
    import pipeline
    from evaluation.report import verdict_lines

    with _working(recipe, overrides, as_json=as_json) as (loaded, show):
        done = pipeline.run(loaded, show=show)
    value = {"run": done.run, "winner": done.winner, "verdict": done.verdict.to_dict()}
    _answer(value, as_json=as_json, lines=[*verdict_lines(done.evidence), f"evidence: {done.run}/report.html"])


@app.command()
@fails_clearly
def baseline(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """What the pretrained model can do untouched, on validation rows.

    Example: tailorbird baseline recipes/icd10_demo.yaml
    """
    import pipeline
    from prepare import prepare

    with _working(recipe, overrides, as_json=as_json) as (loaded, show):
        rungs, incumbent = pipeline.climb_ladder(prepare(loaded, show=show), show=show)
    _answer({"rungs": rungs, "incumbent": incumbent.kind}, as_json=as_json, lines=[f"incumbent: {incumbent.kind}"])


@app.command()
@fails_clearly
def sweep(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Baselines and sweep, in one table; test rows stay unread by any model.

    Example: tailorbird sweep recipes/icd10_demo.yaml tuning.num_trials=8
    """
    import pipeline

    with _working(recipe, overrides, as_json=as_json) as (loaded, show):
        swept = pipeline.sweep_only(loaded, show=show)
    lines = [f"{row.score:.4f}  {row.trial:<16} {row.status:<48} {row.config or ''}" for row in swept.rows]
    lines += [f"the sweep ended itself: {swept.ended}"] if swept.ended else []
    _answer(swept.to_dict(), as_json=as_json, lines=lines)


@app.command()
@fails_clearly
def evaluate(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """The verdict of what is trained: like `run`, but refuses to train.

    Example: tailorbird evaluate recipes/icd10_demo.yaml
    """
    import pipeline
    from evaluation.report import verdict_lines

    with _working(recipe, overrides, as_json=as_json) as (loaded, show):
        done = pipeline.run(loaded, show=show, may_train=False)
    _answer({"run": done.run, "verdict": done.verdict.to_dict()}, as_json=as_json, lines=verdict_lines(done.evidence))


@app.command()
@fails_clearly
def promote(
    recipe: RecipePath,
    version: Annotated[str | None, typer.Option(help="A version's URI; by default the latest run's winner.")] = None,
    override: Annotated[
        str | None, typer.Option(metavar="REASON", help="Why a verdict that is not confirmatory may stand.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="What runs a classifier on CPU: auto, torch, torch-bfloat16, openvino, onnxruntime-int8."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Makes the winner of a run the champion; where it is served, once it answers test rows as it was evaluated.

    Another engine than torch, which every verdict is about, is tried on the cluster, and taken if it answers as well.

    Example: tailorbird promote recipes/icd10_demo.yaml --engine auto
    """
    from promote import promote as promote_version

    if engine is None:  # which takes no Ray where the task is not served
        champion = promote_version(_recipe(recipe).home, version=version, override=override)
    else:
        with _working(recipe, None, as_json=as_json) as (loaded, show):
            champion = promote_version(loaded.home, version=version, override=override, engine=engine, show=show)
    asked = champion.parity.sentence() if champion.parity else "it is not served yet: `tailorbird serve` asks test rows"
    _answer(champion.model_dump(), as_json=as_json, lines=[f"champion: {champion.version}, {champion.reason}", asked])


@app.command()
@fails_clearly
def rollback(
    recipe: RecipePath,
    reason: Annotated[str, typer.Option(help="Why, which is kept with the champion.")],
    as_json: AsJson = False,
) -> None:
    """Makes the version that served before the champion the champion again, also of the service where there is one.

    Example: tailorbird rollback recipes/icd10_demo.yaml --reason "complaints about burns"
    """
    from promote import rollback as roll_back

    champion = roll_back(_recipe(recipe).home, reason=reason)
    _answer(champion.model_dump(), as_json=as_json, lines=[f"champion: {champion.version}, {champion.reason}"])


@app.command()
@fails_clearly
def serve(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Serves the champion on Ray Serve, or moves the service to it.

    Examples: tailorbird serve recipes/icd10_demo.yaml serving.max_replicas=2
    tailorbird serve recipes/icd10_demo.yaml 'serving.trial={version: candidate, canary: 0.1}'
    """
    from promote import serve_champion
    from serving.deploy import ROUTES, on_trial, task_of

    loaded = _recipe(recipe, overrides)
    url, version = serve_champion(loaded.serving, home=loaded.home)
    trial, tried = None, []
    if loaded.serving.trial:
        trial = on_trial(url)
        tried = [f"on trial: {trial}" if trial else "nothing is on trial: the recipe's trial names the champion"]
    _answer(
        {"url": url, "version": version.version, "digest": version.digest, "trial": trial},
        as_json=as_json,
        lines=[
            f"{version.version} answers at {url}{ROUTES[task_of(version)]}",
            *tried,
            "to whoever holds a key"
            if loaded.serving.api_keys
            else "on this machine only: serving.api_keys names no keys",
        ],
    )


@app.command()
@fails_clearly
def watch(
    recipe: RecipePath,
    day: Annotated[str | None, typer.Option(help="Days before this one, YYYY-MM-DD; by default today, UTC.")] = None,
    metrics: Annotated[Path | None, typer.Option(help="Where to put the gauges, for a node exporter.")] = None,
    as_json: AsJson = False,
) -> None:
    """Looks at what the champion answered: drift, labels, groups, a trial; 3 where the verdict should be made again.

    Example: tailorbird watch recipes/icd10_demo.yaml
    """
    from datetime import UTC, date, datetime

    from watching import watch as look

    with _working(recipe, None, as_json=as_json) as (loaded, show):
        found = look(loaded, today=date.fromisoformat(day) if day else datetime.now(UTC).date(), show=show)
    if metrics is not None:
        _write(metrics, found.gauges)
    advice = found.advice
    lines = [f"the verdict should be made again: {reason}" for reason in advice.reasons] or ["nothing calls for a look"]
    lines += [f"on trial: {advice.trial.decision}; {advice.trial.reason}"] if advice.trial else []
    lines += [f"{found.deleted} files older than watching.keep_days are deleted"] if found.deleted else []
    value = {"reevaluate": advice.reevaluate, "reasons": advice.reasons, "page": found.page, "deleted": found.deleted}
    value |= {"trial": advice.trial.decision if advice.trial else None}
    value |= {"reports": [one.model_dump(mode="json") for one in found.reports]}
    _answer(value, as_json=as_json, lines=[*lines, f"page: {found.page}"])
    if advice.reevaluate:
        raise typer.Exit(WANTED)


@app.command()
@fails_clearly
def reevaluate(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Makes the champion's verdict again on audited rows; where it no longer holds, proposes the way back or takes it.

    Example: tailorbird reevaluate recipes/icd10_demo.yaml watching.rollback=automatic
    """
    from reevaluate import reevaluate as judge_again

    with _working(recipe, overrides, as_json=as_json) as (loaded, show):
        done = judge_again(loaded, show=show)
    value = {"evidence": done.uri, "verdict": done.verdict.to_dict(), "holds": done.holds}
    value |= {"back_to": done.back_to, "champion": done.champion.uri, "proposed": done.proposed}
    _answer(value, as_json=as_json, lines=done.lines(recipe))


@app.command()
@fails_clearly
def score(
    recipe: RecipePath,
    input: Annotated[str, typer.Option(help="A Parquet file or a folder of them, s3://.")],
    output: Annotated[str, typer.Option(help="A folder, s3://, empty or of this batch as it was interrupted.")],
    model: Annotated[str, typer.Option(help="`champion`, `pretrained`, a version's name or its URI.")] = "champion",
    column: Annotated[str | None, typer.Option(help="With the texts; by default the recipe's.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="What the output has as `id`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sends every row of a Parquet data set through a version, on the cluster; run again, it goes on.

    Example: tailorbird score recipes/icd10_demo.yaml --input s3://lake/icd10/test --output s3://lake/scored
    """
    from dataclasses import asdict

    from serving.score import batch_of, named_version, shown
    from serving.score import score as score_batch

    with _working(recipe, None, as_json=as_json) as (loaded, show):
        version = named_version(loaded.home, model)
        asked = column or loaded.asked_column
        batch = batch_of(version, input=input, output=output, column=asked, id_column=id_column)
        done = score_batch(batch, loaded.serving, version=version, told=shown(show))
    value = asdict(done) | {"version": version.version, "digest": version.digest}
    _answer(value, as_json=as_json, lines=[done.line(), f"manifest: {done.manifest}"])


@app.command()
@fails_clearly
def key(
    name: Annotated[str, typer.Argument(help="Who will hold it.")],
    per_minute: Annotated[int | None, typer.Option(help="Requests a minute that a replica answers.")] = None,
    as_json: AsJson = False,
) -> None:
    """Makes an API key, and the line to store where the recipe's serving.api_keys points.

    Example: tailorbird key mobile-app --per-minute 600
    """
    from serving.keys import new_key

    made, stored = new_key(name, per_minute=per_minute)
    _answer(
        {"key": made, "line": stored.to_line()},
        as_json=as_json,
        lines=[f"key, shown this once: {made}", f"line to store:        {stored.to_line()}"],
    )


@app.command()
@fails_clearly
def models(recipe: RecipePath, as_json: AsJson = False) -> None:
    """The registered versions, and which is the champion.

    Example: tailorbird models recipes/icd10_demo.yaml --json
    """
    from models.registry import list_versions, read_champion

    home = _recipe(recipe).home
    found = read_champion(home)
    champion, parity = (found[0].uri, found[0].parity) if found else (None, None)
    versions = list_versions(home)
    lines = [
        f"{'* ' if version.uri == champion else '  '}{version.version:<24} {version.created_at}  {version.uri}"
        for version in versions
    ]
    lines += [f"champion: {parity.sentence()}"] if parity else []
    value = {
        "champion": champion,
        "parity": parity.model_dump() if parity else None,
        "versions": [version.model_dump() for version in versions],
    }
    _answer(value, as_json=as_json, lines=lines or [f"no version under {home}; `tailorbird run {recipe}` makes one"])


@app.command()
@fails_clearly
def verify(uri: RunOrVersion, as_json: AsJson = False) -> None:
    """Recomputes a verdict from the stored predictions, and checks every file's hash; 1 where it does not hold.

    Example: tailorbird verify s3://models/icd10-chapters/runs/0f3a9c21d4e7
    """
    from verify import verify as find_faults

    faults = find_faults(uri)
    lines = [*faults, f"the verdict at {uri} {'does not hold' if faults else 'holds'}"]
    _answer({"uri": uri, "holds": not faults, "faults": list(faults)}, as_json=as_json, lines=lines)
    if faults:
        raise typer.Exit(FAILURE)


@app.command()
@fails_clearly
def report(uri: RunOrVersion, as_json: AsJson = False) -> None:
    """Writes report.html and MODEL_CARD.md again from evidence.json.

    Example: tailorbird report s3://models/icd10-chapters/runs/0f3a9c21d4e7
    """
    from verify import restore_pages

    changed = restore_pages(uri)
    lines = [f"{uri}/{name} is written again" for name in changed] or ["both pages are what evidence.json gives"]
    _answer({"uri": uri, "changed": list(changed)}, as_json=as_json, lines=lines)


@app.command()
@fails_clearly
def compare(
    first: RunOrVersion,
    second: Annotated[str, typer.Argument(metavar="URI", help="What it is compared with.")],
    as_json: AsJson = False,
) -> None:
    """Two versions, or two runs' candidates, on the same test rows, from their stored predictions.

    Example: tailorbird compare s3://models/icd10-chapters/versions/full-1 s3://models/icd10-chapters/versions/lora-2
    """
    from evaluation.beside import compare_stored

    found = compare_stored(first, second=second)
    _answer(found.to_dict(), as_json=as_json, lines=found.lines())


@app.command()
@fails_clearly
def submit(
    recipe: RecipePath,
    overrides: Overrides = None,
    address: Address = None,
    follow: Follow = False,
    again: Annotated[bool, typer.Option("--again", help="Start it even though it has succeeded.")] = False,
    as_json: AsJson = False,
) -> None:
    """`run` as a job on a cluster, with the code that lies here; asked twice, one job runs.

    Example: tailorbird submit recipes/icd10_demo.yaml tuning.num_trials=4 --address http://127.0.0.1:8265 --follow
    """
    from cluster import jobs
    from cluster.session import use_dashboard

    loaded = _recipe(recipe, overrides)
    use_dashboard(address)
    asked = jobs.submit(loaded, root=Path(__file__).parent, again=again)
    if follow:
        print(asked.line(), file=sys.stderr)
        _follow(asked.job.id, as_json=as_json, value={"how": asked.how})
    next_step = f"its log: tailorbird jobs logs {asked.job.id} --follow"
    _answer(asked.job.to_dict() | {"how": asked.how}, as_json=as_json, lines=[asked.line(), next_step])


@app.command()
@fails_clearly
def render(
    recipe: RecipePath,
    to: Annotated[str, typer.Option("--to", help="rayjob, rayservice, promote, prove, watch, serve or submit.")],
    overrides: Overrides = None,
    base: Annotated[
        str | None,
        typer.Option(help="A manifest to write into, as `kubectl kustomize` gives it; - reads it from input."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A file to write, instead of standard output.")] = None,
    as_json: AsJson = False,
) -> None:
    """The recipe as a door's file: KubeRay's manifests, a configuration for `serve deploy`, a body for Ray's job API.

    Example: kubectl kustomize k8s/overlays/prod/job | tailorbird render recipes/my_task.yaml --to rayjob --base -
    """
    from render import render as render_door

    read = base if base is None else sys.stdin.read() if base == "-" else _text_of(base)
    done = render_door(_recipe(recipe, overrides), to=to, base=read)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    if output is not None:
        _write(output, done.text)
    value = {"to": to, "text": done.text, "notes": list(done.notes)}
    _answer(value, as_json=as_json, lines=[done.text.removesuffix("\n")] if output is None else [f"written: {output}"])


@jobs_app.command("list")
@fails_clearly
def list_jobs(address: Address = None, as_json: AsJson = False) -> None:
    """The jobs that were submitted to the cluster, the latest last, with their exit codes.

    Example: tailorbird jobs list --json
    """
    from cluster import jobs
    from cluster.session import use_dashboard

    use_dashboard(address)
    found = jobs.list_jobs()
    lines = [job.line() for job in found] or ["no job was submitted; `tailorbird submit RECIPE` does it"]
    _answer({"jobs": [job.to_dict() for job in found]}, as_json=as_json, lines=lines)


@jobs_app.command("status")
@fails_clearly
def job_status(job: JobId, address: Address = None, as_json: AsJson = False) -> None:
    """A job as Ray tells of it.

    Example: tailorbird jobs status icd10-demo-0f3a9c21d4e7
    """
    from cluster import jobs
    from cluster.session import use_dashboard

    use_dashboard(address)
    found = jobs.read_job(job)
    _answer(found.to_dict(), as_json=as_json, lines=[found.line(), found.message])


@jobs_app.command()
@fails_clearly
def logs(job: JobId, address: Address = None, follow: Follow = False, as_json: AsJson = False) -> None:
    """What a job has said; with `--follow` what it says until its end, which becomes this command's.

    Example: tailorbird jobs logs icd10-demo-0f3a9c21d4e7 --follow
    """
    from cluster import jobs
    from cluster.session import use_dashboard

    use_dashboard(address)
    if follow:
        _follow(job, as_json=as_json, value={})
    text = jobs.read_log(jobs.read_job(job).id)
    _answer({"job": job, "log": text}, as_json=as_json, lines=[text.rstrip("\n")])


@jobs_app.command("stop")
@fails_clearly
def stop_job(job: JobId, address: Address = None, as_json: AsJson = False) -> None:
    """Ends a job; submitted again, it goes on from what is done.

    Example: tailorbird jobs stop icd10-demo-0f3a9c21d4e7
    """
    from cluster import jobs
    from cluster.session import use_dashboard

    use_dashboard(address)
    found = jobs.stop(job)
    _answer(found.to_dict(), as_json=as_json, lines=[found.line()])


@audit_app.command("export")
@fails_clearly
def export_audit(
    recipe: RecipePath,
    to: Annotated[str, typer.Option(help="Where the Parquet goes, s3:// or file://.")],
    days: Annotated[str, typer.Option(help="First and last day, YYYY-MM-DD:YYYY-MM-DD.")],
    rows: Annotated[int, typer.Option(help="Answers to draw.")] = 500,
    as_json: AsJson = False,
) -> None:
    """Draws answers by lot, for people to label: Parquet with an empty column `label`.

    Example: tailorbird audit export recipes/icd10_demo.yaml --days 2026-03-01:2026-03-07 --to file:///tmp/audit.parquet
    """
    from monitoring.audit import days_between
    from watching import draw_audit

    num = draw_audit(_recipe(recipe), days=days_between(days), num_rows=rows, to=to)
    _answer({"rows": num, "to": to}, as_json=as_json, lines=[f"{num} answers to label in {to}"])


@audit_app.command("import")
@fails_clearly
def import_audit(
    recipe: RecipePath,
    uri: Annotated[str, typer.Argument(metavar="URI", help="The exported Parquet with labels, s3:// or file://.")],
    as_json: AsJson = False,
) -> None:
    """Keeps the labels that people gave; `watch` and `reevaluate` read them.

    Example: tailorbird audit import recipes/icd10_demo.yaml file:///tmp/audit.parquet
    """
    from monitoring.audit import take_in
    from watching import champion_of

    loaded = _recipe(recipe)
    kept, num = take_in(loaded, uri, classes=champion_of(loaded).classes)
    _answer({"labels": num, "kept": kept}, as_json=as_json, lines=[f"{num} labels are kept in {kept}"])


@data_app.command()
@fails_clearly
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
    from data.icd10 import write

    prefix = prefix or ("s3://lake/icd10_coder" if coder else "s3://lake/icd10")
    counts = write(prefix, coder=coder)
    _answer(
        {"prefix": prefix, "rows": counts},
        as_json=as_json,
        lines=[f"{prefix}/{name}: {count} rows" for name, count in counts.items()],
    )


@data_app.command()
@fails_clearly
def put(
    folder: Annotated[Path, typer.Argument(help="A local folder with Parquet files.")],
    prefix: Annotated[str, typer.Argument(help="Where to.")],
    as_json: AsJson = False,
) -> None:
    """Uploads a folder of Parquet files.

    Example: tailorbird data put ./banking77 s3://lake/banking77
    """
    from data.put import put_folder

    uris = put_folder(folder, prefix)
    _answer({"files": uris}, as_json=as_json, lines=uris)


@stack_app.command()
@fails_clearly
def up(
    folder: Folder = None,
    num_cpus: Annotated[int | None, typer.Option(help="CPUs Ray may use; by default all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Starts the stack, or finds it running.

    Example: tailorbird stack up
    """
    from cluster import stack

    state = stack.up(_folder(folder), num_cpus=num_cpus)
    _answer(state.model_dump(), as_json=as_json, lines=_stack_lines(state))


@stack_app.command()
@fails_clearly
def down(folder: Folder = None, as_json: AsJson = False) -> None:
    """Stops the stack; its data stay.

    Example: tailorbird stack down
    """
    from cluster import stack

    stack.down(_folder(folder))
    _answer({"running": False}, as_json=as_json, lines=["the stack is down; its data stay"])


@stack_app.command()
@fails_clearly
def status(
    folder: Folder = None,
    export: Annotated[bool, typer.Option("--export", help="Print shell lines that set its environment.")] = False,
    as_json: AsJson = False,
) -> None:
    """Whether the stack runs, and where.

    Example: eval "$(tailorbird stack status --export)"
    """
    from cluster import stack

    state = stack.status(_folder(folder))
    if state is None:
        if export:
            raise ValueError("no stack is running; `tailorbird stack up` starts one")
        _answer({"running": False}, as_json=as_json, lines=["no stack is running; `tailorbird stack up` starts one"])
        return
    lines = [f"export {name}={value}" for name, value in state.environment().items()] if export else _stack_lines(state)
    _answer({"running": True} | state.model_dump(), as_json=as_json, lines=lines)


@contextmanager
def _working(path: str, overrides: list[str] | None, *, as_json: bool) -> Iterator[tuple[Recipe, Any]]:
    """The recipe, and a display of progress, on a connected Ray."""
    from cluster.progress import display
    from cluster.session import connect

    recipe = _recipe(path, overrides)
    with connect(), display(Console(stderr=as_json)) as show:
        yield recipe, show


def _follow(job_id: str, *, as_json: bool, value: dict[str, Any]) -> None:
    """Shows a job's log to its end and exits with the job's code; an interrupt leaves the job as it is."""
    from cluster import jobs

    stream = sys.stderr if as_json else sys.stdout
    try:
        job = jobs.follow(job_id, write=lambda text: print(text, end="", file=stream, flush=True))
    except KeyboardInterrupt:
        shows, ends = f"tailorbird jobs logs {job_id} --follow", f"tailorbird jobs stop {job_id}"
        print(f"\n{job_id} goes on; `{shows}` shows it, `{ends}` ends it", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    code = job.exit_code
    assert code is not None  # a job that is followed is over
    _answer(job.to_dict() | value, as_json=as_json, lines=[job.line()])
    raise typer.Exit(code)


def _recipe(path: str, overrides: list[str] | None = None) -> Recipe:
    changes = tuple(overrides or ())
    if "://" not in path:
        return load_recipe(path, overrides=changes)
    from cluster import storage

    return parse_recipe(storage.read_bytes(path), path=path, overrides=changes)


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}; give a file, or - for standard input") from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}; name a file that can be written") from None


def _folder(given: Path | None) -> Path:
    from cluster.stack import default_folder

    return given or default_folder()


def _stack_lines(state: Any) -> list[str]:
    return [
        f"S3 {state.s3_endpoint}",
        f"Ray {state.ray_address}, dashboard {state.dashboard_url}",
        f"Serve http://127.0.0.1:{state.serve_port} (once something is served)",
    ]


def _answer(value: dict[str, Any], *, as_json: bool, lines: list[str]) -> None:
    for line in [json.dumps(value)] if as_json else lines:
        print(line)


def _stop(error: Exception, *, code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the command `tailorbird`."""
    app()


if __name__ == "__main__":
    main()
