"""Networks as hospitals have them, as small TCP relays on loopback: slow, frozen, cut, proxied, allergic to HTTP/2.

Each relay runs its own event loop in a thread of its own, so that tests of either kind, and processes, can go through
it. Used as a context manager; inside, ``address`` is where to dial, and the switches may be thrown at any time.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

_STEP_BYTES = 64 * 1024
_START_S = 10.0
_HEAD_BYTES = 64 * 1024


class Relay:
    """Forwards every connection to ``target``. Without a switch thrown it changes nothing."""

    def __init__(self, target: str, *, delay_s: float = 0.0, cut_after_bytes: int | None = None) -> None:
        """``delay_s`` each way; a connection is reset once ``cut_after_bytes`` went towards the target on it."""
        self.target = target
        self.delay_s = delay_s
        self.cut_after_bytes = cut_after_bytes
        self.n_connections = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self._refuses = False
        self._pipes: set[_Pipe] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._port = 0
        self._thread = threading.Thread(target=self._serve, name=type(self).__name__, daemon=True)

    @property
    def address(self) -> str:
        """host:port to dial."""
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(_START_S), "the relay did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_S)

    def freeze(self, *, new_ones_too: bool = False) -> None:
        """Stop forwarding on the open connections without closing them, like a firewall that forgot them.

        With ``new_ones_too`` new connections are accepted and nothing comes back on them, until ``thaw``.
        """
        self._do(lambda: self._freeze(new_ones_too=new_ones_too))

    def thaw(self) -> None:
        """New connections work again. Those that were frozen stay so: their state is gone."""
        self._do(lambda: setattr(self, "_freezes", False))

    def cut(self) -> None:
        """Reset every open connection now."""
        self._do(lambda: [pipe.reset() for pipe in tuple(self._pipes)])

    def refuse(self, *, refuses: bool = True) -> None:
        """Reset new connections at once: nobody there."""
        self._do(lambda: setattr(self, "_refuses", refuses))

    def wait_for(self, condition: Callable[[Relay], bool], *, timeout_s: float = 20.0) -> None:
        """Wait until something was seen here."""
        deadline = time.monotonic() + timeout_s
        while not condition(self):
            assert time.monotonic() < deadline, "the relay never saw it"
            time.sleep(0.01)

    _freezes = False

    def _do(self, change: Callable[[], object]) -> None:
        done = threading.Event()

        def turn() -> None:
            change()
            done.set()

        self._loop.call_soon_threadsafe(turn)
        assert done.wait(_START_S), "the relay does not answer"

    def _freeze(self, *, new_ones_too: bool) -> None:
        self._freezes = new_ones_too
        for pipe in self._pipes:
            pipe.is_frozen = True

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_HEAD_BYTES))
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        try:
            self._loop.run_forever()
        finally:
            server.close()
            for pipe in tuple(self._pipes):
                pipe.reset()
            for task in tuple(self._tasks):
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
            # What was closed is let go of in the loop's next turns.
            self._loop.run_until_complete(asyncio.sleep(0.02))
            self._loop.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._guarded(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        if self._refuses:
            reset(writer)
            return
        # A line that breaks is what a relay is for; anything else is a fault of the test and is seen.
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError, ssl.SSLError):
                await self.carry(reader, writer)
        finally:
            writer.close()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its first byte to its end."""
        await self.join(reader, writer, self.target)

    async def join(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str, *, first: bytes = b""
    ) -> None:
        """Forward both ways until both have ended."""
        host, _, port = target.rpartition(":")
        there, back = await asyncio.open_connection(host.strip("[]"), int(port))
        pipe = _Pipe(relay=self, near=writer, far=back, is_frozen=self._freezes)
        self._pipes.add(pipe)
        try:
            await asyncio.gather(pipe.up(reader, first), pipe.down(there))
        finally:
            self._pipes.discard(pipe)
            back.close()


