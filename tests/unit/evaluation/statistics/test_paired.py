"""Tests of the paired statistics against published examples and other implementations."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from tailorbird.evaluation.statistics import distributions, means
from tailorbird.evaluation.statistics.paired import (
    PairedCounts,
    compare,
    mcnemar_midp,
    mean_change,
    midp_values,
    newcombe_limits,
    newcombe_paired_interval,
    wilson_interval,
)
from tailorbird.evaluation.statistics.power import minimum_detectable_effect
from tests import build

cells = st.tuples(*[st.integers(0, 3000)] * 4)


def swapped(counts: PairedCounts) -> PairedCounts:
    return replace(
        counts,
        only_candidate_right=counts.only_other_right,
        only_other_right=counts.only_candidate_right,
    )


@pytest.mark.parametrize(
    ("table", "limits"),
    [
        # Newcombe (1998), method 10.
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((53, 0, 0, 1), (-0.0729, 0.0729)),
        ((0, 30, 0, 0), (0.8395, 1.0)),
        # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter
        # 8.
        ((59, 6, 16, 80), (-0.1186, -0.0046)),
        ((1, 1, 7, 12), (-0.507, -0.026)),
    ],
)
def test_newcombe_interval_gives_the_published_limits(
    table: tuple[int, int, int, int], limits: tuple[float, float]
) -> None:
    digits = max(len(str(limit).split(".")[1]) for limit in limits)
    assert newcombe_paired_interval(PairedCounts(*table)) == pytest.approx(
        limits, abs=0.51 * 10**-digits
    )


@pytest.mark.parametrize(
    ("discordant", "midp"),
    [
        # Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91 (2013).
        ((1, 7), 0.039),
        # Armitage and Berry (1994), page 127: exact 0.0129; the mid-p value counts half of the
        # observed probability.
        ((12, 2), 0.0074),
        ((0, 0), 1),
    ],
)
def test_mcnemar_gives_the_published_p_values(discordant: tuple[int, int], midp: float) -> None:
    counts = PairedCounts(20, *discordant, 16)
    assert mcnemar_midp(counts) == pytest.approx(midp, abs=0.0006)


@settings(deadline=None)
@given(cells)
def test_swapping_the_models_changes_only_the_sign_of_the_effect(
    table: tuple[int, int, int, int],
) -> None:
    assume(sum(table))
    counts = PairedCounts(*table)
    low, high = newcombe_paired_interval(counts)
    assert newcombe_paired_interval(swapped(counts)) == pytest.approx((-high, -low), abs=1e-12)
    assert swapped(counts).gain == -counts.gain
    assert mcnemar_midp(swapped(counts)) == mcnemar_midp(counts)


def test_equal_models_are_proven_better_at_most_at_half_of_alpha() -> None:
    for n, discordance in [(300, 0.2), (2151, 0.15), (5000, 0.05)]:
        half = discordance / 2
        cells = np.random.default_rng(n).multinomial(
            n, [0.7 - half, half, half, 0.3 - half], size=40_000
        )
        # With 40,000 draws, three standard errors of a rate of 0.05 are 0.0033.
        assert np.mean(newcombe_limits(cells)[0] > 0) <= 0.025 + 0.0033
        assert np.mean(midp_values(cells[:, 1], only_other=cells[:, 2]) < 0.05) <= 0.05 + 0.0033


@pytest.mark.parametrize("num_rows", [200, 500])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3])
def test_rare_large_losses_are_not_hidden_by_nearly_equal_scores(
    num_rows: int, alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean loss is 1 point, by a loss of 0.9 on rare rows: at most alpha / 2 of the intervals
    may exclude it."""
    monkeypatch.setattr(means, "NUM_FLIPS", 10)  # of the p value, which is not read
    generator = np.random.default_rng(0)
    num_tests = 200
    num_excluded = 0
    for _ in range(num_tests):
        other = generator.uniform(0.91, 1, num_rows)
        rare = generator.random(num_rows) < 0.01 / 0.9
        scores = other + generator.choice([-0.001, 0.001], num_rows) - 0.9 * rare
        num_excluded += mean_change(scores, other, alpha=alpha).interval[0] > -0.01
    assert num_excluded / num_tests <= alpha / 2 + 3 * np.sqrt(alpha / 2 / num_tests)


def test_the_wilson_interval_equals_statsmodels() -> None:
    low, high = wilson_interval(741, n=1000)
    assert (low, high) == pytest.approx(proportion_confint(741, 1000, method="wilson"))
    assert low < 0.741 < high
    assert wilson_interval(0, n=10)[0] == pytest.approx(0)


def test_invalid_counts_are_refused() -> None:
    for num_right, n in ((11, 10), (-1, 10), (0, 0)):
        with pytest.raises(ValueError, match="num_right"):
            wilson_interval(num_right, n=n)
    for table in ((0, 0, 0, 0), (5, -1, 2, 1)):
        with pytest.raises(ValueError, match="at least one row"):
            PairedCounts(*table)


@pytest.mark.parametrize(("discordance", "rows"), [(0.05, 3924), (0.20, 15698)])
def test_the_published_rows_detect_a_gain_of_one_point_in_80_percent_of_tests(
    discordance: float, rows: int
) -> None:
    assert minimum_detectable_effect(rows, discordance=discordance, alpha=0.05) == pytest.approx(
        0.01, rel=1e-3
    )
    gained = (discordance + 0.01) / 2
    lost = (discordance - 0.01) / 2
    cells = np.random.default_rng(7).multinomial(
        rows, [0.6, gained, lost, 0.4 - gained - lost], size=20_000
    )
    assert np.mean(midp_values(cells[:, 1], only_other=cells[:, 2]) < 0.05) == pytest.approx(
        0.8, abs=0.02
    )


X = np.array([-np.inf, -40, -3, -1e-300, 0, 1e-9, 0.3, 5, 1e6, np.inf, np.nan])
P = np.array([0, 1e-300, 1e-12, 0.025, 0.5, 0.975, 1 - 1e-12, 1])


@pytest.mark.parametrize("freedom", [1, 2, 30, 1e6, np.inf])
def test_distributions_have_the_values_of_scipy(freedom: float) -> None:
    expected = stats.t(freedom)
    np.testing.assert_array_equal(distributions.t_sf(X, freedom), expected.sf(X))
    np.testing.assert_array_equal(distributions.t_isf(P[1:], freedom), expected.isf(P[1:]))
    np.testing.assert_array_equal(distributions.norm_sf(X), stats.norm.sf(X))
    np.testing.assert_array_equal(distributions.norm_isf(P), stats.norm.isf(P))


def test_documents_that_are_nearly_equal_do_not_exclude_losses_of_other_documents() -> None:
    clusters = tuple(str(row // 3) for row in range(300))
    wrong = build.predictions("a" * 300, "b" * 300, clusters=clusters)
    first, second = (
        replace(wrong, measures={"token_f1": scores})
        for scores in (0.5 + np.resize([-0.001, 0.001], 300), np.full(300, 0.5))
    )
    comparison = compare(first, other=second, metric="token_f1", alpha=0.05)
    assert comparison.lowest < -0.036  # 3.6% of documents may be unlike these 100
    assert comparison.interval[1] < 0.001  # the interval of a gain agrees with its t test
