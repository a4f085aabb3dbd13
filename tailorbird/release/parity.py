"""Parity gate: before it is served, a version must answer test rows over HTTP as it did in its
evaluation."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from serving.served_tasks import SERVED_TASKS
from tailorbird.data.loader import read_test
from tailorbird.data.rows import Rows, rows_sha256
from tailorbird.data.task_data import data_task
from tailorbird.evaluation.hybrid import apply_routing, routed_to_second
from tailorbird.evaluation.prediction_store import load_predictions
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.statistics.text_metrics import words_sha256
from tailorbird.registry.champion import ParityResult
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.hybrid_routing import PARTS, PartName
from tailorbird.registry.kinds import spec_of
from tailorbird.registry.versions import ModelVersion, now, read_parts
from tailorbird.release.probe_requests import Difference, ParityProbe, ServedAnswer, send_probe
from tailorbird.release.token_parity import TOKEN_TOLERANCE, compare_chats


class Tolerance(NamedTuple):
    """Maximum difference between served and evaluated probabilities, because rounding differs
    between batches."""

    row: float
    mean: float  # over all rows


MAX_PROBES = 64
MAX_ENDPOINT_PROBES = 8  # each is a paid request
TOLERANCE = {"float32": Tolerance(row=0.002, mean=0.002), "bfloat16": Tolerance(row=0.2, mean=0.01)}
"""Tolerances by dtype. Measured on 1,997 ICD-10-CM terms, MiniLM with a fitted head: another batch
changes probabilities by up to 5e-6 in float32, and in bfloat16 by up to 0.05 and by 0.003 on
average. In bfloat16, rounding changes few rows strongly, but faults change most rows: a temperature
of 1.1 instead of 1 by 0.015 on average, texts cut to 16 tokens by 0.03."""
NUM_CLIENTS = 8
MAX_LISTED_ROWS = 5
MAX_LISTED_CHARS = 60


class ParityRefused(ValueError):
    """Raised if a version does not answer as evaluated, or cannot be checked; the message lists
    rows."""


def sample_probes(
    evidence: Evidence, *, uri: str, version: ModelVersion
) -> tuple[ParityProbe, ...]:
    """Return probes of all classes, selected by a hash with the version's digest, so always the
    same.

    `uri` is the run or the version that the evidence belongs to. Raises ParityRefused if the test
    rows changed after the evaluation, DataError if they cannot be read.
    """
    recipe = evidence.recipe
    rows = read_test(recipe.data, task=data_task(recipe.task))
    if rows_sha256(rows) != evidence.data.sha256["test"]:
        raise ParityRefused(
            f"the test rows changed after {version.version} was evaluated on them, so its parity "
            "cannot be checked; restore them, or run the recipe again"
        )
    evaluated, ambiguous, of_endpoint = _evaluated(evidence, uri=uri, version=version)
    assert evaluated.row_ids == rows.row_ids
    # The service does not answer rows that the endpoint refuses, or for which it names no class.
    unanswered = frozenset(
        row for row, output in enumerate(evaluated.outputs) if output in ("", words_sha256(""))
    )

    def probes(without: frozenset[int], *, part: PartName | None = None) -> list[ParityProbe]:
        selected = select_rows(
            evaluated.row_ids, labels=evaluated.labels, digest=version.digest, without=without
        )
        if version.endpoint is None and part is None:
            limit = MAX_PROBES
        else:
            limit = MAX_ENDPOINT_PROBES
        return [
            _probe(rows, evaluated, row, version=version, endpoint_part=part)
            for row in selected[:limit]
        ]

    if version.endpoint is not None:
        return tuple(probes(unanswered))
    selected = probes(ambiguous.union(*of_endpoint.values()))
    every = frozenset(range(len(rows)))
    for part, answered in of_endpoint.items():
        selected += probes((every - answered) | ambiguous | unanswered, part=part)
    return tuple(selected)


def select_rows(
    row_ids: Sequence[str],
    *,
    labels: Sequence[str],
    digest: str,
    without: frozenset[int] = frozenset(),
) -> list[int]:
    """Return the indices of at most `MAX_PROBES` rows: labels in turn, each in the order of a hash
    with `digest`."""

    def hash_of(row: int) -> str:
        return hashlib.sha256(f"{digest} {row_ids[row]}".encode()).hexdigest()

    num_before: Counter[str] = Counter()
    rounds: dict[int, int] = {}
    for row in sorted(set(range(len(row_ids))) - without, key=hash_of):
        rounds[row] = num_before[labels[row]]
        num_before[labels[row]] += 1
    return sorted(rounds, key=rounds.__getitem__)[:MAX_PROBES]


def check_parity(probes: Sequence[ParityProbe], *, url: str, version: ModelVersion) -> ParityResult:
    """Send the probes to the version at `url` and compare its answers with the evaluated ones.

    Answers of an endpoint, also those of a hybrid's part, are checked by `compare_endpoint`. If the
    service requires API keys, the environment variable TAILORBIRD_API_KEY must hold one. Raises
    ParityRefused if answers differ or there are no probes; DeployError if the service does not
    answer.
    """
    if not probes:
        raise ParityRefused(
            f"{version.version} has no test row to check: every row is so near the hybrid's "
            "threshold that rounding may change its route, or an endpoint named no class for it; "
            "promote one of its parts, or run the recipe with more test rows"
        )
    if version.hybrid:
        parts = dict(zip(PARTS, read_parts(version.hybrid), strict=True))
    else:
        parts = {}
    is_paid = any(each.endpoint is not None for each in (version, *parts.values()))
    route = f"{url}{SERVED_TASKS[version.task].route}"
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        answers = list(
            clients.map(lambda probe: send_probe(route, probe.body, is_paid=is_paid), probes)
        )
    if version.endpoint is not None:
        return compare_endpoint(probes, answers, endpoint=version.endpoint, version=version)
    pairs = list(zip(probes, answers, strict=True))
    exact = [pair for pair in pairs if pair[0].endpoint_part is None]
    parity = None
    if exact:
        parity = _compare_exactly(*zip(*exact, strict=True), version=version)
    for name, part in parts.items():
        of_part = [
            (probe, _by_part(answer, name))
            for probe, answer in pairs
            if probe.endpoint_part == name
        ]
        if of_part and part.endpoint is not None:
            of_endpoint = compare_endpoint(
                *zip(*of_part, strict=True), endpoint=part.endpoint, version=version
            )
            if parity is None:
                parity = of_endpoint
            else:
                parity = parity.with_endpoint(of_endpoint)
    assert parity is not None  # there are probes
    return parity


def _by_part(answer: ServedAnswer, part: PartName) -> ServedAnswer:
    """Return the answer of a hybrid; as a refused request if it is not of this part or a
    fallback."""
    if not answer.output or (answer.answered_by == part and not answer.fallback):
        return answer
    why = "as a fallback" if answer.fallback else "by another route"
    return ServedAnswer("", f"answered by the {answer.answered_by} part {why}")


def _compare_exactly(
    probes: Sequence[ParityProbe], answers: Sequence[ServedAnswer], *, version: ModelVersion
) -> ParityResult:
    if any(probe.logprobs is not None for probe in probes):
        parity, differing = compare_chats(probes, answers, tolerance=TOKEN_TOLERANCE[version.dtype])
    else:
        parity, differing = compare_answers(probes, answers, tolerance=tolerance_of(version))
    if differing:
        raise ParityRefused(refusal(differing, version=version.version, num_probes=len(probes)))
    return parity


def tolerance_of(version: ModelVersion) -> Tolerance:
    """Return the tolerance of the version's dtype; for a hybrid, the larger tolerance of its
    parts."""
    parts = read_parts(version.hybrid) if version.hybrid else (version,)
    return max(TOLERANCE[part.dtype] for part in parts)


def compare_answers(
    probes: Sequence[ParityProbe], answers: Sequence[ServedAnswer], *, tolerance: Tolerance
) -> tuple[ParityResult, list[Difference]]:
    """Return the number of matching answers and the probes whose answers differ.

    The probability of the evaluated label must be within the row tolerance. Another label matches
    only in a tie: the served probabilities of both labels differ by at most the row tolerance. If
    the probabilities of the matching rows differ by more than the mean tolerance on average, each
    row above the mean tolerance is a difference too.
    """
    known = []
    compared = []
    ties = 0
    for probe, answer in zip(probes, answers, strict=True):
        move = 0.0
        if probe.confidence is not None:
            move = abs(answer.scores.get(probe.output, 0.0) - probe.confidence)
            known.append(move)
        same = answer.output == probe.output
        gap = answer.scores.get(answer.output, 1.0) - answer.scores.get(probe.output, 0.0)
        tie = not same and answer.output != "" and gap <= tolerance.row and move <= tolerance.row
        ties += tie
        compared.append(((probe, answer), move, tie or (same and move <= tolerance.row)))
    small_moves = [move for _, move, matches in compared if matches]
    if small_moves and fmean(small_moves) > tolerance.mean:
        limit = tolerance.mean
    else:
        limit = tolerance.row
    differing = [pair for pair, move, matches in compared if not matches or move > limit]
    parity = ParityResult(
        rows=len(probes),
        matching=len(probes) - len(differing),
        ties=ties,
        largest_difference=max(known, default=None),
        mean_difference=fmean(known) if known else None,
        at=now(),
    )
    return parity, differing


def compare_endpoint(
    probes: Sequence[ParityProbe],
    answers: Sequence[ServedAnswer],
    *,
    endpoint: Endpoint,
    version: ModelVersion,
) -> ParityResult:
    """Return the number of answers of an endpoint that equal the evaluated ones, which is not
    required.

    Raises ParityRefused if the service refuses a row, if the endpoint reports another model than in
    the evaluation, or if more than half of the labels differ: the service then sends other requests
    than the evaluation.
    """
    refused = [pair for pair in zip(probes, answers, strict=True) if not pair[1].output]
    if refused:
        raise ParityRefused(refusal(refused, version=version.version, num_probes=len(probes)))
    expected = endpoint.reported_model
    models = {answer.reported_model for answer in answers} - {expected}
    if models:
        reported = ", ".join(sorted(map(repr, models)))
        raise ParityRefused(
            f"the endpoint of {version.version} now reports the model {reported}, but {expected!r} "
            "was evaluated, so it is not promoted; set evaluation.endpoint.revision to a new text "
            "and run the recipe again to evaluate it"
        )
    differing = [
        pair for pair in zip(probes, answers, strict=True) if pair[0].output != pair[1].output
    ]
    if version.classes and 2 * len(differing) > len(probes):
        raise ParityRefused(refusal(differing, version=version.version, num_probes=len(probes)))
    matching = len(probes) - len(differing)
    return ParityResult(rows=len(probes), matching=matching, requires_equality=False, at=now())


def refusal(differing: Sequence[Difference], *, version: str, num_probes: int) -> str:
    """Return the message of a failed check, with the first differing rows."""
    lines = [
        f"{version} answers {len(differing)} of {num_probes} test rows differently than in its "
        "evaluation, so it is not promoted:"
    ]
    for probe, answer in differing[:MAX_LISTED_ROWS]:
        before, after = _described(probe, answer)
        lines.append(
            f"  row {probe.row_id}, {_shorten(probe.text)!r}: evaluated {before}, served {after}"
        )
    num_unlisted = len(differing) - MAX_LISTED_ROWS
    lines += [f"  and {num_unlisted} more"] if num_unlisted > 0 else []
    lines.append(
        "Check what differs between evaluation and service (code, base model, dtype), or run the "
        "recipe again."
    )
    return "\n".join(lines)


def _described(probe: ParityProbe, answer: ServedAnswer) -> tuple[str, str]:
    """Return the evaluated and the served answer; for chat, with the token whose log-probability
    differs most."""
    is_label = "input" in probe.body
    before = probe.output if is_label else f"words with sha256 {probe.output[:12]}"
    after = answer.text
    if probe.confidence is not None:
        before += f" ({probe.confidence:.3f})"
        after += f" ({answer.scores[answer.output]:.3f})" if answer.scores else ""
    pairs = list(
        zip(probe.logprobs or (), (token.logprob for token in answer.tokens), strict=False)
    )
    if not pairs:
        return before, _shorten(after)
    at, (evaluated, served) = max(enumerate(pairs), key=lambda pair: abs(pair[1][0] - pair[1][1]))
    before = f"{before} with log-probability {evaluated:.3f} of token {at}"
    return before, f"{_shorten(after)} with {served:.3f}"


class _Evaluated(NamedTuple):
    """The stored predictions of the test rows."""

    predictions: Predictions
    ambiguous: frozenset[int] = frozenset()
    """Rows whose confidence is so near a hybrid's threshold that another batch may route them
    differently."""
    of_endpoint: Mapping[PartName, frozenset[int]] = {}
    """Rows that a hybrid's part answers, for parts that are an endpoint: its answers to the same
    row differ."""


def _evaluated(evidence: Evidence, *, uri: str, version: ModelVersion) -> _Evaluated:
    roles = [role for role, record in evidence.versions.items() if record.uri == version.uri]
    if (
        not roles and version.exported_from is not None
    ):  # exported after the run, with predictions of the same rows
        return _Evaluated(load_predictions(f"{version.uri}/predictions/candidate.parquet"))
    if not roles:
        raise ParityRefused(f"{uri} has no predictions of {version.uri}; run the recipe again")
    if roles[0] != "hybrid":
        return _Evaluated(load_predictions(f"{uri}/predictions/{roles[0]}.parquet"))
    hybrid = evidence.family.hybrid
    assert hybrid is not None  # a version of the run is one
    assert version.hybrid is not None
    first, second = (load_predictions(f"{uri}/predictions/{role}.parquet") for role in hybrid.parts)
    ambiguous: frozenset[int] = frozenset()
    if hybrid.routing.threshold is not None:
        limit = TOLERANCE[read_parts(version.hybrid)[0].dtype].row
        ambiguous = _rows_of(abs(first.calibrated - hybrid.routing.threshold) <= limit)
    to_second = routed_to_second(hybrid.routing, first)
    answered: dict[PartName, frozenset[int]] = {
        "first": _rows_of(~to_second),
        "second": _rows_of(to_second),
    }
    of_endpoint = {
        name: answered[name]
        for name, table in zip(PARTS, (first, second), strict=True)
        if spec_of(table.model).calls_endpoint
    }
    routed = apply_routing(
        hybrid.routing, first=ModelPredictions(first), second=ModelPredictions(second)
    )
    return _Evaluated(routed.clean, ambiguous, of_endpoint)


def _rows_of(mask: NDArray[np.bool_]) -> frozenset[int]:
    return frozenset(np.flatnonzero(mask).tolist())


def _probe(
    rows: Rows,
    evaluated: Predictions,
    row: int,
    *,
    version: ModelVersion,
    endpoint_part: PartName | None = None,
) -> ParityProbe:
    (turns,) = rows.take([row]).turns
    body: dict[str, JsonValue] = {
        "model": version.version,
        **SERVED_TASKS[version.task].request(turns),
    }
    column = version.hybrid.routing.column if version.hybrid else None
    if column is not None:
        body["attributes"] = {column: rows.groups[column][row]}
    has_scores = bool(version.classes) and endpoint_part is None
    confidence = float(evaluated.calibrated[row]) if has_scores else None
    logprobs = None
    if evaluated.logprobs is not None and version.endpoint is None and endpoint_part is None:
        logprobs = evaluated.logprobs[row]
        body |= {"logprobs": True, "top_logprobs": 2}
    return ParityProbe(
        rows.row_ids[row],
        rows.texts[row],
        body,
        evaluated.outputs[row],
        confidence,
        logprobs,
        endpoint_part,
    )


def _shorten(text: str) -> str:
    if len(text) <= MAX_LISTED_CHARS:
        return text
    return f"{text[:MAX_LISTED_CHARS]}..."
