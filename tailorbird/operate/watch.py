"""Monitor a served champion: write daily reports and a recommendation."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np

from cluster.progress import ProgressReporter
from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.prediction_store import load_predictions
from tailorbird.evaluation.predictions import VerdictRefused
from tailorbird.evaluation.report.evidence import ROLES
from tailorbird.monitoring.daily_report import make_reports, read_reports
from tailorbird.monitoring.drift_reference import ensure_reference
from tailorbird.monitoring.label_audit import export_answers
from tailorbird.monitoring.monitored_tasks import MONITORED_TASKS
from tailorbird.monitoring.paired_decision import ChallengerDecision
from tailorbird.monitoring.quality import ALL, GroupAccuracy, group_accuracies
from tailorbird.monitoring.recommendation import (
    Recommendation,
    challenger_course,
    challenger_decision,
    recommend,
)
from tailorbird.monitoring.render import render_metrics, render_page
from tailorbird.monitoring.report import Report
from tailorbird.monitoring.report_window import ServedVersions
from tailorbird.monitoring.request_log import MonitoringError, require_request_log
from tailorbird.operate.reevaluation_evidence import (
    ReevaluationEvidence,
    champion_evidence,
    read_reevaluations,
)
from tailorbird.registry.champion import Champion, champion_version, read_champion
from tailorbird.registry.versions import ModelVersion, now, read_pinned
from tailorbird.registry.watch_record import ChallengerRecord, WatchRecord
from tailorbird.release.serving import challenger_version
from tailorbird.storage.paths import TaskPaths


@dataclass(frozen=True)
class WatchResult:
    """Reports of the champion's days, with the recommendation."""

    reports: list[Report]
    recommendation: Recommendation
    page: str  # URI of the HTML page
    metrics: str  # in the Prometheus text format


def watch_champion(recipe: Recipe, *, today: date, progress: ProgressReporter) -> WatchResult:
    """Report on the days before `today` (UTC), and store a page, metrics and the recommendation.

    The first watch after a promotion builds the drift reference from the recipe's validation rows,
    because a promotion may run without a Ray cluster. Raises MonitoringError if there is no
    champion or no request log; TrafficError and StorageError.
    """
    require_request_log(recipe)
    champion = _champion(recipe)
    version = champion_version(champion)
    baseline = read_pinned(champion.baseline) if champion.baseline else None
    challenger = _challenger(recipe, champion=version)
    progress.stage(f"the request log of {version.version}")
    ensure_reference(recipe, version, made_at=now())
    since = champion.since[:10]
    if MONITORED_TASKS[recipe.task].compares_answers:
        tested = {}
    else:
        tested = _tested(recipe, champion)
    served = ServedVersions(
        version,
        baseline=baseline,
        challenger=challenger,
        since=date.fromisoformat(since),
        tested=tested,
    )
    make_reports(recipe, served, today=today, progress=progress)
    reevaluations = list(read_reevaluations(recipe.task_uri, champion=champion).values())
    stored = read_reports(recipe.task_uri)
    reports = [
        report for report in stored if report.digest == version.digest and report.day >= since
    ]
    expires = _expires_at(champion, reevaluations=reevaluations)
    last = reevaluations[-1].at if reevaluations else None
    decision = challenger_record = None
    if challenger is not None:
        decision = challenger_decision(
            reports, digest=challenger.digest, alpha=recipe.evaluation.alpha
        )
        challenger_record = _challenger_record(
            recipe, reports, challenger=challenger, decision=decision
        )
    recommendation = recommend(
        reports, expires=expires, today=today, since=last, challenger=decision
    )
    paths = TaskPaths(recipe.task_uri)
    page = render_page(recipe.name, reports, recommendation=recommendation)
    metrics = render_metrics(recipe.name, reports, recommendation=recommendation)
    storage.write_bytes(paths.monitoring_page, page.encode())
    storage.write_bytes(paths.metrics, metrics.encode())
    record = WatchRecord(
        at=now(),
        version=version.version,
        digest=version.digest,
        reevaluate=recommendation.reevaluate,
        reasons=recommendation.reasons,
        expires_at=expires,
        challenger=challenger_record,
    )
    storage.write_bytes(paths.watch, record.model_dump_json(indent=1).encode())
    return WatchResult(
        reports=reports,
        recommendation=recommendation,
        page=paths.monitoring_page,
        metrics=metrics,
    )


