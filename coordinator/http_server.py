"""uvicorn as a part among others: it leaves signals alone, and says when it is up. Both HTTPS listeners are one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

# A path that went dead without a word is noticed by the kernel: probes after 30 s of silence, three in 30 s.
_KEEPALIVE = (
    ("TCP_KEEPIDLE", 30),
    ("TCP_KEEPINTVL", 10),
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", 60_000),
)


class QuietServer(uvicorn.Server):
    """uvicorn without its signal handlers: the process has one place that decides when to stop."""

    def __init__(self, config: uvicorn.Config) -> None:
        """Configure; nothing listens yet."""
        super().__init__(config)
        self.is_up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self.is_up.set()


def bound_socket(host: str, port: int) -> socket.socket:
    """A TCP socket that has its port; connections that it accepts notice a path that went dead. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            # Accepted sockets inherit these; a system that lacks one keeps its own default.
            if (option := getattr(socket, name, None)) is not None:
                bound.setsockopt(socket.IPPROTO_TCP, option, value)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def address_of(bound: socket.socket) -> str:
    """host:port as it is bound."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
