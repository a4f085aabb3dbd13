"""The verdict made again while its champion serves: the same question, on newly labelled rows, and the way back."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster import storage
from cluster.progress import Show
from cluster.session import remotely
from data.checks import normalise
from data.read import Rows, Splits, columns_of, content_sha256, read_table
from evaluation.perturb import counterfactuals, misspelt
from evaluation.predict import predict_reference, predict_rows, save_predictions
from evaluation.predictions import Predictions
from evaluation.question import Question, ask
from evaluation.rules import Outcome
from evaluation.stored import ROLES, case_of
from evaluation.verdict import Verdict, decide
from models.looks import look
from models.registry import Champion, champion_version, now, read_version
from monitoring.audit import audited_rows
from prepare import gather
from promote import rollback, way_back
from recipes.schema import Recipe, digest, recipe_text

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
        said = {True: "holds", False: "no longer holds", None: "can be neither upheld nor withdrawn on these rows"}
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


def reevaluate(recipe: Recipe, *, show: Show) -> Reevaluated:
    """The champion against the version that a rollback goes to, on every audited text that training did not see.

    The question is that of the run that chose the champion, but for prices: neither model changed, so neither did its
    cost. STAY means that the champion no longer holds; with `watching.rollback: automatic` the version before serves
    again then, by the same conditional write as `tailorbird rollback`, and a recipe that would train on these rows too
    is left beside the evidence; it is not run. Evidence lies under `<home>/reevaluations/<time>/`, the outcome in
    `history/`. Raises ReevaluationError where less than `watching.min_labels` rows are left, PromotionRefused where
    there is no champion or no way back.
    """
    if recipe.task == "chat":
        raise ReevaluationError("only a classification's verdict is made again so far; run a chat task's recipe again")
    champion, former = way_back(recipe.home)
    versions = {"incumbent": read_version(former.uri), "candidate": champion_version(champion)}
    splits = gather(recipe).data.splits
    rows, dropped = fresh_rows(audited_rows(recipe), splits)
    if len(rows) < recipe.watching.min_labels:
        raise ReevaluationError(
            f"{len(rows)} audited rows are left of which training saw none, and watching.min_labels asks for "
            f"{recipe.watching.min_labels}; label more (`tailorbird audit export` draws them), or ask for fewer"
        )
    show({"event": "stage", "text": f"the champion and {former.uri.rsplit('/', 1)[-1]} on {len(rows):,} audited rows"})
    question = asked_again(champion, recipe=recipe, rows=rows)
    uri = f"{recipe.home}/reevaluations/{now().replace(':', '')}"
    ledger = look(
        recipe.home,
        test_sha256=question.test_sha256,
        candidate=champion.digest,
        question=digest(question.to_dict()),
        run=uri,
    )
    tables = _tables(recipe, {role: version.uri for role, version in versions.items()}, rows=rows, question=question)
    if question.has_reference:
        predict = remotely(predict_reference, recipe.training)
        tables["reference"] = predict(rows, train=splits.train, validation=splits.validation, metric=question.metric)
    evidence: dict[str, Any] = {
        "question": question.to_dict(),
        "data": {"sha256_test": question.test_sha256, "num_rows": len(rows), "leaks": [], "dropped": dropped},
        "look": ledger.look,
        "routing": None,
        "measured": {"cpu": None, "training_cpu_s": 0.0},
        "versions": {role: {"uri": one.uri, "digest": one.digest} for role, one in versions.items()},
        "champion": champion.model_dump(mode="json"),
        "at": now(),
    }
    verdict = decide(case_of(evidence, tables), question=question)
    _keep(recipe.home, uri, evidence | {"verdict": verdict.to_dict()}, tables=tables)
    holds = {Outcome.STAY: False, Outcome.INSUFFICIENT_EVIDENCE: None}.get(verdict.outcome, True)
    if holds is False and recipe.watching.rollback == "automatic":
        champion = rollback(recipe.home, reason=f"the verdict no longer holds: {verdict.sentence()} ({uri})")
    proposed = propose_training(recipe, rows, uri=uri) if holds is False else None
    return Reevaluated(uri, verdict, holds, former.uri, champion, proposed)


def propose_training(recipe: Recipe, rows: Rows, *, uri: str) -> str:
    """Leaves a recipe that trains on these rows too under `uri`, and the rows under `<home>/audited/`; its URI.

    They have the columns and types of the recipe's first training rows; what was stated that is no value of a group's
    type is left out. A row shares its `split_by` with no other: its id, or a negative number in a column of numbers.
    Audits know no `auxiliary_label`, so that recipe learns none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    data, labelled = recipe.data, f"{recipe.home}/audited/{uri.rsplit('/', 1)[-1]}.parquet"
    schema = read_table(data.train_uris[0], columns=columns_of(data, chat=False, auxiliary=None)).schema
    given = {data.text: rows.texts, data.label: rows.labels, **rows.groups}
    if data.split_by is not None:
        numbers = tuple(str(-number) for number in range(1, len(rows) + 1))
        given[data.split_by] = numbers if pa.types.is_integer(schema.field(data.split_by).type) else rows.row_ids
    columns = {name: _cast(given[name], to=schema.field(name).type) for name in schema.names}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    storage.write_bytes(labelled, sink.getvalue())
    wider = data.model_copy(update={"train": (*data.train_uris, labelled), "auxiliary_label": None})
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


