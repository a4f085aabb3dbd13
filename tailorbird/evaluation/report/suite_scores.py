"""Compute the scores of all models on the suites, as a whole and by group, from their answers."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import SuiteScore
from tailorbird.evaluation.verdict.inputs import SUITE_PREFIX


def suite_scores(
    tables: Mapping[str, Predictions], *, suites: Sequence[str], roles: Sequence[str]
) -> tuple[SuiteScore, ...]:
    """Return the scores on each suite: all rows, then the rows of each group.

    A model that cannot answer some of the rows has no score.
    """
    scores = []
    for suite in suites:
        answers = {role: tables[f"{role}_{SUITE_PREFIX}{suite}"] for role in roles}
        groups = np.array(answers[roles[0]].groups.get("group", ()), dtype=object)
        rows: dict[str | None, NDArray[np.int64]] = {None: np.arange(len(answers[roles[0]]))}
        rows |= {group: np.flatnonzero(groups == group) for group in sorted(set(groups.tolist()))}
        for group, members in rows.items():
            means = {role: float(np.mean(table.scores[members])) for role, table in answers.items()}
            known = {role: None if np.isnan(mean) else mean for role, mean in means.items()}
            scores.append(SuiteScore(suite, group, len(members), known))
    return tuple(scores)
