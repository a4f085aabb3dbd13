"""Charts of the console with extreme values."""

from tailorbird.console.charts import evidence_course
from tailorbird.registry.watch_record import ChallengerPoint, ChallengerRecord


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
