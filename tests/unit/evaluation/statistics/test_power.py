"""Tests of the smallest detectable gain against published numbers of rows and against
simulations."""

import numpy as np
import pytest

from tailorbird.evaluation.statistics.paired import midp_values
from tailorbird.evaluation.statistics.power import minimum_detectable_effect


@pytest.mark.parametrize(
    ("discordance", "rows"), [(0.05, 3924), (0.10, 7849), (0.15, 11773), (0.20, 15698)]
)
def test_the_published_rows_detect_a_gain_of_one_point_in_80_percent_of_tests(
    discordance: float, rows: int
) -> None:
    assert minimum_detectable_effect(rows, discordance=discordance, alpha=0.05) == pytest.approx(
        0.01, rel=1e-3
    )
    ours, theirs = (discordance + 0.01) / 2, (discordance - 0.01) / 2
    cells = np.random.default_rng(7).multinomial(
        rows, [0.6, ours, theirs, 0.4 - ours - theirs], size=20_000
    )
    assert np.mean(midp_values(cells[:, 1], only_other=cells[:, 2]) < 0.05) == pytest.approx(
        0.8, abs=0.02
    )
