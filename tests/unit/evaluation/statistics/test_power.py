"""Tests of the smallest detectable gain against published numbers of rows and against
simulations."""

import numpy as np
import pytest

from tailorbird.evaluation.statistics.paired import compare, midp_values
from tailorbird.evaluation.statistics.power import minimum_detectable_effect, smallest_detectable
from tests.unit.evaluation.verdict.tables import models


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


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_detectable_effect_of_identical_models_is_not_0(metric: str) -> None:
    incumbent, candidate = models(80, 0, 0, 20)
    main = compare(candidate, other=incumbent, metric=metric, alpha=0.05)
    assert smallest_detectable(main, alpha=0.05) == pytest.approx(
        0.028, abs=0.001
    )  # one discordant row is assumed
