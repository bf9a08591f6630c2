"""The REST application: its routes, its problem documents, its OpenAPI document."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.api import audit, blobs, events, releases, rounds, runs, schemas, sites, sums, users
from coordinator.api.auth import Api, allowed
from coordinator.api.headers import SecurityHeaders
from coordinator.api.openapi import PROBLEMS, install_openapi
from coordinator.api.operations import PREFIX, Operation, api_routes, operations_of
from coordinator.api.problems import install_problem_handlers, problem
from coordinator.api.rate_limits import RateLimits, RateRules
from coordinator.api.request_watch import RequestWatch
from coordinator.api.stop_answer import StopAnswer
from coordinator.services.check_health import check_health
from coordinator.services.permissions import Action, Principal
from coordinator.services.refusals import NotReadyError
from coordinator.services.resources import Resources
from fl_protocol.telemetry.meter import CONTENT_TYPE

_BLOB_PREFIX = f"{PREFIX}/blobs/"

health = APIRouter(tags=["health"])


@health.get("/healthz")
def get_health() -> schemas.HealthAnswer:
    """The process lives."""
    return schemas.HealthAnswer()


@health.get("/readyz")
def get_readiness(api: Api) -> schemas.ReadyAnswer:
    """The database answers, events can be recorded, and the driver turns where this process has one."""
    checks = check_health(api)
    if not all(checks.values()):
        down = ", ".join(sorted(name for name, is_well in checks.items() if not is_well))
        raise NotReadyError("a part of the coordinator is not at work", down=down)
    return schemas.ReadyAnswer(checks=dict(checks))


@health.get("/version")
def get_version() -> schemas.VersionAnswer:
    """Which program answers."""
    return schemas.VersionAnswer(version=program_version())


@health.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def get_metrics(api: Api, _: Annotated[Principal, Depends(allowed(Action.READ_METRICS))]) -> Response:
    """The metrics of the process that answers, for a Prometheus that does not reach the operators' listener."""
    return Response(api.meter.exposition(), media_type=CONTENT_TYPE)


@health.get(f"{PREFIX}/ca/root", response_class=Response, responses={200: {"content": {"application/x-pem-file": {}}}})
def get_root(api: Api) -> Response:
    """The root certificate. Compare its fingerprint with one that came another way."""
    return Response(
        api.authority.root_pem,
        media_type="application/x-pem-file",
        headers={"X-Root-Sha256": api.authority.root_sha256},
    )


_ROOMS = (sites, blobs, runs, rounds, sums, events, releases, audit, users)
ROUTERS: tuple[tuple[str, APIRouter], ...] = (("", health), *((PREFIX, room.router) for room in _ROOMS))


def all_operations() -> tuple[Operation, ...]:
    """Every request that the interface knows, with the action that guards it."""
    return tuple(operations_of(ROUTERS))


def program_version() -> str:
    """The version of the installed distribution."""
    try:
        return version("wardround")
    except PackageNotFoundError:
        return "0+unknown"


def create_app(resources: Resources, *, max_body_bytes: int, rate_rules: RateRules) -> ASGIApp:
    """The application over these resources.

    Args:
        resources: what the services work with.
        max_body_bytes: the largest body of a request, but for blobs, which are bounded by the store's own limit.
        rate_rules: how often one may ask.

    Raises:
        RouteUnguardedError: a route is open that should not be.
    """
    all_operations()
    app = bare_app()
    app.state.resources = resources
    app.state.rate_limits = RateLimits(rate_rules)
    app.add_middleware(BodyBound, max_body_bytes=max_body_bytes)
    routes: dict[object, str] = {}
    for prefix, router in ROUTERS:
        routes |= {route.endpoint: f"{prefix}{route.path}" for route in api_routes(router)}
    answering = SecurityHeaders(StopAnswer(app))
    return RequestWatch(answering, meter=resources.meter, routes=routes, tracing=resources.tracing)


def bare_app() -> FastAPI:
    """The routes and their document, with nothing behind them."""
    app = FastAPI(
        title="Wardround coordinator",
        version=program_version(),
        description="Federated fine-tuning across hospitals. Errors are RFC 9457 problem documents with a `code`.",
        docs_url=None,
        redoc_url=None,
        responses=PROBLEMS,
        redirect_slashes=False,
    )
    install_openapi(app)
    install_problem_handlers(app)
    for prefix, router in ROUTERS:
        app.include_router(router, prefix=prefix)

    @app.get(f"{PREFIX}/openapi.json", include_in_schema=False)
    def get_openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    return app


class BodyBound:
    """Refuses a request body that is too large, by its announced length or once that many bytes have come."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        """Take the application and the bound."""
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 413."""
        if scope["type"] != "http" or scope["path"].startswith(_BLOB_PREFIX):
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._max_body_bytes:
            await self._refuse(scope, receive, send)
            return
        chunks: list[Message] = []
        n_bytes = 0
        # Bodies here are small: it is read before the application starts, so that a refusal is a clean answer.
        while True:
            message = await receive()
            chunks.append(message)
            n_bytes += len(message.get("body", b""))
            if n_bytes > self._max_body_bytes:
                await self._refuse(scope, receive, send)
                return
            if message["type"] != "http.request" or not message.get("more_body", False):
                break

        async def replay() -> Message:
            return chunks.pop(0) if chunks else await receive()

        await self._app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = problem(
            413, code="body-too-large", detail="The body is too large.", facts={"limit": self._max_body_bytes}
        )
        await answer(scope, receive, send)
