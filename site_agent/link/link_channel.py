"""The link: gRPC, and HTTP/1.1 where gRPC cannot get through. The stubs see one channel and never which it is.

A call that fails is never repeated here: whoever made it does that, and all calls may be. What is chosen, and why, is
said in the log as ``transport_changed``; ``transport_choice`` decides, and this room looks and acts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, cast

import grpc.aio
import structlog

from fl_protocol.telemetry.tracing import TRACEPARENT, current_ids
from fl_protocol.wire.v1 import run_pb2, run_pb2_grpc
from site_agent.link.channel import CallChannel, Keepalive, open_channel
from site_agent.link.faults import PathFault
from site_agent.link.http1_channel import Http1Channel
from site_agent.link.probe import Way, probe_way
from site_agent.link.refusals import CallFailedError, is_of_the_line
from site_agent.link.transport_choice import Look, Transport, TransportChoice

TCall = TypeVar("TCall")

log = structlog.get_logger(__name__)

_PROBE_S = 15.0
_TURN_S = 5.0
_CALL_ERRORS = (grpc.aio.AioRpcError, CallFailedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOptions:
    """The ways of a link, and its patience. ``fallback`` is None where no HTTP/1.1 address is known."""

    way: Way
    fallback: Way | None
    keepalive: Keepalive
    turn_s: float = _TURN_S


class _Connections:
    """The connections under one identity, and how many calls are on them."""

    def __init__(self, grpc_channel: grpc.aio.Channel, http1: Http1Channel | None) -> None:
        self.http1 = http1
        self._grpc = grpc_channel
        self._n_calls = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @classmethod
    def open(cls, options: LinkOptions) -> _Connections:
        other = options.fallback
        http1 = None if other is None else Http1Channel(other.address, other.identity, proxy=other.proxy)
        return cls(_grpc_channel(options), http1)

    def channel(self, transport: Transport) -> CallChannel:
        return cast("CallChannel", self._grpc if transport is Transport.GRPC else self.http1)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        self._n_calls += 1
        self._is_idle.clear()
        try:
            yield
        finally:
            self._n_calls -= 1
            if not self._n_calls:
                self._is_idle.set()

    async def close_when_idle(self) -> None:
        try:
            await self._is_idle.wait()
        finally:
            await self.close()

    async def close(self) -> None:
        await self._grpc.close()
        if self.http1 is not None:
            await self.http1.close()


def _traced(transport: Transport) -> dict[str, object]:
    """What tells the coordinator to which trace a call belongs, where this site's tracing is on: two numbers."""
    ids = current_ids() if transport is Transport.GRPC else None
    return {} if ids is None else {"metadata": ((TRACEPARENT, ids.traceparent()),)}


class _Bound(Generic[TCall]):
    """One method of the generated stubs, made for the connections that it is called over."""

    def __init__(self, bind: Callable[[CallChannel], TCall]) -> None:
        self._bind = bind
        self._connections: _Connections | None = None
        self._calls: dict[Transport, TCall] = {}

    def over(self, connections: _Connections, transport: Transport) -> TCall:
        if connections is not self._connections:
            self._connections, self._calls = connections, {}
        if transport not in self._calls:
            self._calls[transport] = self._bind(connections.channel(transport))
        return self._calls[transport]


