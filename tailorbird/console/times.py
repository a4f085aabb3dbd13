"""Times for readers. All times are in UTC."""

from datetime import UTC, datetime

UNITS = (
    ("year", 365 * 86400),
    ("month", 30 * 86400),
    ("day", 86400),
    ("hour", 3600),
    ("minute", 60),
)


def parse_time(text: str) -> datetime:
    """Return a time in ISO 8601, in UTC."""
    parsed = datetime.fromisoformat(text)
    if parsed.tzinfo is None:
        return parsed.replace(tzinfo=UTC)
    return parsed.astimezone(UTC)


def relative_text(time: datetime, *, now: datetime) -> str:
    """Return a time relative to now in its largest whole unit, such as `3 days ago` or `in 2
    hours`."""
    seconds = abs(int((now - time).total_seconds()))
    duration = "less than a minute"
    for name, size in UNITS:
        number = seconds // size
        if number:
            plural = "" if number == 1 else "s"
            duration = f"{number} {name}{plural}"
            break
    if time <= now:
        return f"{duration} ago"
    return f"in {duration}"
