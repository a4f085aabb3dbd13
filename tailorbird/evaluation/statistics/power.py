"""Whether the test was big enough: detectable effect, power of the whole rule, rows needed."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from tailorbird.evaluation.statistics.bootstrap import unseen_rate
from tailorbird.evaluation.statistics.paired import Comparison, midp_values, newcombe_limits

WANTED_POWER = 0.8
NUM_DRAWS = 20_000
NUM_SEARCH_DRAWS = 5_000
SEED = 1998
MOST_ROWS = 10_000_000


@dataclass(frozen=True)
class Scenario:
    """A hypothetical truth: the candidate's gain, the share of rows on which both differ, the incumbent's accuracy."""

    gain: float
    discordance: float  # taken as the gain's size where it is less, which cannot be
    incumbent_accuracy: float

    def probabilities(self) -> NDArray[np.float64]:
        """Return the probabilities [4] of a row to be in each of PairedCounts' cells."""
        discordance = max(self.discordance, abs(self.gain))
        ours, theirs = (discordance + self.gain) / 2, (discordance - self.gain) / 2
        both = min(max(self.incumbent_accuracy - theirs, 0.0), 1 - discordance)
        cells = np.clip(np.array([both, ours, theirs, 1 - discordance - both]), 0.0, 1.0)
        return np.asarray(cells / cells.sum(), dtype=np.float64)


@dataclass(frozen=True)
class RowsNeeded:
    """Rows that give the rule a power of 0.8, or None with the reason why no number of rows does."""

    rows: int | None
    reason: str


@dataclass(frozen=True)
class Sized:
    """Power of the test."""

    minimum_detectable_effect: float  # true gain that the test detects with a power of 0.8
    power_at_expected_gain: float  # of the whole rule
    needed: RowsNeeded  # at the expected gain


def power_analysis(main: Comparison, *, expected_gain: float, minimum_gain: float, alpha: float) -> Sized:
    """Return detectable effect, power of the whole rule and rows needed, at the observed discordance.

    For accuracy the power is simulated. For a metric with a standard error the gain is taken as normal: its interval
    reaches z_{1 - alpha/2} standard errors down, or the unseen rate where that is more; the rule holds where the
    estimate is over that and at least minimum_gain; the detectable effect is z_power standard errors more. Where rows
    share documents, documents count. So few units that no split of their signs reaches alpha show nothing.
    """
    n = main.counts.n
    if main.standard_error is None:
        scenario = Scenario(expected_gain, main.counts.discordance, main.other_score)
        # No discordant row seen is no proof that there is none: reckon with one.
        discordance = max(main.counts.discordance, 1 / n)
        return Sized(
            minimum_detectable_effect(n, discordance=discordance, alpha=alpha),
            rule_power(n, scenario=scenario, minimum_gain=minimum_gain, alpha=alpha),
            rows_needed_for_rule(scenario, minimum_gain=minimum_gain, alpha=alpha),
        )
    # What one discordant row gives an accuracy, as above: no difference seen is no proof that there is none.
    units = main.num_units
    error = max(main.standard_error, 1 / units)
    needed = rows_by_normal(n, num_units=units, error=error, gains=(expected_gain, minimum_gain), alpha=alpha)
    if units < _least_units(alpha):
        return Sized(1.0, 0.0, needed)
    smallest_significant = max(norm.ppf(1 - alpha / 2) * error, unseen_rate(units, alpha=alpha))
    return Sized(
        float(smallest_significant + norm.ppf(WANTED_POWER) * error),
        float(norm.sf((max(smallest_significant, minimum_gain) - expected_gain) / error)),
        needed,
    )


def minimum_detectable_effect(n: int, *, discordance: float, alpha: float) -> float:
    """Return the true gain that McNemar's test detects with a power of 0.8 on n rows (normal formula)."""
    return float(_z_sum(alpha) * np.sqrt(discordance / n))


def plain_rows_needed(gain: float, *, discordance: float, alpha: float) -> int:
    """Return the rows on which McNemar's test detects this gain: (z_{1 - alpha/2} + z_power)^2 discordance / gain^2."""
    if gain == 0:
        raise ValueError("no number of rows shows a gain of 0; give a gain other than 0")
    return round(_z_sum(alpha) ** 2 * discordance / gain**2)


