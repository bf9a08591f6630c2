"""Instants as they stand in the database and in signed statements: RFC 3339, UTC, whole microseconds, one spelling."""

from __future__ import annotations

from datetime import UTC, datetime


def instant_text(instant: datetime) -> str:
    """An aware instant as ``2026-01-31T12:00:00.000000Z``; the texts sort as the instants do.

    Raises:
        ValueError: the instant has no time zone, so that nobody knows when it is.
    """
    if instant.tzinfo is None:
        message = "an instant has a time zone"
        raise ValueError(message)
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def instant_from_text(text: str) -> datetime:
    """Read an RFC 3339 instant, ``instant_text``'s or another with a time zone.

    Raises:
        ValueError: the text is no instant, or has no time zone.
    """
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        message = "an instant has a time zone"
        raise ValueError(message)
    return instant.astimezone(UTC)
