"""The verdict made again while its champion serves: the same question, on newly labelled rows, and the way back."""

import io
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.progress import ProgressReporter
from cluster.remote import run_remote
from cluster.resources import worker_resources
from tailorbird import storage
from tailorbird.config.base import digest
from tailorbird.config.loader import recipe_text
from tailorbird.config.recipe import Recipe
from tailorbird.data.parquet import read_table
from tailorbird.data.pii import redact
from tailorbird.data.rows import Rows, Splits, content_sha256
from tailorbird.data.splits import normalise
from tailorbird.data.tasks import CLASSIFICATION
from tailorbird.evaluation.baselines.tfidf import fit_and_predict_tfidf
from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.inference.perturbations import add_typos, swap_demographics
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.prediction_store import load_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import EVIDENCE_FILE
from tailorbird.evaluation.report.evidence_files import ROLES, read_evidence
from tailorbird.evaluation.report.run_record import CostRecord
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.inputs import VerdictInputs, model_predictions
from tailorbird.evaluation.verdict.protocol import TestProtocol, build_protocol
from tailorbird.evaluation.verdict.rules import NOT_MUCH_WORSE, Outcome
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.monitoring.label_audit import audited_rows
from tailorbird.operate.reevaluation_evidence import (
    AuditedData,
    ReevaluationEvidence,
    prediction_files,
    read_reevaluations,
    write_reevaluation,
)
from tailorbird.pipeline.inputs import load_inputs
from tailorbird.registry.champion import Champion, champion_version
from tailorbird.registry.test_set_ledger import record_test_access
from tailorbird.registry.versions import ModelVersion, PinnedVersion, now, read_version
from tailorbird.release.promotion import roll_back, rollback_target

if TYPE_CHECKING:
    import pyarrow as pa


class ReevaluationError(ValueError):
    """A verdict that cannot be made again; the message says what is missing."""


@dataclass(frozen=True)
class Reevaluated:
    """What the new verdict says of the champion."""

    uri: str
    """Where evidence and predictions lie."""
    verdict: Verdict
    holds: bool | None
    """Whether the champion deserves its place; None where the rows do not tell."""
    back_to: str
    """URI of the version that serves, or would, where it does not."""
    champion: Champion
    """That serves now."""
    proposed: str | None
    """URI of the recipe that would train on the audited rows too, where the champion no longer holds."""

    def sentence(self) -> str:
        """For people."""
        said = {True: "holds", False: "no longer holds", None: "is neither upheld nor withdrawn by these rows"}
        return f"the champion's verdict {said[self.holds]}: {self.verdict.sentence()}"

    def lines(self, recipe: str) -> list[str]:
        """The sentence, why, and what to do next."""
        back = self.back_to.rsplit("/", 1)[-1]
        then = []
        if self.holds is False:
            again = (
                f"{back} serves again"
                if self.champion.uri == self.back_to
                else f"`tailorbird rollback {recipe} --reason ...`"
            )
            then = [f"{again}; to train on what is asked today: `tailorbird run {self.proposed}`"]
        return [self.sentence(), *(f"  - {reason}" for reason in self.verdict.reasons), *then, f"evidence: {self.uri}"]