def rule_holds(cells: NDArray[np.int64], *, minimum_gain: float, alpha: float) -> NDArray[np.bool_]:
    """Return for each table [..., 4], cells in PairedCounts' order: p < alpha, lo > 0, and gain at least minimum_gain.

    This is the rule of `verdict.decide`, without its comparison with the reference.
    """
    low, _ = newcombe_limits(cells, alpha=alpha)
    p_value = midp_values(cells[..., 1], only_other=cells[..., 2])
    gain = (cells[..., 1] - cells[..., 2]) / cells.sum(axis=-1)
    return np.asarray((p_value < alpha) & (low > 0) & (gain >= minimum_gain), dtype=np.bool_)


def draw_tables(n: int, *, scenario: Scenario, num_draws: int, seed: int) -> NDArray[np.int64]:
    """Return simulated tests of n rows each: tables [num_draws, 4]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(n, scenario.probabilities(), size=num_draws)


def rule_power(n: int, *, scenario: Scenario, minimum_gain: float, alpha: float, num_draws: int = NUM_DRAWS) -> float:
    """Return the share of simulated tests of n rows in which the rule holds (fixed seed, standard error 0.0035)."""
    tables = draw_tables(n, scenario=scenario, num_draws=num_draws, seed=SEED)
    return float(np.mean(rule_holds(tables, minimum_gain=minimum_gain, alpha=alpha)))


def rows_needed_for_rule(scenario: Scenario, *, minimum_gain: float, alpha: float) -> RowsNeeded:
    """Return the fewest rows on which the whole rule holds with a power of 0.8, by bisection (about 1 % off).

    None if the scenario's gain is not above minimum_gain, or if it would take more than ten million rows.
    """
    gain = scenario.gain
    if gain <= minimum_gain:
        return _no_rows(gain, minimum_gain)

    def enough(n: int) -> bool:
        power = rule_power(n, scenario=scenario, minimum_gain=minimum_gain, alpha=alpha, num_draws=NUM_SEARCH_DRAWS)
        return power >= WANTED_POWER

    too_few, rows = 0, max(1, plain_rows_needed(gain, discordance=max(scenario.discordance, gain), alpha=alpha))
    while not enough(rows):
        too_few, rows = rows, 2 * rows
        if rows > MOST_ROWS:
            return _rows(rows, gain)
    while rows - too_few > 1:
        middle = (too_few + rows) // 2
        too_few, rows = (too_few, middle) if enough(middle) else (middle, rows)
    return _rows(rows, gain)


def rows_by_normal(n: int, *, num_units: int, error: float, gains: tuple[float, float], alpha: float) -> RowsNeeded:
    """Return the rows on which a standard error of `error` at n rows is small enough for expected and minimum gain.

    Of the n rows `num_units` are independent, or that many documents are, and so it stays.
    """
    gain, minimum_gain = gains
    if gain <= minimum_gain:
        return _no_rows(gain, minimum_gain)
    # Both parts of the rule: significantly above 0, and estimated at the minimum gain or more.
    allowed = min(gain / _z_sum(alpha), (gain - minimum_gain) / norm.ppf(WANTED_POWER))
    units = max(_least_units(alpha), math.ceil(num_units * (error / allowed) ** 2))
    while gain - unseen_rate(units, alpha=alpha) < norm.ppf(WANTED_POWER) * error * math.sqrt(num_units / units):
        units += math.ceil(units / 100)  # the unseen rate falls with the units, their errors with the root of them
    return _rows(math.ceil(units * n / num_units), gain)


def _least_units(alpha: float) -> int:
    """Return the fewest units whose signs, all alike, have a two-sided p under alpha: 2^(1 - units)."""
    return math.floor(1 - math.log2(alpha)) + 1


def _rows(rows: int, gain: float) -> RowsNeeded:
    if rows > MOST_ROWS:
        return RowsNeeded(None, f"it would take more than {MOST_ROWS:,} rows")
    return RowsNeeded(rows, f"{rows:,} rows give 80 % power at a true gain of {100 * gain:.4g} points")


def _no_rows(gain: float, minimum_gain: float) -> RowsNeeded:
    gains = f"an expected gain of {100 * gain:.4g} points is not above the minimum gain of {100 * minimum_gain:.4g}"
    return RowsNeeded(None, f"{gains}: no number of rows gives 80 % power")


def _z_sum(alpha: float) -> float:
    return float(norm.ppf(1 - alpha / 2) + norm.ppf(WANTED_POWER))
