from __future__ import annotations

import grpc
import pytest

from coordinator.errors import (
    BlobStoreFullError,
    ConflictError,
    DatabaseBusyError,
    EffectFailedError,
    IllegalTransitionError,
    InvalidMessageError,
    LateError,
    NotFoundError,
    NotInCohortError,
    SiteNotActiveError,
)
from coordinator.gateway.admission import MESSAGE_BOUNDS
from coordinator.gateway.status import REFUSAL_KEY, refused_call_from_error
from coordinator.services.refusals import CertificateUnknownError, EnrolmentCodeSpentError, PossessionUnprovenError
from fl_protocol.errors import WardroundError
from fl_protocol.signing.keys import SignatureInvalidError
from fl_protocol.wire.v1 import enrolment_pb2, errors_pb2, round_pb2, run_pb2

CASES = [
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (NotInCohortError, grpc.StatusCode.PERMISSION_DENIED),
    (SiteNotActiveError, grpc.StatusCode.PERMISSION_DENIED),
    (LateError, grpc.StatusCode.FAILED_PRECONDITION),
    (ConflictError, grpc.StatusCode.ALREADY_EXISTS),
    (InvalidMessageError, grpc.StatusCode.INVALID_ARGUMENT),
    (SignatureInvalidError, grpc.StatusCode.INVALID_ARGUMENT),
    (PossessionUnprovenError, grpc.StatusCode.INVALID_ARGUMENT),
    (EnrolmentCodeSpentError, grpc.StatusCode.UNAUTHENTICATED),
    (CertificateUnknownError, grpc.StatusCode.UNAUTHENTICATED),
    (DatabaseBusyError, grpc.StatusCode.UNAVAILABLE),
    (BlobStoreFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
]


@pytest.mark.parametrize(("kind", "code"), CASES)
def test_error_becomes_its_status_and_a_typed_refusal(kind: type[WardroundError], code: grpc.StatusCode) -> None:
    call = refused_call_from_error(kind("say this", run_id="run-x", nothing=None))
    assert call is not None
    assert (call.code, call.message) == (code, "say this")
    ((key, content),) = call.trailing_metadata
    assert key == REFUSAL_KEY
    refusal = errors_pb2.Refusal.FromString(content)
    assert (refusal.code, refusal.message, dict(refusal.facts)) == (kind.code, "say this", {"run_id": "run-x"})


@pytest.mark.parametrize("kind", [EffectFailedError, IllegalTransitionError, WardroundError])
def test_error_of_the_coordinator_itself_is_not_told(kind: type[WardroundError]) -> None:
    assert refused_call_from_error(kind("internals")) is None


def test_every_method_of_the_services_has_a_bound() -> None:
    methods = {
        method.name
        for module in (enrolment_pb2, round_pb2, run_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert methods == set(MESSAGE_BOUNDS)
