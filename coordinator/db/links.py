"""Connections to PostgreSQL over sockets that notice when the other end is gone."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Mapping

import pg8000
import pg8000.legacy
from sqlalchemy.engine.interfaces import DBAPIConnection

_CONNECT_TIMEOUT_S = 5.0
_PORT = 5432
# A machine that vanished is noticed within half a minute, not after the kernel's two hours.
_KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 25_000))


class _Link(pg8000.legacy.Connection):  # type: ignore[misc] # pg8000 has no types
    """Closes without complaint where the other end is gone already; the pool would log each as an error of ours."""

    def close(self) -> None:
        """Say goodbye where anybody listens."""
        with contextlib.suppress(pg8000.InterfaceError):
            super().close()


def open_link(
    named: Mapping[str, object], *, answer_timeout_s: float | None, trust: ssl.SSLContext | None
) -> DBAPIConnection:
    """A connection of pg8000's.

    Args:
        named: host, port, user, password, database, and what else the address says.
        answer_timeout_s: how long an answer may take before the connection counts as lost; None waits for ever.
        trust: whom to believe as the server: then there is TLS or no connection. None takes TLS where it is offered.

    Raises:
        pg8000.InterfaceError: nobody answers there.
        pg8000.Error: the server refuses.
    """
    host, port = str(named.get("host", "localhost")), int(str(named.get("port", _PORT)))
    try:
        connected = socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S)
    except OSError as error:
        raise pg8000.InterfaceError(f"no connection to {host}:{port}: {error}") from error
    try:
        _watch(connected, answer_timeout_s=answer_timeout_s)
        made: DBAPIConnection = _Link(**named, sock=connected, ssl_context=trust)
    except OSError as error:
        connected.close()
        raise pg8000.InterfaceError(f"no answer from {host}:{port}: {error}") from error
    except BaseException:
        connected.close()
        raise
    return made


def _watch(connected: socket.socket, *, answer_timeout_s: float | None) -> None:
    connected.settimeout(answer_timeout_s)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        # Not every system has each of them.
        option = getattr(socket, name, None)
        if option is not None:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)
