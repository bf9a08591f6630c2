"""What every call passes: who calls, how large, how long, and what becomes of an error.

Identity comes from the peer's certificate and is checked against the database on every call, so that a revoked site is
refused by its next one. An unexpected error tells its peer an incident number and nothing else.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import grpc
import structlog
from google.protobuf.message import Message

from coordinator.gateway.status import RefusedCall, refused_call, refused_call_from_error
from coordinator.services.identify_site import CallingSite
from coordinator.services.refusals import CertificateUnknownError
from fl_protocol.errors import WardroundError
from fl_protocol.ids import SiteId
from fl_protocol.pki.errors import PkiError
from fl_protocol.pki.identity import site_id_from_certificate
from fl_protocol.pki.tls import certificate_fingerprint, certificate_from_pem

_log = structlog.get_logger("coordinator.gateway")
_site: ContextVar[SiteId] = ContextVar("calling_site")

UNARY_TIMEOUT_S = 60.0
STREAM_TIMEOUT_S = 3600.0
_SMALL = 16 << 10
_MEDIUM = 256 << 10
MESSAGE_BOUNDS: Mapping[str, int] = {
    "Enrol": _SMALL,
    "PollAssignment": _MEDIUM,
    "AcceptRound": _SMALL,
    "DeclineRound": _SMALL,
    "ReportProgress": _SMALL,
    "ReportReady": _SMALL,
    "AdvertiseKeys": _MEDIUM,
    "ShareKeys": 2 << 20,
    "Complain": _MEDIUM,
    "QueryUpload": _SMALL,
    "UploadBlob": (1 << 20) + _SMALL,
    "ConfirmSurvivors": _MEDIUM,
    "RevealShares": 2 << 20,
    "AcknowledgeResult": _SMALL,
    "GetResult": _SMALL,
    "DownloadBlob": _SMALL,
    "ListPending": _SMALL,
    "GetRun": _SMALL,
    "SubmitApproval": _SMALL,
    "Withdraw": _SMALL,
    "GetRoster": _SMALL,
}
"""The largest request of each method, in bytes. Every method is listed (a test compares with the stubs)."""

IdentifySite = Callable[[SiteId, str], Awaitable[CallingSite]]
Context = grpc.aio.ServicerContext[Message, Message]
if TYPE_CHECKING:
    # The stubs are generic, the classes are not.
    Handler = grpc.RpcMethodHandler[Message, Message]

TRequest = TypeVar("TRequest")
TResponse = TypeVar("TResponse")


class UnaryBehaviour(Protocol):
    """A servicer's method that answers once."""

    def __call__(self, request: object, context: Context, /) -> Awaitable[Message]:
        """Answer."""
        ...


class StreamBehaviour(Protocol):
    """A servicer's method that answers many times."""

    def __call__(self, request: Message, context: Context, /) -> AsyncIterator[Message]:
        """Answer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One call on its way to its servicer."""

    method: str
    context: Context


def calling_site() -> SiteId:
    """The site behind the present call. Invariant: the interceptor has checked its certificate and state."""
    return _site.get()


