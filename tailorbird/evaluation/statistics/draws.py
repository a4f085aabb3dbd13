"""Multinomial draws that are the same with each version of NumPy.

`verify` repeats the draws of a verdict, but NumPy may change the algorithm of a distribution, as 2.5 did for binomial
and multinomial numbers. The draws here need only uniform numbers. Most rows are drawn as Poisson numbers of rows by
cell, which are quantiles of uniform numbers. Their total stays below the number of rows, and the missing rows are drawn
one by one. The sum is multinomial, because Poisson numbers are multinomial given their total.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import pdtr

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Elements of one chunk of resamples: about 32 MB at 8 bytes each, for any number of rows.
CHUNK_ELEMENTS = 4_000_000
# Cells with fewer rows are drawn row by row, which is cheaper than one Poisson number.
FEW_ROWS = 16
# Rows drawn at once: few enough for the processor's cache.
ROWS_AT_ONCE = 1 << 16
# Standard deviations, sqrt(n), by which the mean total of the Poisson numbers is below n: 1e-15 of totals exceed n.
MISSING = 8
# Standard deviations on both sides of the mean in a table of Poisson quantiles: 1e-9 of numbers are beyond its ends.
REACH = 6
# Tests of more rows have a Poisson number of rows, which varies by less than 1%.
MANY_ROWS = 10_000


def multinomial_counts(counts: IntArray, *, num_resamples: int, seed: int) -> Iterator[IntArray]:
    """Yield resampled cell counts as arrays [chunk, cells] with `num_resamples` rows in total.

    Each resample draws sum(counts) rows with replacement from the rows of the cells.
    """
    generator, n = np.random.default_rng(seed), int(counts.sum())
    rare = counts < FEW_ROWS
    rows, rare_rows = (np.repeat(np.flatnonzero(each), counts[each]) for each in (counts > 0, rare))
    tables = _poisson_tables(np.append(counts[~rare], len(rare_rows)) * _share_by_cell(n))
    chunk = max(1, CHUNK_ELEMENTS // len(counts))
    for start in range(0, num_resamples, chunk):
        weights = np.zeros((min(chunk, num_resamples - start), len(counts)), dtype=np.int64)
        drawn = _poisson(generator, tables, size=len(weights))
        weights[:, ~rare] = drawn[:, :-1]
        _add_rows(weights, generator, rows=rare_rows, sizes=drawn[:, -1])
        _add_rows(weights, generator, rows=rows, sizes=np.maximum(n - drawn.sum(axis=1), 0))
        yield weights


def multinomial(
    generator: np.random.Generator, probabilities: FloatArray, *, num_rows: int, num_tests: int
) -> IntArray:
    """Return the numbers of rows [num_tests, cells] of tests of `num_rows` rows with these probabilities [cells].

    If there are more than `MANY_ROWS` rows, the number of rows of a test is itself a Poisson number.
    """
    share = _share_by_cell(num_rows) if num_rows <= MANY_ROWS else 1.0
    drawn = _poisson(generator, _poisson_tables(num_rows * share * probabilities), size=num_tests)
    if num_rows > MANY_ROWS:
        return drawn
    missing = np.maximum(num_rows - drawn.sum(axis=1), 0)
    cells = np.searchsorted(np.cumsum(probabilities)[:-1], generator.random(missing.sum()), side="right")
    cells += np.repeat(np.arange(num_tests) * len(probabilities), missing)
    return drawn + np.bincount(cells, minlength=drawn.size).reshape(drawn.shape)


def _share_by_cell(num_rows: int) -> float:
    """Return the share of rows that are drawn as Poisson numbers."""
    return max(0.0, 1 - MISSING / math.sqrt(num_rows))


def _poisson_tables(means: FloatArray) -> list[tuple[int, FloatArray]]:
    """Return for each mean the first possible number and, from this number on, the probabilities of at most it."""
    tables = []
    for mean in means:
        reach = REACH * (math.sqrt(mean) + 1)
        first = max(0, math.floor(mean - reach))
        tables.append((first, pdtr(np.arange(first, math.ceil(mean + reach)), mean)))
    return tables


def _poisson(generator: np.random.Generator, tables: list[tuple[int, FloatArray]], *, size: int) -> IntArray:
    """Return Poisson numbers [size, tables]: the quantiles of uniform numbers."""
    drawn = np.empty((size, len(tables)), dtype=np.int64)
    for column, (first, at_most) in enumerate(tables):
        drawn[:, column] = first + np.searchsorted(at_most, generator.random(size), side="right")
    return drawn


def _add_rows(weights: IntArray, generator: np.random.Generator, *, rows: IntArray, sizes: IntArray) -> None:
    """Add random rows to the counts [chunk, cells]: `sizes` [chunk] of those whose cells are `rows`."""
    if not len(rows):
        return
    step = max(1, ROWS_AT_ONCE // max(1, int(sizes.max())))
    for first in range(0, len(weights), step):
        added, num = weights[first : first + step], sizes[first : first + step]
        cells = rows[generator.integers(0, len(rows), size=num.sum())]
        cells += np.repeat(np.arange(len(num)) * weights.shape[1], num)
        np.add.at(added.reshape(-1), cells, 1)  # a view, because `weights` is contiguous
