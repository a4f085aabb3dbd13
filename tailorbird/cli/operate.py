"""Commands for a service in operation."""

from pathlib import Path
from typing import Annotated

import typer

from tailorbird.cli import options
from tailorbird.cli.next_steps import show_page

audit_app = typer.Typer(no_args_is_help=True, help="Label or score a random sample of answers.")


def watch(
    recipe: options.RecipePath,
    day: Annotated[
        str | None, typer.Option(help="Report on the days before YYYY-MM-DD. Default: today (UTC).")
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(help="Also write the metrics to this file (Prometheus text format)."),
    ] = None,
) -> None:
    """Monitor the champion: drift, labels, groups and the challenger. Exit with 3 if a
    re-evaluation is recommended.

    Example: tailorbird watch recipes/icd10_demo.yaml
    """
    with options.activity("reading the recipe"):
        from tailorbird.monitoring.request_log import require_request_log

        require_request_log(options.read_recipe(recipe))
    with options.connected_recipe(recipe, None) as (loaded, progress):
        from tailorbird.operate.watch import parse_today, watch_champion

        result = watch_champion(loaded, today=parse_today(day), progress=progress)
    if metrics is not None:
        options.write_file(metrics, result.metrics.encode())

    recommendation = result.recommendation
    lines = [f"re-evaluation recommended: {reason}" for reason in recommendation.reasons]
    if not lines:
        lines = ["no re-evaluation is recommended"]

    exclude = {"challenger": {"outcomes"}}
    value = {
        "reevaluate": recommendation.reevaluate,
        "reasons": recommendation.reasons,
        "challenger": None,
        "challenger_requests": None,
        "page": result.page,
        "reports": [report.model_dump(mode="json", exclude=exclude) for report in result.reports],
    }

    decision = recommendation.challenger
    if decision is not None:
        lines.append(f"challenger: {decision.decision}; {decision.reason}")
        value["challenger"] = decision.decision
        value["challenger_requests"] = len(decision.overall)

    lines += [f"page: {result.page}", f"to open it: {show_page(result.page)}"]
    options.print_result(value, lines)
    if recommendation.reevaluate:
        raise typer.Exit(options.ExitCode.REEVALUATION_DUE)


def reevaluate(recipe: options.RecipePath, overrides: options.Overrides = None) -> options.Result:
    """Re-evaluate the champion on audited rows. If its verdict no longer holds, propose a rollback
    or perform it.

    Example: tailorbird reevaluate recipes/icd10_demo.yaml monitoring.rollback=automatic
    """
    with options.connected_recipe(recipe, overrides) as (loaded, progress):
        from tailorbird.operate.reevaluate import reevaluate_champion

        result = reevaluate_champion(loaded, progress=progress)
    value = {
        "evidence": result.uri,
        "verdict": result.verdict.model_dump(mode="json"),
        "holds": result.verdict.holds,
        "rollback_uri": result.rollback_uri,
        "champion": result.champion.uri,
    }
    return value, result.lines(recipe)


@audit_app.command("export")
@options.with_json
def export_audit(
    recipe: options.RecipePath,
    to: Annotated[str, typer.Option(help="Parquet file to write: s3:// or file:// URI.")],
    days: Annotated[str, typer.Option(help="First and last day: YYYY-MM-DD:YYYY-MM-DD.")],
    rows: Annotated[int, typer.Option(help="Number of answers to draw.")] = 500,
    with_answers: Annotated[
        bool,
        typer.Option(
            "--with-answers", help="Include the model's answers, for people to score (chat only)."
        ),
    ] = False,
) -> options.Result:
    """Draw a random sample of answers for people to label.

    The Parquet file has an empty column to fill in: `label` or, for chat, `correct_answer` or
    `score` (0 to 1).

    Example: tailorbird audit export recipes/icd10_demo.yaml --days 2026-03-01:2026-03-07 --to
    file:///tmp/audit.parquet
    """
    with options.activity("drawing a sample of the request log"):
        from tailorbird.monitoring.label_audit import parse_days
        from tailorbird.operate.watch import draw_audit

        num = draw_audit(
            options.read_recipe(recipe),
            days=parse_days(days),
            num_rows=rows,
            to=to,
            with_answers=with_answers,
        )
    return {"rows": num, "to": to}, [f"wrote {num} answers to label to {to}"]


@audit_app.command("import")
@options.with_json
def import_audit(
    recipe: options.RecipePath,
    uri: Annotated[
        str,
        typer.Argument(
            metavar="URI", help="Exported Parquet file with labels: s3:// or file:// URI."
        ),
    ],
) -> options.Result:
    """Store the labels of an exported sample, for `tailorbird watch` and `tailorbird reevaluate`.

    Example: tailorbird audit import recipes/icd10_demo.yaml file:///tmp/audit.parquet
    """
    with options.activity(f"storing the labels of {uri}"):
        from tailorbird.monitoring.label_audit import import_labels
        from tailorbird.operate.watch import champion_of

        loaded = options.read_recipe(recipe)
        stored, num = import_labels(loaded, uri, classes=champion_of(loaded).classes)
    return {"labels": num, "kept": stored}, [f"stored {num} labels in {stored}"]