def parse_today(day: str | None) -> date:
    """Return the date of `--day`, `YYYY-MM-DD`, or the current date (UTC) for None.

    Raises MonitoringError for another format, and for a date after tomorrow, whose days have no
    traffic yet.
    """
    today = datetime.now(UTC).date()
    if day is None:
        return today
    try:
        parsed = datetime.strptime(day, "%Y-%m-%d").date()
    except ValueError:
        raise MonitoringError(f"--day is {day!r}; give a date as YYYY-MM-DD") from None
    if parsed > today + timedelta(days=1):
        raise MonitoringError(
            f"--day is {day}, but today is {today} (UTC); give a date up to tomorrow"
        )
    return parsed


def champion_of(recipe: Recipe) -> ModelVersion:
    """Return the champion; raise MonitoringError if there is none."""
    return champion_version(_champion(recipe))


def draw_audit(
    recipe: Recipe, *, days: Sequence[date], num_rows: int, to: str, with_answers: bool = False
) -> int:
    """Draw answers of the champion to label; see `monitoring.label_audit`."""
    return export_answers(
        recipe,
        digest=champion_of(recipe).digest,
        days=days,
        num_rows=num_rows,
        to=to,
        with_answers=with_answers,
    )


def _tested(recipe: Recipe, champion: Champion) -> dict[str, GroupAccuracy]:
    """Return the champion's scores in the test of its run, of all rows and by group.

    The result is empty without a run that tested it with this metric.
    """
    evidence = champion_evidence(champion)
    if evidence is None:
        return {}
    tested = {version.digest: role for role, version in evidence.versions.items() if role in ROLES}
    if champion.digest not in tested:
        return {}
    table = load_predictions(f"{champion.run}/predictions/{tested[champion.digest]}.parquet")
    try:
        scores = table.per_row(recipe.evaluation.metric)
    except VerdictRefused:
        return {}
    if table.clusters is None:
        keys = np.arange(len(table))
    else:
        keys = np.unique(table.clusters, return_inverse=True)[1]
    return {ALL: GroupAccuracy.of(scores, keys=keys)} | group_accuracies(
        scores, groups=table.groups, keys=keys
    )


def _champion(recipe: Recipe) -> Champion:
    stored = read_champion(recipe.task_uri)
    if stored is None:
        raise MonitoringError(
            f"{recipe.task_uri} has no champion; run `tailorbird promote RECIPE` first"
        )
    return stored[0]


def _challenger(recipe: Recipe, *, champion: ModelVersion) -> ModelVersion | None:
    if recipe.serving.challenger is None:
        return None
    version = challenger_version(recipe.serving.challenger.version, task_uri=recipe.task_uri)
    if version.digest == champion.digest:
        return None
    return version


def _challenger_record(
    recipe: Recipe,
    reports: Sequence[Report],
    *,
    challenger: ModelVersion,
    decision: ChallengerDecision,
) -> ChallengerRecord:
    alpha = recipe.evaluation.alpha
    return ChallengerRecord(
        version=challenger.version,
        digest=challenger.digest,
        decision=decision.decision.value,
        reason=decision.reason,
        alpha=alpha,
        days=challenger_course(reports, digest=challenger.digest, alpha=alpha),
    )


def _expires_at(champion: Champion, *, reevaluations: Sequence[ReevaluationEvidence]) -> str | None:
    """Return the expiry of the verdict: the run's, or a later one of a re-evaluation that upheld
    it."""
    evidence = champion_evidence(champion)
    if evidence is None:
        return None
    renewed = [renewal.expires_at for renewal in reevaluations if renewal.expires_at]
    return max([evidence.expires_at, *renewed], key=datetime.fromisoformat)
