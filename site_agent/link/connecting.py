"""A TCP connection to the coordinator for those who look or enrol: straight, or by CONNECT. Blocking."""

from __future__ import annotations

import contextlib
import socket
import ssl

from site_agent.link.faults import PathFault, fault_of_connect_error, fault_of_connect_status, fault_of_dns
from site_agent.link.proxy import ConnectAnswer, ProxyRoute, address_text

_TIMEOUT_S = 10.0
_PROXYS = {PathFault.TIMED_OUT: PathFault.PROXY_TIMED_OUT}


class WayEndsError(Exception):
    """There is no connection; ``fault`` says where the way ends, and the sentence what was seen there."""

    def __init__(self, fault: PathFault, message: str) -> None:
        """Keep the fault beside the sentence."""
        super().__init__(message)
        self.fault = fault


def connect_through(host: str, port: int, *, proxy: ProxyRoute | None) -> socket.socket:
    """A connection to ``host:port``; the caller closes it.

    Raises:
        WayEndsError: there is none.
    """
    target = address_text(host, port)
    to = target if proxy is None else f"the proxy {proxy.address}"
    try:
        connection = socket.create_connection(
            (host, port) if proxy is None else (proxy.host, proxy.port), timeout=_TIMEOUT_S
        )
    except socket.gaierror as error:
        fault = fault_of_dns(error) if proxy is None else PathFault.PROXY_UNKNOWN
        said = "cannot be looked up: no DNS server answers" if fault is PathFault.DNS_SILENT else "is not known here"
        raise WayEndsError(fault, f"the host of {to} {said}") from error
    except OSError as error:
        fault = fault_of_connect_error(error)
        why = "no answer in time" if fault is PathFault.TIMED_OUT else error.strerror or "no way there"
        fault = fault if proxy is None else _PROXYS.get(fault, PathFault.PROXY_UNREACHABLE)
        raise WayEndsError(fault, f"{to} does not answer: {why}") from error
    if proxy is not None:
        try:
            _open_tunnel(connection, host, port, proxy=proxy)
        except WayEndsError:
            connection.close()
            raise
    return connection


def secure(context: ssl.SSLContext, connection: socket.socket, *, server_name: str) -> ssl.SSLSocket:
    """TLS over a connection. Raises OSError (ssl.SSLError is one); the connection is then closed."""
    with contextlib.ExitStack() as stack:
        stack.callback(connection.close)
        # A peer that has reset the connection already is told apart here: ssl would leave its socket open.
        connection.getpeername()
        secured = context.wrap_socket(connection, server_hostname=server_name)
        stack.pop_all()
        return secured


def _open_tunnel(connection: socket.socket, host: str, port: int, *, proxy: ProxyRoute) -> None:
    target = address_text(host, port)
    answer = ConnectAnswer()
    try:
        connection.sendall(proxy.connect_request(host, port))
        while data := connection.recv(4096):
            if answer.feed(data):
                break
    except TimeoutError as error:
        message = f"the proxy {proxy.address} does not answer CONNECT {target} within {_TIMEOUT_S:.0f} s"
        raise WayEndsError(PathFault.PROXY_SILENT, message) from error
    except OSError as error:
        message = f"the proxy {proxy.address} ends the connection at CONNECT {target}"
        raise WayEndsError(PathFault.PROXY_FAILED, message) from error
    if not answer.is_open:
        said = f"answers {answer.status}" if answer.status else "gives no answer of HTTP"
        why = f" ({answer.reason})" if answer.reason else ""
        message = f"the proxy {proxy.address} {said}{why} to CONNECT {target}"
        raise WayEndsError(_fault_of(answer, has_credentials=proxy.credentials is not None), message)


def _fault_of(answer: ConnectAnswer, *, has_credentials: bool) -> PathFault:
    fault = fault_of_connect_status(answer.status or 0)
    if fault is not PathFault.PROXY_CREDENTIALS:
        return fault
    if answer.schemes and "basic" not in answer.schemes:
        return PathFault.PROXY_SCHEME
    return PathFault.PROXY_CREDENTIALS_REFUSED if has_credentials else PathFault.PROXY_CREDENTIALS
