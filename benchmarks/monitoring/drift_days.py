"""False drift alarms per year if days differ by chance, and changes that are detected.

    python -m benchmarks.monitoring.drift_days

Requests of a day resemble each other: the shares of ten classes vary between days with the intraday
correlation of the row. Windows have seven days of 300 requests, and no drift. The threshold of the
classes statistic is set for one false alarm per year, if a window ends on each day. `before` is the
threshold for independent rows, `first window` knows only the days of the window, and `later` knows
eight clean windows too. The last columns have the share of windows with an alarm if the smallest
class, which has 2% of the reference, has 6% of the window.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import finish, print_table
from tailorbird.monitoring.day_variance import (
    DayVariance,
    DesignEffect,
    design_effect,
    variance_of_counts,
)
from tailorbird.monitoring.drift import (
    DAYS_PER_YEAR,
    clean_stability,
    stability_index,
    threshold_at,
)

SHARES = np.array([0.25, 0.2, 0.15, 0.1, 0.08, 0.07, 0.05, 0.05, 0.03, 0.02])
CORRELATIONS = (0.0, 0.003, 0.01, 0.03)
DAYS = 7
ROWS = 300
NUM_REFERENCE = 1500
NUM_REFERENCES = 10
NUM_WINDOWS = 1500
NUM_CLEAN = 8
# thresholds between these are interpolated
EFFECTS = np.array([1.0, 1.4, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0])
SEED = 1979
CLAIM = 1.0
WINDOW_DAYS = np.repeat(np.arange(DAYS), ROWS)


def main() -> None:
    """Print false alarms per year and detected changes, then one line of JSON."""
    rows: dict[str, dict[str, float]] = {}
    figures: dict[str, float] = {}
    changed = SHARES + np.append(np.full(9, -0.04 / 9), 0.04)
    for correlation in CORRELATIONS:
        row = f"correlation {correlation:g}"
        rows[row] = {}
        for name, share in _alarms(SHARES, correlation).items():
            rows[row][name] = share * DAYS_PER_YEAR
        for name, share in _alarms(changed, correlation).items():
            rows[row][f"detected: {name}"] = share
        figures |= {f"{name}: {row}": value for name, value in rows[row].items()}
    print_table("false alarms per year at a claim of 1, and share of detected changes", rows)
    bounds = {name: "<= 2.5" for name in figures if name.startswith("later")}
    for correlation in CORRELATIONS[:2]:
        bounds[f"first window: correlation {correlation:g}"] = "<= 2"
    finish("drift_days", figures, bounds=bounds)


def _alarms(shares: NDArray[np.float64], correlation: float) -> dict[str, float]:
    """Return the share of windows with an alarm by threshold; the reference always has the shares
    `SHARES`."""
    counted = dict.fromkeys(("before", "first window", "later"), 0)
    for number in range(NUM_REFERENCES):
        rng = np.random.default_rng([SEED, number])
        expected = np.bincount(_reference(number), minlength=len(SHARES))[None]
        past = [_clean_windows(rng, correlation) for _ in range(20)]
        windows = [_window(rng, shares, correlation) for _ in range(NUM_WINDOWS)]
        values = stability_index(expected, np.array([window.sum(0) for window in windows]))
        variances = [variance_of_counts(window) for window in windows]
        known: dict[str, list[list[DayVariance]] | None] = {
            "before": None,
            "first window": [[]],
            "later": past,
        }
        for name, clean in known.items():
            designs = [_design(variances[index], clean, index) for index in range(NUM_WINDOWS)]
            thresholds = _thresholds(number, freedom=designs[0].freedom)
            limits = np.interp([design.effect for design in designs], EFFECTS, thresholds)
            counted[name] += int((values > limits).sum())
    return {name: num / (NUM_REFERENCES * NUM_WINDOWS) for name, num in counted.items()}


def _clean_windows(rng: np.random.Generator, correlation: float) -> list[DayVariance]:
    return [variance_of_counts(_window(rng, SHARES, correlation)) for _ in range(NUM_CLEAN)]


def _design(
    variance: DayVariance, clean: list[list[DayVariance]] | None, index: int
) -> DesignEffect:
    if clean is None:
        return DesignEffect(1.0, 1e9)
    return design_effect(WINDOW_DAYS, [*clean[index % len(clean)], variance])


def _reference(number: int) -> NDArray[np.int64]:
    return np.random.default_rng([SEED, number, 1]).choice(len(SHARES), NUM_REFERENCE, p=SHARES)


@cache
def _thresholds(number: int, *, freedom: float) -> NDArray[np.float64]:
    """Return the thresholds for the design effects `EFFECTS` with the reference of this number."""
    thresholds = []
    for effect in EFFECTS:
        indices = clean_stability(
            _reference(number),
            keys=np.arange(NUM_REFERENCE),
            num_bins=len(SHARES),
            size=DAYS * ROWS,
            design=DesignEffect(float(effect), freedom),
        )
        thresholds.append(threshold_at(indices, CLAIM / DAYS_PER_YEAR))
    return np.array(thresholds)


def _window(
    rng: np.random.Generator, shares: NDArray[np.float64], correlation: float
) -> NDArray[np.int64]:
    """Return the counts [D, B] of a window."""
    shares_of_days = np.tile(shares, (DAYS, 1))
    if correlation:
        shares_of_days = rng.dirichlet(shares * (1 / correlation - 1), DAYS)
    return np.asarray(rng.multinomial(ROWS, shares_of_days))


if __name__ == "__main__":
    main()
