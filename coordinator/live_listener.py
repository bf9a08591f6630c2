"""What a process answers to whoever asks on its own machine whether it is well: plain HTTP, on loopback.

Each process has this listener whatever its roles, so that a driver without any other can be asked as well. It tells
what ``/readyz`` tells everybody, and nothing of a run. Part of the composition root.

Two questions, because what follows from the answers differs: whoever is not well (``/healthz``) is given no work, and
whoever stands still (``/loop``) is started again. A database that is away is no reason for the second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from coordinator.http_server import QuietServer, quiet_server
from coordinator.services.check_health import check_health
from coordinator.services.resources import Resources

LIVE_HOST = "127.0.0.1"


def live_server(resources: Resources, *, roles: Collection[str], stop_grace_s: float) -> QuietServer:
    """A server for ``GET /healthz`` and ``GET /loop``.

    The first answers 200 where every part is well and 503 where one is not, with the parts by name; the second answers
    200 and asks nothing and nobody.
    """

    async def answer(request: Request) -> JSONResponse:
        del request
        # That anything is answered says that the loop turns; the checks ask the database and may take a while.
        checks: Mapping[str, bool] = await asyncio.to_thread(check_health, resources)
        document = {"roles": sorted(roles), "checks": dict(checks)}
        return JSONResponse(document, status_code=200 if all(checks.values()) else 503)

    async def turn(request: Request) -> JSONResponse:
        del request
        return JSONResponse({"roles": sorted(roles)})

    routes = [Route("/healthz", answer, methods=["GET"]), Route("/loop", turn, methods=["GET"])]
    return quiet_server(Starlette(routes=routes), grace_s=stop_grace_s)
