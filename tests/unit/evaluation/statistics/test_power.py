"""Tests of the smallest detectable gain and the rows needed against the plain formula and against simulations."""

import numpy as np
import pytest

from tailorbird.evaluation.statistics.paired import PairedCounts, compare, midp_values
from tailorbird.evaluation.statistics.power import (
    Precision,
    minimum_detectable_effect,
    plain_rows_needed,
    rows_by_normal,
    smallest_detectable,
)
from tests.unit.evaluation.verdict.tables import models


@pytest.mark.parametrize(("discordance", "rows"), [(0.05, 3924), (0.10, 7849), (0.15, 11773), (0.20, 15698)])
def test_the_plain_formula_gives_the_published_rows_for_a_gain_of_one_point(discordance: float, rows: int) -> None:
    assert plain_rows_needed(0.01, discordance=discordance, alpha=0.05) == rows
    assert minimum_detectable_effect(rows, discordance=discordance, alpha=0.05) == pytest.approx(0.01, rel=1e-3)


def test_rows_needed_for_a_gain_of_0_are_refused() -> None:
    with pytest.raises(ValueError, match="gain is 0"):
        plain_rows_needed(0, discordance=0.1, alpha=0.05)


def test_the_rows_needed_detect_the_gain_in_80_percent_of_tests() -> None:
    counts = PairedCounts(1200, 190, 150, 611)
    needed = plain_rows_needed(0.01, discordance=counts.discordance, alpha=0.05)
    ours, theirs = (counts.discordance + 0.01) / 2, (counts.discordance - 0.01) / 2
    both = 0.6 - theirs
    cells = np.random.default_rng(7).multinomial(needed, [both, ours, theirs, 1 - both - ours - theirs], size=20_000)
    assert np.mean(midp_values(cells[:, 1], only_other=cells[:, 2]) < 0.05) == pytest.approx(0.8, abs=0.02)
    precision = Precision(counts.n, counts.n, float(np.sqrt(counts.discordance / counts.n)))
    assert rows_by_normal(precision, gains=(0.01, 0.0), alpha=0.05).rows == pytest.approx(needed, rel=0.01)


def test_a_reason_is_given_if_no_number_of_rows_is_enough() -> None:
    for gain, reason in ((0.0, "not above the minimum"), (0.00001, "more than 10,000,000")):
        needed = rows_by_normal(Precision(1000, 1000, 0.015), gains=(gain, 0.0), alpha=0.05)
        assert needed.rows is None
        assert reason in needed.reason


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_detectable_effect_of_identical_models_is_not_0(metric: str) -> None:
    incumbent, candidate = models(80, 0, 0, 20)
    main = compare(candidate, other=incumbent, metric=metric, alpha=0.05)
    assert smallest_detectable(main, alpha=0.05) == pytest.approx(0.028, abs=0.001)  # one discordant row is assumed
