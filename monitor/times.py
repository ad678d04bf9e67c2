"""Times as the database has them: ISO 8601 in UTC, in one form, so that they compare as texts."""

from datetime import UTC, datetime


def iso(time: datetime) -> str:
    """To the millisecond."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds")


def seconds_of(text: str | None) -> float | None:
    """Since 1970; None for none and for a text that is no time."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None
