"""The groups gate: compare candidate and incumbent in each group of test rows."""

from collections.abc import Mapping

import numpy as np

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.base import Bound, Estimate, Gate, State, gate, rows_needed
from tailorbird.evaluation.predictions import Predictions, VerdictRefused
from tailorbird.evaluation.statistics.distributions import norm_isf
from tailorbird.evaluation.statistics.effect import Effect, with_unseen
from tailorbird.evaluation.statistics.paired import compare
from tailorbird.evaluation.statistics.power import TARGET_POWER

LIKELY_HARM = 0.2
"""One-sided level of a likely loss of a group."""


def groups_gate(
    candidate: Predictions,
    *,
    incumbent: Predictions,
    limits: SubgroupGateConfig,
    alpha: float,
    metric: str = "accuracy",
    likely_harm: float = LIKELY_HARM,
) -> Gate:
    """Test the paired change of the metric in each value of each group column, including missing
    values.

    Macro-F1 in a group is that of the group's rows, over the classes that occur among them. The
    bounds are those of `group_bounds`. Raises VerdictRefused if rows or groups differ.
    """
    if candidate.groups != incumbent.groups:
        raise VerdictRefused(
            f"{candidate.model} and {incumbent.model} differ in their groups; predict the same rows"
        )
    changes = {}
    for column, values in sorted(candidate.groups.items()):
        column_values = np.array(values, dtype=object)
        for value in sorted(set(values)):
            rows = np.flatnonzero(column_values == value).tolist()
            changes[f"{column} = {value}"] = group_change(
                candidate.take(rows), incumbent=incumbent.take(rows), metric=metric, alpha=alpha
            )
    if not changes:
        return gate("groups", (), note="the recipe names no column in data.groups")
    level = max(likely_harm, alpha / len(changes))
    confidence = 100 * (1 - level)
    note = (
        f"a group passes if the one-sided {confidence:.4g}% interval of its change is above "
        f"{-100 * limits.margin:g} points; it fails if it lost these points, that interval is "
        "below 0, and it differs from all rows by more than chance"
    )
    bounds = group_bounds(changes, limits=limits, alpha=alpha, level=level)
    return gate("groups", bounds, note=note)


def group_change(
    candidate: Predictions, *, incumbent: Predictions, metric: str, alpha: float
) -> Estimate:
    """Return the change in the rows of a group, with an interval of at least the unseen rate to
    both sides."""
    compared = compare(candidate, other=incumbent, metric=metric, alpha=alpha)
    effect = Effect(compared.gain, compared.interval, compared.p_value, standard_error=0.0)
    effect = with_unseen(effect, num_units=compared.num_units, alpha=alpha)
    return Estimate(value=effect.gain, interval=effect.interval, n=len(candidate), alpha=alpha)


def group_bounds(
    changes: Mapping[str, Estimate], *, limits: SubgroupGateConfig, alpha: float, level: float
) -> list[Bound]:
    """Return a bound for each group, from the change of each, candidate minus incumbent.

    `level` is the one-sided level of a likely loss.

    - A group fails if it lost at least `max_loss`, its interval at this level is below 0, and its
      interval at alpha divided by the number of groups is below the change of all rows, or 0 if
      that is a loss. So chance fails at most alpha of the candidates that gain the same in every
      group.
    - A group passes if its interval at this level is above -`max_loss`.
    - Otherwise it is not assessable; with `rows_needed`, it passes in 80% of tests if the true
      change is 0.

    A random-effects interval does not decide, because it lets a small group pass that loses more
    than the others: see docs/verdict.md.
    """
    z = float(norm_isf(level) + norm_isf(1 - TARGET_POWER))
    gains = [change.value for change in changes.values()]
    overall = max(float(np.average(gains, weights=[change.n for change in changes.values()])), 0.0)
    bounds = []
    for name, change in changes.items():
        low, high = change.ends(level)
        is_likely = change.value <= -limits.margin and high < 0
        needed = None
        if is_likely and change.ends(alpha / len(changes))[1] < overall:
            state = State.FAILS
        elif low > -limits.margin:
            state = State.PASSES
        else:
            state = State.NOT_ASSESSABLE
            needed = rows_needed(change.n, half=z * change.standard_error, distance=limits.margin)
        bounds.append(
            Bound(
                what=f"change for {name}",
                estimate=change.value,
                interval=change.interval,
                limit=-limits.margin,
                n=change.n,
                state=state,
                rows_needed=needed,
            )
        )
    return bounds
