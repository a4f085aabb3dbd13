"""Charts of the console with extreme values."""

import pytest

from tailorbird.console.charts import evidence_course, power_of_ten
from tailorbird.registry.watch_record import ChallengerPoint, ChallengerRecord


@pytest.mark.parametrize(
    ("exponent", "text"),
    [(0.0, "1"), (-2.0, "0.01"), (0.5, "3.16"), (309.0, "1e+309"), (-400.0, "1e-400")],
)
def test_a_power_of_ten_is_shown_beyond_the_range_of_a_float(exponent: float, text: str) -> None:
    assert power_of_ten(exponent) == text


def test_evidence_beyond_the_range_of_a_float_has_a_chart() -> None:
    point = ChallengerPoint(
        day="2026-11-27", units=9000, gain=0.3, log_e_better=2400.0, log_e_worse=0.0
    )
    record = ChallengerRecord(
        version="lora-1",
        digest="e" * 64,
        decision="promote",
        reason="better",
        alpha=0.05,
        alpha_worse=0.0125,
        days=(point,),
    )
    chart = evidence_course(record)
    assert chart is not None
    assert any("1e+1000" in str(mark) for mark in chart.marks)
