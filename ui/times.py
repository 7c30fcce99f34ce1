"""Moments in words."""

from __future__ import annotations

from datetime import UTC, datetime


def ago(at: str, now: datetime | None = None) -> str:
    """Say how long ago an ISO 8601 moment was; a clock that was set back gives 'just now'."""
    moment = _read(at)
    if moment is None:
        return ""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{int(seconds // 60)} min ago"
    if seconds < 86400:
        return f"{int(seconds // 3600)} h ago"
    if seconds < 7 * 86400:
        return f"{int(seconds // 86400)} d ago"
    return moment.astimezone().strftime("%-d %b %Y")


def moment(at: str) -> str:
    """Say an ISO 8601 moment in local time, to the minute."""
    found = _read(at)
    return "" if found is None else found.astimezone().strftime("%-d %b %Y, %H:%M")


def _read(at: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(at)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
