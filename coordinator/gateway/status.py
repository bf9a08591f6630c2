"""Errors as gRPC statuses: the one place where an exception becomes a code and a typed refusal."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from coordinator.errors import (
    AuditLogShorterError,
    BlobDigestMismatchError,
    BlobNotFoundError,
    BlobOffsetError,
    BlobStoreFullError,
    BlobStoreUnavailableError,
    ConflictError,
    DatabaseBusyError,
    DatabaseUnavailableError,
    InvalidMessageError,
    NotFoundError,
    NotInCohortError,
    PartialTakenOverError,
    SiteNotActiveError,
    VectorLengthError,
    WrongPhaseError,
)
from coordinator.services.refusals import AccessRefusedError, NotReadyError
from coordinator.services.upload_desk import UploadsBusyError
from fl_protocol.errors import Fact, ProtocolError, WardroundError
from fl_protocol.wire.convert import proto_from_refusal

REFUSAL_KEY = "wardround-refusal-bin"
_MAX_REFUSAL_TEXT = 1000

_CODES: tuple[tuple[type[WardroundError], grpc.StatusCode], ...] = (
    (AccessRefusedError, grpc.StatusCode.UNAUTHENTICATED),
    (NotInCohortError, grpc.StatusCode.PERMISSION_DENIED),
    (SiteNotActiveError, grpc.StatusCode.PERMISSION_DENIED),
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (BlobNotFoundError, grpc.StatusCode.NOT_FOUND),
    (WrongPhaseError, grpc.StatusCode.FAILED_PRECONDITION),
    (AuditLogShorterError, grpc.StatusCode.FAILED_PRECONDITION),
    (ConflictError, grpc.StatusCode.ALREADY_EXISTS),
    (InvalidMessageError, grpc.StatusCode.INVALID_ARGUMENT),
    (BlobDigestMismatchError, grpc.StatusCode.INVALID_ARGUMENT),
    (BlobOffsetError, grpc.StatusCode.INVALID_ARGUMENT),
    (VectorLengthError, grpc.StatusCode.INVALID_ARGUMENT),
    (PartialTakenOverError, grpc.StatusCode.ABORTED),
    (BlobStoreFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (BlobStoreUnavailableError, grpc.StatusCode.UNAVAILABLE),
    (DatabaseBusyError, grpc.StatusCode.UNAVAILABLE),
    (DatabaseUnavailableError, grpc.StatusCode.UNAVAILABLE),
    (NotReadyError, grpc.StatusCode.UNAVAILABLE),
    (UploadsBusyError, grpc.StatusCode.UNAVAILABLE),
    (ProtocolError, grpc.StatusCode.INVALID_ARGUMENT),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCall:
    """How a call ends: the code, one sentence, and the typed refusal's bytes for the trailing metadata."""

    code: grpc.StatusCode
    message: str
    refusal: bytes

    @property
    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """What goes behind the status."""
        return ((REFUSAL_KEY, self.refusal),)


def refused_call(
    code: grpc.StatusCode, *, reason: str, message: str, facts: dict[str, Fact] | None = None
) -> RefusedCall:
    """A refusal of the gateway's own."""
    said = message[:_MAX_REFUSAL_TEXT]
    return RefusedCall(
        code=code, message=said, refusal=proto_from_refusal(reason, said, facts or {}).SerializeToString()
    )


def refused_call_from_error(error: WardroundError) -> RefusedCall | None:
    """How a call ends that met this error; None where the error is the coordinator's own and nobody else's business."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return refused_call(code, reason=error.code, message=error.message, facts=error.facts)
    return None
