"""Compute the report of one window of days from its traffic."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from functools import cached_property, partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.remote import run_remote
from cluster.resources import worker_resources
from tailorbird.config.evaluation import CounterfactualGateConfig, SubgroupGateConfig
from tailorbird.config.monitoring import WINDOW_DAYS
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TASKS
from tailorbird.data.rows import Rows
from tailorbird.evaluation.gates.base import Gate
from tailorbird.evaluation.gates.behavioral import counterfactual_gate
from tailorbird.evaluation.inference.perturbations import swap_demographics
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.monitoring import quality
from tailorbird.monitoring.drift import (
    MIN_ROWS,
    DriftError,
    DriftStatistic,
    TrafficSample,
    drift_statistics,
)
from tailorbird.monitoring.drift_reference import DriftReference, embed_on_cluster
from tailorbird.monitoring.log_windows import LogDays, files_between, microseconds
from tailorbird.monitoring.quality import GroupAccuracy
from tailorbird.monitoring.report import ArmCount, ChallengerDay, Report
from tailorbird.monitoring.shadow_pairs import paired_outcomes
from tailorbird.monitoring.traffic import CHAMPION, DAY_US, SHADOW, Outcomes, Traffic
from tailorbird.registry.versions import ModelVersion, now

MAX_COUNTERFACTUAL_TEXTS = 500  # maximum sampled texts for the counterfactual gate
FALSE_ALARMS_PER_YEAR = 1.0  # expected days with a drift alarm although there is no drift
MAX_CLEAN_WINDOWS = 12  # maximum earlier windows that show how much days differ
UNLABELLED = ("drift", "counterfactual", "notes")  # fields of a report that need no labels


@dataclass(frozen=True)
class ServedVersions:
    """The served versions according to the registry."""

    champion: ModelVersion
    baseline: ModelVersion | None  # selected by `model: baseline`
    challenger: ModelVersion | None
    since: date  # first day of the champion, UTC
    tested: Mapping[str, GroupAccuracy] = field(default_factory=dict)
    """(chat) Scores of the champion in the test of its run: of all rows (`ALL`) and by group. Empty
    without any."""


@dataclass(frozen=True, eq=False)
class ReportWindow:
    """The days up to `day` that one report covers."""

    recipe: Recipe
    days: LogDays
    served: ServedVersions
    reference: DriftReference
    day: date
    earlier: Mapping[date, Report]  # reports of earlier days

    @property
    def first(self) -> date:
        return self.day - timedelta(days=WINDOW_DAYS - 1)

    @property
    def last_label_day(self) -> date:
        return self.day + timedelta(days=self.recipe.monitoring.label_days)

    @cached_property
    def answers_fingerprint(self) -> str:
        """Hash of the answer files and of all settings and test results that affect what the report
        computes."""
        settings = [
            self.recipe.monitoring.model_dump(mode="json", exclude={"rollback"}),
            self.recipe.evaluation.model_dump(mode="json"),
            self.recipe.data.groups,
            {name: asdict(group) for name, group in self.served.tested.items()},
        ]
        files = files_between(self.days.answers, self.first, self.day)
        champion = self.served.champion.digest
        return _sha256([*files, champion, self.reference.made_at, *settings])

    @cached_property
    def labels_fingerprint(self) -> str:
        """Hash of the label files and the challenger."""
        files = files_between(self.days.feedback, self.first, self.last_label_day)
        challenger = self.served.challenger.digest if self.served.challenger else None
        return _sha256([*files, *self.days.audits, challenger])

    def report(self, stored: Report | None) -> Report:
        """Return the stored report if nothing that affects it changed, otherwise a new one, with
        the parts that need no labels from a stored report of the same answers."""
        reusable = stored
        if stored is not None and stored.answers_fingerprint != self.answers_fingerprint:
            reusable = None
        if reusable is not None and reusable.labels_fingerprint == self.labels_fingerprint:
            return reusable
        traffic = self.days.window(
            self.first, self.day, label_days=self.recipe.monitoring.label_days
        )
        champion = self.served.champion
        counts = sorted(traffic.rows.items(), key=lambda count: (-count[1], str(count[0])))
        measure = partial(
            quality.quality,
            traffic,
            champion=champion.digest,
            alpha=self.recipe.evaluation.alpha,
        )
        report = Report(
            day=self.day.isoformat(),
            days=WINDOW_DAYS,
            made_at=now(),
            answers_fingerprint=self.answers_fingerprint,
            labels_fingerprint=self.labels_fingerprint,
            version=champion.version,
            digest=champion.digest,
            rows=traffic.num_rows,
            counts=tuple(
                ArmCount(arm=arm, digest=digest or "", rows=rows) for (arm, digest), rows in counts
            ),
            labels_until=self.last_label_day.isoformat(),
            challenger=self._challenger(traffic.outcomes),
            notes=(),
            feedback=measure(audited=False),
            audit=measure(audited=True),
            feedback_scores=measure(audited=False, by_person=True),
            audit_scores=measure(audited=True, by_person=True),
            redacted=traffic.redacted,
            groups=quality.group_gate(
                traffic.outcomes,
                columns=self.days.versions.groups,
                reference=self.references,
                limits=self.recipe.evaluation.gates.groups or SubgroupGateConfig(),
                alpha=self.recipe.evaluation.alpha,
            ),
        )
        if reusable is None:
            unlabelled = self._unlabelled(traffic)
        else:
            unlabelled = {name: getattr(reusable, name) for name in UNLABELLED}
        report = report.model_copy(update=unlabelled)
        if stored is not None and report.content == stored.content:
            # An alarm from before a re-evaluation must not be recommended again.
            return report.model_copy(update={"made_at": stored.made_at})
        return report

    @cached_property
    def references(self) -> dict[str, GroupAccuracy]:
        """The champion's accuracy or mean score by group, before any traffic."""
        return self.reference.group_accuracies() | dict(self.served.tested)

    def _unlabelled(self, traffic: Traffic) -> dict[str, Any]:
        """Return the fields `UNLABELLED` of the report."""
        notes = []
        unanswered = sum(traffic.unanswered.values())
        if unanswered:
            notes.append(
                f"{unanswered:,} rows have no class or complete chat answer and are only counted"
            )
        if not traffic.num_rows_of(CHAMPION, self.served.champion.digest):
            missing = "answer of the champion" if traffic.num_rows else "traffic"
            return {"notes": (*notes, f"no {missing} in this window")}
        drift, drift_notes = self._drift(traffic.sample)
        return {
            "drift": drift,
            "counterfactual": self._counterfactual(traffic.sample),
            "notes": (*notes, *drift_notes),
        }

    def _drift(self, sample: pa.Table) -> tuple[tuple[DriftStatistic, ...], list[str]]:
        """Return the drift statistics, and notes on those that were not computed."""
        notes = []
        embeddings = None
        with_texts = sample.filter(sample["text"].is_valid())
        texts = tuple(with_texts["text"].to_pylist())
        if len(texts) >= MIN_ROWS:
            embeddings = embed_on_cluster(
                self.recipe,
                texts,
                encoder=self.reference.encoder,
                max_length=self.reference.max_length,
            )
        else:
            notes.append(
                f"drift of texts was not computed: the log has {len(texts)} of at least {MIN_ROWS} "
                "texts (serving.log_texts)"
            )
        window = TrafficSample(
            sample["label"].to_pylist(),
            embeddings,
            lengths=sample["text_chars"].to_numpy().astype(np.float64),
            days=sample["day"].to_numpy().astype(np.int64),
            text_days=with_texts["day"].to_numpy().astype(np.int64),
        )
        clean = list(chain.from_iterable(report.drift for report in self._clean_reports()))
        try:
            statistics = drift_statistics(
                window, reference=self.reference.sample, per_year=FALSE_ALARMS_PER_YEAR, clean=clean
            )
        except DriftError as error:
            return (), [*notes, f"no drift statistic was computed: {error}"]
        return statistics, notes

    def _clean_reports(self) -> list[Report]:
        """Return the latest earlier reports without drift alarms; no two of them, and this one,
        share a day."""
        length = timedelta(days=WINDOW_DAYS)
        days = [self.day - number * length for number in range(1, MAX_CLEAN_WINDOWS + 1)]
        reports = [self.earlier[day] for day in days if day in self.earlier]
        return [report for report in reports if not report.drift_alarms]

    def _counterfactual(self, sample: pa.Table) -> Gate | None:
        """Return the counterfactual gate on sampled texts, which needs no labels."""
        baseline = self.served.baseline
        config = self.recipe.evaluation
        texts = sample["text"].drop_null().to_pylist()[:MAX_COUNTERFACTUAL_TEXTS]
        if baseline is None or not texts or "counterfactual" in TASKS[self.recipe.task].gates_off:
            return None
        rows = Rows(tuple(map(str, range(len(texts)))), tuple(texts), ("",) * len(texts))
        swapped = swap_demographics(rows)
        if not len(swapped):
            return None
        predict = run_remote(predict_rows, resources=worker_resources(self.recipe.training))
        champion = self.served.champion
        return counterfactual_gate(
            candidate=(predict(champion.uri, rows=rows), predict(champion.uri, rows=swapped)),
            incumbent=(predict(baseline.uri, rows=rows), predict(baseline.uri, rows=swapped)),
            limits=config.gates.counterfactual or CounterfactualGateConfig(),
            alpha=config.alpha,
        )

    def _challenger(self, outcomes: Outcomes) -> ChallengerDay | None:
        """Return the audited answers of the window's last day for the comparison with the
        challenger."""
        if self.served.challenger is None:
            return None
        start = microseconds(self.day)
        last_day = outcomes.where((outcomes.at >= start) & (outcomes.at < start + DAY_US))
        columns = self.days.versions.groups
        groups = quality.fixed_groups(self.references, columns=columns)
        digest = self.served.challenger.digest
        traffic = self.days.day(self.day)
        return ChallengerDay(
            digest=digest,
            groups=groups,
            outcomes=paired_outcomes(last_day, columns=columns, fixed=groups),
            mirrored=traffic.num_rows_of(SHADOW, digest),
            unanswered=traffic.unanswered.get((SHADOW, digest), 0),
        )


def _sha256(values: list[object]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
