"""Lists in pages: a bounded number of items, and a cursor that names the last key that was given."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from coordinator.services.refusals import RequestInvalidError

T = TypeVar("T")
U = TypeVar("U")

MAX_LIMIT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """How many items, after which key. Invariant: 1 <= limit <= 500."""

    limit: int = 100
    after: str | None = None

    def __post_init__(self) -> None:
        """Check the bound."""
        if not 1 <= self.limit <= MAX_LIMIT:
            raise RequestInvalidError("a page has 1 to 500 items", limit=self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """Some items, and the cursor of those that follow."""

    items: tuple[T, ...]
    next_cursor: str | None


def page_request(*, limit: int, cursor: str | None) -> PageRequest:
    """Read what a caller sent.

    Raises:
        RequestInvalidError: the limit is out of range or the cursor is not one that was given.
    """
    return PageRequest(limit=limit, after=None if cursor is None else _key_from_cursor(cursor))


def page_from(found: Sequence[tuple[str, T]], request: PageRequest) -> Page[T]:
    """A page from up to ``limit + 1`` (key, item) pairs that follow ``request.after``."""
    kept = found[: request.limit]
    is_more = len(found) > request.limit
    cursor = base64.urlsafe_b64encode(kept[-1][0].encode()).decode().rstrip("=") if is_more else None
    return Page(items=tuple(item for _, item in kept), next_cursor=cursor)


def _key_from_cursor(cursor: str) -> str:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise RequestInvalidError("the cursor is not one that this list gave", cursor=cursor[:80]) from error
