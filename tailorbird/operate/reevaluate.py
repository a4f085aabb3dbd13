"""Re-evaluate a served champion on newly labelled rows, and roll it back if its verdict no longer holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cluster.progress import ProgressReporter
from cluster.remote import run_remote
from cluster.resources import worker_resources
from tailorbird import storage
from tailorbird.config.base import digest
from tailorbird.config.recipe import Recipe
from tailorbird.config.tasks import TASKS
from tailorbird.data.rows import Rows, Splits, contents_of, rows_sha256
from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.inference.perturbations import perturbed_rows
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.prediction_store import load_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import EVIDENCE_FILE, CostRecord
from tailorbird.evaluation.report.evidence_files import ROLES, read_evidence
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.inputs import VerdictInputs, model_predictions
from tailorbird.evaluation.verdict.protocol import TestProtocol, build_protocol
from tailorbird.evaluation.verdict.rules import NOT_MUCH_WORSE, Outcome
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.monitoring.label_audit import audited_rows
from tailorbird.operate import reevaluation_evidence
from tailorbird.operate.audited_data import fresh_rows, propose_training
from tailorbird.operate.reevaluation_evidence import AuditedData, ReevaluationEvidence
from tailorbird.pipeline.inputs import load_inputs
from tailorbird.registry.champion import Champion, champion_version
from tailorbird.registry.test_set_ledger import record_test_access
from tailorbird.registry.versions import ModelVersion, now, read_version
from tailorbird.release.promotion import roll_back, rollback_target
from tailorbird.storage.paths import TaskPaths


class ReevaluationError(ValueError):
    """Raised if a champion cannot be re-evaluated."""


@dataclass(frozen=True)
class Reevaluation:
    """The result of a re-evaluation."""

    uri: str  # folder of evidence and predictions
    verdict: Verdict
    holds: bool | None  # None if the rows do not decide it
    rollback_uri: str  # URI of the version that a rollback restores
    champion: Champion  # after the re-evaluation
    proposed: str | None  # URI of a recipe that also trains on the audited rows, if the verdict no longer holds

    def sentence(self) -> str:
        state = {True: "holds", False: "no longer holds", None: "is not decided by these rows"}
        return f"the champion's verdict {state[self.holds]}: {self.verdict.numbers()}"

    def lines(self, recipe: str) -> list[str]:
        """Return the result with its reasons and the next steps."""
        next_steps = []
        if self.holds is False:
            version = self.rollback_uri.rpartition("/")[2]
            rolled_back = self.champion.uri == self.rollback_uri
            rollback = (
                f"{version} is the champion again"
                if rolled_back
                else f"to roll back: `tailorbird rollback {recipe} --reason ...`"
            )
            next_steps = [f"{rollback}; to train on current requests: `tailorbird run {self.proposed}`"]
        reasons = (f"  - {reason}" for reason in self.verdict.reasons)
        return [self.sentence(), *reasons, *next_steps, f"evidence: {self.uri}"]


def reevaluate_champion(recipe: Recipe, *, progress: ProgressReporter) -> Reevaluation:
    """Compare the champion with the version that a rollback restores, on audited rows.

    Only rows that neither training nor an earlier re-evaluation used are tested. Each re-evaluation of a champion uses
    a lower significance level, so that repeated tests do not withdraw it by chance.

    If the verdict no longer holds (see `holds`), write a recipe that also trains on these rows, but do not run it.
    With `monitoring.rollback: automatic`, also roll the champion back. Evidence is stored under
    `reevaluations/<time>/`, the outcome in `history/`.

    Raises ReevaluationError if fewer than `monitoring.min_labels` rows are left; PromotionRefused if there is no
    champion or no version to roll back to, and if the champion changed meanwhile.
    """
    if not TASKS[recipe.task].is_monitored:
        raise ReevaluationError(f"task: {recipe.task} does not support re-evaluation; run the recipe again")
    champion, former, _ = rollback_target(recipe.task_uri)
    versions = {"incumbent": read_version(former.uri), "candidate": champion_version(champion)}
    splits = load_inputs(recipe).splits
    rows, dropped = _test_rows(recipe, splits)
    progress.stage(f"the champion and {versions['incumbent'].version} on {len(rows):,} audited rows")
    protocol, cost = protocol_for(champion, recipe=recipe, rows=rows, incumbent=versions["incumbent"])
    earlier = reevaluation_evidence.read_reevaluations(recipe.task_uri)
    number = 1 + sum(evidence.versions["candidate"].digest == champion.digest for evidence in earlier)
    protocol = with_spent_alpha(protocol, number=number)
    uri = TaskPaths(recipe.task_uri).reevaluation(now().replace(":", ""))
    sha256 = protocol.test_sha256
    access = record_test_access(
        recipe.task_uri, contents=contents_of(rows), candidate=champion.digest, protocol=digest(protocol), run=uri
    )
    tables = _predict(recipe, versions, rows=rows, protocol=protocol)
    inputs = VerdictInputs(
        model_predictions("incumbent", tables),
        model_predictions("candidate", tables),
        test_sha256=sha256,
        cpu=cost.cpu,
        training_cpu_s=cost.training_cpu_s,
    )
    verdict, at = decide(inputs, protocol=protocol), now()
    upheld = holds(verdict)
    expires = datetime.fromisoformat(at) + timedelta(days=protocol.valid_days)
    evidence = ReevaluationEvidence(
        protocol=protocol,
        data=AuditedData(sha256_test=sha256, num_rows=len(rows), dropped=dropped),
        access_number=access.number,
        cost=cost,
        versions={role: version.pinned for role, version in versions.items()},
        champion=champion,
        at=at,
        verdict=verdict,
        holds=upheld,
        expires_at=expires.isoformat(timespec="seconds") if upheld else None,
    )
    reevaluation_evidence.write_reevaluation(recipe.task_uri, uri, evidence, tables=tables)
    proposed = propose_training(recipe, rows, uri=uri) if upheld is False else None
    if upheld is False and recipe.monitoring.rollback == "automatic":
        reason = f"the verdict no longer holds: {verdict.numbers()} ({uri})"
        champion = roll_back(recipe.task_uri, reason=reason, of=champion)
    return Reevaluation(uri, verdict, upheld, former.uri, champion, proposed)


def holds(verdict: Verdict) -> bool | None:
    """Return True if a re-evaluation upholds the champion's verdict, False if it withdraws it, None if it is undecided.

    STAY alone does not withdraw a champion: it is also the outcome if the champion is proven better by less than the
    minimum gain. The champion is withdrawn if a gate fails, or if no gain is proven and the minimum gain is out of
    reach. Exception: the cost was not measured here, the champion may have been chosen
    for its cost, and it is not much worse.
    """
    if verdict.outcome in (Outcome.FINE_TUNE, Outcome.HYBRID):
        return True
    if any(gate.state is State.FAILS for gate in verdict.gates):
        return False
    low = verdict.interval[0]
    maybe_cheaper = verdict.cost_ratio is None and low > NOT_MUCH_WORSE
    return False if verdict.outcome is Outcome.STAY and low <= 0 and not maybe_cheaper else None


def _test_rows(recipe: Recipe, splits: Splits) -> tuple[Rows, dict[str, int]]:
    """Return the audited rows that are in no split and no earlier re-evaluation, and the dropped rows by reason."""
    files = reevaluation_evidence.prediction_files(recipe.task_uri)
    evaluated = {row_id for uri in files for row_id in load_predictions(uri).row_ids}
    rows, dropped = fresh_rows(audited_rows(recipe), splits, evaluated=evaluated)
    if len(rows) < recipe.monitoring.min_labels:
        raise ReevaluationError(
            f"only {len(rows)} audited rows are new to training and re-evaluations, but monitoring.min_labels is "
            f"{recipe.monitoring.min_labels}; label more rows (`tailorbird audit export`), or lower min_labels"
        )
    return rows, dropped


def protocol_for(
    champion: Champion, *, recipe: Recipe, rows: Rows, incumbent: ModelVersion
) -> tuple[TestProtocol, CostRecord]:
    """Return the test protocol and the measured cost for a re-evaluation on these rows.

    The protocol is that of the run that chose the champion, or else the recipe's. The cost is that run's, if it
    compared these two versions.
    """
    protocol = build_protocol(recipe.evaluation, test_sha256=rows_sha256(rows), num_test_rows=len(rows))
    cost = CostRecord(cpu=None, training_cpu_s=0.0)
    if champion.run and storage.exists(f"{champion.run}/{EVIDENCE_FILE}"):
        evidence = read_evidence(champion.run)
        test_rows = {"test_sha256": protocol.test_sha256, "num_test_rows": len(rows)}
        protocol = evidence.protocol.model_copy(update=test_rows)
        digests = {role: evidence.versions[role].digest for role in ROLES}
        if digests == {"incumbent": incumbent.digest, "candidate": champion.digest}:
            cost = evidence.cost
    priced = protocol.cost if cost.cpu is not None else None
    return protocol.model_copy(update={"cost": priced, "hybrid": None}), cost


def with_spent_alpha(protocol: TestProtocol, *, number: int) -> TestProtocol:
    """Return the test protocol of the champion's re-evaluation with this number, from 1.

    The significance level is alpha / (number (number + 1)), which sums to alpha over all re-evaluations. The
    loss of a group must be proven here: a loss that is only likely, which blocks a candidate in a run, would withdraw
    too many champions that harm no group.
    """
    groups = protocol.gates.groups
    if groups is not None:
        groups = groups.model_copy(update={"likely_harm": 0.0})
    gates = protocol.gates.model_copy(update={"groups": groups})
    return protocol.model_copy(update={"alpha": protocol.alpha / (number * (number + 1)), "gates": gates})


def _predict(
    recipe: Recipe, versions: Mapping[str, ModelVersion], *, rows: Rows, protocol: TestProtocol
) -> dict[str, Predictions]:
    """Return the predictions of both models for the rows, and for the perturbed rows of the gates."""
    predict = run_remote(predict_rows, resources=worker_resources(recipe.training))
    tables = {role: predict(version.uri, rows=rows) for role, version in versions.items()}
    for name, perturbed in perturbed_rows(rows, protocol.gates).items():
        tables |= {f"{role}_{name}": predict(version.uri, rows=perturbed) for role, version in versions.items()}
    return tables
