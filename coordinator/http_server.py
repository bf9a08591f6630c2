"""uvicorn as a part among others: it leaves signals alone, and says when it is up. Every HTTP listener is one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any, Literal

import uvicorn

from coordinator.errors import ListenerError

# A path that went dead without a word is noticed by the kernel: probes after 30 s of silence, three in 30 s.
_KEEPALIVE = (
    ("TCP_KEEPIDLE", 30),
    ("TCP_KEEPINTVL", 10),
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", 60_000),
)
_KEEP_ALIVE_S = 5


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


def quiet_server(
    app: Callable[..., Any],  # as uvicorn takes it; our own application names its messages more narrowly
    *,
    grace_s: float,
    context: ssl.SSLContext | None = None,
    protocol: type[asyncio.Protocol] | Literal["auto"] = "auto",
    keep_alive_s: int = _KEEP_ALIVE_S,
    max_connections: int | None = None,
) -> QuietServer:
    """An application as this program serves it: no log of its own, no word about itself, no header believed of proxies.

    Args:
        app: what answers.
        grace_s: how long calls that are under way may take once the server is told to stop.
        context: TLS as the caller set it; None for plain HTTP.
        protocol: who reads the bytes of a connection.
        keep_alive_s: after how long an idle connection is closed.
        max_connections: beyond these, a request is answered with 503; None for no limit.
    """
    return QuietServer(
        uvicorn.Config(
            app,
            http=protocol,
            ssl_context_factory=None if context is None else lambda _config, _default: context,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            # A site's doctor compares its clock with it.
            date_header=True,
            # Failures are counted by address: one that a header names is one that its sender made up.
            proxy_headers=False,
            timeout_keep_alive=keep_alive_s,
            limit_concurrency=max_connections,
            timeout_graceful_shutdown=int(grace_s),
        )
    )


def bound_socket(host: str, port: int, *, listener: str) -> socket.socket:
    """A TCP socket that has its port; connections that it accepts notice a path that went dead.

    Raises:
        ListenerError: the port cannot be bound.
    """
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
    except OSError as error:
        bound.close()
        raise ListenerError(
            "the port cannot be bound; is it in use?", listener=listener, address=f"{host}:{port}"
        ) from error
    return bound


def address_of(bound: socket.socket) -> str:
    """host:port as it is bound."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
