"""The job: from the request log to a report for each day that is over, made once, and again where labels came late."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import numpy as np

from cluster import storage
from cluster.progress import Show
from cluster.session import remotely
from data.read import Rows
from evaluation.behaviour import counterfactual_gate
from evaluation.gates import Gate
from evaluation.perturb import counterfactuals
from evaluation.predict import predict_rows
from models.registry import ModelVersion, now
from monitoring.drift import LEAST_ROWS, Asked, DriftError, drift_signs
from monitoring.quality import groups_now, quality, trial_groups, trial_pairs
from monitoring.reference import Reference, embedded, read_reference
from monitoring.report import Counted, Report, TrialPairs, without_traffic
from monitoring.traffic import (
    CANARY,
    CHAMPION,
    OUTCOME_ARRAYS,
    SHADOW,
    Outcomes,
    Sample,
    Traffic,
    Watched,
    days_of,
    files_of,
    read_labels,
    read_traffic,
)
from recipes.schema import CounterfactualGate, GroupsGate, Recipe

FLIPPED_TEXTS = 500
"""Sampled texts in which names, sexes and ages are swapped."""


class WatchError(ValueError):
    """A task that cannot be watched; the message says why, and what to do."""


@dataclass(frozen=True)
class Serving:
    """Who serves, as the registry says."""

    champion: ModelVersion
    pretrained: ModelVersion | None
    """What it was compared with, if that is untouched."""
    trial: ModelVersion | None
    since: date
    """When the champion began to serve, UTC; days before are its forerunners', and keep their reports."""


def watch(recipe: Recipe, serving: Serving, *, today: date, show: Show) -> list[Report]:
    """Reports of every day of the champion's before `today` of which the log has answers, or that lies between two such
    days; in order.

    A day's report covers `watching.window_days` days up to it, and lies at `<home>/monitoring/<day>.json`. One whose
    inputs are the same is not made again, and none is once no label is waited for any more. Raises WatchError where the
    recipe keeps no log, ReferenceMissing, and TrafficError for files that are none of a log.
    """
    log = recipe.serving.request_log
    if log is None or recipe.task != "classification":
        raise WatchError(
            "only a classification is watched so far: of answers in words nothing is compared yet"
            if recipe.task != "classification"
            else "nothing can be watched without a log: give serving.request_log a prefix, and serve again"
        )
    log = log.rstrip("/")
    reference = read_reference(recipe.home, serving.champion)
    reports = []
    for day in _days(log, since=serving.since, before=today):
        made = _read_report(recipe.home, day)
        over = day + timedelta(days=recipe.watching.label_days + 1) < today
        if made is not None and made.digest == serving.champion.digest and over:
            reports.append(made)
            continue
        window = _Window(recipe, log, serving, reference, day)
        if made is None or made.inputs != window.inputs:
            made = window.report()
            storage.write_bytes(f"{recipe.home}/monitoring/{day}.json", made.to_json())
            show({"event": "note", "text": f"{day}: {_told(made)}"})
        reports.append(made)
    return reports


def read_reports(home: str) -> list[Report]:
    """All that were made, in order."""
    prefix = f"{home}/monitoring"
    found = storage.list_files(prefix) if storage.exists(prefix) else []
    return [Report.model_validate_json(storage.read_bytes(uri)) for uri in sorted(found) if uri.endswith(".json")]


def _days(log: str, *, since: date, before: date) -> Iterator[date]:
    days = [day for name in days_of(log) if (day := date.fromisoformat(name)) >= since]
    day = min(days, default=before)
    while day < before and day <= max(days):
        yield day
        day += timedelta(days=1)


def _read_report(home: str, day: date) -> Report | None:
    uri = f"{home}/monitoring/{day}.json"
    return Report.model_validate_json(storage.read_bytes(uri)) if storage.exists(uri) else None


def _told(report: Report) -> str:
    alarms = f", {'; '.join(report.alarms)}" if report.alarms else ", nothing unusual"
    return f"{report.rows:,} rows, {report.feedback.labelled + report.audit.labelled:,} labelled{alarms}"