def reevaluate_champion(recipe: Recipe, *, progress: ProgressReporter) -> Reevaluated:
    """The champion against the version that a rollback goes to, on the audited texts that neither training nor an
    earlier re-evaluation saw, at a level that each re-evaluation of the champion lowers: asking often finds nothing by
    chance.

    The question is that of the run that chose the champion, and so is what the two cost, where these are the two that
    it measured. Where the champion no longer holds (see `holds`), a recipe that would train on these rows too is left
    beside the evidence, and is not run; with `monitoring.rollback: automatic` the version before serves again, by the
    same conditional write as `tailorbird rollback`. Evidence lies under `<task_uri>/reevaluations/<time>/`, the outcome in
    `history/`. Raises ReevaluationError where less than `monitoring.min_labels` rows are left, PromotionRefused where
    there is no champion, no way back, or another champion by the time it ends.
    """
    if recipe.task == "chat":
        raise ReevaluationError("only a classification's verdict is made again so far; run a chat task's recipe again")
    champion, former = rollback_target(recipe.task_uri)
    versions = {"incumbent": read_version(former.uri), "candidate": champion_version(champion)}
    splits = load_inputs(recipe).splits
    rows, dropped = fresh_rows(audited_rows(recipe), splits, judged=_evaluated_rows(recipe.task_uri))
    if len(rows) < recipe.monitoring.min_labels:
        raise ReevaluationError(
            f"{len(rows)} audited rows are left that neither training nor a re-evaluation saw, and "
            f"monitoring.min_labels asks for {recipe.monitoring.min_labels}; label more (`tailorbird audit export` draws "
            "them), or ask for fewer"
        )
    progress.stage(f"the champion and {former.uri.rsplit('/', 1)[-1]} on {len(rows):,} audited rows")
    protocol, cost = protocol_for(champion, recipe=recipe, rows=rows, incumbent=versions["incumbent"])
    number = 1 + sum(
        former.versions["candidate"].digest == champion.digest for former in read_reevaluations(recipe.task_uri)
    )
    protocol = with_spent_alpha(protocol, number=number)
    uri = f"{recipe.task_uri}/reevaluations/{now().replace(':', '')}"
    access = record_test_access(
        recipe.task_uri,
        test_sha256=protocol.test_sha256,
        candidate=champion.digest,
        protocol=digest(protocol),
        run=uri,
    )
    tables = _tables(recipe, {role: version.uri for role, version in versions.items()}, rows=rows, protocol=protocol)
    if protocol.has_reference:
        predict = run_remote(fit_and_predict_tfidf, resources=worker_resources(recipe.training))
        tables["reference"] = predict(rows, train=splits.train, validation=splits.validation, metric=protocol.metric)
    inputs = VerdictInputs(
        incumbent=model_predictions("incumbent", tables),
        candidate=model_predictions("candidate", tables),
        reference=tables.get("reference"),
        test_sha256=protocol.test_sha256,
        access_number=access.number,
        cpu=cost.cpu,
        training_cpu_s=cost.training_cpu_s,
    )
    verdict, at = decide(inputs, protocol=protocol), now()
    upheld = holds(verdict)
    expires = datetime.fromisoformat(at) + timedelta(days=protocol.valid_days)
    evidence = ReevaluationEvidence(
        protocol=protocol,
        data=AuditedData(sha256_test=protocol.test_sha256, num_rows=len(rows), dropped=dropped),
        access_number=access.number,
        cost=cost,
        versions={role: PinnedVersion(uri=version.uri, digest=version.digest) for role, version in versions.items()},
        champion=champion,
        at=at,
        verdict=verdict,
        holds=upheld,
        expires_at=expires.isoformat(timespec="seconds") if upheld else None,
    )
    write_reevaluation(recipe.task_uri, uri, evidence, tables=tables)
    proposed = propose_training(recipe, rows, uri=uri) if upheld is False else None
    if upheld is False and recipe.monitoring.rollback == "automatic":
        reason = f"the verdict no longer holds: {verdict.sentence()} ({uri})"
        champion = roll_back(recipe.task_uri, reason=reason, of=champion)
    return Reevaluated(uri, verdict, upheld, former.uri, champion, proposed)


def holds(verdict: Verdict) -> bool | None:
    """Whether a verdict, made again, upholds its champion; None where it leaves that open.

    The verdict asks whether one should replace the other, and its STAY is also said of a champion that is proven
    better than what would serve in its place, but by less than was asked for, or no better than a bag of words. It is
    withdrawn where a gate fails, or where a gain that is worth it is out of reach and none is proven; not if it may
    have been chosen for its cost, that is not known here, and it is not much worse.
    """
    if verdict.outcome in (Outcome.FINE_TUNE, Outcome.HYBRID):
        return True
    if any(gate.state is State.FAILS for gate in verdict.gates):
        return False
    low = verdict.interval[0]
    as_good = verdict.cost_ratio is None and low > NOT_MUCH_WORSE
    return False if verdict.outcome is Outcome.STAY and low <= 0 and not as_good else None


