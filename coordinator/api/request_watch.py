"""What surrounds every REST request: an id that is in its log lines and its answer, and the count of how it ended.

``X-Request-ID`` of a caller is kept where it is short and plain, so that a caller finds its own words in the log; else
one is made. It proves nothing.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fl_protocol.telemetry import coordinator_metrics as metrics
from fl_protocol.telemetry.meter import Meter
from fl_protocol.telemetry.span_names import SpanName
from fl_protocol.telemetry.trace_ids import TraceIds, ids_from_traceparent, run_trace
from fl_protocol.telemetry.tracing import NO_TRACING, TRACEPARENT, Tracing

REQUEST_ID = "X-Request-ID"
_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RUN = re.compile(r"run-[a-z2-7]{26}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_UNMATCHED = "unmatched"
_NO_ANSWER = "none"


class RequestWatch:
    """The outermost part of the application."""

    def __init__(
        self, app: ASGIApp, *, meter: Meter, routes: Mapping[object, str], tracing: Tracing = NO_TRACING
    ) -> None:
        """Take what it wraps, who is told, and the path at which each function answers."""
        self._tracing = tracing
        self._app = app
        self._meter = meter
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and see its answer off."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get(REQUEST_ID, ""))
        began, status, answered_s = time.monotonic(), _NO_ANSWER, 0.0

        async def send_with_id(message: Message) -> None:
            nonlocal status, answered_s
            if message["type"] == "http.response.start":
                status, answered_s = str(message["status"]), time.monotonic() - began
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        # Each request has a context of its own, which ends with it.
        structlog.contextvars.bind_contextvars(request_id=request_id)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        parent = ids_from_traceparent(Headers(scope=scope).get(TRACEPARENT, "")) if self._tracing.is_on else None
        about = {"method": method, "request_id": request_id}
        try:
            with self._tracing.span(SpanName.REST, about, parent=parent, about=_run_of(str(scope["path"]))) as span:
                try:
                    await self._app(scope, receive, send_with_id)
                finally:
                    span.set("route", self._route(scope))
                    span.set("status", status)
        finally:
            route = self._route(scope)
            self._meter.count(metrics.REST_REQUESTS, method, route, status)
            if status != _NO_ANSWER:
                self._meter.observe(metrics.REST_SECONDS, answered_s, method, route)

    def _route(self, scope: Scope) -> str:
        """The path as the interface has it, with the names of its parts in place of what was asked for."""
        # Not the route's own path, which lacks what stands before its router.
        return self._routes.get(scope.get("endpoint"), _UNMATCHED)


def _run_of(path: str) -> TraceIds | None:
    """The trace of the run that a path names, if it names one."""
    found = _RUN.search(path)
    return None if found is None else run_trace(found[0])


def _request_id(said: str) -> str:
    return said if _PLAIN.fullmatch(said) else secrets.token_hex(8)