class _Window:
    """The days that one report is about."""

    def __init__(self, recipe: Recipe, log: str, serving: Serving, reference: Reference, day: date) -> None:
        self.recipe, self.serving, self.reference, self.day = recipe, serving, reference, day
        length, wait = recipe.watching.window_days, recipe.watching.label_days
        self.first = day - timedelta(days=length - 1)
        self.answers = files_of(log, "answers", _span(self.first, day))
        self.told = files_of(log, "feedback", _span(self.first, day + timedelta(days=wait)))
        self.audits = audits_of(recipe.home)
        trial = serving.trial.digest if serving.trial else None
        self.watched = Watched(serving.champion.digest, trial, recipe.data.groups)
        asked = [*self.answers, *self.told, *self.audits, trial, serving.champion.digest, reference.made_at]
        section = recipe.watching.model_dump(mode="json", exclude={"rollback", "keep_days"})
        self.inputs = hashlib.sha256(json.dumps([asked, section, recipe.data.groups]).encode()).hexdigest()

    def report(self) -> Report:
        labels = read_labels(self.told, audits=self.audits)
        traffic = read_traffic(self.answers, self.watched, labels=labels, each=on_cluster)
        champion, alpha = self.serving.champion, self.recipe.evaluation.alpha
        notes = [*_oddities(traffic, labels_told_again=labels.told_again), *self._misplaced(traffic.outcomes)]
        fields: dict[str, Any] = {
            "day": self.day.isoformat(),
            "days": self.recipe.watching.window_days,
            "made_at": now(),
            "inputs": self.inputs,
            "version": champion.version,
            "digest": champion.digest,
            "rows": traffic.num_rows,
            "counted": tuple(
                Counted(arm=arm, digest=digest or "", rows=rows)
                for (arm, digest), rows in sorted(traffic.rows.items(), key=lambda item: -item[1])
            ),
            "trial": self._trial(traffic.outcomes),
        }
        if not traffic.num_of(CHAMPION, champion.digest):
            why = "no traffic" if not traffic.num_rows else "no answer of the champion"
            return without_traffic(**fields, notes=(*notes, f"{why} in this window: nothing is known of it"))
        signs, why_not = self._signs(traffic.sample)
        limits = self.recipe.evaluation.gates.groups or GroupsGate()
        columns = self.recipe.data.groups
        before = self.reference.before()
        return Report(
            **fields,
            feedback=quality(traffic, champion=champion.digest, alpha=alpha, audited=False),
            audit=quality(traffic, champion=champion.digest, alpha=alpha, audited=True),
            signs=signs,
            groups=groups_now(traffic.outcomes, columns=columns, before=before, limits=limits, alpha=alpha),
            counterfactual=self._flips(traffic.sample),
            notes=(*notes, *why_not),
        )

    def _signs(self, sample: Sample) -> tuple[tuple[Any, ...], list[str]]:
        """Signs of drift, and what kept any from being had."""
        notes = []
        kept = [text for text in sample.texts if text is not None]
        embeddings = None
        if len(kept) >= LEAST_ROWS:
            version = self.serving.champion
            embed = remotely(embedded, self.recipe.training)
            embeddings = embed(version.base_model, tuple(kept), max_length=version.max_length)
        else:
            why = f"{len(kept)} texts are in the log (serving.log_texts keeps them)"
            notes.append(f"the texts' distance was not looked at: {why}")
        window = Asked(sample.scores.astype(np.float64), sample.labels, embeddings)
        try:
            rate = self.recipe.watching.false_alarm_rate
            return drift_signs(window, reference=self.reference.asked, rate=rate), notes
        except DriftError as error:
            return (), [*notes, f"no drift was looked for: {error}"]

    def _flips(self, sample: Sample) -> Gate | None:
        """The counterfactual gate on some texts of the traffic, whose right answer nobody needs to know."""
        pretrained, limits = (
            self.serving.pretrained,
            self.recipe.evaluation.gates.counterfactual or CounterfactualGate(),
        )
        texts = [text for text in sample.texts if text is not None][:FLIPPED_TEXTS]
        if pretrained is None or not texts:
            return None
        rows = Rows(tuple(map(str, range(len(texts)))), tuple(texts), ("",) * len(texts))
        changed = counterfactuals(rows)
        if not len(changed):
            return None
        predict = remotely(predict_rows, self.recipe.training)
        tables = [
            (predict(version.uri, rows=rows), predict(version.uri, rows=changed))
            for version in (self.serving.champion, pretrained)
        ]
        alpha = self.recipe.evaluation.alpha
        return counterfactual_gate(candidate=tables[0], incumbent=tables[1], limits=limits, alpha=alpha)

    def _trial(self, outcomes: Outcomes) -> TrialPairs | None:
        """Pairs of the report's last day alone, so that days add up, and the groups as the whole window shows them."""
        if self.serving.trial is None:
            return None
        day = np.datetime64(self.day.isoformat(), "us").astype(np.int64)
        of_day = (outcomes.at >= day) & (outcomes.at < day + np.int64(86_400_000_000))
        arrays = {name: getattr(outcomes, name)[of_day] for name in OUTCOME_ARRAYS}
        groups = tuple(value for value, here in zip(outcomes.groups, of_day, strict=True) if here)
        columns, section = self.recipe.data.groups, self.recipe.evaluation
        pairs, by_group, _ = trial_pairs(replace(outcomes, **arrays, groups=groups), columns=columns)
        _, names, tables = trial_pairs(outcomes, columns=columns)
        reading = trial_groups(names, tables, limits=section.gates.groups or GroupsGate(), alpha=section.alpha)
        return TrialPairs(digest=self.serving.trial.digest, pairs=pairs, groups=by_group, reading=reading)

    def _misplaced(self, outcomes: Outcomes) -> list[str]:
        first, after = (
            np.datetime64(day.isoformat(), "us").astype(np.int64) for day in (self.first, self.day + timedelta(days=1))
        )
        odd = int(((outcomes.at < first) | (outcomes.at >= after)).sum())
        return [f"{odd:,} answers lie under another day than their own clock says"] if odd else []


