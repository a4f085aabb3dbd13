"""Times for readers. All times are in UTC."""

from datetime import UTC, datetime, timedelta

UNITS = (("year", 365 * 86400), ("month", 30 * 86400), ("day", 86400), ("hour", 3600), ("minute", 60))


def parse_time(text: str) -> datetime:
    """Return a time in ISO 8601, in UTC."""
    parsed = datetime.fromisoformat(text)
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def span_text(span: timedelta) -> str:
    """Return a duration in its two largest units, such as `3 days 4 hours`; `less than a minute` if it is shorter."""
    seconds, parts = abs(int(span.total_seconds())), []
    for name, size in UNITS:
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number} {name}{'' if number == 1 else 's'}")
        elif parts:
            break
    return " ".join(parts[:2]) or "less than a minute"


def relative_text(time: datetime, *, now: datetime) -> str:
    """Return a time relative to now, such as `3 days ago` or `in 2 hours`, in its largest unit."""
    text = span_text(now - time)
    if text != "less than a minute":
        text = " ".join(text.split()[:2])
    return f"{text} ago" if time <= now else f"in {text}"


def time_text(time: datetime) -> str:
    """Return a time such as `2026-11-24 16:30 UTC`."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
