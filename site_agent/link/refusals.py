"""Failed calls as typed errors: the coordinator's refusal where it sent one, else the gRPC status."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from fl_protocol.errors import ProtocolError
from fl_protocol.wire.v1 import errors_pb2
from site_agent.errors import AnswerInvalidError, CoordinatorRefusedError, CoordinatorUnavailableError, LinkError

REFUSAL_KEY = "wardround-refusal-bin"

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
    except grpc.aio.AioRpcError as error:
        raise _link_error(error, call) from error
    except ProtocolError as error:
        raise AnswerInvalidError("the coordinator's answer is malformed", call=call, cause=error.code) from error


def _link_error(error: grpc.aio.AioRpcError, call: str) -> LinkError:
    refusal = _refusal_of(error)
    status = error.code()
    if refusal is None and status in _TRY_AGAIN:
        return CoordinatorUnavailableError(
            "the coordinator does not answer; check the address, the firewall and the proxy",
            call=call,
            status=status.name,
        )
    if refusal is not None and status is grpc.StatusCode.UNAVAILABLE:
        return CoordinatorUnavailableError("the coordinator asks to try again", call=call, refusal_code=refusal.code)
    return CoordinatorRefusedError(
        refusal.message if refusal is not None and refusal.message else "the coordinator refused the call",
        status=status.name,
        refusal_code=refusal.code if refusal is not None else "",
        call=call,
    )


def _refusal_of(error: grpc.aio.AioRpcError) -> errors_pb2.Refusal | None:
    for key, value in error.trailing_metadata() or ():
        if key == REFUSAL_KEY and isinstance(value, bytes):
            try:
                return errors_pb2.Refusal.FromString(value)
            except DecodeError:
                return None
    return None