@dataclass(eq=False)
class _Pipe:
    """One connection on its way through."""

    relay: Relay
    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    is_frozen: bool = False
    sent_up: int = field(default=0)

    async def up(self, reader: asyncio.StreamReader, first: bytes) -> None:
        if first:
            await self._forward(first, self.far)
        while data := await reader.read(_STEP_BYTES):
            self.relay.bytes_up += len(data)
            self.sent_up += len(data)
            limit = self.relay.cut_after_bytes
            if limit is not None and self.sent_up >= limit:
                self.reset()
                return
            await self._forward(data, self.far)
        await self._end(self.far)

    async def down(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(_STEP_BYTES):
            self.relay.bytes_down += len(data)
            await self._forward(data, self.near)
        await self._end(self.near)

    def reset(self) -> None:
        reset(self.near)
        reset(self.far)

    async def _forward(self, data: bytes, to: asyncio.StreamWriter) -> None:
        if self.relay.delay_s:
            await asyncio.sleep(self.relay.delay_s)
        if self.is_frozen:
            return
        to.write(data)
        await to.drain()

    async def _end(self, of: asyncio.StreamWriter) -> None:
        # A frozen path tells nobody that the other end hung up.
        if not self.is_frozen and of.can_write_eof():
            with contextlib.suppress(OSError):
                of.write_eof()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset, as a middlebox does."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class ConnectProxy(Relay):
    """A proxy that permits CONNECT to one port and nothing else, with or without Basic credentials."""

    def __init__(
        self,
        allowed_ports: frozenset[int] | set[int],
        *,
        credentials: str | None = None,
        delay_s: float = 0.0,
        cut_after_bytes: int | None = None,
    ) -> None:
        """``credentials`` is user:password."""
        super().__init__("", delay_s=delay_s, cut_after_bytes=cut_after_bytes)
        self.allowed_ports = frozenset(allowed_ports)
        self.ends_tunnels = False
        self.requests: list[str] = []
        self._expected = None if credentials is None else base64.b64encode(credentials.encode()).decode("ascii")

    @property
    def url(self) -> str:
        """How the setting names it."""
        return f"http://{self.address}"

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the CONNECT, then forward."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.split("\r\n")
        self.requests.append(line)
        method, _, rest = line.partition(" ")
        target = rest.split(" ")[0]
        status = self._judge(method, target, fields)
        if status != "200 Connection established":
            extra = 'Proxy-Authenticate: Basic realm="hospital"\r\n' if status.startswith("407") else ""
            writer.write(f"HTTP/1.1 {status}\r\n{extra}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
            return
        self.before_tunnel(writer)
        writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode())
        await writer.drain()
        if self.ends_tunnels:
            return
        await self.join(reader, writer, target)

    def before_tunnel(self, writer: asyncio.StreamWriter) -> None:
        """Called before the answer that opens a tunnel."""

    def _judge(self, method: str, target: str, fields: list[str]) -> str:
        if self._expected is not None:
            shown = [f.split(":", 1)[1].strip() for f in fields if f.lower().startswith("proxy-authorization:")]
            if shown != [f"Basic {self._expected}"]:
                return "407 Proxy Authentication Required"
        port = target.rpartition(":")[2]
        if method != "CONNECT" or not port.isdigit() or int(port) not in self.allowed_ports:
            return "403 Forbidden"
        return "200 Connection established"


class ScriptedProxy(Relay):
    """A proxy that answers every CONNECT with the same words."""

    def __init__(self, answer: bytes) -> None:
        """``answer`` is the head, whole."""
        super().__init__("")
        self.answer = answer

    @property
    def url(self) -> str:
        """How the setting names it."""
        return f"http://{self.address}"

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read the request, say the words."""
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self.answer)
        await writer.drain()


class Http2Breaker(Relay):
    """A middlebox that reads the ClientHello and resets every connection whose ALPN offers h2."""

    def __init__(self, target: str) -> None:
        """Forward to ``target`` what does not offer h2."""
        super().__init__(target)
        self.offers: list[tuple[str, ...]] = []
        self.is_breaking = True

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Judge the ClientHello, then forward it and the rest."""
        records, hello = await read_client_hello(reader)
        offered = alpn_of_client_hello(hello)
        self.offers.append(offered)
        if self.is_breaking and "h2" in offered:
            reset(writer)
            return
        await self.join(reader, writer, self.target, first=records)


async def read_client_hello(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The TLS records up to the end of the ClientHello, and the handshake message in them (RFC 8446, 4 and 5.1).

    The message may be split over several records, and a record over several segments.
    """
    records, message = b"", b""
    while True:
        header = await reader.readexactly(5)
        kind, length = header[0], int.from_bytes(header[3:5], "big")
        if kind != 22:
            raise ConnectionError("the first record is no handshake")
        body = await reader.readexactly(length)
        records += header + body
        message += body
        if len(message) >= 4 and len(message) >= 4 + int.from_bytes(message[1:4], "big"):
            return records, message


def alpn_of_client_hello(message: bytes) -> tuple[str, ...]:
    """The protocols that a ClientHello offers by ALPN (RFC 8446, 4.1.2; RFC 7301, 3.1); empty where it has none."""
    if message[0] != 1:
        raise ConnectionError("the handshake does not begin with a ClientHello")
    at = 4 + 2 + 32  # type and length; legacy_version; random
    at += 1 + message[at]  # legacy_session_id
    at += 2 + int.from_bytes(message[at : at + 2], "big")  # cipher_suites
    at += 1 + message[at]  # legacy_compression_methods
    end = at + 2 + int.from_bytes(message[at : at + 2], "big")
    at += 2
    while at < end:
        kind, length = struct.unpack_from("!HH", message, at)
        at += 4
        if kind == 16:
            return _protocols(message[at + 2 : at + length])
        at += length
    return ()


def _protocols(listed: bytes) -> tuple[str, ...]:
    found, at = [], 0
    while at < len(listed):
        length = listed[at]
        found.append(listed[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    return tuple(found)


class TlsInterceptor(Relay):
    """A proxy that opens TLS with a certificate of its own authority. It looks inside and sends nothing on."""

    def __init__(self, *, certificate: Path, key: Path) -> None:
        """Show this certificate (and what is behind it in the file) to everybody."""
        super().__init__("")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._context.set_alpn_protocols(["http/1.1"])
        self.opened: list[bytes] = []

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """End the TLS here."""
        await writer.start_tls(self._context)
        self.opened.append(await reader.read(_STEP_BYTES))
