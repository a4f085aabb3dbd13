"""A learning curve recovers the power law of its scores, with a wide interval if there are few rows
or sizes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.evaluation.statistics import learning_curve
from tailorbird.evaluation.statistics.learning_curve import curve_sizes, fit_curve

SIZES = (500, 1000, 2000, 4000, 8000)


def law(size: int) -> float:
    """Return a score on a power law: 0.7 for 8,000 rows, 0.9 in the limit."""
    return 0.9 - 0.2 * math.sqrt(8000 / size)


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_curve, "NUM_RESAMPLES", 100)


def test_the_curve_predicts_the_next_score_of_a_power_law() -> None:
    curve = fit_curve(SIZES, [law(size) for size in SIZES], num_validation=100_000)
    assert curve.at_double == pytest.approx(law(16000), abs=1e-4)
    low, high = curve.interval
    assert low < curve.at_double < high
    assert high - low < 0.02
    predicted = f"(16,000 rows) would give a validation score of about {law(16000):.3f}"
    assert predicted in curve.sentence
    assert curve.sentence.endswith("more data should help")


def test_few_validation_rows_widen_the_interval() -> None:
    scores = [law(size) for size in SIZES]
    many, few = (fit_curve(SIZES, scores, num_validation=rows) for rows in (20_000, 200))
    assert few.interval[1] - few.interval[0] > 3 * (many.interval[1] - many.interval[0])
    assert few.sentence.endswith("it is not certain that more data would help")


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("scores", [(0.7,) * 5, (0.72, 0.71, 0.7, 0.69, 0.68)])
def test_scores_that_do_not_rise_predict_no_gain(scores: tuple[float, ...]) -> None:
    curve = fit_curve(SIZES, scores, num_validation=1000)
    assert curve.at_double == pytest.approx(0.7, abs=0.01)
    assert curve.sentence.endswith("it is not certain that more data would help")


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("score", [0.0, 1.0])
def test_scores_of_0_and_1_have_an_interval_in_range(score: float) -> None:
    curve = fit_curve(SIZES[2:], [score] * 3, num_validation=50)
    low, high = curve.interval
    assert 0 <= low <= curve.at_double <= high <= 1
    assert high - low > 0.001


def test_the_error_for_too_few_rows_names_the_required_number() -> None:
    with pytest.raises(ValueError, match=r"87 rows of 22 classes .* at least 88 rows$"):
        curve_sizes(87, 22)


@given(num_rows=st.integers(4, 100_000), num_classes=st.integers(1, 200))
def test_sizes_ascend_to_all_rows_and_allow_a_row_per_class(
    num_rows: int, num_classes: int
) -> None:
    sizes = curve_sizes(max(num_rows, 4 * num_classes), num_classes)
    assert sizes == tuple(sorted(set(sizes)))
    assert 3 <= len(sizes) <= 5
    assert sizes[-1] == max(num_rows, 4 * num_classes)
    assert sizes[0] >= num_classes