def fresh_rows(rows: Rows, splits: Splits) -> tuple[Rows, dict[str, int]]:
    """The rows whose text no split has and no row before, and how many were dropped for each."""
    seen = {name: {normalise(text) for text in split.texts} for name, split in splits.items()}
    dropped = dict.fromkeys((*seen, "twice"), 0)
    kept, before = [], set[str]()
    for place, text in enumerate(map(normalise, rows.texts)):
        where = next((name for name, texts in seen.items() if text in texts), "twice" if text in before else None)
        before.add(text)
        if where is None:
            kept.append(place)
        else:
            dropped[where] += 1
    return rows.take(np.array(kept, np.int64)), dropped


def asked_again(champion: Champion, *, recipe: Recipe, rows: Rows) -> Question:
    """The question of the run that chose the champion, or else the recipe's, about these rows."""
    about = {"test_sha256": content_sha256(rows), "num_test_rows": len(rows)}
    if not champion.run or not storage.exists(f"{champion.run}/question.json"):
        question = ask(recipe.evaluation, **about)  # type: ignore[arg-type]
    else:
        question = Question.from_dict(storage.read_json(f"{champion.run}/question.json")["question"])
    return replace(question, **about, cost=None, hybrid=None)  # type: ignore[arg-type]


def _tables(recipe: Recipe, uris: dict[str, str], *, rows: Rows, question: Question) -> dict[str, Predictions]:
    """Both models' answers to the rows, and to the changed rows that gates ask for."""
    predict, gates = remotely(predict_rows, recipe.training), question.gates
    tables = {role: predict(uris[role], rows=rows) for role in ROLES}
    for name, gate, change in (
        ("counterfactual", gates.counterfactual, counterfactuals),
        ("noise", gates.robustness, misspelt),
    ):
        if gate is not None:
            changed = change(rows)
            tables |= {f"{role}_{name}": predict(uris[role], rows=changed) for role in ROLES}
    return tables


def _keep(home: str, uri: str, evidence: dict[str, Any], *, tables: dict[str, Predictions]) -> None:
    for name, table in tables.items():
        save_predictions(f"{uri}/predictions/{name}.parquet", table)
    storage.write_json(f"{uri}/evidence.json", evidence)
    name = f"{evidence['at'].replace(':', '')}-reevaluation"
    told = {name: evidence[name] for name in ("at", "versions", "verdict")} | {"reevaluation": uri}
    storage.write_json(f"{home}/history/{name}.json", told)
