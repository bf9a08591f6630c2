"""A look at a listener by a machine that holds no root yet: who answers, and whether that can be the coordinator.

The code of an invitation names the enrolment listener's certificate, and then there is no doubt. Without it, two things
tell an inspecting box from the coordinator: this machine's own store believes the box's certificate, and no authority
of the public or of a hospital ever issued a coordinator's; and a gateway asks for a certificate, which a box does not.
Nothing is sent but the beginning of HTTP/2, and GET / over HTTP/1.1.
"""

from __future__ import annotations

import contextlib
import hashlib
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cryptography import x509

from fl_protocol.pki.errors import CertificateInvalidError
from fl_protocol.pki.tls import certificate_from_der
from site_agent.doctor.endpoints import Endpoint, Listener
from site_agent.enrolment.code import EnrolmentCode
from site_agent.enrolment.listener import SERVER_NAME as ENROLMENT_NAME
from site_agent.link.connecting import WayEndsError, connect_through, secure
from site_agent.link.faults import PathFault
from site_agent.link.probe import Step, speak_http2

GATEWAY_NAME = "gateway.wardround.internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpinned:
    """What was seen there.

    Attributes:
        certificate: the one that was shown; None where TLS did not come so far.
        is_pinned: whether the code named it.
    """

    steps: tuple[Step, ...]
    certificate: x509.Certificate | None = None
    is_pinned: bool = False


@dataclass(slots=True)
class _Seen:
    certificate: x509.Certificate | None = None
    is_pinned: bool = False


def look_unpinned(endpoint: Endpoint, code: EnrolmentCode | None) -> Unpinned:
    """Walk to a listener until the way ends."""
    seen = _Seen()
    steps = tuple(_walk(endpoint, code, seen))
    return Unpinned(steps=steps, certificate=seen.certificate, is_pinned=seen.is_pinned)


def unchecked_context(*, protocol: str) -> ssl.SSLContext:
    """A context that believes everybody, for connections that only look who answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Safety: nothing is said over these connections that anybody may not hear, and nothing that comes is believed.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context


def name_of(listener: Listener) -> str:
    """The name in that listener's certificate."""
    is_gateway = listener in {Listener.GATEWAY, Listener.GATEWAY_HTTP1}
    return GATEWAY_NAME if is_gateway else ENROLMENT_NAME


def _walk(endpoint: Endpoint, code: EnrolmentCode | None, seen: _Seen) -> Iterator[Step]:
    first = "tcp" if endpoint.proxy is None else "proxy"
    try:
        connection = connect_through(endpoint.host, endpoint.port, proxy=endpoint.proxy)
    except WayEndsError as end:
        yield Step(name=first, message=str(end), fault=end.fault)
        return
    through = "answers" if endpoint.proxy is None else f"is reached by a tunnel of the proxy {endpoint.proxy.address}"
    yield Step(name=first, message=f"{endpoint.address} {through}")
    protocol = "http/1.1" if endpoint.listener.is_http1 else "h2"
    try:
        secured = secure(unchecked_context(protocol=protocol), connection, server_name=name_of(endpoint.listener))
    except OSError as error:
        yield _cut(endpoint, error)
        return
    with secured:
        step = _judge(endpoint, code, secured, seen)
        yield step
        if step.fault is None and endpoint.listener is Listener.ENROLMENT:
            yield speak_http2(endpoint.address, secured)


def _cut(endpoint: Endpoint, error: OSError) -> Step:
    if not endpoint.listener.is_http1 and _stands_over_http1(endpoint):
        message = f"{endpoint.address} ends the TLS handshake when h2 is offered, and completes it when it is not"
        return Step(name="tls", message=message, fault=PathFault.HTTP2_BROKEN)
    fault = PathFault.TLS_ENDS if endpoint.proxy is None else PathFault.TUNNEL_ENDS
    why = getattr(error, "reason", None) or error.strerror or "closed"
    return Step(name="tls", message=f"the TLS handshake with {endpoint.address} is cut off ({why})", fault=fault)


def _stands_over_http1(endpoint: Endpoint) -> bool:
    return _try(endpoint, unchecked_context(protocol="http/1.1"), lambda _: True)


