"""Times relative to now."""

from datetime import UTC, datetime, timedelta

import pytest

from tailorbird.console.times import relative_text

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (timedelta(0), "less than a minute ago"),
        (timedelta(seconds=60), "1 minute ago"),
        (timedelta(hours=47), "1 day ago"),
        (timedelta(days=29), "29 days ago"),
        (timedelta(days=364), "12 months ago"),
        (timedelta(days=800), "2 years ago"),
        (-timedelta(hours=2, minutes=50), "in 2 hours"),
    ],
)
def test_a_time_is_relative_to_now_in_its_largest_whole_unit(
    before: timedelta, expected: str
) -> None:
    assert relative_text(NOW - before, now=NOW) == expected
