"""The ``limit`` and ``cursor`` of every list."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query

from coordinator.services.pages import MAX_LIMIT, PageRequest, page_request


def _page(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 100,
    cursor: Annotated[str | None, Query(max_length=512)] = None,
) -> PageRequest:
    return page_request(limit=limit, cursor=cursor)


Paging = Annotated[PageRequest, Depends(_page)]
