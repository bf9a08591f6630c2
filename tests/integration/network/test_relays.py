"""The networks that the other tests send their calls through do what they say."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.proxies import squid
from tests.support.relay import ConnectProxy, Http2Breaker, Relay, alpn_of_client_hello


@pytest.fixture
def echo() -> Iterator[str]:
    """Something that says what it hears."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                return

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=answer, args=(connection,), daemon=True))
            threads[-1].start()

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    serving.join(10)


def dial(address: str, timeout_s: float = 5.0) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=timeout_s)


def say(connection: socket.socket, words: bytes) -> bytes:
    connection.sendall(words)
    return connection.recv(len(words))


def tunnel(address: str, target: str, credentials: str | None = None) -> tuple[socket.socket, str]:
    connection = dial(address)
    shown = ""
    if credentials is not None:
        shown = f"Proxy-Authorization: Basic {base64.b64encode(credentials.encode()).decode()}\r\n"
    connection.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{shown}\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(1)
        assert data, head
        head += data
    return connection, head.decode().split(" ")[1]


def test_relay_forwards_both_ways(echo: str) -> None:
    with Relay(echo) as relay, dial(relay.address) as connection:
        assert say(connection, b"good morning") == b"good morning"
    assert (relay.bytes_up, relay.bytes_down) == (12, 12)


def test_frozen_relay_says_nothing_and_closes_nothing_until_a_new_connection(echo: str) -> None:
    with Relay(echo) as relay, dial(relay.address, 0.3) as connection:
        say(connection, b"a")
        relay.freeze()
        connection.sendall(b"b")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        with dial(relay.address) as another:
            assert say(another, b"c") == b"c"


def test_cutting_relay_resets_after_its_bytes(echo: str) -> None:
    with Relay(echo, cut_after_bytes=10) as relay, dial(relay.address) as connection:
        assert say(connection, b"12345") == b"12345"
        connection.sendall(b"678901")
        with pytest.raises(ConnectionError):
            connection.recv(1)


@pytest.mark.parametrize(
    ("credentials", "shown", "port_is_allowed", "status"),
    [
        (None, None, True, "200"),
        (None, None, False, "403"),
        ("st-mary:s:cret", "st-mary:s:cret", True, "200"),
        ("st-mary:s:cret", "st-mary:wrong", True, "407"),
        ("st-mary:s:cret", None, True, "407"),
    ],
)
def test_connect_proxy_judges_port_and_credentials(
    echo: str, credentials: str | None, shown: str | None, port_is_allowed: bool, status: str
) -> None:
    port = int(echo.rpartition(":")[2])
    with ConnectProxy({port if port_is_allowed else 1}, credentials=credentials) as proxy:
        connection, answered = tunnel(proxy.address, echo, shown)
        with connection:
            assert answered == status
            if status == "200":
                assert say(connection, b"through") == b"through"


@pytest.mark.system
@pytest.mark.parametrize("credentials", [None, "st-mary:s3cret"])
def test_squid_judges_port_and_credentials(echo: str, tmp_path: Path, credentials: str | None) -> None:
    port = int(echo.rpartition(":")[2])
    with squid(tmp_path / "squid", connect_ports=(port,), credentials=credentials) as proxy:
        address = f"{proxy.host}:{proxy.port}"
        connection, status = tunnel(address, echo, credentials)
        with connection:
            assert status == "200"
            assert say(connection, b"through") == b"through"
        other, status = tunnel(address, "127.0.0.1:1", credentials)
        other.close()
        assert status == "403"
        if credentials is not None:
            unnamed, status = tunnel(address, echo, None)
            unnamed.close()
            assert status == "407"


@pytest.mark.parametrize("offered", [("h2",), ("http/1.1",), ("h2", "http/1.1"), ()])
def test_alpn_is_read_from_a_client_hello_that_another_library_wrote(offered: tuple[str, ...]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if offered:
        context.set_alpn_protocols(list(offered))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="gateway.wardround.internal").do_handshake()
    record = outgoing.read()
    assert alpn_of_client_hello(record[5:]) == offered


def test_http2_breaker_resets_what_offers_h2_and_forwards_the_rest(echo: str) -> None:
    with Http2Breaker(echo) as breaker:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        with dial(breaker.address) as connection, pytest.raises(ConnectionError):
            context.wrap_socket(connection)
        context.set_alpn_protocols(["http/1.1"])
        # What echoes a ClientHello is no TLS server: the handshake fails, but not by a reset.
        with dial(breaker.address) as connection, pytest.raises(ssl.SSLError):
            context.wrap_socket(connection)
        assert breaker.offers == [("h2",), ("http/1.1",)]
