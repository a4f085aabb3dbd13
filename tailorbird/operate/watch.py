"""Beside a service: the watch over its champion, what it calls for, and the log's old days, which are deleted."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from cluster.progress import Show
from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.monitoring.daily_report import Serving, WatchError, read_reports
from tailorbird.monitoring.daily_report import watch as watch_log
from tailorbird.monitoring.drift_reference import remember
from tailorbird.monitoring.label_audit import export
from tailorbird.monitoring.log_reader import day_of
from tailorbird.monitoring.recommendation import Advice, advise
from tailorbird.monitoring.render import gauges, page
from tailorbird.monitoring.report import Report
from tailorbird.registry.champion import Champion, champion_version, read_champion
from tailorbird.registry.versions import ModelVersion, now, read_version
from tailorbird.release.serving import challenger_version


@dataclass(frozen=True)
class Watched:
    """What a watch found."""

    reports: list[Report]
    advice: Advice
    page: str
    """URI of the page for people."""
    gauges: str
    """Prometheus' text format."""
    deleted: int
    """Files of the log that were older than `monitoring.keep_days`."""


def watch_champion(recipe: Recipe, *, today: date, show: Show) -> Watched:
    """Reports of the days before `today` (UTC), and what they call for; page and gauges lie beside them.

    What traffic is compared with is made of the recipe's validation rows at the first watch after a promotion, which
    itself may be made where there is no Ray. Raises WatchError where nothing serves or the recipe keeps no log,
    TrafficError, StorageError.
    """
    champion = _champion(recipe)
    version = champion_version(champion)
    pretrained = read_version(champion.pretrained.uri) if champion.pretrained else None
    trial = _trial(recipe, champion=version)
    show({"event": "stage", "text": f"the request log of {version.version}"})
    remember(recipe, version, made_at=now())
    watch_log(
        recipe, Serving(version, pretrained, trial, date.fromisoformat(champion.since[:10])), today=today, show=show
    )
    again, since = _reevaluations(recipe.task_uri, champion=champion), champion.since[:10]
    reports = [one for one in read_reports(recipe.task_uri) if one.digest == version.digest and one.day >= since]
    advice = advise(
        reports,
        expires=_expires(champion, reevaluations=again),
        today=today,
        trial=trial.digest if trial else None,
        alpha=recipe.evaluation.alpha,
        since=again[-1]["at"] if again else None,
    )
    uri, told = f"{recipe.task_uri}/monitoring/monitoring.html", gauges(recipe.name, reports, advice=advice)
    storage.write_bytes(uri, page(recipe.name, reports, advice=advice).encode())
    storage.write_bytes(f"{recipe.task_uri}/monitoring/metrics.prom", told.encode())
    return Watched(reports, advice, uri, told, forget(recipe, today=today))


def forget(recipe: Recipe, *, today: date) -> int:
    """Deletes the log's days that are older than `monitoring.keep_days`; how many files that were."""
    log, keep = recipe.serving.request_log, recipe.monitoring.keep_days
    if log is None or keep is None:
        return 0
    first = (today - timedelta(days=keep)).isoformat()
    prefixes = [f"{log.rstrip('/')}/{kind}" for kind in ("answers", "feedback")]
    files = [uri for prefix in prefixes if storage.exists(prefix) for uri in storage.list_files(prefix)]
    old = [uri for uri in files if (day_of(uri) or first) < first]
    for uri in old:
        storage.delete(uri)
    return len(old)


def champion_of(recipe: Recipe) -> ModelVersion:
    """The version that serves; WatchError where none does."""
    return champion_version(_champion(recipe))


def draw_audit(recipe: Recipe, *, days: Sequence[date], num_rows: int, to: str) -> int:
    """Draws answers of the champion, and of a version on trial that answers in its stead; see `monitoring.audit`."""
    champion = champion_of(recipe)
    trial = _trial(recipe, champion=champion)
    tried = trial.digest if trial else None
    return export(recipe, digest=champion.digest, trial=tried, days=days, num_rows=num_rows, to=to)


def _champion(recipe: Recipe) -> Champion:
    found = read_champion(recipe.task_uri)
    if found is None:
        raise WatchError(f"{recipe.task_uri} has no champion, so nothing serves; `tailorbird promote RECIPE` makes one")
    return found[0]


def _trial(recipe: Recipe, *, champion: ModelVersion) -> ModelVersion | None:
    if recipe.serving.challenger is None:
        return None
    version = challenger_version(recipe.serving.challenger.version, task_uri=recipe.task_uri)
    return None if version.digest == champion.digest else version


def _reevaluations(task_uri: str, *, champion: Champion) -> list[dict[str, Any]]:
    """Evidence of each time that this champion's verdict was made again since it serves, in order."""
    prefix = f"{task_uri}/reevaluations"
    files = storage.list_files(prefix) if storage.exists(prefix) else []
    told = [storage.read_json(uri) for uri in sorted(files) if uri.endswith("/evidence.json")]
    ours = (champion.digest, champion.since)
    return [one for one in told if (one["champion"]["digest"], one["champion"]["since"]) == ours]


def _expires(champion: Champion, *, reevaluations: list[dict[str, Any]]) -> str | None:
    """When the verdict of the run ends, or the last one that upheld it."""
    if not champion.run or not storage.exists(f"{champion.run}/evidence.json"):
        return None
    expires: str = storage.read_json(f"{champion.run}/evidence.json")["expires_at"]
    renewed = [one["expires_at"] for one in reevaluations if one["expires_at"]]
    last: str = max([expires, *renewed], key=datetime.fromisoformat)
    return last
