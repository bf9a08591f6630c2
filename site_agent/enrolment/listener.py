"""The wire of enrolment: fetch the listener's certificate, then call it with exactly that certificate as trust.

Knows gRPC, HTTP/1.1 and sockets and decides nothing: whether the certificate is the right one, ``enrol`` says in
between. HTTP/1.1 is tried by itself where gRPC does not come through, at the same address and at the coordinator's
port for it; both listeners show the one certificate that the code names.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message

from fl_protocol.signing.signed import SignedBody
from fl_protocol.wire.convert import signed_from_proto
from fl_protocol.wire.v1 import enrolment_pb2, errors_pb2
from site_agent.enrolment.errors import (
    EnrolmentCodeExpiredError,
    EnrolmentCodeSpentError,
    EnrolmentCodeUnknownError,
    EnrolmentError,
    EnrolmentInputError,
    EnrolmentRefusedError,
    EnrolmentUnreachableError,
)
from site_agent.enrolment.http1_call import CallEndedError, call_over_http1
from site_agent.link.channel import grpc_proxy_options
from site_agent.link.connecting import WayEndsError, connect_through, secure
from site_agent.link.faults import ADVICE, NOTHING_LISTENS
from site_agent.link.identity_calls import (
    RenewalAnswer,
    RenewalRequest,
    proto_from_renewal,
    renewal_answer_from_proto,
)
from site_agent.link.proxy import ProxyRoute, address_text

T = TypeVar("T")
TMessage = TypeVar("TMessage", bound=Message)

SERVER_NAME = "enrolment.wardround.internal"
REFUSAL_METADATA_KEY = "wardround-refusal-bin"
DEFAULT_PORT = 8445
DEFAULT_HTTP1_PORT = 8447
_SERVICE = "/fl_protocol.wire.v1.EnrolmentService"

_CALL_TIMEOUT_S = 30.0
_MAX_ANSWER_BYTES = 1 << 20
_UNREACHABLE_ADVICE = "Check the address and port, that the coordinator runs, and that this machine may dial out to it."


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentRequest:
    """What a site sends: public keys, and the code's secret over the pinned connection."""

    code_secret: bytes = field(repr=False)
    tls_csr_der: bytes
    signing_spki_der: bytes
    possession_signature: bytes
    agent_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentAnswer:
    """What the coordinator answers; nothing of it is believed before ``enrol`` has checked it."""

    site_id: str
    certificate_pem: bytes
    root_pem: bytes
    gateway_address: str
    gateway_server_name: str
    coordinator_signing_spki_der: bytes
    fallback_address: str = ""


class EnrolmentListener(Protocol):
    """The coordinator's enrolment listener, as the use case sees it."""

    def fetch_certificate(self, address: str) -> bytes:
        """The certificate (DER) that answers at ``host:port``. Raises EnrolmentUnreachableError."""
        ...

    def enrol(self, address: str, certificate_der: bytes, request: EnrolmentRequest) -> EnrolmentAnswer:
        """Call ``Enrol`` trusting only this certificate. Raises EnrolmentError."""
        ...


class EnrolmentTransport(StrEnum):
    """How the call travelled."""

    GRPC = "grpc"
    HTTP1 = "http/1.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """One place to try, in one way."""

    host: str
    port: int
    transport: EnrolmentTransport

    @property
    def address(self) -> str:
        return address_text(self.host, self.port)


def _ways(address: str) -> tuple[_Way, ...]:
    """Where to try, in order: as it was typed; there over HTTP/1.1; at the port that is the usual one's sister."""
    host, port = split_address(address)
    over_http1 = (port, DEFAULT_HTTP1_PORT) if port == DEFAULT_PORT else (port,)
    return (
        _Way(host=host, port=port, transport=EnrolmentTransport.GRPC),
        *(_Way(host=host, port=each, transport=EnrolmentTransport.HTTP1) for each in over_http1),
    )