def on_cluster(function: Callable[[list[str]], Traffic], parts: Iterable[list[str]]) -> Iterator[Traffic]:
    """`map` over parts of the log on Ray Data, a core each; in this process where there is one part alone."""
    parts = list(parts)
    if len(parts) < 2:
        yield from map(function, parts)
        return
    import pickle

    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    shared = ray.put(function)

    def read(row: dict[str, Any]) -> dict[str, bytes]:
        return {"read": pickle.dumps(ray.get(shared)(json.loads(row["files"])))}

    dataset = ray.data.from_items([{"files": json.dumps(part)} for part in parts], override_num_blocks=len(parts))
    for row in dataset.map(read).iter_rows():
        yield pickle.loads(row["read"])  # what our own task made a moment ago


def audits_of(home: str) -> list[str]:
    """Files with labels that were given to texts drawn by lot."""
    prefix = f"{home}/audits"
    found = storage.list_files(prefix) if storage.exists(prefix) else []
    return sorted(uri for uri in found if uri.endswith(".parquet"))


def _oddities(traffic: Traffic, *, labels_told_again: int) -> list[str]:
    notes = [f"{num} files of the log have no column {name}" for name, num in sorted(traffic.lacking.items())]
    if traffic.without_class:
        notes.append(f"{traffic.without_class:,} rows have no class or no score, and are counted alone")
    if labels_told_again:
        notes.append(f"{labels_told_again:,} texts were told of more than once; what was said last stands")
    others = {digest for arm, digest in traffic.rows if arm in (CANARY, SHADOW)}
    if len(others) > 1:
        notes.append(f"{len(others)} versions were on trial in this window; only the recipe's is judged")
    return notes


def _span(first: date, last: date) -> list[str]:
    return [(first + timedelta(days=number)).isoformat() for number in range((last - first).days + 1)]
