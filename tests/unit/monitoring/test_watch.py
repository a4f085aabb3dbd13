from datetime import date
from pathlib import Path

from monitoring.watch import _days


def test_a_champion_is_looked_at_from_its_first_day_on_and_quiet_days_between_are_days_too(tmp_path: Path) -> None:
    for day in ("2026-03-01", "2026-03-04", "2026-03-06", "2026-03-07"):
        folder = tmp_path / "answers" / f"day={day}"
        folder.mkdir(parents=True)
        (folder / "part.parquet").touch()
    found = _days(tmp_path.as_uri(), since=date(2026, 3, 3), before=date(2026, 3, 7))
    assert [day.day for day in found] == [4, 5, 6]
    assert list(_days(tmp_path.as_uri(), since=date(2026, 4, 1), before=date(2026, 5, 1))) == []
