"""Before a version is served: over HTTP it answers test rows as when it was evaluated, or it is not promoted."""

import hashlib
import os
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean
from typing import Any, NamedTuple

import requests

from cluster.bearer_auth import bearer
from serving.deploy.serve_client import DeployError
from serving.tasks import SERVED_TASKS
from tailorbird.config.recipe import Recipe
from tailorbird.data.loader import read_test
from tailorbird.data.rows import Rows, rows_sha256
from tailorbird.data.tasks import data_task
from tailorbird.evaluation.hybrid import apply_routing
from tailorbird.evaluation.prediction_store import load_predictions
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.report.evidence_files import as_routing
from tailorbird.evaluation.statistics.text_metrics import words_sha256
from tailorbird.registry.champion import Parity
from tailorbird.registry.routing import Routing
from tailorbird.registry.versions import ModelVersion, now, read_parts


class Tolerance(NamedTuple):
    """How far probabilities may lie from those evaluated, because other batches round otherwise."""

    row: float
    """Of one row."""
    mean: float
    """Of all rows, on average."""


SAMPLE = 64
TOLERANCE = {"float32": Tolerance(row=0.002, mean=0.002), "bfloat16": Tolerance(row=0.2, mean=0.01)}
"""By the version's dtype. Measured on 1,997 ICD-10-CM terms, MiniLM with a fitted head: other batches move a
probability in float32 by up to 5e-6; in bfloat16 by up to 0.05, and by 0.003 on average. There rounding moves few rows
far, and what is wrong moves most: a temperature of 1.1 for 1 by 0.015 on average, texts cut to 16 tokens by 0.03."""
NUM_CLIENTS = 8
ATTEMPTS, PAUSE_S, TIMEOUT_S = 10, 1.0, 120
BUSY = (408, 429, 502, 503, 504)
KEY = "TAILORBIRD_API_KEY"
SHOWN_ROWS, SHOWN_CHARS = 5, 60


class ParityRefused(ValueError):
    """The version is not served as it was evaluated, or nobody can tell; the message shows the rows."""


class Asked(NamedTuple):
    """A test row as it is asked, and what the version answered when it was evaluated."""

    row_id: str
    text: str
    body: Mapping[str, Any]
    output: str
    """The label; of a chat model, sha256 of its answer's words."""
    confidence: float | None
    """The label's probability after temperature; a chat model has none to compare."""


class Answer(NamedTuple):
    """What was served for a row."""

    output: str
    """As in `RequestContext`; empty where the request was refused."""
    said: str
    """For people: the label, the answer's text, or why the request was refused."""
    scores: Mapping[str, float] = {}
    """Probability of each class, of a classifier."""


def sample_of(evidence: Mapping[str, Any], *, place: str, version: ModelVersion) -> tuple[Asked, ...]:
    """Test rows, all classes mixed, with what the version answered in the evaluation.

    `place` is the URI of the run, or version, whose evidence it is. The version's digest draws the rows, always the
    same. Raises ParityRefused where the test rows are not those of the evaluation any more, DataError where they cannot
    be read.
    """
    recipe = Recipe.model_validate(evidence["recipe"])
    rows = read_test(recipe.data, task=data_task(recipe.task))
    if rows_sha256(rows) != evidence["data"]["sha256_test"]:
        raise ParityRefused(
            f"the test rows changed since {version.version} was evaluated on them, so nobody can tell whether it is "
            "served as it was; restore them, or run the recipe again"
        )
    evaluated, unsure = _evaluated(evidence, place=place, version=version)
    assert evaluated.row_ids == rows.row_ids
    drawn = draw(evaluated.row_ids, labels=evaluated.labels, digest=version.digest, without=unsure)
    routing = version.hybrid.routing if version.hybrid else None
    return tuple(_asked(rows, evaluated, row, version=version, routing=routing) for row in drawn)


