"""The job: from the request log to a report for each day that is over, made once, and again where labels came late."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np

from cluster.progress import Show
from cluster.remote import remotely
from tailorbird import storage
from tailorbird.config.evaluation import CounterfactualGateConfig, SubgroupGateConfig
from tailorbird.config.recipe import Recipe
from tailorbird.data.rows import Rows
from tailorbird.evaluation.gates.base import Gate
from tailorbird.evaluation.gates.behavioral import counterfactual_gate
from tailorbird.evaluation.inference.perturbations import counterfactuals
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.monitoring.drift import LEAST_ROWS, Asked, DriftError, drift_signs
from tailorbird.monitoring.drift_reference import Reference, embedded, read_reference
from tailorbird.monitoring.log_reader import CANARY, CHAMPION, DAY_US, SHADOW, Outcomes, Sample, Traffic, Watched
from tailorbird.monitoring.log_windows import Days, files_between, microseconds, span
from tailorbird.monitoring.quality import (
    by_feedback,
    fixed_groups,
    groups_now,
    num_of_subjects,
    paired_by_order,
    quality,
    trial_groups,
    trial_pairs,
)
from tailorbird.monitoring.report import Counted, Report, TrialPairs, without_traffic
from tailorbird.registry.versions import ModelVersion, now

DAY = timedelta(days=1)
FLIPPED_TEXTS = 500
"""Sampled texts in which names, sexes and ages are swapped."""
AGAIN = "texts were told of more than once; what was said last stands"


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
    """Reports of every day of the champion's before `today`, from the first of which the log has answers; in order.

    A day's report covers `monitoring.window_days` days up to it, and lies at `<task_uri>/monitoring/<day>.json`. Once no
    label is waited for any more it stays as it is. Until then it is made again where answers came that were not there,
    and where labels of its answers did: then signs of drift and swaps stay, for they need none. A day of the log is
    read at most once in a run. Raises WatchError where the recipe keeps no log, ReferenceMissing, and TrafficError for
    files that are none of a log.
    """
    log = recipe.serving.request_log
    if log is None or recipe.task != "classification":
        raise WatchError(
            "only a classification is watched so far: of answers in words nothing is compared yet"
            if recipe.task != "classification"
            else "nothing can be watched without a log: give serving.request_log a prefix, and serve again"
        )
    reference = read_reference(recipe.task_uri, serving.champion)
    trial = serving.trial.digest if serving.trial else None
    watched = Watched(serving.champion.digest, trial, recipe.data.groups)
    log_days = Days(log.rstrip("/"), watched, audits=audits_of(recipe.task_uri), each=on_cluster)
    made = {
        day: _read_report(recipe.task_uri, day) for day in _days(log_days.answers, since=serving.since, before=today)
    }
    length, wait = recipe.monitoring.window_days, recipe.monitoring.label_days
    reports = []
    for day, report in made.items():
        over = day + timedelta(days=wait + 1) < today
        if report is None or report.digest != serving.champion.digest or not over:
            log_days.since = min(log_days.since, day - timedelta(days=length - 1))
            window = _Window(recipe, log_days, serving, reference, day)
            report = window.kept(report) or _put(recipe.task_uri, window.report(report), former=report, show=show)
        reports.append(report)
    return reports


def read_reports(task_uri: str) -> list[Report]:
    """All that were made, in order."""
    prefix = f"{task_uri}/monitoring"
    found = storage.list_files(prefix) if storage.exists(prefix) else []
    return [Report.model_validate_json(storage.read_bytes(uri)) for uri in sorted(found) if uri.endswith(".json")]


def _days(answered: Iterable[str], *, since: date, before: date) -> Iterator[date]:
    """From the first day of which the log has answers; where it has none, for nobody asked, from `since`."""
    return span(min((day for day in map(date.fromisoformat, answered) if day >= since), default=since), before - DAY)


def _read_report(task_uri: str, day: date) -> Report | None:
    uri = f"{task_uri}/monitoring/{day}.json"
    return Report.model_validate_json(storage.read_bytes(uri)) if storage.exists(uri) else None


def _put(task_uri: str, report: Report, *, former: Report | None, show: Show) -> Report:
    storage.write_bytes(f"{task_uri}/monitoring/{report.day}.json", report.to_json())
    if former is None or former.model_copy(update={"inputs": report.inputs}) != report:
        show({"event": "note", "text": f"{report.day}: {_told(report)}"})
    return report


def _told(report: Report) -> str:
    alarms = f", {'; '.join(report.alarms)}" if report.alarms else ", nothing unusual"
    return f"{report.rows:,} rows, {report.feedback.labelled + report.audit.labelled:,} labelled{alarms}"


class _Window:
    """The days that one report is about."""

    def __init__(self, recipe: Recipe, days: Days, serving: Serving, reference: Reference, day: date) -> None:
        self.recipe, self.days, self.serving, self.reference, self.day = recipe, days, serving, reference, day
        self.first = day - timedelta(days=recipe.monitoring.window_days - 1)
        self.trial = serving.trial.digest if serving.trial else None
        config = recipe.monitoring.model_dump(mode="json", exclude={"rollback", "keep_days"})
        answers = files_between(days.answers, self.first, day)
        told = files_between(days.feedback, self.first, day + timedelta(days=recipe.monitoring.label_days))
        self.answers = _sha256([*answers, serving.champion.digest, reference.made_at, config, recipe.data.groups])
        self.told = _sha256([*told, *days.audits, self.trial])

    def kept(self, made: Report | None) -> Report | None:
        """The report that was made, if no file came since that may change it."""
        return made if made is not None and made.inputs.startswith(f"{self.answers}:{self.told}:") else None

    def report(self, made: Report | None) -> Report:
        """Of these days; of one that was `made` of the same answers, what needs no label stays."""
        wait = self.recipe.monitoring.label_days
        traffic = self.days.window(self.first, self.day, label_days=wait)
        again = int((self.days.labels.words[traffic.known] > 1).sum())
        inputs = f"{self.answers}:{self.told}:{_labelled(traffic.outcomes, again=again, trial=self.trial)}"
        if made is not None and not made.inputs.startswith(f"{self.answers}:"):
            made = None
        if made is not None and made.inputs.split(":")[-1] == inputs.split(":")[-1]:
            return made.model_copy(update={"inputs": inputs})  # what came is about other answers
        seen = self._seen(traffic) if made is None else _seen_before(made)
        seen["notes"] += (f"{again:,} {AGAIN}",) if again else ()
        champion, alpha = self.serving.champion, self.recipe.evaluation.alpha
        fields: dict[str, Any] = {
            "day": self.day.isoformat(),
            "days": self.recipe.monitoring.window_days,
            "made_at": now(),
            "inputs": inputs,
            "version": champion.version,
            "digest": champion.digest,
            "rows": traffic.num_rows,
            "counted": tuple(
                Counted(arm=arm, digest=digest or "", rows=rows)
                for (arm, digest), rows in sorted(traffic.rows.items(), key=lambda item: -item[1])
            ),
            "trial": self._trial(traffic.outcomes),
            "labels_until": (self.day + timedelta(days=wait)).isoformat(),
        }
        if not traffic.num_of(CHAMPION, champion.digest):
            return without_traffic(**fields, notes=seen["notes"])
        asked: dict[str, Any] = {"columns": self.recipe.data.groups, "before": self.reference.before(), "alpha": alpha}
        asked["limits"] = self.recipe.evaluation.gates.groups or SubgroupGateConfig()
        return Report(
            **fields,
            **seen,
            feedback=quality(traffic, champion=champion.digest, alpha=alpha, audited=False),
            audit=quality(traffic, champion=champion.digest, alpha=alpha, audited=True),
            groups=groups_now(traffic.outcomes, **asked),
            groups_by_feedback=groups_now(by_feedback(traffic.outcomes), **asked),
        )

    def _seen(self, traffic: Traffic) -> dict[str, Any]:
        """What needs no label: signs, swaps, and notes on what is odd or could not be looked at."""
        wait = self.recipe.monitoring.label_days
        notes = _oddities(traffic, unanswered=self.days.unanswered(self.first, self.day, label_days=wait))
        if not traffic.num_of(CHAMPION, self.serving.champion.digest):
            why = "no traffic" if not traffic.num_rows else "no answer of the champion"
            notes.append(f"{why} in this window: nothing is known of it")
            return {"signs": (), "counterfactual": None, "notes": tuple(notes)}
        signs, why_not = self._signs(traffic.sample)
        return {"signs": signs, "counterfactual": self._flips(traffic.sample), "notes": (*notes, *why_not)}

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
            rate = self.recipe.monitoring.false_alarm_rate
            return drift_signs(window, reference=self.reference.asked, rate=rate), notes
        except DriftError as error:
            return (), [*notes, f"no drift was looked for: {error}"]

    def _flips(self, sample: Sample) -> Gate | None:
        """The counterfactual gate on some texts of the traffic, whose right answer nobody needs to know."""
        pretrained, limits = (
            self.serving.pretrained,
            self.recipe.evaluation.gates.counterfactual or CounterfactualGateConfig(),
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
        day = microseconds(self.day)
        of_day = outcomes.where((outcomes.at >= day) & (outcomes.at < day + DAY_US))
        columns, config = self.recipe.data.groups, self.recipe.evaluation
        fixed = fixed_groups(self.reference.before(), columns=columns)
        pairs, by_group, _ = trial_pairs(of_day, columns=columns, fixed=fixed)
        _, names, tables = trial_pairs(outcomes, columns=columns, fixed=fixed)
        return TrialPairs(
            digest=self.serving.trial.digest,
            pairs=pairs,
            groups=by_group,
            reading=trial_groups(names, tables, limits=config.gates.groups or SubgroupGateConfig(), alpha=config.alpha),
            by_order=paired_by_order(of_day),
            by_feedback=trial_pairs(by_feedback(of_day), columns=columns, fixed=fixed)[0],
        )


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


def audits_of(task_uri: str) -> list[str]:
    """Files with labels that were given to texts drawn by lot, in the order in which they were taken in."""
    prefix = f"{task_uri}/audits"
    found = storage.list_files(prefix) if storage.exists(prefix) else []
    return sorted((uri for uri in found if uri.endswith(".parquet")), key=lambda uri: (number_of(uri), uri))


def number_of(uri: str) -> int:
    """Which audit a kept file is, the first being 1; 0 of one that has no number."""
    number, _, digest = uri.rpartition("/")[2].partition("-")
    return int(number) if digest and number.isdecimal() else 0


def _seen_before(made: Report) -> dict[str, Any]:
    notes = tuple(note for note in made.notes if not note.endswith(AGAIN))
    return {"signs": made.signs, "counterfactual": made.counterfactual, "notes": notes}


def _labelled(outcomes: Outcomes, *, again: int, trial: str | None) -> str:
    """sha256 over all that a report takes from labels, in whatever order the log was read."""
    order = np.lexsort((outcomes.at, outcomes.arms, outcomes.keys))
    digest = hashlib.sha256(json.dumps([again, trial]).encode())
    for name in ("keys", "arms", "at", "right", "audited", "of_subject"):
        digest.update(getattr(outcomes, name)[order].tobytes())
    return digest.hexdigest()


def _sha256(given: list[Any]) -> str:
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()


def _oddities(traffic: Traffic, *, unanswered: int) -> list[str]:
    notes = []
    if traffic.without_class:
        notes.append(f"{traffic.without_class:,} rows have no class or no score, and are counted alone")
    if traffic.misplaced:
        notes.append(f"{traffic.misplaced:,} answers lie under another day than their own clock says")
    if unanswered:
        notes.append(f"feedback on {unanswered:,} texts has ids that no answer of the log has; it counts for nothing")
    bound = num_of_subjects(traffic.outcomes)
    if bound:
        notes.append(
            f"{bound:,} audited answers of the canary are a subject's, who stays in one arm, and are compared with "
            "none: a shadow's would be (serving.challenger.shadow)"
        )
    others = {digest for arm, digest in traffic.rows if arm in (CANARY, SHADOW)}
    if len(others) > 1:
        notes.append(f"{len(others)} versions were on trial in this window; only the recipe's is judged")
    return notes
