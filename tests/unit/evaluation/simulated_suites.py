"""Answers of synthetic models to suites."""

from collections.abc import Mapping, Sequence

import numpy as np

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.verdict.inputs import SUITE_PREFIX

Suites = Mapping[str, tuple[float, float]]
"""Scores of the candidate and of all other models on each suite of 100 rows, by name."""


def suite_table(model: str, scores: Sequence[float]) -> Predictions:
    """Return the answers to a suite with these scores; every other row is in group a."""
    n = len(scores)
    rows, zeros = tuple(map(str, range(n))), np.zeros(n)
    groups = {"group": tuple("ab"[row % 2] for row in range(n))}
    return Predictions(
        model,
        rows,
        ("e",) * n,
        ("o",) * n,
        np.array(scores, dtype=np.float64),
        zeros,
        zeros,
        groups,
    )


def suite_tables(suites: Suites, *, models: Mapping[str, str]) -> dict[str, Predictions]:
    """Return the answers of models, with their kinds by role, to each suite."""
    return {
        f"{role}_{SUITE_PREFIX}{name}": suite_table(
            kind, [1.0] * round(100 * score) + [0.0] * round(100 - 100 * score)
        )
        for name, (candidate, others) in suites.items()
        for role, kind in models.items()
        for score in (candidate if role == "candidate" else others,)
    }


def suites_section(suites: Suites) -> dict[str, dict[str, dict[str, str]]]:
    """Return a part of the recipe's gates."""
    return {"suites": {name: {"uri": f"s3://suites/{name}"} for name in suites}}


def suite_hashes(suites: Suites, *, sha256: str) -> dict[str, str]:
    return {f"{SUITE_PREFIX}{name}": sha256 for name in suites}
