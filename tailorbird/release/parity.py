"""Parity gate: before it is served, a version must answer test rows over HTTP as it did in its
evaluation."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

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
from tailorbird.registry.versions import ModelVersion, now, read_parts
from tailorbird.release.comparison import (
    TOKEN_TOLERANCE,
    TOLERANCE,
    compare_chats,
    compare_labels,
)
from tailorbird.release.probe_requests import ParityProbe, ProbePair, ServedAnswer, send_probe

MAX_PROBES = 64
MAX_ENDPOINT_PROBES = 8  # each is a paid request
NUM_CLIENTS = 8
MAX_LISTED_ROWS = 5
MAX_LISTED_CHARS = 60


class ParityRefused(ValueError):
    """Raised if a version does not answer as evaluated, or cannot be checked; the message lists
    rows."""


@dataclass(frozen=True)
class _Part:
    """The rows that an endpoint answers: of a version that is one, or as a part of a hybrid."""

    name: PartName | None
    endpoint: Endpoint
    rows: frozenset[int]


@dataclass(frozen=True)
class _Evaluated:
    """The stored predictions of the test rows."""

    predictions: Predictions
    endpoints: tuple[_Part, ...] = ()
    ambiguous: frozenset[int] = field(default_factory=frozenset)
    """Rows whose confidence is so near a hybrid's threshold that another batch may route them
    differently."""


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
    evaluated = _evaluated(evidence, uri=uri, version=version)
    predictions = evaluated.predictions
    assert predictions.row_ids == rows.row_ids

    def selected(candidates: Iterable[int], most: int) -> list[int]:
        return select_rows(predictions, candidates, digest=version.digest)[:most]

    exact = set(range(len(rows))) - evaluated.ambiguous
    for part in evaluated.endpoints:
        exact -= part.rows
    probes = [
        _probe(rows, predictions, row, version=version) for row in selected(exact, MAX_PROBES)
    ]
    # The service does not answer rows that the endpoint refuses, or for which it names no class.
    unanswered = {
        row for row, output in enumerate(predictions.outputs) if output in ("", words_sha256(""))
    }
    for part in evaluated.endpoints:
        answered = part.rows - unanswered - evaluated.ambiguous
        probes += [
            _probe(rows, predictions, row, version=version, part=part)
            for row in selected(answered, MAX_ENDPOINT_PROBES)
        ]
    return tuple(probes)


def select_rows(predictions: Predictions, candidates: Iterable[int], *, digest: str) -> list[int]:
    """Return the rows in the order of their probes: labels in turn, each in the order of a hash
    with `digest`."""

    def hash_of(row: int) -> str:
        return hashlib.sha256(f"{digest} {predictions.row_ids[row]}".encode()).hexdigest()

    num_before: Counter[str] = Counter()
    rounds: dict[int, int] = {}
    for row in sorted(candidates, key=hash_of):
        label = predictions.labels[row]
        rounds[row] = num_before[label]
        num_before[label] += 1
    return sorted(rounds, key=rounds.__getitem__)


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
    route = f"{url}{SERVED_TASKS[version.task].route}"
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        answers = list(clients.map(lambda probe: send_probe(route, probe.body), probes))
    pairs = list(zip(probes, answers, strict=True))
    exact = [pair for pair in pairs if pair[0].endpoint is None]
    paid = [pair for pair in pairs if pair[0].endpoint is not None]
    if not exact:
        return compare_endpoint(paid, version=version)
    if any(probe.logprobs is not None for probe in probes):
        parity, differing = compare_chats(exact, tolerance=TOKEN_TOLERANCE[version.dtype])
    else:
        parts = read_parts(version.hybrid) if version.hybrid else (version,)
        tolerance = max(TOLERANCE[part.dtype] for part in parts)
        parity, differing = compare_labels(exact, tolerance=tolerance)
    if differing:
        raise ParityRefused(refusal(differing, version=version.version, num_probes=len(exact)))
    if paid:
        compare_endpoint(paid, version=version)
    return parity.model_copy(update={"endpoint_rows": len(paid)})


def compare_endpoint(pairs: Sequence[ProbePair], *, version: ModelVersion) -> ParityResult:
    """Return the number of answers of endpoints that equal the evaluated ones, which is not
    required.

    Raises ParityRefused if the service refuses a row or answers it by another part of a hybrid, if
    an endpoint reports another model than in the evaluation, or if more than half of the labels
    differ: the service then sends other requests than the evaluation.
    """
    refused = []
    differing = []
    for probe, answer in pairs:
        assert probe.endpoint is not None
        if not answer.output or answer.answered_by != probe.part or answer.is_fallback:
            refused.append((probe, answer))
            continue
        evaluated = probe.endpoint.reported_model
        if answer.reported_model != evaluated:
            raise ParityRefused(
                f"the endpoint of {version.version} now reports the model "
                f"{answer.reported_model!r}, but {evaluated!r} was evaluated, so it is not "
                "promoted; set revision of the endpoint to a new text and run the recipe again "
                "to evaluate it"
            )
        if answer.output != probe.output:
            differing.append((probe, answer))
    if version.classes and 2 * len(differing) > len(pairs):
        refused += differing
    if refused:
        raise ParityRefused(refusal(refused, version=version.version, num_probes=len(pairs)))
    matching = len(pairs) - len(differing)
    return ParityResult(rows=len(pairs), matching=matching, requires_equality=False, at=now())


def refusal(differing: Sequence[ProbePair], *, version: str, num_probes: int) -> str:
    """Return the message of a failed check, with the first differing rows."""
    lines = [
        f"{version} answers {len(differing)} of {num_probes} test rows differently than in its "
        "evaluation, so it is not promoted:"
    ]
    for probe, answer in differing[:MAX_LISTED_ROWS]:
        evaluated = probe.output
        if "input" not in probe.body:
            evaluated = f"words with sha256 {probe.output[:12]}"
        lines.append(
            f"  row {probe.row_id}, {_shorten(probe.text)!r}: evaluated "
            f"{_with_probability(evaluated, probe.confidence)}, served {_described(answer)}"
        )
    num_unlisted = len(differing) - MAX_LISTED_ROWS
    if num_unlisted > 0:
        lines.append(f"  and {num_unlisted} more")
    lines.append(
        "Check what differs between evaluation and service (code, base model, dtype), or run the "
        "recipe again."
    )
    return "\n".join(lines)


def _described(answer: ServedAnswer) -> str:
    """Return the served answer with its probability and, for a hybrid, the part."""
    text = _with_probability(_shorten(answer.text), answer.scores.get(answer.output))
    if answer.is_fallback:
        return f"{text} by the {answer.answered_by} part as a fallback"
    if answer.answered_by:
        return f"{text} by the {answer.answered_by} part"
    return text


def _with_probability(text: str, probability: float | None) -> str:
    if probability is None:
        return text
    return f"{text} ({probability:.3f})"


def _shorten(text: str) -> str:
    if len(text) <= MAX_LISTED_CHARS:
        return text
    return f"{text[:MAX_LISTED_CHARS]}..."


def _evaluated(evidence: Evidence, *, uri: str, version: ModelVersion) -> _Evaluated:
    roles = [role for role, record in evidence.versions.items() if record.uri == version.uri]
    if not roles:
        raise ParityRefused(f"{uri} has no predictions of {version.uri}; run the recipe again")
    if roles[0] != "hybrid":
        table = load_predictions(f"{uri}/predictions/{roles[0]}.parquet")
        if version.endpoint is None:
            return _Evaluated(table)
        rows = frozenset(range(len(table)))
        return _Evaluated(table, (_Part(None, version.endpoint, rows),))
    hybrid = evidence.family.hybrid
    assert hybrid is not None  # a version of the run is one
    assert version.hybrid is not None
    first, second = (load_predictions(f"{uri}/predictions/{role}.parquet") for role in hybrid.parts)
    versions = read_parts(version.hybrid)
    ambiguous: frozenset[int] = frozenset()
    if hybrid.routing.threshold is not None:
        limit = TOLERANCE[versions[0].dtype].row
        ambiguous = _rows_of(abs(first.calibrated - hybrid.routing.threshold) <= limit)
    to_second = routed_to_second(hybrid.routing, first)
    endpoints = []
    for name, part, answered in zip(PARTS, versions, (~to_second, to_second), strict=True):
        if part.endpoint is not None:
            endpoints.append(_Part(name, part.endpoint, _rows_of(answered)))
    routed = apply_routing(
        hybrid.routing, first=ModelPredictions(first), second=ModelPredictions(second)
    )
    return _Evaluated(routed.clean, tuple(endpoints), ambiguous)


def _rows_of(mask: NDArray[np.bool_]) -> frozenset[int]:
    return frozenset(np.flatnonzero(mask).tolist())


def _probe(
    rows: Rows,
    evaluated: Predictions,
    row: int,
    *,
    version: ModelVersion,
    part: _Part | None = None,
) -> ParityProbe:
    (turns,) = rows.take([row]).turns
    body: dict[str, JsonValue] = {
        "model": version.version,
        **SERVED_TASKS[version.task].request(turns),
    }
    if version.hybrid and version.hybrid.routing.column is not None:
        column = version.hybrid.routing.column
        body["attributes"] = {column: rows.groups[column][row]}
    probe = ParityProbe(rows.row_ids[row], rows.texts[row], body, output=evaluated.outputs[row])
    if part is not None:
        return probe._replace(endpoint=part.endpoint, part=part.name)
    if version.classes:
        probe = probe._replace(confidence=float(evaluated.calibrated[row]))
    if evaluated.logprobs is not None:
        probe = probe._replace(
            body=body | {"logprobs": True, "top_logprobs": 2}, logprobs=evaluated.logprobs[row]
        )
    return probe
