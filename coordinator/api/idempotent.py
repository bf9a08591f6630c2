"""A route that answers a repeated ``Idempotency-Key`` with the first answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from coordinator.api.auth import action_of, principal_of, resources_of
from coordinator.api.problems import problem_from_error
from coordinator.services.idempotency import (
    KeptAnswer,
    RequestIdentity,
    keep_answer,
    release_answer,
    request_digest,
    reserve_answer,
)
from coordinator.services.permissions import require
from fl_protocol.errors import WardroundError

HEADER = "Idempotency-Key"
SECRET_ANSWER = "x-secret-answer"  # noqa: S105 # the mark of a route whose answer must not be kept

RouteHandler = Callable[[Request], Coroutine[Any, Any, Response]]


class IdempotentRoute(APIRoute):
    """Wraps writes that carry the header; all else passes.

    Safety: who may not do it is refused before an answer is kept or given again, as without the header.
    """

    def get_route_handler(self) -> RouteHandler:
        """The route's handler, wrapped."""
        inner = super().get_route_handler()
        holds_secret = bool((self.openapi_extra or {}).get(SECRET_ANSWER))

        async def handle(request: Request) -> Response:
            key = request.headers.get(HEADER)
            if key is None or request.method != "POST":
                return await inner(request)
            principal = await asyncio.to_thread(principal_of, request)
            for dependency in self.dependant.dependencies:
                if (action := action_of(dependency.call)) is not None:
                    require(principal, action)
            return await _answer_once(
                request, user_id=principal.user_id, key=key, inner=inner, holds_secret=holds_secret
            )

        return handle


async def _answer_once(
    request: Request, *, user_id: str, key: str, inner: RouteHandler, holds_secret: bool
) -> Response:
    resources = resources_of(request)
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    digest = request_digest(method=request.method, path=target, body=await request.body())
    identity = RequestIdentity(user_id=user_id, key=key, request_sha256=digest)
    kept = await asyncio.to_thread(reserve_answer, resources, identity)
    if kept is not None:
        return _response(kept)
    try:
        response = await inner(request)
    except WardroundError as error:
        # A refusal is not kept: what was missing may be there the next time.
        await asyncio.to_thread(release_answer, resources, identity)
        return problem_from_error(error)
    except BaseException:
        await asyncio.to_thread(release_answer, resources, identity)
        raise
    if response.status_code >= 300:
        await asyncio.to_thread(release_answer, resources, identity)
        return response
    body = None if holds_secret else bytes(response.body)
    await asyncio.to_thread(keep_answer, resources, identity, status=response.status_code, body=body)
    return response


def _response(kept: KeptAnswer) -> Response:
    return Response(
        content=kept.body,
        status_code=kept.status,
        media_type="application/json",
        headers={"Idempotency-Replayed": "true"},
    )
