"""Every request that the interface knows, with the action that guards it. A route that nothing guards is a fault.

The application refuses to be made with such a route, so that a new one cannot be open because somebody forgot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.routing import APIRoute

from coordinator.api.auth import action_of
from coordinator.services.permissions import Action

PREFIX = "/api/v1"
OPEN = frozenset({"/healthz", "/readyz", "/version", f"{PREFIX}/ca/root"})
"""What anybody may ask without a token: nothing of a run, a site or a person is in the answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One request. ``action`` is None for those of ``OPEN``."""

    method: str
    path: str
    action: Action | None


class RouteUnguardedError(RuntimeError):
    """A route asks for no token and is not listed as open, or is guarded by several actions."""


def api_routes(router: APIRouter) -> Iterator[APIRoute]:
    """The routes of a router."""
    for route in router.routes:
        assert isinstance(route, APIRoute), "routers hold nothing else"
        yield route


def operations_of(routers: Iterable[tuple[str, APIRouter]]) -> Iterator[Operation]:
    """The operations of routers, each with the prefix under which it is reached.

    Raises:
        RouteUnguardedError: see there.
    """
    for prefix, router in routers:
        for route in api_routes(router):
            path = prefix + route.path
            actions = {action_of(dependency.call) for dependency in route.dependant.dependencies} - {None}
            if len(actions) != (0 if path in OPEN else 1):
                raise RouteUnguardedError(f"{path} must be guarded by one action, or be listed as open")
            action = next(iter(actions), None)
            for method in sorted(route.methods or ()):
                yield Operation(method=method, path=path, action=action)
