"""The family of contenders that a run tests against the incumbent: Holm's method, with intervals at matching levels.

Holm tests the smallest p value at alpha / K, the next at alpha / (K - 1), and so on, until one test fails. The interval
of a contender that passes has the level of its own test. All others have alpha divided by their number, as in the
intervals of Strassburger and Bretz, Statistics in Medicine 27:4914-4927 (2008). An interval therefore agrees with its
test. Each interval covers its gain in at least 1 - alpha of all tests. The claims that a gain is above 0 hold jointly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.paired import Comparison, compare, holm
from tailorbird.evaluation.verdict.protocol import TestProtocol


@dataclass(frozen=True)
class FamilyComparison:
    """The comparison of one contender with the incumbent, corrected for the size of the family."""

    comparison: Comparison  # its interval is two-sided at 1 - `level`
    p_holm: float
    level: float
    proven: bool


def compare_family(
    contenders: Mapping[str, Predictions], *, incumbent: Predictions, protocol: TestProtocol
) -> dict[str, FamilyComparison]:
    """Compare each contender, by role, with the incumbent."""
    metric, alpha = protocol.metric, protocol.alpha
    plain = {role: compare(table, other=incumbent, metric=metric, alpha=alpha) for role, table in contenders.items()}
    p_values = [comparison.p_value for comparison in plain.values()]
    adjusted, levels = holm(p_values), holm_levels(p_values, alpha=alpha)
    family = {}
    for (role, comparison), p_holm, level in zip(plain.items(), adjusted, levels, strict=True):
        if level != alpha:
            comparison = compare(contenders[role], other=incumbent, metric=metric, alpha=level)
        proven = is_proven(comparison, p_value=p_holm, protocol=protocol)
        family[role] = FamilyComparison(comparison, p_holm, level, proven)
    return family


def is_proven(comparison: Comparison, *, p_value: float, protocol: TestProtocol) -> bool:
    """Return True if p is below alpha, the interval is above 0, and the gain reaches the minimum gain."""
    return p_value < protocol.alpha and comparison.interval[0] > 0 and comparison.gain >= protocol.minimum_gain


def holm_levels(p_values: Sequence[float], *, alpha: float) -> tuple[float, ...]:
    """Return the level at which Holm's method tests each hypothesis, in the given order.

    The hypotheses after the first one that is not rejected have its level.
    """
    count = len(p_values)
    num_rejected = sum(p_value < alpha for p_value in holm(p_values))
    levels = np.empty(count)
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        levels[index] = alpha / (count - min(rank, num_rejected))
    return tuple(levels.tolist())