class NetworkEnrolmentListener:
    """The real listener, straight or through the hospital's proxy, over whichever transport comes through."""

    def __init__(self, *, proxy_for: Callable[[str], ProxyRoute | None] = lambda _: None) -> None:
        """Take which proxy leads to ``host:port``."""
        self._proxy_for = proxy_for
        self.transport: EnrolmentTransport | None = None
        """What the call came through by, once it did."""

    def fetch_certificate(self, address: str) -> bytes:
        """The certificate (DER) that answers at ``host:port``.

        Raises:
            EnrolmentUnreachableError: nobody answers there, or not by TLS.
        """
        return self._first(address, self._fetch)

    def enrol(self, address: str, certificate_der: bytes, request: EnrolmentRequest) -> EnrolmentAnswer:
        """Call ``Enrol`` trusting only this certificate.

        Raises:
            EnrolmentError: unreachable, or refused for a reason that the error's class names.
        """
        message = enrolment_pb2.EnrolRequest(
            code_secret=request.code_secret,
            tls_csr_der=request.tls_csr_der,
            signing_spki_der=request.signing_spki_der,
            possession_signature=request.possession_signature,
            agent_version=request.agent_version,
            renews=True,
        )
        answer = self._call(address, certificate_der, "Enrol", message, enrolment_pb2.EnrolResponse)
        return EnrolmentAnswer(
            site_id=answer.site_id,
            certificate_pem=answer.certificate_pem,
            root_pem=answer.root_pem,
            gateway_address=answer.gateway_address,
            gateway_server_name=answer.gateway_server_name,
            coordinator_signing_spki_der=answer.coordinator_signing_spki_der,
            fallback_address=answer.fallback_address,
        )

    def challenge_renewal(
        self, address: str, certificate_der: bytes, *, client_nonce: bytes, signing_key_sha256: bytes
    ) -> SignedBody:
        """Call ``ChallengeRenewal``. Raises EnrolmentError."""
        message = enrolment_pb2.ChallengeRenewalRequest(
            client_nonce=client_nonce, signing_key_sha256=signing_key_sha256
        )
        answer = self._call(
            address, certificate_der, "ChallengeRenewal", message, enrolment_pb2.ChallengeRenewalResponse
        )
        return signed_from_proto(answer.challenge)

    def renew(self, address: str, certificate_der: bytes, request: RenewalRequest) -> RenewalAnswer:
        """Call ``Renew`` with an answered challenge. Raises EnrolmentError."""
        message = proto_from_renewal(request)
        return renewal_answer_from_proto(
            self._call(address, certificate_der, "Renew", message, enrolment_pb2.RenewResponse)
        )

    def _call(
        self, address: str, certificate_der: bytes, method: str, message: Message, answer_type: type[TMessage]
    ) -> TMessage:
        def call(way: _Way) -> TMessage:
            # Again with the same keys is once: an attempt whose answer was lost on one way spends nothing on the next.
            by = self._call_grpc if way.transport is EnrolmentTransport.GRPC else self._call_http1
            payload = by(way, certificate_der, method, message)
            self.transport = way.transport
            try:
                return answer_type.FromString(payload)
            except DecodeError as error:
                raise _error_from_status(
                    grpc.StatusCode.INTERNAL, "the answer is no message of this call", refusal=b"", address=way.address
                ) from error

        return self._first(address, call)

    def _first(self, address: str, attempt: Callable[[_Way], T]) -> T:
        """What the first way that leads there gives. Raises the first way's error where none does."""
        first: EnrolmentUnreachableError | None = None
        closed: set[int] = set()
        for way in _ways(address):
            if way.port in closed:
                continue
            try:
                return attempt(way)
            except EnrolmentUnreachableError as error:
                first = first or error
                if isinstance(error.__cause__, WayEndsError):
                    # Nothing listens there, whatever is spoken; and where the way to any port ends, all of them do.
                    closed.add(way.port)
                    if error.__cause__.fault not in NOTHING_LISTENS:
                        break
        assert first is not None, "there is always a way to try"
        raise first

    def _fetch(self, way: _Way) -> bytes:
        host, port, address = way.host, way.port, way.address
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Safety: nothing is sent over this connection. It only shows a certificate, which the code's pin then judges.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2" if way.transport is EnrolmentTransport.GRPC else "http/1.1"])
        try:
            with (
                connect_through(host, port, proxy=self._proxy_for(address)) as connection,
                secure(context, connection, server_name=SERVER_NAME) as secured,
            ):
                certificate = secured.getpeercert(binary_form=True)
        except WayEndsError as end:
            raise EnrolmentUnreachableError(str(end), advice=ADVICE[end.fault], address=address) from end
        except (OSError, ValueError) as error:
            message = "the coordinator's enrolment listener does not answer"
            raise EnrolmentUnreachableError(
                message, advice=_UNREACHABLE_ADVICE, address=address, reason=str(error)[:200]
            ) from error
        if certificate is None:
            message = "the coordinator's enrolment listener shows no certificate"
            raise EnrolmentUnreachableError(message, advice=_UNREACHABLE_ADVICE, address=address)
        return certificate

    def _call_grpc(self, way: _Way, certificate_der: bytes, method: str, message: Message) -> bytes:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=ssl.DER_cert_to_PEM_cert(certificate_der).encode("ascii")
        )
        options = (
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),
            *grpc_proxy_options(self._proxy_for(way.address)),
        )
        with grpc.secure_channel(way.address, credentials, options=options) as channel:
            try:
                # Bytes in and out: which messages they are is the caller's.
                return channel.unary_unary(
                    f"{_SERVICE}/{method}", request_serializer=bytes, response_deserializer=bytes
                )(message.SerializeToString(), timeout=_CALL_TIMEOUT_S)
            except grpc.RpcError as error:
                # What a synchronous stub raises is the call itself; the type stubs do not say so.
                call = cast("grpc.Call", error)
                refusal = _refusal_bytes(call.trailing_metadata() or ())
                raise _error_from_status(
                    call.code(), str(call.details())[:200], refusal=refusal, address=way.address
                ) from error

    def _call_http1(self, way: _Way, certificate_der: bytes, method: str, message: Message) -> bytes:
        try:
            return call_over_http1(
                (way.host, way.port),
                f"{_SERVICE}/{method}",
                message.SerializeToString(),
                certificate_der=certificate_der,
                server_name=SERVER_NAME,
                proxy=self._proxy_for(way.address),
                timeout_s=_CALL_TIMEOUT_S,
                max_bytes=_MAX_ANSWER_BYTES,
            )
        except CallEndedError as end:
            raise _error_from_status(
                end.status, str(end), refusal=end.refusal, address=way.address, advice=end.advice
            ) from end


