"""Looks where the way to the coordinator ends: TCP, the proxy's CONNECT, TLS, the certificate, HTTP/2; one step a line.

Blocking, on a connection of its own, and nothing of a run travels over it. gRPC tells none of this apart.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509

from fl_protocol.pki.contexts import client_context
from fl_protocol.pki.errors import CertificateInvalidError
from fl_protocol.pki.tls import certificate_from_der, verify_issued_by
from site_agent.link.channel import TlsIdentity
from site_agent.link.connecting import WayEndsError, connect_through, secure
from site_agent.link.faults import ADVICE, PathFault
from site_agent.link.proxy import ProxyRoute

_ENROLMENT_ISSUER = "CN=enrolment.wardround.internal"
_HTTP2 = "h2"
_HTTP1 = "http/1.1"
# RFC 9113, 3.4: the client's preface, and an empty SETTINGS frame. The server's first frame is SETTINGS, type 4.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Where to, as whom, and through what."""

    address: str
    identity: TlsIdentity
    proxy: ProxyRoute | None

    @property
    def host(self) -> str:
        """The coordinator's host, without brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The coordinator's port."""
        return int(self.address.rpartition(":")[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that was tried; ``fault`` is None where it went well."""

    name: str
    message: str
    fault: PathFault | None = None

    @property
    def advice(self) -> str:
        """What to do about it."""
        return "" if self.fault is None else ADVICE[self.fault]


def probe_way(way: Way, *, is_http2: bool) -> tuple[Step, ...]:
    """Walk the way until it ends; the last step says where, if it does."""
    return tuple(_walk(way, is_http2=is_http2))


def is_http2_broken(way: Way) -> bool:
    """Whether everything works but HTTP/2: the connection stands, and falls when h2 is spoken or offered."""
    return any(step.fault is PathFault.HTTP2_BROKEN for step in probe_way(way, is_http2=True))


def _walk(way: Way, *, is_http2: bool) -> Iterator[Step]:
    first = "tcp" if way.proxy is None else "proxy"
    try:
        connection = _connect(way)
    except WayEndsError as end:
        yield Step(name=first, message=str(end), fault=end.fault)
        return
    through = f"{way.address} answers" if way.proxy is None else f"{way.proxy.address} opens a tunnel to {way.address}"
    yield Step(name=first, message=through)
    with connection:
        try:
            secured = _secure(way, connection, is_http2=is_http2)
        except WayEndsError as end:
            yield Step(name="tls", message=str(end), fault=end.fault)
            return
        with secured:
            yield Step(name="tls", message="the gateway shows a certificate of the pinned root")
            if is_http2:
                yield speak_http2(way.address, secured)


def _connect(way: Way) -> socket.socket:
    return connect_through(way.host, way.port, proxy=way.proxy)


def _secure(way: Way, connection: socket.socket, *, is_http2: bool) -> ssl.SSLSocket:
    try:
        return _handshake(way, connection, protocol=_HTTP2 if is_http2 else _HTTP1)
    except ssl.SSLCertVerificationError as error:
        raise _wrong_certificate(way, error.verify_message) from error
    except OSError as error:
        if is_http2 and _stands_without_http2(way):
            message = f"{way.address} ends the TLS handshake when h2 is offered, and completes it when it is not"
            raise WayEndsError(PathFault.HTTP2_BROKEN, message) from error
        fault = PathFault.TLS_ENDS if way.proxy is None else PathFault.TUNNEL_ENDS
        raise WayEndsError(fault, f"the TLS handshake with {way.address} is cut off") from error


def _handshake(way: Way, connection: socket.socket, *, protocol: str) -> ssl.SSLSocket:
    identity = way.identity
    context = client_context(
        root_pem=identity.root_pem, certificate_pem=identity.certificate_pem, private_key_pem=identity.private_key_pem
    )
    context.set_alpn_protocols([protocol])
    return secure(context, connection, server_name=identity.server_name or way.host)


def _stands_without_http2(way: Way) -> bool:
    try:
        with _connect(way) as connection, _handshake(way, connection, protocol=_HTTP1):
            return True
    except (OSError, WayEndsError):
        return False


def _wrong_certificate(way: Way, verdict: str) -> WayEndsError:
    shown = _shown_certificate(way)
    if shown is None:
        return WayEndsError(PathFault.TLS_INTERCEPTED, f"another certificate answers at {way.address}: {verdict}")
    if _is_of_root(shown, way.identity.root_pem):
        return WayEndsError(PathFault.CERTIFICATE_WRONG, f"the gateway's certificate does not fit: {verdict}")
    issuer = shown.issuer.rfc4514_string()[:200] or "an unnamed authority"
    if issuer == _ENROLMENT_ISSUER and shown.issuer == shown.subject:
        message = f"{way.address} is where sites enrol, and not the gateway"
        return WayEndsError(PathFault.ANSWER_FOREIGN, message)
    message = (
        f"TLS is intercepted: the certificate presented is issued by {issuer} and not by the pinned root; "
        f"ask for an exemption for {way.address}"
    )
    return WayEndsError(PathFault.TLS_INTERCEPTED, message)


def _shown_certificate(way: Way) -> x509.Certificate | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Safety: nothing is sent over this connection, and no certificate of ours is shown. It only names who answers.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    server_name = way.identity.server_name or way.host
    with contextlib.suppress(OSError, WayEndsError, CertificateInvalidError):
        with _connect(way) as connection, secure(context, connection, server_name=server_name) as secured:
            der = secured.getpeercert(binary_form=True)
        return None if der is None else certificate_from_der(der)
    return None


def _is_of_root(certificate: x509.Certificate, root_pem: bytes) -> bool:
    for root in x509.load_pem_x509_certificates(root_pem):
        with contextlib.suppress(CertificateInvalidError):
            verify_issued_by(certificate, root)
            return True
    return False


def speak_http2(address: str, secured: ssl.SSLSocket) -> Step:
    """Begin HTTP/2 and read the other side's first frame."""
    if secured.selected_alpn_protocol() != _HTTP2:
        message = f"{address} does not accept h2: is it the port of the gateway?"
        return Step(name="http/2", message=message, fault=PathFault.ANSWER_FOREIGN)
    try:
        secured.sendall(_PREFACE)
        frame = secured.recv(9)
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            message = f"the gateway refuses this site's certificate ({error.reason})"
            return Step(name="http/2", message=message, fault=PathFault.SITE_REFUSED)
        return Step(name="http/2", message="the connection ends when HTTP/2 begins", fault=PathFault.HTTP2_BROKEN)
    except OSError:
        return Step(name="http/2", message="the connection ends when HTTP/2 begins", fault=PathFault.HTTP2_BROKEN)
    if len(frame) < 4 or frame[3] != _SETTINGS:
        return Step(name="http/2", message="HTTP/2 is not answered", fault=PathFault.HTTP2_BROKEN)
    return Step(name="http/2", message="h2 is offered, accepted and spoken")