def draw(
    row_ids: Sequence[str], *, labels: Sequence[str], digest: str, without: frozenset[int] = frozenset()
) -> list[int]:
    """Places of at most `SAMPLE` rows, one of each label in turn; the digest alone says which, and the order."""

    def drawn_by(place: int) -> str:
        return hashlib.sha256(f"{digest} {row_ids[place]}".encode()).hexdigest()

    num_before: Counter[str] = Counter()
    rounds: list[tuple[int, int]] = []
    for place in sorted(set(range(len(row_ids))) - without, key=drawn_by):
        rounds.append((num_before[labels[place]], place))
        num_before[labels[place]] += 1
    return [place for _, place in sorted(rounds, key=lambda one: one[0])][:SAMPLE]


def prove(asked: Sequence[Asked], *, url: str, version: ModelVersion) -> Parity:
    """Asks the version at `url`, and returns how it answered.

    With API keys in force one is needed, in the environment variable TAILORBIRD_API_KEY. Raises ParityRefused where it
    answers otherwise than evaluated, or no row can be asked, DeployError where there is no answer.
    """
    if not asked:
        raise ParityRefused(
            f"of {version.version} no test row can be asked: each lies so near the hybrid's threshold that "
            "rounding may route it otherwise; promote one of its parts, or run the recipe with more test rows"
        )
    route = f"{url}{SERVED_TASKS[version.task].route}"
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        answers = list(clients.map(lambda one: _answer(route, one.body), asked))
    parity, differing = compare(asked, answers, tolerance=tolerance_of(version))
    if differing:
        raise ParityRefused(refusal(differing, version=version.version, num_asked=len(asked)))
    return parity


def tolerance_of(version: ModelVersion) -> Tolerance:
    """Of a hybrid, that of its less exact part."""
    parts = read_parts(version.hybrid) if version.hybrid else (version,)
    return max(TOLERANCE[part.dtype] for part in parts)


def compare(
    asked: Sequence[Asked], answers: Sequence[Answer], *, tolerance: Tolerance
) -> tuple[Parity, list[tuple[Asked, Answer]]]:
    """How many rows were answered as evaluated, and those that were not.

    The same label must have the same probability within the tolerance of a row. Another label is as good only where the
    served probabilities of both, which no batch need order alike, differ by no more than that. Where the rows that are
    the same by this moved by more than the mean's tolerance on average, each that did is another answer too.
    """
    moves = [
        None if one.confidence is None else abs(answer.scores.get(one.output, 0.0) - one.confidence)
        for one, answer in zip(asked, answers, strict=True)
    ]
    known = [moved for moved in moves if moved is not None]
    ties = 0
    alike: list[bool] = []
    for one, answer, moved in zip(asked, answers, moves, strict=True):
        same = answer.output == one.output
        gap = answer.scores.get(answer.output, 1.0) - answer.scores.get(one.output, 0.0)
        tie = not same and answer.output != "" and gap <= tolerance.row
        ties += tie
        alike.append((same or tie) and (moved or 0.0) <= tolerance.row)
    slight = [moved or 0.0 for moved, is_alike in zip(moves, alike, strict=True) if is_alike]
    most = tolerance.mean if slight and fmean(slight) > tolerance.mean else tolerance.row
    differing = [
        (one, answer)
        for one, answer, moved, is_alike in zip(asked, answers, moves, alike, strict=True)
        if not is_alike or (moved or 0.0) > most
    ]
    parity = Parity(
        asked=len(asked),
        same=len(asked) - len(differing),
        ties=ties,
        largest_difference=max(known, default=None),
        mean_difference=fmean(known) if known else None,
        at=now(),
    )
    return parity, differing


