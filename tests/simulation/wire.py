"""The network between the sites and the coordinator's gateway: a channel that the stubs use as they use gRPC's.

Requests and answers travel as the bytes that gRPC would send, through the gateway's real interceptor and servicers. A
call may be lost on its way there or back, break off after some chunks, stall and go on later, or come a second time.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import grpc.aio

from tests.simulation.clockwork import ClockworkLoop
from tests.simulation.processes import CURRENT, PowerCutError, Process, boundary

_MOST_RECORDED = 400


class _AbortedError(grpc.aio.AbortError):
    """The servicer's side of ``context.abort``."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, Any], ...]) -> None:
        super().__init__(details)
        self.code, self.details, self.metadata = code, details, metadata


class ServerContext:
    """What a servicer knows of a call's transport."""

    def __init__(self, peer: str, certificate_pem: bytes) -> None:
        self._peer, self._certificate_pem = peer, certificate_pem

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self._certificate_pem]}

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: tuple[tuple[str, Any], ...] = ()
    ) -> None:
        raise _AbortedError(code, details, tuple(trailing_metadata))


class Gateway:
    """The coordinator's servicers behind its interceptor, as a server that no socket leads to."""

    def __init__(self, interceptor: grpc.aio.ServerInterceptor, loop: ClockworkLoop) -> None:
        self._interceptor, self._loop = interceptor, loop
        self._plain: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    # What ``add_..._to_server`` calls.

    def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler[Any, Any], ...]) -> None:
        del handlers

    def add_registered_method_handlers(
        self, service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        for method, handler in handlers.items():
            self._plain[f"/{service}/{method}"] = handler

    async def handler(self, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        if method not in self._wrapped:

            async def found(details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
                return self._plain.get(details.method)

            details = _Details(method)
            wrapped = await self._interceptor.intercept_service(found, details)  # type: ignore[arg-type]
            assert wrapped is not None
            self._wrapped[method] = wrapped
        return self._wrapped[method]


@dataclass(frozen=True)
class _Details:
    method: str
    invocation_metadata: tuple[tuple[str, str], ...] = ()


class Server(Protocol):
    """The coordinator, while it is up."""

    process: Process
    gateway: Gateway
    calls: set[asyncio.Task[Any]]


@dataclass
class Faults:
    """What befalls the next calls of one site."""

    loses_request: bool = False
    loses_response: bool = False
    breaks_after: int | None = None
    stalls_after: int | None = None
    loses_upload_response: bool = False
    old_answer: bytes | None = None

    def clear(self) -> None:
        """The line is mended."""
        self.loses_request = self.loses_response = self.loses_upload_response = False
        self.breaks_after = self.stalls_after = self.old_answer = None


@dataclass(frozen=True)
class Recorded:
    """A call as it was sent: by whom, to which method, and the bytes of each message."""

    site: str
    method: str
    messages: tuple[bytes, ...]


@dataclass
class Network:
    """Everything between the parties."""

    loop: ClockworkLoop
    server: Callable[[], Server | None]
    certificates: dict[str, bytes]
    heard: Callable[[Recorded], None]
    faults: dict[str, Faults] = field(default_factory=dict)
    recorded: list[Recorded] = field(default_factory=list)
    answers: dict[str, list[bytes]] = field(default_factory=dict)
    stalled: dict[str, list[asyncio.Event]] = field(default_factory=dict)
    polling: set[str] = field(default_factory=set)

    def channel(self, site: str) -> Channel:
        self.faults.setdefault(site, Faults())
        return Channel(self, site)

    async def call(self, site: str, method: str, messages: AsyncIterator[bytes]) -> list[bytes]:
        """One call of a site that lives; returns the answers."""
        name = method.rpartition("/")[2]
        faults = self.faults[site]
        boundary(f"send {name}: before")
        if faults.loses_request:
            faults.loses_request = False
            self._record(Recorded(site, method, tuple([message async for message in messages])))
            raise _unavailable("the request was lost")
        if name == "PollAssignment":
            self.polling.add(site)
        try:
            answers = await self._deliver(site, method, messages, faults if name == "UploadBlob" else None)
        finally:
            self.polling.discard(site)
        if faults.loses_response or (name == "UploadBlob" and faults.loses_upload_response):
            faults.loses_response = False
            if name == "UploadBlob":
                faults.loses_upload_response = False
            raise _unavailable("the answer was lost")
        boundary(f"send {name}: after")
        if name == "PollAssignment":
            answers = [self._instruct(site, answers[0], faults)]
        return answers

    async def replay(self, recorded: Recorded, *, sender: str) -> None:
        """A recorded call comes again, perhaps from another site; whatever is answered goes nowhere."""

        async def messages() -> AsyncIterator[bytes]:
            for message in recorded.messages:
                yield message

        try:
            await self._deliver(sender, recorded.method, messages(), None, is_replay=True)
        except grpc.aio.AioRpcError:
            return

    def _instruct(self, site: str, answer: bytes, faults: Faults) -> bytes:
        if faults.old_answer is not None:
            answer, faults.old_answer = faults.old_answer, None
            return answer
        held = self.answers.setdefault(site, [])
        if answer not in held[-40:]:
            held.append(answer)
        return answer

    def _record(self, call: Recorded) -> None:
        self.heard(call)
        if len(self.recorded) < _MOST_RECORDED:
            self.recorded.append(call)

    async def _deliver(
        self,
        site: str,
        method: str,
        messages: AsyncIterator[bytes],
        faults: Faults | None,
        *,
        is_replay: bool = False,
    ) -> list[bytes]:
        server = self.server()
        if server is None:
            lost = Recorded(site, method, tuple([message async for message in messages]))
            if not is_replay:
                self._record(lost)
            raise _unavailable("nobody listens")
        sent: list[bytes] = []
        line = _Line(messages, sent, faults)
        context = contextvars.copy_context()
        context.run(CURRENT.set, server.process)
        task = self.loop.create_task(self._serve(server, site, method, line), context=context)
        server.calls.add(task)
        task.add_done_callback(server.calls.discard)
        waiting = asyncio.create_task(line.broken.wait())
        try:
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                if line.goes_on is None:
                    task.cancel()
                    await asyncio.wait({task})
                else:
                    self.stalled.setdefault(site, []).append(line.goes_on)
                    task.add_done_callback(_look_away)
                raise _unavailable("the connection broke")
            return _outcome(task)
        finally:
            waiting.cancel()
            if not is_replay:
                self._record(Recorded(site, method, tuple(sent)))
            if not task.done() and line.goes_on is None:
                task.cancel()
                task.add_done_callback(_look_away)

    async def _serve(self, server: Server, site: str, method: str, line: _Line) -> list[bytes]:
        boundary(f"hear {method.rpartition('/')[2]}")
        handler = await server.gateway.handler(method)
        context: Any = ServerContext(f"sim:{site}", self.certificates[site])
        read = handler.request_deserializer
        write = handler.response_serializer
        assert read is not None
        assert write is not None
        if handler.stream_unary is not None:
            answer = await handler.stream_unary(line.read(read), context)  # type: ignore[misc]
            return [write(answer)]
        request = read(await line.first())
        if handler.unary_unary is not None:
            return [write(await handler.unary_unary(request, context))]  # type: ignore[misc]
        assert handler.unary_stream is not None
        return [write(part) async for part in handler.unary_stream(request, context)]  # type: ignore[attr-defined]


class _Line:
    """One call's way to the server."""

    def __init__(self, messages: AsyncIterator[bytes], sent: list[bytes], faults: Faults | None) -> None:
        self._messages, self._sent = messages, sent
        self.broken = asyncio.Event()
        self.goes_on: asyncio.Event | None = None
        self._breaks_after: int | None = None
        self._stalls_after: int | None = None
        if faults is not None:
            self._breaks_after, faults.breaks_after = faults.breaks_after, None
            self._stalls_after, faults.stalls_after = faults.stalls_after, None

    async def first(self) -> bytes:
        message = await anext(self._messages)
        self._sent.append(message)
        return message

    async def read(self, deserialise: Callable[[bytes], Any]) -> AsyncIterator[Any]:
        """The messages as the servicer reads them. Everything is sent before the first is read: the network is fast."""
        self._sent.extend([message async for message in self._messages])
        for number, message in enumerate(self._sent):
            if number == self._breaks_after:
                self.broken.set()
                await asyncio.get_running_loop().create_future()
            if number == self._stalls_after:
                self.goes_on = asyncio.Event()
                self.broken.set()
                await self.goes_on.wait()
            yield deserialise(message)


class Channel:
    """A site's channel: what ``RoundServiceStub`` and ``RunServiceStub`` ask of gRPC's."""

    def __init__(self, network: Network, site: str) -> None:
        self._network, self._site = network, site

    def unary_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: object) -> Any:
        async def call(request: Any, *, timeout: float | None = None) -> Any:  # noqa: ASYNC109 # gRPC's word
            del timeout
            answers = await self._network.call(self._site, method, _one(request_serializer(request)))
            return response_deserializer(answers[0])

        return call

    def stream_unary(self, method: str, request_serializer: Any, response_deserializer: Any, **_: object) -> Any:
        async def call(requests: AsyncIterator[Any], *, timeout: float | None = None) -> Any:  # noqa: ASYNC109
            del timeout
            messages = _serialised(requests, request_serializer)
            answers = await self._network.call(self._site, method, messages)
            return response_deserializer(answers[0])

        return call

    def unary_stream(self, method: str, request_serializer: Any, response_deserializer: Any, **_: object) -> Any:
        async def call(request: Any, *, timeout: float | None = None) -> AsyncIterator[Any]:  # noqa: ASYNC109
            del timeout
            for answer in await self._network.call(self._site, method, _one(request_serializer(request))):
                yield response_deserializer(answer)

        return call


async def _one(message: bytes) -> AsyncIterator[bytes]:
    yield message


async def _serialised(requests: AsyncIterator[Any], serialise: Callable[[Any], bytes]) -> AsyncIterator[bytes]:
    async for request in requests:
        yield serialise(request)


def _unavailable(details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def _outcome(task: asyncio.Task[list[bytes]]) -> list[bytes]:
    if task.cancelled():
        raise _unavailable("the coordinator went away")
    error = task.exception()
    match error:
        case None:
            return task.result()
        case _AbortedError():
            trailing = grpc.aio.Metadata(*error.metadata)
            raise grpc.aio.AioRpcError(error.code, grpc.aio.Metadata(), trailing, error.details)
        case PowerCutError():
            raise _unavailable("the coordinator died")
        case _:
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.UNKNOWN, grpc.aio.Metadata(), grpc.aio.Metadata(), f"{type(error).__name__}: {error}"
            )


def _look_away(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