class GatewayInterceptor(grpc.aio.ServerInterceptor):
    """Wraps each method; without ``identify`` (the enrolment listener) callers have no certificate."""

    def __init__(self, *, identify: IdentifySite | None) -> None:
        """Take how a certificate becomes a site."""
        self._identify = identify

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[TRequest, TResponse] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[TRequest, TResponse] | None:
        """The method's handler, wrapped; None where there is no such method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        # gRPC is generic in the messages; ours are all protobuf messages.
        wrapped = self._wrap(cast("Handler", handler), handler_call_details)
        return cast("grpc.RpcMethodHandler[TRequest, TResponse]", wrapped)

    def _wrap(self, handler: Handler, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        method = handler_call_details.method.rpartition("/")[2]
        if handler.unary_unary is not None:
            behaviour = self._wrap_unary(method, cast("UnaryBehaviour", handler.unary_unary), timeout_s=UNARY_TIMEOUT_S)
            make = grpc.unary_unary_rpc_method_handler
        elif handler.stream_unary is not None:
            behaviour = self._wrap_unary(
                method, cast("UnaryBehaviour", handler.stream_unary), timeout_s=STREAM_TIMEOUT_S
            )
            make = grpc.stream_unary_rpc_method_handler
        else:
            return grpc.unary_stream_rpc_method_handler(
                self._wrap_stream(method, cast("StreamBehaviour", handler.unary_stream)),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return make(
            behaviour,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _wrap_unary(self, method: str, behaviour: UnaryBehaviour, *, timeout_s: float) -> UnaryBehaviour:
        async def wrapped(request: object, context: Context) -> Message:
            call = _Call(method=method, context=context)
            try:
                async with asyncio.timeout(timeout_s):
                    await self._admit(call)
                    bounded = _bounded(method, request)
                    return await behaviour(bounded, context)
            except (grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except Exception as error:  # the gateway's edge: logged with ids, told as a status
                await _abort(call, error)
                raise AssertionError("abort does not return") from error

        return wrapped

    def _wrap_stream(self, method: str, behaviour: StreamBehaviour) -> StreamBehaviour:
        async def wrapped(request: Message, context: Context) -> AsyncIterator[Message]:
            call = _Call(method=method, context=context)
            try:
                async with asyncio.timeout(STREAM_TIMEOUT_S):
                    await self._admit(call)
                    async for response in behaviour(cast("Message", _bounded(method, request)), context):
                        yield response
            except (grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except Exception as error:  # noqa: BLE001 # the gateway's edge: logged with ids, told as a status
                await _abort(call, error)

        return wrapped

    async def _admit(self, call: _Call) -> None:
        if self._identify is None:
            return
        chain = list(call.context.auth_context().get("x509_pem_cert", ()))
        if not chain:
            raise CertificateUnknownError("the gateway speaks only to sites with a certificate")
        try:
            certificate = certificate_from_pem(chain[0])
            site_id = site_id_from_certificate(certificate)
        except PkiError as error:
            raise CertificateUnknownError("the certificate does not name a site") from error
        checked = await self._identify(site_id, certificate_fingerprint(certificate))
        _site.set(checked.site_id)


class _TooLargeError(WardroundError):
    code = "message-too-large"


def _bounded(method: str, request: object) -> object:
    """The request, or its stream, once each message is known to be within the method's bound."""
    if isinstance(request, Message):
        _check_size(method, request)
        return request
    return _bounded_stream(method, cast("AsyncIterator[Message]", request))


async def _bounded_stream(method: str, requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
    async for request in requests:
        _check_size(method, request)
        yield request


def _check_size(method: str, request: Message) -> None:
    n_bytes = request.ByteSize()
    if n_bytes > MESSAGE_BOUNDS[method]:
        raise _TooLargeError(
            "the message is larger than this method takes", n_bytes=n_bytes, limit=MESSAGE_BOUNDS[method]
        )


async def _abort(call: _Call, error: Exception) -> None:
    refused = _refused(call, error)
    await call.context.abort(refused.code, refused.message, refused.trailing_metadata)


def _refused(call: _Call, error: Exception) -> RefusedCall:
    site_id = _site.get(None)
    if isinstance(error, _TooLargeError):
        refused = refused_call(
            grpc.StatusCode.RESOURCE_EXHAUSTED, reason=error.code, message=error.message, facts=error.facts
        )
    elif isinstance(error, TimeoutError):
        refused = refused_call(
            grpc.StatusCode.DEADLINE_EXCEEDED, reason="deadline-exceeded", message="the call took too long"
        )
    elif isinstance(error, WardroundError) and (known := refused_call_from_error(error)) is not None:
        refused = known
    else:
        incident = secrets.token_hex(8)
        _log.error("call_failed_unexpectedly", method=call.method, site_id=site_id, incident=incident, exc_info=error)
        return refused_call(
            grpc.StatusCode.INTERNAL,
            reason="internal",
            message="something failed inside the coordinator; its log tells what",
            facts={"incident": incident},
        )
    code = error.code if isinstance(error, WardroundError) else "deadline-exceeded"
    _log.info("call_refused", method=call.method, site_id=site_id, peer=call.context.peer(), code=code)
    return refused
