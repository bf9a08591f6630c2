"""What a request is told that the end of this process overtakes: to ask again, as a problem document."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.api.problems import problem

_AGAIN_IN_S = 2


class StopAnswer:
    """Answers 503 where the server gives up a request at its stop; left alone, it would be an internal error.

    What the request asked for may have been done: a caller that changes something sends an ``Idempotency-Key``, and is
    answered as the first time.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Take what it wraps."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and answer it where it is cancelled before its answer has begun."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            if has_begun:
                raise
            answer = problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                code="stopping",
                detail="The coordinator stops; ask again in a moment.",
                facts={"retry_after_s": _AGAIN_IN_S},
            )
            answer.headers["Retry-After"] = str(_AGAIN_IN_S)
            await answer(scope, receive, send)
