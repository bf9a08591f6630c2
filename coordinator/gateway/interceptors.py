"""The gate in front of the gRPC servicers: each method is wrapped, so that no call reaches one unadmitted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import grpc
from google.protobuf.message import Message

from coordinator.gateway.admission import (
    STREAM_TIMEOUT_S,
    UNARY_TIMEOUT_S,
    Admission,
    CallRefusedError,
    IdentifySite,
    IncomingCall,
    PeerCertificate,
    bounded_stream,
    check_readable,
    check_size,
    note_moved,
    peer_from_pem,
)
from coordinator.gateway.chunk_codec import UnreadableRequest, forgiving, request_decoder, response_encoder
from coordinator.services.wakeups import Bell
from fl_protocol.telemetry.meter import Meter
from fl_protocol.telemetry.tracing import NO_TRACING, TRACEPARENT, Tracing

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


class GatewayInterceptor(grpc.aio.ServerInterceptor):
    """Wraps each method; without ``identify`` (the enrolment listener) callers have no certificate."""

    def __init__(
        self,
        *,
        identify: IdentifySite | None,
        changes: Bell | None = None,
        meter: Meter | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        """Take what the admission takes."""
        self._admission = Admission(identify=identify, changes=changes, meter=meter, tracing=tracing)

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
        # Typed as what it decodes: the gate takes out what is none before a servicer sees it.
        decode = cast("Callable[[bytes], Message]", forgiving(request_decoder(method, handler.request_deserializer)))
        encode = response_encoder(method, handler.response_serializer)
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
                request_deserializer=decode,
                response_serializer=encode,
            )
        return make(behaviour, request_deserializer=decode, response_serializer=encode)

    def _wrap_unary(self, method: str, behaviour: UnaryBehaviour, *, timeout_s: float) -> UnaryBehaviour:
        async def wrapped(request: object, context: Context) -> Message:
            try:
                async with self._admission.admitted(_incoming(method, context), timeout_s=timeout_s):
                    return await behaviour(_bounded(method, request), context)
            except CallRefusedError as ended:
                await _abort(context, ended)
                raise AssertionError("abort does not return") from ended

        return wrapped

    def _wrap_stream(self, method: str, behaviour: StreamBehaviour) -> StreamBehaviour:
        async def wrapped(request: Message, context: Context) -> AsyncIterator[Message]:
            try:
                async with self._admission.admitted(_incoming(method, context), timeout_s=STREAM_TIMEOUT_S):
                    async for response in behaviour(cast("Message", _bounded(method, request)), context):
                        yield response
                        note_moved()
            except CallRefusedError as ended:
                await _abort(context, ended)

        return wrapped


def _incoming(method: str, context: Context) -> IncomingCall:
    def certificate() -> PeerCertificate | None:
        chain = list(context.auth_context().get("x509_pem_cert", ()))
        return peer_from_pem(chain[0]) if chain else None

    def traceparent() -> str:
        said = next((value for key, value in context.invocation_metadata() or () if key == TRACEPARENT), "")
        return said if isinstance(said, str) else ""

    return IncomingCall(method=method, peer=context.peer(), certificate=certificate, traceparent=traceparent)


def _bounded(method: str, request: object) -> object:
    """The request, or its stream, once each message is known to be within the method's bound."""
    if isinstance(request, Message | UnreadableRequest):
        assert check_readable(request), "otherwise it is refused"
        check_size(method, request.ByteSize())
        return request
    return bounded_stream(method, cast("AsyncIterator[Message]", request))


async def _abort(context: Context, ended: CallRefusedError) -> None:
    refused = ended.refused
    await context.abort(refused.code, refused.message, refused.trailing_metadata)
