"""The second transport's edge: the same servicers behind the same admission, over HTTP/1.1 where HTTP/2 is broken.

An ASGI application. Knows HTTP and frames; which call may do what, and what a refusal says, ``admission`` decides.
Servicers are given no gRPC context here: none of them uses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self, cast

import grpc
from google.protobuf.message import DecodeError, Message

from coordinator.errors import InvalidMessageError
from coordinator.gateway.admission import (
    MESSAGE_BOUNDS,
    STREAM_TIMEOUT_S,
    UNARY_TIMEOUT_S,
    Admission,
    CallRefusedError,
    IncomingCall,
    MessageTooLargeError,
    PeerCertificate,
    check_size,
    note_moved,
    peer_from_der,
)
from coordinator.gateway.chunk_codec import request_decoder, response_encoder
from coordinator.gateway.interceptors import Context, StreamBehaviour, UnaryBehaviour
from coordinator.gateway.status import RefusedCall, refused_call, refused_call_from_error
from coordinator.services.accept_upload import UploadTruncatedError
from fl_protocol.telemetry.tracing import TRACEPARENT
from fl_protocol.wire import http1
from fl_protocol.wire.v1 import enrolment_pb2_grpc, round_pb2_grpc, run_pb2_grpc

PEER_CERTIFICATE = "wardround.peer_certificate_der"
"""The key of the ASGI state under which the listener leaves the certificate of the TLS peer."""

Scope = Mapping[str, object]
Receive = Callable[[], Awaitable[dict[str, object]]]
Send = Callable[[dict[str, object]], Awaitable[None]]

_NO_CONTEXT = cast("Context", None)
_LONGEST_TIMEOUT_MS = int(STREAM_TIMEOUT_S * 1000)


class UploadCutError(InvalidMessageError):
    """The body ended before its last frame; what came before is held, and the upload may be resumed."""

    code = "request-cut"


class MethodUnknownError(InvalidMessageError):
    """There is no such call."""

    code = "method-unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One HTTP request. Its path is not known to be a call yet."""

    path: str
    verb: str
    headers: Mapping[bytes, bytes]
    call: IncomingCall
    receive: Receive
    send: Send


class _Handlers:
    """Stands where a gRPC server would, and keeps what the generated code registers: a handler a path."""

    def __init__(self) -> None:
        self.by_path: dict[str, grpc.RpcMethodHandler[Message, Message]] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[object]) -> None:
        """What older generated code calls; the next method says the same."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Message, Message]]
    ) -> None:
        self.by_path |= {f"/{service}/{method}": handler for method, handler in handlers.items()}


def gateway_handlers(
    rounds: round_pb2_grpc.RoundServiceServicer,
    runs: run_pb2_grpc.RunServiceServicer,
    identity: enrolment_pb2_grpc.EnrolmentServiceServicer | None = None,
) -> Mapping[str, grpc.RpcMethodHandler[Message, Message]]:
    """The calls of enrolled sites."""
    handlers = _Handlers()
    round_pb2_grpc.add_RoundServiceServicer_to_server(rounds, cast("grpc.aio.Server", handlers))
    run_pb2_grpc.add_RunServiceServicer_to_server(runs, cast("grpc.aio.Server", handlers))
    if identity is not None:
        enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(identity, cast("grpc.aio.Server", handlers))
    return handlers.by_path


def enrolment_handlers(
    enrolment: enrolment_pb2_grpc.EnrolmentServiceServicer,
) -> Mapping[str, grpc.RpcMethodHandler[Message, Message]]:
    """The calls of a site that has no certificate, or none that lives."""
    handlers = _Handlers()
    enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(enrolment, cast("grpc.aio.Server", handlers))
    return handlers.by_path


class Http1Gateway:
    """The application. Every request passes the admission before its body is read."""

    def __init__(
        self,
        *,
        admission: Admission,
        handlers: Mapping[str, grpc.RpcMethodHandler[Message, Message]],
    ) -> None:
        """Take the gate and what is behind it: a handler a path."""
        self._handlers = handlers
        self._admission = admission
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End the calls that wait, so that their sites ask again elsewhere or later."""
        self._stopping.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        request = _request(scope, receive, send)
        answer = _Answer(send)
        handler = self._handlers.get(request.path)
        try:
            if request.path == http1.PROBE_PATH and request.verb in ("GET", "HEAD"):
                async with self._admission.admitted(request.call, timeout_s=UNARY_TIMEOUT_S):
                    pass
                await answer.nothing()
            elif handler is None or request.verb != "POST":
                async with self._admission.admitted(request.call, timeout_s=UNARY_TIMEOUT_S):
                    raise MethodUnknownError("there is no such call; is this site's version newer?", verb=request.verb)
            else:
                await self._serve(request, handler, answer)
        except CallRefusedError as ended:
            await answer.refuse(ended.refused)
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
            await answer.refuse(_STOPPING)

    async def _serve(
        self, request: _Request, handler: grpc.RpcMethodHandler[Message, Message], answer: _Answer
    ) -> None:
        is_unary = handler.unary_unary is not None
        timeout_s = min(UNARY_TIMEOUT_S if is_unary else STREAM_TIMEOUT_S, _timeout_s(request))
        method = request.call.method
        encode = response_encoder(method, handler.response_serializer) or _encode
        decode = cast("Callable[[bytes], Message]", request_decoder(method, handler.request_deserializer))
        async with self._admission.admitted(request.call, timeout_s=timeout_s):
            if handler.stream_unary is not None:
                call = cast("UnaryBehaviour", handler.stream_unary)(_parts(request, decode), _NO_CONTEXT)
                await answer.message(encode(await _of_part(call)))
                return
            message = _decoded(await _body(request), decode)
            async with _Watch(request.receive, self._stopping) as watch:
                if is_unary:
                    call = cast("UnaryBehaviour", handler.unary_unary)(message, _NO_CONTEXT)
                    await answer.message(encode(await watch.unless_gone(call)))
                    return
                async for each in cast("StreamBehaviour", handler.unary_stream)(message, _NO_CONTEXT):
                    watch.check()
                    await answer.frame(encode(each))
                    note_moved()
                await answer.end()


