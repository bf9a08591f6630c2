"""The second transport: the stubs' calls over HTTP/1.1, still under mutual TLS, where a middlebox breaks HTTP/2.

Stands where a gRPC channel stands, so that the generated stubs, the client, uploads and downloads work on either. What
travels is in ``fl_protocol.wire.http1``. Long uploads go in requests of at most 8 MiB, each from where the last ended.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar, cast

import grpc
import httpcore
from google.protobuf.message import DecodeError

from fl_protocol.codec.chunks import IDLE_DEADLINE_S
from fl_protocol.pki.contexts import client_context
from fl_protocol.telemetry.tracing import TRACEPARENT, current_ids
from fl_protocol.wire import http1
from fl_protocol.wire.blob_chunks import UploadRequest
from site_agent.link.channel import TlsIdentity
from site_agent.link.faults import PathFault
from site_agent.link.http1_dialer import Dialer, DialError
from site_agent.link.http1_uploads import send_in_parts
from site_agent.link.proxy import ProxyRoute
from site_agent.link.refusals import CallFailedError, refusal_from_bytes

TRequest = TypeVar("TRequest")
TResponse = TypeVar("TResponse")

_CONNECT_S = 20.0
_SILENCE_S = IDLE_DEADLINE_S
"""How long a call without a deadline may stand still: a stream lasts as long as it moves."""
_WRITE_S = 60.0
"""How long the line may take no byte before it counts as dead."""
_GRACE_S = 2.0
"""How much longer than the coordinator this side waits, so that its refusal wins over silence."""
_IDLE_S = 20.0
_N_CONNECTIONS = 8
_MAX_MESSAGE_BYTES = 5 << 20


class Http1Channel:
    """Calls to one coordinator. The connections are opened when they are needed and kept for a while."""

    def __init__(self, address: str, identity: TlsIdentity, *, proxy: ProxyRoute | None = None) -> None:
        """Take ``host:port``. Raises ssl.SSLError where the identity is none."""
        host, _, port = address.rpartition(":")
        self._dialer = Dialer(host=host.strip("[]"), port=int(port), proxy=proxy)
        # The name in the URL is the one in the gateway's certificate; the dialer knows where that is.
        self._host = (identity.server_name or host.strip("[]")).encode("ascii")
        self._port = int(port)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=client_context(
                root_pem=identity.root_pem,
                certificate_pem=identity.certificate_pem,
                private_key_pem=identity.private_key_pem,
            ),
            max_connections=_N_CONNECTIONS,
            max_keepalive_connections=_N_CONNECTIONS,
            keepalive_expiry=_IDLE_S,
            http1=True,
            http2=False,
            network_backend=self._dialer,
        )

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[TRequest], bytes],
        response_deserializer: Callable[[bytes], TResponse],
        _registered_method: bool = False,  # noqa: FBT001, FBT002 # what the generated code passes
    ) -> Callable[..., Awaitable[TResponse]]:
        """A call with one request and one answer."""

        async def call(request: TRequest, *, timeout: float | None = None) -> TResponse:  # noqa: ASYNC109 # a stub's word
            payload = await self._answer(method, request_serializer(request), timeout_s=timeout)
            return _decoded(payload, response_deserializer)

        return call

    def stream_unary(
        self,
        method: str,
        request_serializer: Callable[[TRequest], bytes],
        response_deserializer: Callable[[bytes], TResponse],
        _registered_method: bool = False,  # noqa: FBT001, FBT002 # what the generated code passes
    ) -> Callable[..., Awaitable[TResponse]]:
        """A call with many requests and one answer: an upload, in bounded parts (the protocol has no other)."""
        del request_serializer

        async def call(
            requests: AsyncIterator[TRequest],
            *,
            timeout: float | None = None,  # noqa: ASYNC109 # a stub's word
        ) -> TResponse:
            deadline = None if timeout is None else time.monotonic() + timeout

            async def send(part: AsyncIterator[bytes], /) -> bytes:
                left_s = None if deadline is None else max(0.001, deadline - time.monotonic())
                return await self._answer(method, part, timeout_s=left_s)

            payload = await send_in_parts(cast("AsyncIterator[UploadRequest]", requests), send=send)
            return _decoded(payload, response_deserializer)

        return call

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[TRequest], bytes],
        response_deserializer: Callable[[bytes], TResponse],
        _registered_method: bool = False,  # noqa: FBT001, FBT002 # what the generated code passes
    ) -> Callable[..., AsyncIterator[TResponse]]:
        """A call with one request and many answers: a download."""

        async def call(request: TRequest, *, timeout: float | None = None) -> AsyncIterator[TResponse]:  # noqa: ASYNC109 # a stub's word
            frames = self._frames(method, request_serializer(request), timeout_s=timeout)
            # Whoever stops in the middle lets go of the connection at once.
            async with aclosing(frames):
                async for payload in frames:
                    yield _decoded(payload, response_deserializer)

        return call

    async def probe(self, *, timeout_s: float) -> None:
        """Ask whether this site would be admitted. Raises CallFailedError."""
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._pool.request(
                    "GET", self._url(http1.PROBE_PATH), extensions={"timeout": _timeouts(timeout_s)}
                )
        except _LINE_ERRORS as error:
            raise _failed(error) from error
        _require_ok(response)

    async def close(self) -> None:
        """End every connection."""
        await self._pool.aclose()

    def _url(self, path: str) -> httpcore.URL:
        return httpcore.URL(scheme=b"https", host=self._host, port=self._port, target=path.encode("ascii"))

    async def _answer(self, method: str, content: bytes | AsyncIterator[bytes], *, timeout_s: float | None) -> bytes:
        is_message = isinstance(content, bytes)
        headers = _headers(http1.MESSAGE_TYPE if is_message else http1.FRAMES_TYPE, timeout_s)
        body = bytearray()
        try:
            async with (
                asyncio.timeout(None if timeout_s is None else timeout_s + _GRACE_S),
                self._pool.stream(
                    "POST",
                    self._url(method),
                    headers=headers,
                    content=content,
                    extensions={"timeout": _timeouts(_SILENCE_S if timeout_s is None else timeout_s + _GRACE_S)},
                ) as response,
            ):
                _require_ok(response)
                async for data in response.aiter_stream():
                    body += data
                    if len(body) > _MAX_MESSAGE_BYTES:
                        raise CallFailedError(
                            grpc.StatusCode.RESOURCE_EXHAUSTED, "the answer is larger than any may be"
                        )
        except _LINE_ERRORS as error:
            raise _failed(error) from error
        return bytes(body)

    async def _frames(self, method: str, content: bytes, *, timeout_s: float | None) -> AsyncGenerator[bytes, None]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s + _GRACE_S
        reader = http1.FrameReader(max_bytes=_MAX_MESSAGE_BYTES)
        try:
            async with self._pool.stream(
                "POST",
                self._url(method),
                headers=_headers(http1.MESSAGE_TYPE, timeout_s),
                content=content,
                extensions={"timeout": _timeouts(min((timeout_s or _SILENCE_S) + _GRACE_S, _SILENCE_S))},
            ) as response:
                _require_ok(response)
                async for data in response.aiter_stream():
                    if deadline is not None and time.monotonic() > deadline:
                        raise CallFailedError(grpc.StatusCode.DEADLINE_EXCEEDED, "the call took too long")
                    for frame in reader.feed(data):
                        if frame.kind is http1.FrameKind.END:
                            _require_end(http1.call_end_of(frame))
                        else:
                            yield frame.payload
        except _LINE_ERRORS as error:
            raise _failed(error) from error
        if not reader.has_ended:
            raise CallFailedError(grpc.StatusCode.UNAVAILABLE, "the answer ended before its last frame")


_LINE_ERRORS = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.ConnectionNotAvailable,
    DialError,
    TimeoutError,
    OSError,
)


def _failed(error: BaseException) -> CallFailedError:
    if isinstance(error, DialError):
        return CallFailedError(grpc.StatusCode.UNAVAILABLE, str(error), fault=error.fault)
    if isinstance(error, TimeoutError | httpcore.TimeoutException) and not isinstance(error, httpcore.ConnectTimeout):
        return CallFailedError(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time")
    fault = None
    if isinstance(error.__context__, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
        fault = PathFault.TLS_INTERCEPTED
    return CallFailedError(grpc.StatusCode.UNAVAILABLE, f"{type(error).__name__}: {error}"[:300], fault=fault)


def _headers(kind: str, timeout_s: float | None) -> list[tuple[bytes, bytes]]:
    headers = [(b"content-type", kind.encode("ascii"))]
    if timeout_s is not None:
        headers.append((http1.TIMEOUT_HEADER.encode("ascii"), str(max(1, int(timeout_s * 1000))).encode("ascii")))
    if (ids := current_ids()) is not None:
        # Where this site's tracing is on: the number of a trace and of a span, as gRPC's metadata has them.
        headers.append((TRACEPARENT.encode("ascii"), ids.traceparent().encode("ascii")))
    return headers


def _timeouts(silence_s: float) -> dict[str, float]:
    return {"connect": _CONNECT_S, "pool": _CONNECT_S, "write": _WRITE_S, "read": silence_s}


def _require_ok(response: httpcore.Response) -> None:
    headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
    end = http1.call_end_from_headers(
        headers.get(http1.STATUS_HEADER.encode(), ""), headers.get(http1.REFUSAL_HEADER.encode(), "")
    )
    if end is None:
        detail = f"HTTP {response.status} from something that is not the coordinator"
        raise CallFailedError(grpc.StatusCode.UNAVAILABLE, detail, fault=PathFault.ANSWER_FOREIGN)
    _require_end(end)


def _require_end(end: http1.CallEnd) -> None:
    if end.status is not grpc.StatusCode.OK:
        raise CallFailedError(end.status, end.status.name, refusal=refusal_from_bytes(end.refusal))


def _decoded(payload: bytes, decode: Callable[[bytes], TResponse]) -> TResponse:
    try:
        return decode(payload)
    except DecodeError as error:
        raise CallFailedError(grpc.StatusCode.INTERNAL, "the answer is no message of this call") from error