class LinkChannel:
    """Stands where a gRPC channel stands. Someone must ``keep`` it, else it stays with gRPC."""

    def __init__(
        self,
        options: LinkOptions,
        *,
        clock_s: Callable[[], float],
        announce: Callable[[Transport], None] = lambda _: None,
        choice: TransportChoice | None = None,
    ) -> None:
        """Take the ways, a clock that never goes back, and whom to tell of a change."""
        self._options = options
        self._clock_s = clock_s
        self._announce = announce
        self._choice = choice or TransportChoice(has_other=options.fallback is not None)
        self._connections = _Connections.open(options)
        self._closing: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self._told: PathFault | None = None

    @property
    def transport(self) -> Transport:
        """How the next call is made."""
        return self._choice.current

    def renew(self, options: LinkOptions) -> None:
        """Make every call from now on under another identity. Those under way end over the connections they are on."""
        before, self._connections = self._connections, _Connections.open(options)
        self._options = options
        closing = asyncio.get_running_loop().create_task(before.close_when_idle())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def unary_unary(self, method: str, /, **how: object) -> Callable[..., Awaitable[object]]:
        """One request, one answer, over the transport of the moment."""
        return self._answering(lambda channel: channel.unary_unary(method, **how))

    def stream_unary(self, method: str, /, **how: object) -> Callable[..., Awaitable[object]]:
        """Many requests, one answer."""
        return self._answering(lambda channel: channel.stream_unary(method, **how))

    def unary_stream(self, method: str, /, **how: object) -> Callable[..., AsyncIterator[object]]:
        """One request, many answers."""
        bound: _Bound[Callable[..., AsyncIterator[object]]] = _Bound(
            lambda channel: channel.unary_stream(method, **how)
        )

        async def call(request: object, *, timeout: float | None = None) -> AsyncIterator[object]:  # noqa: ASYNC109 # a stub's word
            transport = self.transport
            connections = self._connections
            try:
                with connections.in_use():
                    traced = _traced(transport)
                    async for answer in bound.over(connections, transport)(request, timeout=timeout, **traced):
                        self._choice.succeeded(transport, self._clock_s())
                        yield answer
            except _CALL_ERRORS as error:
                self._note(transport, error)
                raise
            self._choice.succeeded(transport, self._clock_s())

        return call

    async def keep(self) -> None:
        """Watch over the transport until cancelled: look after failures, change, try to return."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._options.turn_s):
                    await self._failed.wait()
            self._failed.clear()
            await self._look()

    async def close(self) -> None:
        """End all."""
        for closing in tuple(self._closing):
            closing.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._connections.close()

    def _answering(
        self, bind: Callable[[CallChannel], Callable[..., Awaitable[object]]]
    ) -> Callable[..., Awaitable[object]]:
        bound = _Bound(bind)

        async def call(request: object, *, timeout: float | None = None) -> object:  # noqa: ASYNC109 # a stub's word
            transport = self.transport
            connections = self._connections
            try:
                with connections.in_use():
                    answer = await bound.over(connections, transport)(request, timeout=timeout, **_traced(transport))
            except _CALL_ERRORS as error:
                self._note(transport, error)
                raise
            self._choice.succeeded(transport, self._clock_s())
            self._told = None
            return answer

        return call

    def _note(self, transport: Transport, error: grpc.aio.AioRpcError | CallFailedError) -> None:
        if is_of_the_line(error):
            self._choice.failed(transport, self._clock_s())
            self._failed.set()
        else:
            self._choice.succeeded(transport, self._clock_s())

    async def _look(self) -> None:
        look = self._choice.look(self._clock_s())
        match look:
            case Look.NOTHING:
                return
            case Look.HTTP2_ONLY:
                fault = await self._diagnose(self._options.way)
                if fault is PathFault.HTTP2_BROKEN and await self._http1_answers():
                    self._change(Transport.HTTP1, reason=fault.value)
                    return
            case Look.OTHER_WAY if self._choice.current is Transport.GRPC:
                # In this order: a coordinator that comes back answers by both, and then gRPC is the one.
                if await self._http1_answers() and not await self._grpc_answers():
                    fault = await self._diagnose(self._options.way)
                    self._change(Transport.HTTP1, reason="grpc-fails" if fault is None else fault.value)
                    return
            case Look.OTHER_WAY:
                if await self._grpc_answers():
                    self._change(Transport.GRPC, reason="http/1.1-fails")
                    return
            case Look.RETURN:
                if await self._grpc_answers():
                    self._change(Transport.GRPC, reason="grpc-works-again")
                    return
        self._choice.looked(self._clock_s())

    def _change(self, to: Transport, *, reason: str) -> None:
        was = self._choice.current
        self._choice.change(to, self._clock_s())
        self._announce(to)
        log.warning("transport_changed", **{"from": was.value, "to": to.value, "reason": reason})

    async def _diagnose(self, way: Way) -> PathFault | None:
        """Where the way ends; said in the log once, as long as nothing changes."""
        ends = [step for step in await asyncio.to_thread(probe_way, way, is_http2=True) if step.fault is not None]
        if not ends:
            return None
        if ends[0].fault is not self._told:
            self._told = ends[0].fault
            log.warning(
                "way_ends", step=ends[0].name, fault=ends[0].fault, found=ends[0].message, advice=ends[0].advice
            )
        return ends[0].fault

    async def _http1_answers(self) -> bool:
        http1 = self._connections.http1
        if http1 is None:
            return False
        try:
            await http1.probe(timeout_s=_PROBE_S)
        except CallFailedError as error:
            # A refusal is an answer: the way is open, and the coordinator says no by either.
            return not is_of_the_line(error)
        return True

    async def _grpc_answers(self) -> bool:
        """Whether a call gets through on a new connection, which knows nothing of the old one's waits."""
        channel = _grpc_channel(replace(self._options, keepalive=Keepalive()))
        try:
            await run_pb2_grpc.RunServiceStub(channel).ListPending(run_pb2.ListPendingRequest(), timeout=_PROBE_S)
        except grpc.aio.AioRpcError as error:
            return not is_of_the_line(error)
        finally:
            await channel.close()
        return True


def _grpc_channel(options: LinkOptions) -> grpc.aio.Channel:
    way = options.way
    return open_channel(way.address, way.identity, proxy=way.proxy, keepalive=options.keepalive)