async def _of_part(call: Awaitable[Message]) -> Message:
    """The call's answer. Over this transport an upload comes in parts: one that ends early is told, and not logged."""
    try:
        return await call
    except UploadTruncatedError as error:
        refused = refused_call_from_error(error)
        if refused is not None:
            raise CallRefusedError(refused) from error
        raise


_GONE = refused_call(grpc.StatusCode.CANCELLED, reason="cancelled", message="the caller hung up")
_STOPPING = refused_call(grpc.StatusCode.UNAVAILABLE, reason="stopping", message="the coordinator stops; try again")


class _Watch:
    """Notices that the peer hung up while its call is at work, as gRPC does, so that no call works for nobody."""

    def __init__(self, receive: Receive, stopping: asyncio.Event) -> None:
        self._receive = receive
        self._stopping = stopping

    async def __aenter__(self) -> Self:
        self._gone = asyncio.create_task(self._wait())
        self._stop = asyncio.create_task(self._stopping.wait())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (self._gone, self._stop):
            task.cancel()
        await asyncio.gather(self._gone, self._stop, return_exceptions=True)

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def check(self) -> None:
        """End the call if the peer hung up or the coordinator stops. Raises CallRefusedError."""
        if self._gone.done():
            raise CallRefusedError(_GONE)
        if self._stop.done():
            raise CallRefusedError(_STOPPING)

    async def unless_gone(self, call: Awaitable[Message]) -> Message:
        """The call's answer; the call is cancelled where nobody waits for it any more. Raises CallRefusedError."""
        work = asyncio.ensure_future(call)
        try:
            await asyncio.wait({work, self._gone, self._stop}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.check()
            return await work
        finally:
            work.cancel()


class _Answer:
    """One response, as far as it has gone."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._has_begun = False

    async def nothing(self) -> None:
        await self._begin(204, b"", status=grpc.StatusCode.OK)
        await self._body(b"")

    async def message(self, payload: bytes) -> None:
        await self._begin(200, http1.MESSAGE_TYPE.encode(), status=grpc.StatusCode.OK, n_bytes=len(payload))
        await self._body(payload)

    async def frame(self, payload: bytes) -> None:
        if not self._has_begun:
            await self._begin(200, http1.FRAMES_TYPE.encode(), status=grpc.StatusCode.OK)
        await self._body(http1.message_frame(payload), more=True)

    async def end(self) -> None:
        if not self._has_begun:
            await self._begin(200, http1.FRAMES_TYPE.encode(), status=grpc.StatusCode.OK)
        await self._body(http1.end_frame(http1.CallEnd(status=grpc.StatusCode.OK)))

    async def refuse(self, refused: RefusedCall) -> None:
        """Say no: in the headers, or in the last frame where the answer has begun."""
        if self._has_begun:
            await self._body(http1.end_frame(http1.CallEnd(status=refused.code, refusal=refused.refusal)))
            return
        await self._begin(http1.http_status(refused.code), b"", status=refused.code, refusal=refused.refusal, n_bytes=0)
        await self._body(b"")

    async def _begin(
        self, code: int, kind: bytes, *, status: grpc.StatusCode, refusal: bytes = b"", n_bytes: int | None = None
    ) -> None:
        self._has_begun = True
        headers = [(http1.STATUS_HEADER.encode(), status.name.encode()), (b"cache-control", b"no-store")]
        if kind:
            headers.append((b"content-type", kind))
        if refusal:
            headers.append((http1.REFUSAL_HEADER.encode(), http1.refusal_header(refusal).encode()))
        if n_bytes is not None:
            headers.append((b"content-length", str(n_bytes).encode()))
        await self._send({"type": "http.response.start", "status": code, "headers": headers})

    async def _body(self, data: bytes, *, more: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def _request(scope: Scope, receive: Receive, send: Send) -> _Request:
    path, verb = str(scope["path"]), str(scope["method"])
    headers = dict(cast("Iterable[tuple[bytes, bytes]]", scope["headers"]))
    state = cast("Mapping[str, object]", scope.get("state") or {})
    peer = cast("tuple[str, int] | None", scope.get("client"))

    def certificate() -> PeerCertificate | None:
        der = state.get(PEER_CERTIFICATE)
        return peer_from_der(der) if isinstance(der, bytes) else None

    call = IncomingCall(
        method=path.rpartition("/")[2][:64],
        peer="unknown" if peer is None else f"http1:{peer[0]}:{peer[1]}",
        certificate=certificate,
        traceparent=lambda: headers.get(TRACEPARENT.encode(), b"").decode("latin-1"),
    )
    return _Request(path=path, verb=verb, headers=headers, call=call, receive=receive, send=send)


def _timeout_s(request: _Request) -> float:
    """How long the caller waits; without a word, or with one that is no number, as long as the call may take."""
    text = request.headers.get(http1.TIMEOUT_HEADER.encode(), b"")
    if not text.isdigit() or len(text) > 12:
        return STREAM_TIMEOUT_S
    return min(int(text), _LONGEST_TIMEOUT_MS) / 1000


async def _body(request: _Request) -> bytes:
    method, body = request.call.method, bytearray()
    async for data in _pieces(request):
        body += data
        check_size(method, len(body))
    return bytes(body)


async def _pieces(request: _Request) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises UploadCutError where the peer hangs up in the middle of it."""
    while True:
        event = await request.receive()
        if event["type"] == "http.disconnect":
            raise UploadCutError("the body ended in the middle; resume where it ended")
        yield cast("bytes", event.get("body", b""))
        if not event.get("more_body", False):
            return


async def _parts(request: _Request, decode: Callable[[bytes], Message]) -> AsyncIterator[Message]:
    method = request.call.method
    reader = http1.FrameReader(max_bytes=MESSAGE_BOUNDS[method])
    n_bytes = 0
    async for data in _pieces(request):
        n_bytes += len(data)
        if n_bytes > 2 * http1.PART_BYTES:
            raise MessageTooLargeError("one request carries fewer bytes", n_bytes=n_bytes, limit=http1.PART_BYTES)
        try:
            frames = reader.feed(data)
        except http1.FrameTooLargeError as error:
            raise MessageTooLargeError("the message is larger than this method takes", **error.facts) from error
        for frame in frames:
            if frame.kind is http1.FrameKind.MESSAGE:
                note_moved()
                yield _decoded(frame.payload, decode)
    if not reader.has_ended:
        raise UploadCutError("the body ended before its last frame; resume where it ended")


def _decoded(payload: bytes, decode: Callable[[bytes], Message]) -> Message:
    try:
        return decode(payload)
    except DecodeError as error:
        raise InvalidMessageError("the bytes are no message of this call") from error


def _encode(message: Message) -> bytes:
    return message.SerializeToString()
