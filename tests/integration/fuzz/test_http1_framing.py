"""The listener over HTTP/1.1 under requests that are none, bodies that are none, and connections that end anywhere.

It answers with a status of HTTP and of ours, or closes; it never answers 500, and serves the next one who behaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections import Counter
from pathlib import Path

import pytest

from fl_protocol.wire.http1 import FRAMES_TYPE, MESSAGE_TYPE, message_frame
from site_agent.link.channel import TlsIdentity
from site_agent.link.client import CoordinatorClient
from site_agent.link.http1_channel import Http1Channel
from tests.integration.fuzz.listening import MAX_GROWTH_BYTES, Coordinator, running, unexpected
from tests.integration.fuzz.mutations import ENROL, Method, Mutator, all_methods

pytestmark = [pytest.mark.timeout(600)]

N_CONNECTIONS = 1500
N_AT_ONCE = 24
ANSWER_TIMEOUT_S = 15.0
METHODS = tuple(method for method in all_methods() if method.name != ENROL)


def well_formed(method: Method, parts: tuple[bytes, ...]) -> bytes:
    """The request as a site's agent would write it, whatever its message is."""
    body = b"".join(message_frame(part) for part in parts) if method.is_upload else b"".join(parts[:1])
    kind = FRAMES_TYPE if method.is_upload else MESSAGE_TYPE
    head = (
        f"POST {method.path} HTTP/1.1\r\nHost: gateway\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def broken_head(request: bytes, draw: random.Random) -> bytes:
    """The same with something wrong in what HTTP itself reads."""
    lengths = (b"-1", b"99999999999999999999", b"0x10", b"5, 5", b"")
    faults = (
        lambda: request.replace(b"HTTP/1.1", draw.choice((b"HTTP/9.9", b"HTTP/1.0", b"GOPHER", b""))),
        lambda: request.replace(b"Content-Length: ", b"Content-Length: " + draw.choice(lengths) + b"\r\nX: "),
        lambda: request.replace(b"Connection: close", b"Transfer-Encoding: chunked\r\nContent-Length: 3"),
        lambda: request.replace(b"\r\nHost", b"\r\n" + b"X-Long: " + b"a" * draw.choice((9_000, 70_000)) + b"\r\nHost"),
        lambda: request.replace(b"POST", draw.choice((b"GET", b"PRI", b"\x16\x03\x01", b"post", b"P" * 5000))),
        lambda: request.replace(b"\r\n", draw.choice((b"\n", b"\r", b"\r\n\0", b"\r\n "))),
        lambda: request[: draw.randint(0, len(request))],
        lambda: draw.randbytes(draw.randint(0, 400)),
    )
    return draw.choice(faults)()


async def answer_to(coordinator: Coordinator, context: ssl.SSLContext, request: bytes) -> bytes:
    """What comes back until the other side closes, or has nothing to say to half a request."""
    host, port = coordinator.said["http1"].rsplit(":", 1)
    reader, writer = await asyncio.open_connection(
        host, int(port), ssl=context, server_hostname=coordinator.said["server_name"]
    )
    try:
        writer.write(request)
        await writer.drain()
        said = b""
        # Half a request is waited for: whoever sent it hangs up.
        patience_s = ANSWER_TIMEOUT_S if b"Connection: close" in request and b"\r\n\r\n" in request else 0.3
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                said = await reader.read(1 << 20)
    except (ConnectionError, ssl.SSLError):
        return b""
    else:
        return said
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            async with asyncio.timeout(5):
                await writer.wait_closed()


def identity_of(coordinator: Coordinator, site: str) -> TlsIdentity:
    identity = coordinator.said["sites"][site]
    return TlsIdentity(
        root_pem=coordinator.said["root"].encode(),
        certificate_pem=identity["certificate"].encode(),
        private_key_pem=identity["key"].encode(),
        server_name=coordinator.said["server_name"],
    )


def context_of(identity: TlsIdentity, folder: Path) -> ssl.SSLContext:
    pem = folder / "site.pem"
    pem.write_bytes(identity.certificate_pem + identity.private_key_pem)
    context = ssl.create_default_context(cadata=identity.root_pem.decode())
    context.load_cert_chain(pem)
    return context


async def test_requests_that_are_none_are_refused_and_the_next_site_is_served(tmp_path: Path) -> None:
    with running(tmp_path / "coordinator", "round-0-opened") as coordinator:
        context = context_of(identity_of(coordinator, "a-site"), tmp_path)
        mutator, draw = Mutator(20260308, METHODS), random.Random(20260309)
        waiting = iter(list(mutator.calls(N_CONNECTIONS)))
        ends: Counter[str] = Counter()
        before = coordinator.rss_bytes()

        async def worker() -> None:
            for method, parts in waiting:
                request = well_formed(method, parts)
                if draw.random() < 0.5:
                    request = broken_head(request, draw)
                said = await answer_to(coordinator, context, request)
                ends[said.split(b"\r\n", 1)[0].decode("latin-1") or "closed"] += 1

        await asyncio.gather(*(worker() for _ in range(N_AT_ONCE)))
        log = coordinator.log.read_text(errors="replace")
        assert "call_failed_unexpectedly" not in log, "\n".join(unexpected(log))
        assert "Traceback" not in log, log[-4000:]
        assert not [end for end in ends if " 500" in end or " 501" in end], ends
        assert {"HTTP/1.1 400 Bad Request", "HTTP/1.1 200 OK", "HTTP/1.1 404 Not Found"} <= set(ends), ends
        assert coordinator.process.poll() is None
        assert coordinator.rss_bytes() - before < MAX_GROWTH_BYTES + (48 << 20)

        channel = Http1Channel(coordinator.said["http1"], identity_of(coordinator, "d-site"))
        client = CoordinatorClient(channel, agent_version="test")
        await client.list_pending()
        await channel.close()