def propose_training(recipe: Recipe, rows: Rows, *, uri: str) -> str:
    """Leaves a recipe that trains on these rows too under `uri`, and the rows under `<task_uri>/audited/`; its URI.

    They have the columns and types of the recipe's first training rows; what was stated that is no value of a group's
    type is left out. A row shares its `split_by` with no other: its id, or a negative number in a column of numbers.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    data, labelled = recipe.data, f"{recipe.task_uri}/audited/{uri.rsplit('/', 1)[-1]}.parquet"
    schema = read_table(data.train_uris[0], columns=CLASSIFICATION.columns(data)).schema
    given = {data.text: rows.texts, data.label: rows.labels, **rows.groups}
    if data.split_by is not None:
        numbers = tuple(str(-number) for number in range(1, len(rows) + 1))
        given[data.split_by] = numbers if pa.types.is_integer(schema.field(data.split_by).type) else rows.row_ids
    columns = {name: _cast(given[name], to=schema.field(name).type) for name in schema.names}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    storage.write_bytes(labelled, sink.getvalue())
    wider = data.model_copy(update={"train": (*data.train_uris, labelled)})
    proposed = f"{uri}/recipe.yaml"
    storage.write_bytes(proposed, recipe_text(recipe.model_copy(update={"data": wider})).encode())
    return proposed


def _cast(values: Sequence[str], *, to: "pa.DataType") -> "pa.Array":
    """Texts as values of a type, null where one is none."""
    import pyarrow as pa

    def scalar(value: str) -> Any:
        try:
            return pa.scalar(value).cast(to.value_type if pa.types.is_dictionary(to) else to).as_py()
        except pa.ArrowInvalid:
            return None

    return pa.array([scalar(value) for value in values], to)


def fresh_rows(rows: Rows, splits: Splits, *, judged: Set[str] = frozenset()) -> tuple[Rows, dict[str, int]]:
    """The rows whose text no split has, no row before and none that was `judged` (row ids); how many were
    dropped for each. Texts are compared as the request log would keep them."""
    seen = {name: {_as_logged(text) for text in split.texts} for name, split in splits.items()}
    dropped = dict.fromkeys((*seen, "twice", "judged"), 0)
    kept = []
    before = {_as_logged(text) for row_id, text in zip(rows.row_ids, rows.texts, strict=True) if row_id in judged}
    for place, (row_id, text) in enumerate(zip(rows.row_ids, map(_as_logged, rows.texts), strict=True)):
        where = next((name for name, texts in seen.items() if text in texts), "twice" if text in before else None)
        where = "judged" if row_id in judged else where
        before.add(text)
        if where is None:
            kept.append(place)
        else:
            dropped[where] += 1
    return rows.take(np.array(kept, np.int64)), dropped


def _as_logged(text: str) -> str:
    return normalise(redact(text))


def _evaluated_rows(task_uri: str) -> set[str]:
    """Return the ids of the rows of every earlier re-evaluation."""
    return {row_id for uri in prediction_files(task_uri) for row_id in load_predictions(uri).row_ids}


def protocol_for(
    champion: Champion, *, recipe: Recipe, rows: Rows, incumbent: ModelVersion
) -> tuple[TestProtocol, CostRecord]:
    """Return the protocol for these rows, and the measured cost if the run that chose the champion compared these two.

    The protocol is that of the run that chose the champion, or else the recipe's.
    """
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
    """Return the protocol of the `number`-th re-evaluation of a champion, from 1 on.

    Its level is alpha / (number (number + 1)): however many there will be, these sum to alpha. In the first verdict a
    group's point alone decides on `min_rows` rows, which keeps things as they are; here it would withdraw a champion
    that harms nobody in one case of ten, so a group has to be proven worse.
    """
    groups = protocol.gates.groups
    if groups is not None:
        groups = groups.model_copy(update={"min_rows": protocol.num_test_rows + 1})
    gates = protocol.gates.model_copy(update={"groups": groups})
    return protocol.model_copy(update={"alpha": protocol.alpha / (number * (number + 1)), "gates": gates})


def _tables(recipe: Recipe, uris: dict[str, str], *, rows: Rows, protocol: TestProtocol) -> dict[str, Predictions]:
    """Both models' answers to the rows, and to the changed rows that gates ask for."""
    predict, gates = run_remote(predict_rows, resources=worker_resources(recipe.training)), protocol.gates
    tables = {role: predict(uris[role], rows=rows) for role in ROLES}
    for name, gate, change in (
        ("counterfactual", gates.counterfactual, swap_demographics),
        ("noise", gates.robustness, add_typos),
    ):
        if gate is not None:
            changed = change(rows)
            tables |= {f"{role}_{name}": predict(uris[role], rows=changed) for role in ROLES}
    return tables
