"""The verdict made again while its champion serves: the same question, on newly labelled rows, and the way back."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster import storage
from cluster.progress import Show
from cluster.session import remotely
from data.checks import normalise
from data.read import Rows, Splits, content_sha256
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
from recipes.schema import Recipe, digest


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
            then = [f"{again}; to train on what is asked today: add the audited rows to data.train, `tailorbird run`"]
        return [self.sentence(), *(f"  - {reason}" for reason in self.verdict.reasons), *then, f"evidence: {self.uri}"]


def reevaluate(recipe: Recipe, *, show: Show) -> Reevaluated:
    """The champion against the version that a rollback goes to, on every audited text that training did not see.

    The question is that of the run that chose the champion, but for prices: neither model changed, so neither did its
    cost. STAY means that the champion no longer holds; with `watching.rollback: automatic` the version before serves
    again then, by the same conditional write as `tailorbird rollback`. Evidence lies under
    `<home>/reevaluations/<time>/`, the outcome in `history/`. Raises ReevaluationError where less than
    `watching.min_labels` rows are left, PromotionRefused where there is no champion or no way back.
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
    return Reevaluated(uri, verdict, holds, former.uri, champion)


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