def refusal(differing: Sequence[tuple[Asked, Answer]], *, version: str, num_asked: int) -> str:
    """Why the version is not served, with the rows."""
    lines = [
        f"{version} answers {len(differing)} of {num_asked} test rows otherwise than it was evaluated, so it does not "
        "become the one that serves:"
    ]
    for one, answer in differing[:SHOWN_ROWS]:
        before, after = one.output, answer.said
        if one.confidence is None:
            before = f"words with sha256 {one.output[:12]}"
        else:
            before += f" ({one.confidence:.3f})"
            after += f" ({answer.scores[answer.output]:.3f})" if answer.scores else ""
        lines.append(f"  row {one.row_id}, {_start(one.text)!r}: evaluated {before}, served {_start(after)}")
    left = len(differing) - SHOWN_ROWS
    lines += [f"  and {left} more"] if left > 0 else []
    lines.append(
        "Look for what differs between evaluation and service (code, base model, dtype), or run the recipe again."
    )
    return "\n".join(lines)


def _evaluated(evidence: Mapping[str, Any], *, place: str, version: ModelVersion) -> tuple[Predictions, frozenset[int]]:
    """The version's stored answers to the test rows; and places of rows where a hybrid's confidence lies on its
    threshold, which another batch may move to the other side."""
    roles = [role for role, one in evidence["versions"].items() if one["uri"] == version.uri]
    if not roles and version.exported_from is not None:  # after that run, with answers of its own to the same rows
        return load_predictions(f"{version.uri}/predictions/candidate.parquet"), frozenset()
    if not roles:
        raise ParityRefused(f"{place} has no answers of {version.uri}; run the recipe again")
    if roles[0] != "hybrid":
        return load_predictions(f"{place}/predictions/{roles[0]}.parquet"), frozenset()
    routing = as_routing(evidence["routing"])
    parts = {
        role: ModelPredictions(load_predictions(f"{place}/predictions/{role}.parquet"))
        for role in ("incumbent", "candidate")
    }
    unsure: frozenset[int] = frozenset()
    if routing.threshold is not None:
        sure_by = enumerate(abs(parts["incumbent"].clean.calibrated - routing.threshold))
        unsure = frozenset(row for row, distance in sure_by if distance <= tolerance_of(version).row)
    return apply_routing(routing, **parts).clean, unsure


def _asked(rows: Rows, evaluated: Predictions, row: int, *, version: ModelVersion, routing: Routing | None) -> Asked:
    body: dict[str, Any] = {"model": version.version}
    if rows.conversations is None:
        body |= {"input": rows.texts[row], "scores": True}
        if routing is not None and routing.column is not None:
            body["attributes"] = {routing.column: rows.groups[routing.column][row]}
    else:
        body["messages"] = [{"role": role, "content": content} for role, content in rows.conversations[row]]
    confidence = None if rows.conversations is not None else float(evaluated.calibrated[row])
    return Asked(rows.row_ids[row], rows.texts[row], body, evaluated.outputs[row], confidence)


def _answer(url: str, body: Mapping[str, Any]) -> Answer:
    """One row's answer; who is busy, or restarts a replica, is asked again."""
    headers = {"x-request-id": f"parity-{uuid.uuid4().hex}"}  # so that who reads the request log can leave it out
    key = os.environ.get(KEY)
    last: requests.Response | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S)
        try:
            last = requests.post(url, json=body, headers=headers, auth=bearer(key) if key else None, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            if attempt + 1 == ATTEMPTS:
                raise DeployError(
                    f"{url} does not answer ({type(error).__name__}); is Serve reachable from here?"
                ) from None
            continue
        if last.status_code not in BUSY and not (last.status_code == 404 and "model_not_found" in last.text):
            break  # of several replicas, one may still be loading it
    assert last is not None
    if last.status_code in (401, 403, *BUSY):
        told = f"set {KEY} to a key that it takes" if last.status_code in (401, 403) else "ask when it is less busy"
        raise DeployError(f"{url} does not answer test rows ({last.status_code}): {told}")
    if last.status_code != 200:
        return Answer("", f"refused with {last.status_code}, {last.text[:200]}")
    found = last.json()
    if "choices" in found:
        said = str(found["choices"][0]["message"]["content"])
        return Answer(words_sha256(said), repr(said))
    result = found["results"][0]
    return Answer(result["label"], result["label"], result["scores"])


def _start(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
