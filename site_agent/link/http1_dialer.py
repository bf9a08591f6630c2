"""Opens the TCP connection of the second transport: straight, or through the hospital's proxy by CONNECT."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final

import httpcore

from site_agent.link.faults import ADVICE, PathFault, fault_of_connect_status
from site_agent.link.proxy import ConnectAnswer, ProxyRoute

_CONNECT_S = 20.0
_READ_BYTES = 4096

# A path that went dead without a word is noticed by the kernel, even while nothing is asked over it.
_KEEPALIVE: Final = tuple(
    (socket.IPPROTO_TCP, option, value)
    for name, value in (
        ("TCP_KEEPIDLE", 30),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 60_000),
    )
    if (option := getattr(socket, name, None)) is not None
)
SOCKET_OPTIONS: Final = ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *_KEEPALIVE)

SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


class DialError(Exception):
    """No connection: ``fault`` says where the way ends."""

    def __init__(self, fault: PathFault) -> None:
        """Keep the fault."""
        super().__init__(ADVICE[fault])
        self.fault = fault


class Dialer(httpcore.AsyncNetworkBackend):
    """Connects to the coordinator, whatever host a URL names: that is the name in its certificate, not an address."""

    def __init__(self, *, host: str, port: int, proxy: ProxyRoute | None) -> None:
        """Take where the coordinator is, and the proxy in between."""
        self._host = host
        self._port = port
        self._proxy = proxy
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 # the library's word
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the coordinator.

        Raises:
            DialError: there is none, and why.
        """
        del host, port, local_address, socket_options
        timeout = timeout or _CONNECT_S
        first = (self._host, self._port) if self._proxy is None else (self._proxy.host, self._proxy.port)
        try:
            stream = await self._network.connect_tcp(*first, timeout=timeout, socket_options=SOCKET_OPTIONS)
        except (httpcore.ConnectError, httpcore.ConnectTimeout, OSError) as error:
            raise DialError(PathFault.UNREACHABLE if self._proxy is None else PathFault.PROXY_UNREACHABLE) from error
        if self._proxy is not None:
            await self._open_tunnel(stream, self._proxy, timeout_s=timeout)
        return stream

    async def sleep(self, seconds: float) -> None:
        """Wait. The library asks for it between retries of its own, of which there are none."""
        await self._network.sleep(seconds)

    async def _open_tunnel(self, stream: httpcore.AsyncNetworkStream, proxy: ProxyRoute, *, timeout_s: float) -> None:
        try:
            answer = await self._ask_for_tunnel(stream, proxy, timeout_s=timeout_s)
        except (httpcore.NetworkError, httpcore.TimeoutException) as error:
            await stream.aclose()
            raise DialError(PathFault.PROXY_FAILED) from error
        if not answer.is_open:
            await stream.aclose()
            raise DialError(fault_of_connect_status(answer.status or 0))

    async def _ask_for_tunnel(
        self, stream: httpcore.AsyncNetworkStream, proxy: ProxyRoute, *, timeout_s: float
    ) -> ConnectAnswer:
        answer = ConnectAnswer()
        await stream.write(proxy.connect_request(self._host, self._port), timeout=timeout_s)
        while data := await stream.read(_READ_BYTES, timeout=timeout_s):
            if answer.feed(data):
                break
        return answer
