"""Failed calls of either transport as typed errors: the coordinator's refusal where it sent one, else the status."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from fl_protocol.errors import ProtocolError
from fl_protocol.wire.v1 import errors_pb2
from site_agent.errors import (
    AnswerInvalidError,
    CoordinatorBusyError,
    CoordinatorRefusedError,
    CoordinatorUnavailableError,
    LinkError,
)
from site_agent.link.faults import ADVICE, PathFault, fault_in_grpc_details

REFUSAL_KEY = "wardround-refusal-bin"
_LONGEST_RETRY_AFTER_S = 60.0

_ASKS_TO_TRY_AGAIN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
"""With a refusal: the coordinator's own word that the call may succeed later."""
_TRY_AGAIN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        # What a stream that is cut while this side still writes may look like. The coordinator's own failures carry a
        # refusal; these two, without one, are the line's.
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)


class CallFailedError(Exception):
    """A call over the second transport failed. Only ``typed_errors`` and the link itself see it.

    Attributes:
        status: what gRPC would have said.
        refusal: the coordinator's, where it sent one.
        fault: what is wrong with the way, where that is known.
    """

    def __init__(
        self,
        status: grpc.StatusCode,
        detail: str,
        *,
        refusal: errors_pb2.Refusal | None = None,
        fault: PathFault | None = None,
    ) -> None:
        """Keep what is known."""
        super().__init__(detail)
        self.status = status
        self.refusal = refusal
        self.fault = fault


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    status: grpc.StatusCode
    refusal: errors_pb2.Refusal | None
    fault: PathFault | None


@contextmanager
def typed_errors(call: str) -> Iterator[None]:
    """Translate what a call raises.

    Raises:
        CoordinatorUnavailableError: no answer, or none in time.
        CoordinatorRefusedError: any other status.
        AnswerInvalidError: the answer is not what the protocol says.
    """
    try:
        yield
    except (grpc.aio.AioRpcError, CallFailedError) as error:
        raise _link_error(_failure_of(error), call) from error
    except ProtocolError as error:
        raise AnswerInvalidError("the coordinator's answer is malformed", call=call, cause=error.code) from error


def is_of_the_line(error: grpc.aio.AioRpcError | CallFailedError) -> bool:
    """Whether a call failed on its way and not by the coordinator's word."""
    failure = _failure_of(error)
    return failure.refusal is None and failure.status in _TRY_AGAIN


def is_call_unknown(error: CoordinatorRefusedError) -> bool:
    """Whether the coordinator has no such call: it is of a version before it. Either transport has its own word."""
    return error.status == grpc.StatusCode.UNIMPLEMENTED.name or error.refusal_code == "method-unknown"


def _failure_of(error: grpc.aio.AioRpcError | CallFailedError) -> _Failure:
    if isinstance(error, CallFailedError):
        return _Failure(status=error.status, refusal=error.refusal, fault=error.fault)
    fault = fault_in_grpc_details(error.details() or "")
    return _Failure(status=error.code(), refusal=_refusal_of(error), fault=fault)


def _link_error(failure: _Failure, call: str) -> LinkError:
    refusal, status = failure.refusal, failure.status
    if refusal is None and status in _TRY_AGAIN:
        if failure.fault is not None:
            return CoordinatorUnavailableError(
                f"the coordinator cannot be reached. {ADVICE[failure.fault]}",
                call=call,
                status=status.name,
                fault=failure.fault.value,
            )
        return CoordinatorUnavailableError(
            "the coordinator does not answer; 'wardround-site doctor' looks where the way ends",
            call=call,
            status=status.name,
        )
    if refusal is not None and status in _ASKS_TO_TRY_AGAIN:
        if (retry_after_s := _retry_after_s(refusal)) is not None:
            message = "the coordinator asks to try again later"
            return CoordinatorBusyError(message, retry_after_s=retry_after_s, call=call, refusal_code=refusal.code)
        return CoordinatorUnavailableError("the coordinator asks to try again", call=call, refusal_code=refusal.code)
    return CoordinatorRefusedError(
        refusal.message if refusal is not None and refusal.message else "the coordinator refused the call",
        status=status.name,
        refusal_code=refusal.code if refusal is not None else "",
        call=call,
    )


def _retry_after_s(refusal: errors_pb2.Refusal) -> float | None:
    try:
        wait_s = float(refusal.facts["retry_after_s"]) if "retry_after_s" in refusal.facts else None
    except ValueError:
        return None
    # NaN compares false with everything, and a coordinator does not put a site to sleep.
    return wait_s if wait_s is not None and 0 <= wait_s <= _LONGEST_RETRY_AFTER_S else None


def _refusal_of(error: grpc.aio.AioRpcError) -> errors_pb2.Refusal | None:
    for key, value in error.trailing_metadata() or ():
        if key == REFUSAL_KEY and isinstance(value, bytes):
            return refusal_from_bytes(value)
    return None


def refusal_from_bytes(data: bytes) -> errors_pb2.Refusal | None:
    """A Refusal from the wire; None where the bytes are none."""
    try:
        return errors_pb2.Refusal.FromString(data)
    except DecodeError:
        return None