def _try(endpoint: Endpoint, context: ssl.SSLContext, ask: Callable[[ssl.SSLSocket], bool]) -> bool:
    """A connection of its own for one question; False where there is none."""
    with contextlib.suppress(OSError, WayEndsError):
        connection = connect_through(endpoint.host, endpoint.port, proxy=endpoint.proxy)
        with secure(context, connection, server_name=name_of(endpoint.listener)) as secured:
            return ask(secured)
    return False


def _judge(endpoint: Endpoint, code: EnrolmentCode | None, secured: ssl.SSLSocket, seen: _Seen) -> Step:
    der = secured.getpeercert(binary_form=True)
    try:
        certificate = None if der is None else certificate_from_der(der)
    except CertificateInvalidError:
        certificate = None
    if der is None or certificate is None:
        message = f"{endpoint.address} shows no certificate that can be read"
        return Step(name="tls", message=message, fault=PathFault.ANSWER_FOREIGN)
    seen.certificate = certificate
    if endpoint.listener in {Listener.ENROLMENT, Listener.ENROLMENT_HTTP1}:
        return _judge_enrolment(endpoint, code, certificate, der, seen)
    return _judge_gateway(endpoint, certificate)


def _judge_enrolment(
    endpoint: Endpoint, code: EnrolmentCode | None, certificate: x509.Certificate, der: bytes, seen: _Seen
) -> Step:
    is_ours = certificate.issuer == certificate.subject and ENROLMENT_NAME in _names(certificate)
    if code is not None and code.names_certificate(der):
        seen.is_pinned = True
        return Step(name="tls", message="the certificate is the one that the code names")
    if not is_ours:
        return _intercepted(endpoint, certificate, "an enrolment listener shows a certificate of its own")
    if code is not None:
        message = (
            f"{endpoint.address} shows an enrolment listener's certificate, and not the one that the code names: the "
            "code is another coordinator's, or something on the way made this certificate"
        )
        return Step(name="tls", message=message, fault=PathFault.CERTIFICATE_WRONG)
    shown = hashlib.sha256(der).hexdigest()[:32]
    message = f"an enrolment listener's certificate; compare it with the end of the code: {shown}"
    return Step(name="tls", message=message)


def _judge_gateway(endpoint: Endpoint, certificate: x509.Certificate) -> Step:
    if _is_believed_here(endpoint):
        return _intercepted(endpoint, certificate, "this machine's own store believes it, which no coordinator's is")
    if GATEWAY_NAME not in _names(certificate):
        shown = ", ".join(_names(certificate)) or "nobody"
        message = f"{endpoint.address} shows a certificate for {shown}, {_issuer(certificate)}"
        return Step(name="tls", message=message, fault=PathFault.ANSWER_FOREIGN)
    if _admits_anybody(endpoint):
        return _intercepted(endpoint, certificate, "it asks for no certificate, which a gateway does")
    message = f"a gateway's certificate, {_issuer(certificate)}; whether that is the coordinator's, enrolment tells"
    return Step(name="tls", message=message)


def _intercepted(endpoint: Endpoint, certificate: x509.Certificate, why: str) -> Step:
    message = (
        f"TLS is intercepted: the certificate presented is {_issuer(certificate)}; {why}; ask for an exemption for "
        f"{endpoint.address}"
    )
    return Step(name="tls", message=message, fault=PathFault.TLS_INTERCEPTED)


def _issuer(certificate: x509.Certificate) -> str:
    return f"issued by {certificate.issuer.rfc4514_string()[:200] or 'an unnamed authority'}"


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(names.get_values_for_type(x509.DNSName))


def _is_believed_here(endpoint: Endpoint) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.set_alpn_protocols(["http/1.1" if endpoint.listener.is_http1 else "h2"])
    return _try(endpoint, context, lambda _: True)


def _admits_anybody(endpoint: Endpoint) -> bool:
    """Whether a handshake without a certificate stands, which at a gateway it does not.

    With TLS 1.3 the refusal comes after the client's handshake has ended, if it comes at all (RFC 8446, 4.4.2.4), so
    this asks with TLS 1.2, where it is part of it (RFC 5246, 7.4.6).
    """
    context = unchecked_context(protocol="http/1.1" if endpoint.listener.is_http1 else "h2")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return _try(endpoint, context, lambda _: True)
