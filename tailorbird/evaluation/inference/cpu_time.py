"""Measure the CPU time of two models on this machine in alternating rounds."""

import time
from collections.abc import Callable, Mapping
from functools import partial

from tailorbird.data.rows import Rows
from tailorbird.evaluation.gates.cost import MIN_ROUNDS, CpuRounds
from tailorbird.evaluation.inference.chat_answers import answer_texts
from tailorbird.evaluation.inference.predict import class_logits
from tailorbird.models.loading import LoadedClassifier, load_artifact

ROLES = ("incumbent", "candidate")


def measure_cpu(uris: Mapping[str, str], *, rows: Rows, num_rounds: int = MIN_ROUNDS) -> CpuRounds:
    """Return CPU-seconds per thousand rows, from text to answer, of the artifacts at `uris` (by role).

    Both models run in this process on CPU. After a warm-up on all rows, both models answer all rows in each round, in
    alternating order. The time includes all threads of the process. Raises ValueError for other roles, no rows or too
    few rounds.
    """
    if sorted(uris) != sorted(ROLES) or not len(rows) or num_rounds < MIN_ROUNDS:
        raise ValueError(
            f"cannot measure the CPU time of {sorted(uris)} on {len(rows)} rows in {num_rounds} rounds; give the URIs "
            f"of {' and '.join(ROLES)}, at least 1 row and at least {MIN_ROUNDS} rounds"
        )
    models = {role: _answerer(uris[role]) for role in ROLES}
    for answer in models.values():
        _cpu_s(answer, rows)
    seconds: dict[str, list[float]] = {role: [] for role in ROLES}
    for number in range(num_rounds):
        for role in ROLES if number % 2 == 0 else ROLES[::-1]:
            seconds[role].append(1000 * _cpu_s(models[role], rows) / len(rows))
    return CpuRounds(incumbent=tuple(seconds["incumbent"]), candidate=tuple(seconds["candidate"]))


def _cpu_s(answer: Callable[[Rows], object], rows: Rows) -> float:
    start = time.process_time()
    answer(rows)
    return time.process_time() - start


def _answerer(uri: str) -> Callable[[Rows], object]:
    """Load the artifact and return a function that answers rows."""
    loaded = load_artifact(uri, device="cpu")
    return partial(class_logits if isinstance(loaded, LoadedClassifier) else answer_texts, loaded)
