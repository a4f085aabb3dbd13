"""Make a report for each past day of the request log, and remake it if labels arrive late."""

from collections.abc import Iterable, Iterator
from datetime import date, timedelta

from cluster.progress import ProgressReporter
from cluster.remote import map_remote
from tailorbird import storage
from tailorbird.config.monitoring import WINDOW_DAYS
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TASKS
from tailorbird.monitoring.drift_reference import read_reference
from tailorbird.monitoring.label_audit import audit_files
from tailorbird.monitoring.log_windows import LogDays, span
from tailorbird.monitoring.report import Report
from tailorbird.monitoring.report_window import ReportWindow, ServedVersions
from tailorbird.monitoring.request_log import require_request_log
from tailorbird.monitoring.traffic import WatchedVersions
from tailorbird.registry.draws import draw_secret
from tailorbird.storage.paths import TaskPaths


def make_reports(
    recipe: Recipe, served: ServedVersions, *, today: date, progress: ProgressReporter
) -> list[Report]:
    """Return the reports of the champion's days before `today`, from the first day with logged
    answers, in order.

    The report of a day covers the `WINDOW_DAYS` days up to it. It is final after
    `monitoring.label_days`; until then it is remade if new answers or labels arrive. New labels
    alone do not change drift and the counterfactual gate, which need no labels. A call reads each
    day of the log at most once.

    Raises MonitoringError if the recipe has no request log, ReferenceMissing, and TrafficError for
    files that do not belong to a log.
    """
    log = require_request_log(recipe)
    paths = TaskPaths(recipe.task_uri)
    reference = read_reference(recipe.task_uri, served.champion)
    challenger = served.challenger.digest if served.challenger else None
    versions = watched_versions(recipe, champion=served.champion.digest, challenger=challenger)
    audits = audit_files(recipe.task_uri)
    secret = draw_secret(recipe.task_uri)
    days = LogDays(log.rstrip("/"), versions, audits=audits, secret=secret, map_parts=map_remote)
    label_days = recipe.monitoring.label_days
    stored = {
        day: _read_report(paths, day)
        for day in report_days(days.answers, since=served.since, before=today)
    }
    reports: dict[date, Report] = {}
    for day, report in stored.items():
        is_final = day + timedelta(days=label_days + 1) < today
        if report is None or report.digest != served.champion.digest or not is_final:
            days.since = min(days.since, day - timedelta(days=WINDOW_DAYS - 1))
            window = ReportWindow(
                recipe=recipe,
                days=days,
                served=served,
                reference=reference,
                day=day,
                earlier=reports,
            )
            previous = report
            report = window.report(previous)
            if report != previous:
                _store(paths, report, progress=progress)
        reports[day] = report
    return list(reports.values())


def watched_versions(recipe: Recipe, *, champion: str, challenger: str | None) -> WatchedVersions:
    """Return what is read about these versions (digests)."""
    return WatchedVersions(
        champion=champion,
        challenger=challenger,
        groups=recipe.data.groups,
        task=recipe.task,
        metric=None if TASKS[recipe.task].has_classes else recipe.evaluation.metric,
        answers=recipe.evaluation.answers,
    )


def read_reports(task_uri: str) -> list[Report]:
    """Return all stored reports in order of their days."""
    uris = storage.list_files(TaskPaths(task_uri).monitoring, missing_ok=True)
    return [
        Report.model_validate_json(storage.read_bytes(uri)) for uri in uris if uri.endswith(".json")
    ]


def report_days(answered: Iterable[str], *, since: date, before: date) -> Iterator[date]:
    """Yield the days before `before`, from the first day since `since` with answers; without
    answers, from `since`."""
    first = min((day for day in map(date.fromisoformat, answered) if day >= since), default=since)
    return span(first, before - timedelta(days=1))


def _read_report(paths: TaskPaths, day: date) -> Report | None:
    uri = paths.daily_report(day.isoformat())
    if storage.exists(uri):
        return Report.model_validate_json(storage.read_bytes(uri))
    return None


def _store(paths: TaskPaths, report: Report, *, progress: ProgressReporter) -> None:
    storage.write_bytes(paths.daily_report(report.day), report.model_dump_json(indent=1).encode())
    alarms = "; ".join(report.alarms) or "no alarm"
    progress.note(f"{report.day}: {report.rows:,} rows, {report.num_labelled:,} labelled, {alarms}")
