"""Re-evaluate a served champion: make its verdict again on newly labelled rows, and roll back if it no longer holds."""

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
from tailorbird.data.rows import Rows, Splits, content_sha256
from tailorbird.evaluation.baselines.tfidf import fit_and_predict_tfidf
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
    """A verdict that cannot be made again; the message says what is missing."""


@dataclass(frozen=True)
class Reevaluation:
    """The result of a re-evaluation."""

    uri: str  # folder of evidence and predictions
    verdict: Verdict
    holds: bool | None  # whether the champion's verdict holds; None if the rows do not decide it
    rollback_uri: str  # of the version that a rollback restores
    champion: Champion  # after the re-evaluation
    proposed: str | None  # URI of a recipe that trains on the audited rows too; None unless the verdict no longer holds

    def sentence(self) -> str:
        state = {True: "holds", False: "no longer holds", None: "is neither upheld nor withdrawn by these rows"}
        return f"the champion's verdict {state[self.holds]}: {self.verdict.sentence()}"

    def lines(self, recipe: str) -> list[str]:
        """Return the sentence, its reasons, and what to do next."""
        next_steps = []
        if self.holds is False:
            version = self.rollback_uri.rpartition("/")[2]
            rolled_back = self.champion.uri == self.rollback_uri
            rollback = f"{version} serves again" if rolled_back else f"`tailorbird rollback {recipe} --reason ...`"
            next_steps = [f"{rollback}; to train on current requests: `tailorbird run {self.proposed}`"]
        reasons = (f"  - {reason}" for reason in self.verdict.reasons)
        return [self.sentence(), *reasons, *next_steps, f"evidence: {self.uri}"]


def reevaluate_champion(recipe: Recipe, *, progress: ProgressReporter) -> Reevaluation:
    """Compare the champion with the version that a rollback restores, on audited texts that neither training nor an
    earlier re-evaluation used. Each re-evaluation of a champion lowers the level, so that many find nothing by chance.

    If the verdict no longer holds (see `holds`), a recipe that trains on these rows too is written next to the evidence
    but not run; with `monitoring.rollback: automatic` the champion is rolled back, by compare-and-swap. Evidence is
    stored under `reevaluations/<time>/`, the outcome in `history/`. Raises ReevaluationError if less than
    `monitoring.min_labels` rows are left; PromotionRefused without a champion or a version to roll back to, and if the
    champion changed meanwhile.
    """
    if not TASKS[recipe.task].is_monitored:
        raise ReevaluationError(f"a {recipe.task} task cannot be re-evaluated yet; run its recipe again")
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
        recipe.task_uri, test_sha256=sha256, candidate=champion.digest, protocol=digest(protocol), run=uri
    )
    tables = _predict(recipe, versions, rows=rows, splits=splits, protocol=protocol)
    inputs = VerdictInputs(
        model_predictions("incumbent", tables),
        model_predictions("candidate", tables),
        reference=tables.get("reference"),
        test_sha256=sha256,
        access_number=access.number,
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
        reason = f"the verdict no longer holds: {verdict.sentence()} ({uri})"
        champion = roll_back(recipe.task_uri, reason=reason, of=champion)
    return Reevaluation(uri, verdict, upheld, former.uri, champion, proposed)


def holds(verdict: Verdict) -> bool | None:
    """Return True if a re-evaluation's verdict upholds the champion, False if it withdraws it, None if it is open.

    STAY alone does not withdraw a champion: it is also the outcome for one that is proven better, but by less than the
    minimum gain, or no better than a bag of words. The champion is withdrawn if a gate fails, or if no gain is proven
    and the minimum gain is out of reach; but not if it may have been chosen for its cost, which was not measured here,
    and is not much worse.
    """
    if verdict.outcome in (Outcome.FINE_TUNE, Outcome.HYBRID):
        return True
    if any(gate.state is State.FAILS for gate in verdict.gates):
        return False
    low = verdict.interval[0]
    maybe_cheaper = verdict.cost_ratio is None and low > NOT_MUCH_WORSE
    return False if verdict.outcome is Outcome.STAY and low <= 0 and not maybe_cheaper else None


def _test_rows(recipe: Recipe, splits: Splits) -> tuple[Rows, dict[str, int]]:
    """Return audited rows that no split and no earlier re-evaluation has, and the number of rows dropped by reason."""
    files = reevaluation_evidence.prediction_files(recipe.task_uri)
    evaluated = {row_id for uri in files for row_id in load_predictions(uri).row_ids}
    rows, dropped = fresh_rows(audited_rows(recipe), splits, evaluated=evaluated)
    if len(rows) < recipe.monitoring.min_labels:
        raise ReevaluationError(
            f"{len(rows)} audited rows are left that neither training nor a re-evaluation saw, and "
            f"monitoring.min_labels asks for {recipe.monitoring.min_labels}; label more (`tailorbird audit export` "
            "draws them), or ask for fewer"
        )
    return rows, dropped


def protocol_for(
    champion: Champion, *, recipe: Recipe, rows: Rows, incumbent: ModelVersion
) -> tuple[TestProtocol, CostRecord]:
    """Return the protocol of the run that chose the champion, or else the recipe's, for these rows; and the measured
    cost, if that run compared these two versions."""
    protocol = build_protocol(recipe.evaluation, test_sha256=content_sha256(rows), num_test_rows=len(rows))
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
    """Return the protocol of a champion's re-evaluation with this number, from 1.

    Its level is alpha / (number (number + 1)), which sums to alpha over any number of re-evaluations. A group's point
    estimate on `min_rows` rows, which prevents a change in a run's verdict, would withdraw a champion that harms no
    group in one case of ten, so here a group's loss must be proven.
    """
    groups = protocol.gates.groups
    if groups is not None:
        groups = groups.model_copy(update={"min_rows": protocol.num_test_rows + 1})
    gates = protocol.gates.model_copy(update={"groups": groups})
    return protocol.model_copy(update={"alpha": protocol.alpha / (number * (number + 1)), "gates": gates})


def _predict(
    recipe: Recipe, versions: Mapping[str, ModelVersion], *, rows: Rows, splits: Splits, protocol: TestProtocol
) -> dict[str, Predictions]:
    """Return both models' predictions of the rows and of the perturbed rows that gates need, and the reference's."""
    resources = worker_resources(recipe.training)
    predict = run_remote(predict_rows, resources=resources)
    tables = {role: predict(version.uri, rows=rows) for role, version in versions.items()}
    for name, perturbed in perturbed_rows(rows, protocol.gates).items():
        tables |= {f"{role}_{name}": predict(version.uri, rows=perturbed) for role, version in versions.items()}
    if protocol.has_reference:
        fit = run_remote(fit_and_predict_tfidf, resources=resources)
        tables["reference"] = fit(rows, train=splits.train, validation=splits.validation, metric=protocol.metric)
    return tables
