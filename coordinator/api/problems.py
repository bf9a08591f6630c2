"""Errors as RFC 9457 problem documents: the one place where an exception becomes an HTTP status."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from coordinator.ca.errors import CaError
from coordinator.errors import (
    BlobDigestMismatchError,
    BlobNotFoundError,
    BlobStoreFullError,
    ConflictError,
    DatabaseBusyError,
    DatabaseUnavailableError,
    InvalidMessageError,
    NotFoundError,
    NotInCohortError,
    SiteNotActiveError,
    WrongPhaseError,
)
from coordinator.oidc.rules import IdentityProviderUnavailableError
from coordinator.services.refusals import (
    AccessRefusedError,
    FourEyesError,
    NotReadyError,
    RateLimitedError,
    ReauthenticationError,
    RoleInsufficientError,
    ScopeInsufficientError,
)
from fl_protocol.errors import ProtocolError, WardroundError
from fl_protocol.spec.faults import RunSpecFaultsError

MEDIA_TYPE = "application/problem+json"
_log = structlog.get_logger("coordinator.api")

_STATUS: tuple[tuple[type[WardroundError], HTTPStatus], ...] = (
    (AccessRefusedError, HTTPStatus.UNAUTHORIZED),
    (RateLimitedError, HTTPStatus.TOO_MANY_REQUESTS),
    (RoleInsufficientError, HTTPStatus.FORBIDDEN),
    (ScopeInsufficientError, HTTPStatus.FORBIDDEN),
    (FourEyesError, HTTPStatus.FORBIDDEN),
    (ReauthenticationError, HTTPStatus.FORBIDDEN),
    (NotInCohortError, HTTPStatus.FORBIDDEN),
    (SiteNotActiveError, HTTPStatus.FORBIDDEN),
    (NotFoundError, HTTPStatus.NOT_FOUND),
    (BlobNotFoundError, HTTPStatus.NOT_FOUND),
    (WrongPhaseError, HTTPStatus.CONFLICT),
    (ConflictError, HTTPStatus.CONFLICT),
    (InvalidMessageError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (BlobDigestMismatchError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (DatabaseBusyError, HTTPStatus.SERVICE_UNAVAILABLE),
    (DatabaseUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (NotReadyError, HTTPStatus.SERVICE_UNAVAILABLE),
    (IdentityProviderUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (BlobStoreFullError, HTTPStatus.INSUFFICIENT_STORAGE),
    (CaError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (ProtocolError, HTTPStatus.UNPROCESSABLE_ENTITY),
)
_HTTP_CODES = {404: "not-found", 405: "method-not-allowed", 413: "body-too-large", 415: "media-type-unsupported"}
_RESERVED = frozenset({"type", "title", "status", "code", "detail", "instance"})


def problem(
    status: int, *, code: str, detail: str, facts: Mapping[str, object] | None = None, title: str | None = None
) -> JSONResponse:
    """A problem document. Facts that would hide one of its own members are left out."""
    document: dict[str, object] = {
        "type": f"urn:wardround:problem:{code}",
        "title": title or HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
    }
    document.update({key: value for key, value in (facts or {}).items() if key not in _RESERVED})
    headers = {"WWW-Authenticate": 'Bearer realm="wardround"'} if status == HTTPStatus.UNAUTHORIZED else None
    return JSONResponse(document, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def status_for(error: WardroundError) -> HTTPStatus:
    """The HTTP status of an error, by the first class of the table that it belongs to."""
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status
    return HTTPStatus.INTERNAL_SERVER_ERROR


def problem_from_error(error: WardroundError) -> JSONResponse:
    """The document of an error that was raised on purpose."""
    if isinstance(error, RunSpecFaultsError):
        faults = [{"path": fault.path, "message": fault.message} for fault in error.faults]
        detail = f"The RunSpec has {len(faults)} fault(s); nothing was stored."
        return problem(422, code="run-spec-invalid", detail=detail, facts={"faults": faults})
    status = status_for(error)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return _internal(error, code=error.code)
    answer = problem(status, code=error.code, detail=error.message, facts=error.facts)
    if (retry_after_s := error.facts.get("retry_after_s")) is not None:
        answer.headers["Retry-After"] = str(retry_after_s)
    return answer


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of ``app`` a problem document."""

    @app.exception_handler(WardroundError)
    async def _on_wardround_error(_: Request, error: WardroundError) -> JSONResponse:
        return problem_from_error(error)

    @app.exception_handler(RequestValidationError)
    async def _on_validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = [{"path": _path(fault.get("loc", ())), "message": str(fault.get("msg"))} for fault in error.errors()]
        return problem(
            422, code="request-invalid", detail=f"The request has {len(faults)} fault(s).", facts={"faults": faults}
        )

    @app.exception_handler(HTTPException)
    async def _on_http_exception(_: Request, error: HTTPException) -> JSONResponse:
        code = _HTTP_CODES.get(error.status_code, "request-invalid")
        return problem(error.status_code, code=code, detail=str(error.detail))

    @app.exception_handler(Exception)
    async def _on_unexpected_error(_: Request, error: Exception) -> JSONResponse:
        return _internal(error, code="internal")


def _internal(error: Exception, *, code: str) -> JSONResponse:
    # Internals never reach a peer: the incident joins the answer to the log line.
    incident = secrets.token_hex(8)
    _log.error("request_failed_unexpectedly", incident=incident, exc_info=error)
    return problem(
        500,
        code=code,
        detail="Something failed inside the coordinator; its log tells what.",
        facts={"incident": incident},
    )


def _path(location: object) -> str:
    if isinstance(location, (tuple, list)):
        return ".".join(str(part) for part in location if part != "body") or "body"
    return str(location)
