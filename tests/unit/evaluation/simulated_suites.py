"""Answers of synthetic models to suites."""

from collections.abc import Mapping, Sequence

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.verdict.inputs import SUITE_PREFIX
from tests import build

Suites = Mapping[str, tuple[float, float]]
"""Scores of the candidate and of all other models on each suite of 100 rows, by name."""


def suite_table(model: str, scores: Sequence[float]) -> Predictions:
    """Return the answers to a suite with these scores; every other row is in group a."""
    n = len(scores)
    groups = {"group": tuple("ab"[row % 2] for row in range(n))}
    return build.predictions(
        "o" * n, "e" * n, model=model, scores=scores, confidences=0.0, groups=groups
    )


def suite_tables(suites: Suites, *, models: Mapping[str, str]) -> dict[str, Predictions]:
    """Return the answers of models, with their kinds by role, to each suite."""
    tables = {}
    for name, (candidate, incumbent) in suites.items():
        for role, kind in models.items():
            num_right = round(100 * (candidate if role == "candidate" else incumbent))
            scores = [1.0] * num_right + [0.0] * (100 - num_right)
            tables[f"{role}_{SUITE_PREFIX}{name}"] = suite_table(kind, scores)
    return tables


def suites_section(suites: Suites) -> dict[str, dict[str, dict[str, str]]]:
    """Return a part of the recipe's gates."""
    return {"suites": {name: {"uri": f"s3://suites/{name}"} for name in suites}}


def suite_hashes(suites: Suites, *, sha256: str) -> dict[str, str]:
    return {f"{SUITE_PREFIX}{name}": sha256 for name in suites}
