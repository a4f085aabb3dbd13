"""Learning curve: predict the score with more training rows from the scores on parts of the
rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import curve_fit

MIN_SIZES = 3  # the power law has three parameters
MAX_SIZES = 5
NUM_RESAMPLES = 400
LEVEL = 0.95
MAX_RATE = 2.0  # upper bound of the exponent; measured learning curves have exponents below 1


@dataclass(frozen=True)
class LearningCurve:
    """A learning curve and its prediction for twice the rows."""

    sizes: tuple[int, ...]  # training rows, ascending; the last is all of them
    scores: tuple[float, ...]  # validation score at each size, in [0, 1]
    at_double: float  # predicted score with twice the last size
    interval: tuple[float, float]
    """95% interval of `at_double`; `fit_curve` lists the errors that it does not cover."""
    sentence: str  # the prediction as a sentence


def curve_sizes(num_rows: int, num_classes: int) -> tuple[int, ...]:
    """Return up to five ascending training sizes: ..., a quarter, half and all of `num_rows`.

    Sizes below the number of classes are omitted. Raises ValueError if fewer than three remain.
    """
    smallest = max(1, num_classes)
    halved = (num_rows // 2**halvings for halvings in reversed(range(MAX_SIZES)))
    sizes = tuple(size for size in halved if size >= smallest)
    if len(sizes) < MIN_SIZES:
        raise ValueError(
            f"a learning curve needs {MIN_SIZES} training sizes, but {num_rows} rows of "
            f"{num_classes} classes give only {len(sizes)}; use at least "
            f"{smallest * 2 ** (MIN_SIZES - 1)} rows"
        )
    return sizes


def fit_curve(
    sizes: Sequence[int], scores: Sequence[float], *, num_validation: int
) -> LearningCurve:
    """Fit error = a + b (n / N)^-c to the scores, and predict the score at 2 N, where N is the last
    size.

    The inverse power law follows Figueroa et al., Predicting sample size required for
    classification performance, BMC Med. Inform. Decis. Mak. 12:8 (2012). It is fitted by weighted
    least squares with a, b in [0, 1] and c in [0, 2], so more data never lowers the predicted
    score.

    The interval comes from a parametric bootstrap: each score is drawn independently from a
    binomial distribution of `num_validation` rows around the fitted curve, and the curve is fitted
    again. Its limits:

    - The scores share their validation rows, so their errors are correlated. Independent draws
      overstate the uncertainty of the curve's slope and understate that of its height.
    - It does not cover the variance between trainings (seed, part of the data), a misfit of the
      power law, or the selection of the configuration by its score at N, which biases the last
      score upward.
    - For scores that are not a share of rows (macro-F1), the binomial distribution is an
      approximation.
    """
    shares = np.asarray(sizes, dtype=np.float64) / sizes[-1]
    errors = 1 - np.asarray(scores, dtype=np.float64)
    law = _fit(shares, errors, num_validation=num_validation)
    fitted = np.clip(_error(shares, *law), 0, 1)
    rates = _smoothed(fitted, num_validation)
    drawn = np.random.default_rng(0).binomial(
        num_validation, rates, size=(NUM_RESAMPLES, len(sizes))
    )
    laws = [_fit(shares, row, num_validation=num_validation) for row in drawn / num_validation]
    resampled = list(map(_double, laws))
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    at_double = _double(law)
    # If a parameter is at its bound, all draws may be on one side of the prediction.
    interval = (min(low, at_double), max(high, at_double))
    # Compare with the higher value. A measured score below the curve is no evidence that more data
    # helps.
    on_curve = 1 - float(fitted[-1])
    advice = "it is not certain that more data would help"
    if round(interval[0], 3) > round(max(scores[-1], on_curve), 3):
        advice = "more data should help"
    sentence = (
        f"twice the data ({2 * sizes[-1]:,} rows) would give a validation score of about "
        f"{at_double:.3f} (95% interval {interval[0]:.3f} to {interval[1]:.3f}); all "
        f"{sizes[-1]:,} rows gave {scores[-1]:.3f} ({on_curve:.3f} on the fitted curve), so "
        f"{advice}"
    )
    return LearningCurve(
        tuple(sizes), tuple(scores), at_double=at_double, interval=interval, sentence=sentence
    )


def _error(
    share: NDArray[np.float64], floor: float, excess: float, rate: float
) -> NDArray[np.float64]:
    return np.asarray(floor + excess * share**-rate)


def _fit(
    shares: NDArray[np.float64], errors: NDArray[np.float64], *, num_validation: int
) -> tuple[float, ...]:
    """Return the parameters (a, b, c) of the power law."""
    rates = _smoothed(errors, num_validation)
    sigma = np.sqrt(rates * (1 - rates) / num_validation)
    start = (errors.min() / 2, errors[-1] / 2, 0.5)
    bounds = ((0, 0, 0), (1, 1, MAX_RATE))
    law, _ = curve_fit(
        _error, shares, errors, p0=start, sigma=sigma, bounds=bounds, ftol=1e-7, max_nfev=10_000
    )
    return tuple(float(value) for value in law)


def _smoothed(errors: NDArray[np.float64], num_rows: int) -> NDArray[np.float64]:
    """Return the error rates with one more correct and one more wrong row, so that no rate has
    variance 0."""
    return (errors * num_rows + 1) / (num_rows + 2)


def _double(law: tuple[float, ...]) -> float:
    """Return the score at twice the last size."""
    return float(np.clip(1 - _error(np.array(2.0), *law), 0, 1))