def split_address(address: str) -> tuple[str, int]:
    """``host``, ``host:port`` or ``[v6]:port`` as host and port.

    Raises:
        EnrolmentInputError: the text is no address.
    """
    text = address.strip().removeprefix("https://").rstrip("/")
    host, separator, port_text = text.rpartition(":")
    if not separator or text.endswith("]"):
        host, port_text = text, str(DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port_text.isascii() or not port_text.isdigit() or not 0 < int(port_text) < 65536:
        raise EnrolmentInputError(
            "this is no address", advice="Write it as HOST:PORT, as in the invitation.", address=address[:200]
        )
    return host, int(port_text)


def _error_from_status(
    status: grpc.StatusCode, detail: str, *, refusal: bytes, address: str, advice: str = ""
) -> EnrolmentError:
    if status in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
        message = "the coordinator did not answer; nothing is lost, the same command may be repeated"
        return EnrolmentUnreachableError(message, advice=advice or _UNREACHABLE_ADVICE, address=address, reason=detail)
    if status in {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}:
        message = "the coordinator failed to answer; nothing is lost, the same command may be repeated"
        advice = "Try again; if it stays so, tell the coordinator's admin."
        return EnrolmentUnreachableError(message, advice=advice, address=address, status=status.name)
    said = _refusal(refusal)
    return error_from_refusal(
        is_unauthenticated=status is grpc.StatusCode.UNAUTHENTICATED,
        refusal_code=said.code,
        sentence=said.message or detail,
    )


def error_from_refusal(*, is_unauthenticated: bool, refusal_code: str, sentence: str) -> EnrolmentError:
    """The typed error for a coordinator's refusal."""
    if refusal_code == EnrolmentCodeSpentError.code:
        message = "the enrolment code was used before, with other keys than those in this folder"
        advice = (
            "If this site used it, use the same --state-dir again. If it did not, somebody else has the code: tell the "
            "coordinator's admin at once. Then ask for a new one."
        )
        return EnrolmentCodeSpentError(message, advice=advice)
    if refusal_code == EnrolmentCodeExpiredError.code:
        advice = "Ask the coordinator's admin for a new code; it replaces the old one."
        return EnrolmentCodeExpiredError("the enrolment code has expired", advice=advice)
    if is_unauthenticated and refusal_code in {"", EnrolmentCodeUnknownError.code}:
        advice = "Check the code for a missing or mistyped character, or ask the coordinator's admin for a new one."
        return EnrolmentCodeUnknownError("the coordinator does not know this enrolment code", advice=advice)
    advice = "Show this to the coordinator's admin."
    return EnrolmentRefusedError(
        f"the coordinator refused: {sentence}", advice=advice, refusal_code=refusal_code or "none"
    )


def _refusal_bytes(metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    found = [value for key, value in metadata if key == REFUSAL_METADATA_KEY and isinstance(value, bytes)]
    return found[-1] if found else b""


def _refusal(data: bytes) -> errors_pb2.Refusal:
    try:
        return errors_pb2.Refusal.FromString(data)
    except DecodeError:
        return errors_pb2.Refusal()
