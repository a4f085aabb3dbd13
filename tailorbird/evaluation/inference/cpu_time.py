"""Measure the CPU time of the compared models on this machine in alternating rounds."""

import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from tailorbird.data.rows import Rows
from tailorbird.evaluation.gates.cost import MIN_ROUNDS, ServingCosts
from tailorbird.evaluation.inference.chat_answers import answer_texts
from tailorbird.evaluation.inference.predict import class_logits
from tailorbird.models.loading import AnyArtifact, LoadedClassifier, load_artifact
from tailorbird.models.temperature import temperature_softmax
from tailorbird.registry.routing import Routing, routes_to_candidate
from tailorbird.registry.versions import VersionConfig, read_artifact_config, read_parts

Loaded = AnyArtifact[VersionConfig]


def measure_cpu(uris: Mapping[str, str], *, rows: Rows, num_rounds: int = MIN_ROUNDS) -> ServingCosts:
    """Return the CPU-seconds per thousand rows, from text to answer, by role and round.

    `uris` has the URIs of the artifacts by role. All models run in this process on CPU. After a warm-up on all rows,
    all models answer all rows in each round; every second round has the reverse order. The time includes all threads of
    the process. Raises ValueError for fewer than two models, no rows or too few rounds.
    """
    if len(uris) < 2 or not len(rows) or num_rounds < MIN_ROUNDS:
        raise ValueError(
            f"cannot measure the CPU time of {sorted(uris)} on {len(rows)} rows in {num_rounds} rounds; give at least "
            f"2 models, at least 1 row and at least {MIN_ROUNDS} rounds"
        )
    models = {role: _answerer(uri) for role, uri in uris.items()}
    for answer in models.values():
        _cpu_s(answer, rows)
    seconds: dict[str, list[float]] = {role: [] for role in models}
    roles = tuple(models)
    for number in range(num_rounds):
        for role in roles if number % 2 == 0 else roles[::-1]:
            seconds[role].append(1000 * _cpu_s(models[role], rows) / len(rows))
    return {role: tuple(values) for role, values in seconds.items()}


def _cpu_s(answer: Callable[[Rows], object], rows: Rows) -> float:
    start = time.process_time()
    answer(rows)
    return time.process_time() - start


def _answerer(uri: str) -> Callable[[Rows], object]:
    """Load the artifact and return a function that answers rows."""
    hybrid = read_artifact_config(uri).hybrid
    if hybrid is not None:
        incumbent, candidate = (load_artifact(part.uri, device="cpu") for part in read_parts(hybrid))
        return partial(_answer_hybrid, incumbent=incumbent, candidate=candidate, routing=hybrid.routing)
    return partial(_answer, load_artifact(uri, device="cpu"))


def _answer(loaded: Loaded, rows: Rows) -> object:
    return class_logits(loaded, rows) if isinstance(loaded, LoadedClassifier) else answer_texts(loaded, rows)


def _answer_hybrid(rows: Rows, *, incumbent: Loaded, candidate: Loaded, routing: Routing) -> None:
    """Answer rows as a hybrid does: by confidence, the incumbent answers all rows first."""
    if routing.column is not None:
        routed = routes_to_candidate(routing, groups=rows.groups[routing.column])
        kept = np.flatnonzero(~routed)
        if len(kept):
            _answer(incumbent, rows.take(kept))
    else:
        assert isinstance(incumbent, LoadedClassifier)  # only classifiers are routed by confidence
        logits = class_logits(incumbent, rows)
        confidences = temperature_softmax(logits, temperature=incumbent.version.temperature).max(1)
        routed = routes_to_candidate(routing, confidences=confidences)
    to_candidate = np.flatnonzero(routed)
    if len(to_candidate):
        _answer(candidate, rows.take(to_candidate))
