import pytest

from tailorbird.checks.planned_test import PlannedTest
from tailorbird.checks.preflight_power import check_power, planned_power
from tailorbird.config.evaluation import EvaluationConfig

EVALUATION = EvaluationConfig(minimum_gain=0.01, expected_gain=0.03)


def test_a_small_test_is_reported_with_the_rows_that_it_needs() -> None:
    small, large = (
        check_power(planned_power(EVALUATION, planned), config=EVALUATION, planned=planned)
        for planned in (PlannedTest(300), PlannedTest(5000))
    )
    assert small.state == "note"
    assert "test rows give 80%" in str(small.remedy)
    assert large.state == "ok"


@pytest.mark.parametrize("documents", [3, 200])
def test_documents_are_the_units(documents: int) -> None:
    power = planned_power(EVALUATION, PlannedTest(3000, num_documents=documents))
    assert (power.at_expected_gain == 0) == (documents == 3)
