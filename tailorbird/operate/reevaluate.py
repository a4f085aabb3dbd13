"""Re-evaluate a served champion on audited rows, and roll it back if its verdict no longer
holds."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import numpy as np

from cluster.progress import ProgressReporter
from cluster.remote import run_remote
from cluster.resources import evaluation_resources
from tailorbird.config.base import digest
from tailorbird.config.recipe import Recipe
from tailorbird.data.fingerprints import fingerprints, user_texts
from tailorbird.data.rows import Rows, rows_sha256
from tailorbird.evaluation.gates.cost import TrainingUsage
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.evaluation.inference.perturbations import perturbed_rows
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import ROLES, CostRecord
from tailorbird.evaluation.trained_rows import NO_ROWS, training_fingerprints
from tailorbird.evaluation.verdict.inputs import VerdictInputs, model_predictions
from tailorbird.evaluation.verdict.protocol import VALID_DAYS, TestProtocol, build_protocol
from tailorbird.monitoring.label_audit import audited_rows
from tailorbird.operate.audited_data import usable_rows
from tailorbird.operate.reevaluation_evidence import (
    AuditedData,
    ReevaluationEvidence,
    champion_evidence,
    evaluated_rows,
    read_reevaluations,
    write_reevaluation,
)
from tailorbird.operate.reevaluation_verdict import ReevaluationVerdict, decide_reevaluation
from tailorbird.pipeline.cost import endpoint_answers
from tailorbird.pipeline.inputs import load_inputs
from tailorbird.registry.champion import Champion, champion_version
from tailorbird.registry.test_set_ledger import record_test_access
from tailorbird.registry.versions import ModelVersion, now, read_pinned
from tailorbird.release.promotion import roll_back, rollback_target
from tailorbird.storage.paths import TaskPaths

MIN_LABELS = 50
"""Minimum number of newly labelled rows for a re-evaluation."""


class ReevaluationError(ValueError):
    """Raised if a champion cannot be re-evaluated."""


@dataclass(frozen=True)
class Reevaluation:
    """The result of a re-evaluation."""

    uri: str  # folder of evidence and predictions
    verdict: ReevaluationVerdict
    rollback_uri: str  # URI of the version that a rollback restores
    champion: Champion  # after the re-evaluation

    def sentence(self) -> str:
        state = {True: "holds", False: "no longer holds", None: "is not decided by these rows"}
        return f"the champion's verdict {state[self.verdict.holds]}: {self.verdict.numbers()}"

    def lines(self, recipe: str) -> list[str]:
        """Return the result with its reasons and the next steps."""
        next_steps = []
        if self.verdict.holds is False:
            version = self.rollback_uri.rpartition("/")[2]
            rollback = f"to roll back: `tailorbird rollback {recipe} --reason ...`"
            if self.champion.uri == self.rollback_uri:
                rollback = f"{version} is the champion again"
            next_steps = [rollback]
        reasons = (f"  - {reason}" for reason in self.verdict.reasons)
        return [self.sentence(), *reasons, *next_steps, f"evidence: {self.uri}"]


def reevaluate_champion(recipe: Recipe, *, progress: ProgressReporter) -> Reevaluation:
    """Compare the champion with the one before it, on all rows audited since its promotion.

    All re-evaluations of a champion are one sequential test (see `decide_reevaluation`), so it may
    be re-evaluated at any time. If the verdict no longer holds and `monitoring.rollback` is
    `automatic`, roll the champion back. Evidence is stored under `reevaluations/<time>/`, the
    outcome in `history/`.

    Raises ReevaluationError if fewer than `MIN_LABELS` rows are new; PromotionRefused if
    there is no champion or no version to roll back to, and if the champion changed meanwhile.
    """
    champion, previous, _ = rollback_target(recipe.task_uri)
    versions = {"incumbent": read_pinned(previous.pinned), "candidate": champion_version(champion)}
    earlier = read_reevaluations(recipe.task_uri, champion=champion)
    rows, new, dropped = _audited(
        recipe, champion=champion, earlier=earlier, versions=versions.values()
    )
    progress.stage(
        f"the champion and {versions['incumbent'].version} on {len(rows):,} audited rows"
    )
    models = {role: version.uri for role, version in versions.items()}
    protocol, cost = protocol_for(champion, recipe=recipe, rows=rows, versions=versions)
    uri = TaskPaths(recipe.task_uri).reevaluation(now().replace(":", ""))
    limits = RequestLimits.from_config(recipe.evaluation)
    predict = _remote_predict(recipe, limits=limits)
    record_test_access(  # a run on these rows must know that the champion was compared on them
        recipe.task_uri,
        rows=fingerprints(user_texts(new)),
        models=list(models.values()),
        protocol=digest(protocol),
        run=uri,
    )
    tables = _predict(predict, models, rows=rows, protocol=protocol)
    inputs = VerdictInputs(
        {role: model_predictions(role, tables) for role in ROLES},
        test_sha256=protocol.test_sha256,
        costs=cost.serving,
        training=cost.training,
    )
    verdict = decide_reevaluation(inputs, protocol=protocol, number=len(earlier) + 1)
    at = now()
    expires = datetime.fromisoformat(at) + timedelta(days=VALID_DAYS)
    evidence = ReevaluationEvidence(
        protocol=protocol,
        data=AuditedData(
            sha256_test=protocol.test_sha256,
            num_rows=len(rows),
            num_new=len(new),
            dropped=dropped,
        ),
        cost=cost,
        versions={role: version.pinned for role, version in versions.items()},
        champion=champion,
        at=at,
        verdict=verdict,
        expires_at=expires.isoformat(timespec="seconds") if verdict.holds else None,
        endpoint_answers=endpoint_answers(
            models, rows=rows, tables=tables, predict=partial(predict, rows=rows), limits=limits
        ),
    )
    write_reevaluation(recipe.task_uri, uri, evidence, tables=tables)
    if verdict.holds is False and recipe.monitoring.rollback == "automatic":
        reason = f"the verdict no longer holds: {verdict.numbers()} ({uri})"
        champion = roll_back(recipe.task_uri, reason=reason, of=champion)
    return Reevaluation(
        uri=uri,
        verdict=verdict,
        rollback_uri=previous.uri,
        champion=champion,
    )


def _audited(
    recipe: Recipe,
    *,
    champion: Champion,
    earlier: Mapping[str, ReevaluationEvidence],
    versions: Iterable[ModelVersion],
) -> tuple[Rows, Rows, dict[str, int]]:
    """Return the rows to test, those of them that no earlier re-evaluation contains, and the number
    of dropped rows by reason. They are audited rows since the promotion that are in no split.

    Earlier rows may have been used to choose the champion. No version is compared on rows that one
    was trained on, also with an earlier recipe.
    """
    since = datetime.fromisoformat(champion.since)
    evaluated = evaluated_rows(earlier)
    splits = load_inputs(recipe).splits
    learned = [training_fingerprints(version) for version in versions]
    rows, dropped = usable_rows(
        audited_rows(recipe, since=since),
        splits,
        evaluated=evaluated,
        learned=np.concatenate([NO_ROWS, *(hashes for hashes in learned if hashes is not None)]),
    )
    new = rows.take([row for row, row_id in enumerate(rows.row_ids) if row_id not in evaluated])
    if len(new) < MIN_LABELS:
        raise ReevaluationError(
            f"only {len(new)} audited rows since the champion's promotion are new to training and "
            f"re-evaluations, and {MIN_LABELS} are needed; label more rows (`tailorbird audit "
            "export`)"
        )
    return rows, new, dropped


def protocol_for(
    champion: Champion, *, recipe: Recipe, rows: Rows, versions: Mapping[str, ModelVersion]
) -> tuple[TestProtocol, CostRecord]:
    """Return the test protocol and the measured cost for a re-evaluation on these rows.

    The protocol is that of the run that chose the champion, or else the recipe's. The cost is that
    run's, if it compared these two versions.
    """
    protocol = build_protocol(
        recipe.evaluation,
        serving=recipe.serving,
        test_sha256=rows_sha256(rows),
        num_test_rows=len(rows),
    )
    cost = CostRecord(serving=None, training=TrainingUsage())
    evidence = champion_evidence(champion)
    if evidence is not None:
        test_rows = {"test_sha256": protocol.test_sha256, "num_test_rows": len(rows)}
        protocol = evidence.protocol.model_copy(update=test_rows)
        digests = {role: evidence.versions[role].digest for role in evidence.family.compared_roles}
        if digests == {
            "incumbent": versions["incumbent"].digest,
            "candidate": versions["candidate"].digest,
        }:
            cost = evidence.cost
    priced = protocol.cost if cost.serving is not None else None
    gates = protocol.gates.model_copy(
        update={"suites": None}
    )  # the weights are those that answered the suites
    return protocol.model_copy(
        update={"cost": priced, "hybrid": None, "gates": gates, "suites": {}}
    ), cost


def _remote_predict(recipe: Recipe, *, limits: RequestLimits) -> Callable[..., Predictions]:
    """Return `predict_rows` as a function that runs with the resources of an evaluation."""
    resources = evaluation_resources(recipe.training, recipe.serving)
    predict = run_remote(predict_rows, resources=resources)
    return partial(predict, on_gpu=recipe.serving.gpus_per_replica > 0, limits=limits)


def _predict(
    predict: Callable[..., Predictions],
    models: Mapping[str, str],
    *,
    rows: Rows,
    protocol: TestProtocol,
) -> dict[str, Predictions]:
    """Return the predictions of both models for the rows, and for the perturbed rows of the
    gates."""
    tables = {role: predict(uri, rows=rows) for role, uri in models.items()}
    for name, perturbed in perturbed_rows(rows, protocol.gates).items():
        tables |= {f"{role}_{name}": predict(uri, rows=perturbed) for role, uri in models.items()}
    return tables
