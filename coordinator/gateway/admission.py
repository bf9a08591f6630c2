"""What every call passes, whichever transport brought it: who calls, how large, how long, and what becomes of an error.

Identity comes from the peer's certificate and is checked against the database on every call, so that a revoked site is
refused by its next one. An unexpected error tells its peer an incident number and nothing else.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeGuard

import grpc
import structlog
from cryptography import x509
from google.protobuf.message import Message

from coordinator.errors import InvalidMessageError
from coordinator.gateway.call_watch import CallWatch
from coordinator.gateway.chunk_codec import UnreadableRequest
from coordinator.gateway.status import RefusedCall, refused_call, refused_call_from_error
from coordinator.services.identify_site import CallingSite
from coordinator.services.refusals import CertificateUnknownError
from coordinator.services.wakeups import Bell
from fl_protocol.codec.chunks import IDLE_DEADLINE_S
from fl_protocol.errors import WardroundError
from fl_protocol.ids import SiteId
from fl_protocol.pki.errors import PkiError
from fl_protocol.pki.identity import site_id_from_certificate
from fl_protocol.pki.tls import certificate_fingerprint, certificate_from_der, certificate_from_pem
from fl_protocol.telemetry import coordinator_metrics as metrics
from fl_protocol.telemetry.meter import Meter
from fl_protocol.telemetry.span_names import SpanName
from fl_protocol.telemetry.trace_ids import ids_from_traceparent
from fl_protocol.telemetry.tracing import NO_TRACING, Tracing

_log = structlog.get_logger("coordinator.gateway")
_site: ContextVar[SiteId] = ContextVar("calling_site")

UNARY_TIMEOUT_S = 60.0
STREAM_TIMEOUT_S = IDLE_DEADLINE_S
"""Of a stream on which nothing moves; as a whole it may last as long as it likes (``note_moved``)."""
_CANCELLED = grpc.StatusCode.CANCELLED
"""How a call is counted whose peer hung up, or that was aborted otherwise."""
_UNKNOWN_CALL = "unknown"
_SMALL = 16 << 10
_MEDIUM = 256 << 10
MESSAGE_BOUNDS: Mapping[str, int] = {
    "Enrol": _SMALL,
    "ChallengeRenewal": _SMALL,
    "Renew": _SMALL,
    "CheckIn": _SMALL,
    "PollAssignment": _MEDIUM,
    "AcceptRound": _SMALL,
    "DeclineRound": _SMALL,
    "ReportProgress": _SMALL,
    "ReportReady": _SMALL,
    "AdvertiseKeys": _MEDIUM,
    "ShareKeys": 2 << 20,
    "Complain": _MEDIUM,
    "QueryUpload": _SMALL,
    "UploadBlob": (1 << 20) + _SMALL,
    "ConfirmSurvivors": _MEDIUM,
    "RevealShares": 2 << 20,
    "AcknowledgeResult": _SMALL,
    "GetResult": _SMALL,
    "DownloadBlob": _SMALL,
    "GetSumEvidence": _SMALL,
    "GetMaskedChunk": _SMALL,
    "GetMaskedWindow": _SMALL,
    "GetAuditConsistency": _SMALL,
    "ListPending": _SMALL,
    "GetRun": _SMALL,
    "SubmitApproval": _SMALL,
    "Withdraw": _SMALL,
    "GetRoster": _SMALL,
    "ReportDatasetWithdrawn": _SMALL,
}
"""The largest request of each method, in bytes. Every method is listed (a test compares with the stubs)."""

IdentifySite = Callable[[SiteId, str], Awaitable[CallingSite]]


class StreamIdleError(WardroundError):
    """Nothing moved on a stream for its idle deadline. What came is held, and the site goes on from there."""

    code = "stream-idle"


class _Deadline:
    """The deadline of the present call."""

    def __init__(self, cut: asyncio.Timeout, timeout_s: float) -> None:
        self.has_moved = False
        self._is_over = False
        self._cut = cut
        self._timeout_s = timeout_s

    def end(self) -> None:
        """End the call now; nothing puts that off."""
        self._is_over = True
        if not self._cut.expired():
            self._cut.reschedule(asyncio.get_running_loop().time())

    def move(self) -> None:
        self.has_moved = True
        if not self._cut.expired() and not self._is_over:
            self._cut.reschedule(asyncio.get_running_loop().time() + self._timeout_s)


_deadline: ContextVar[_Deadline] = ContextVar("call_deadline")


def note_moved() -> None:
    """A message of the present call's stream came or went: its deadline counts anew from now."""
    deadline = _deadline.get(None)
    if deadline is not None:
        deadline.move()


class MessageTooLargeError(WardroundError):
    """A request is larger than its method takes."""

    code = "message-too-large"


class CallRefusedError(Exception):
    """A call ends here; ``refused`` is what its peer is told, in whatever form the transport has for it."""

    def __init__(self, refused: RefusedCall) -> None:
        """Keep the answer."""
        super().__init__(refused.message)
        self.refused = refused


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCertificate:
    """What a peer's certificate says; nothing is checked yet but the TLS handshake's chain."""

    site_id: SiteId
    sha256: str

    @classmethod
    def of(cls, certificate: x509.Certificate) -> PeerCertificate:
        """Read it. Raises PkiError where it names no site."""
        return cls(site_id=site_id_from_certificate(certificate), sha256=certificate_fingerprint(certificate))


@lru_cache(maxsize=4096)
def peer_from_pem(pem: bytes) -> PeerCertificate:
    """What a certificate says; a connection shows the same bytes at every call. Raises PkiError."""
    return PeerCertificate.of(certificate_from_pem(pem))


@lru_cache(maxsize=4096)
def peer_from_der(der: bytes) -> PeerCertificate:
    """As ``peer_from_pem``, of the binary form. Raises PkiError."""
    return PeerCertificate.of(certificate_from_der(der))


@dataclass(frozen=True, slots=True, kw_only=True)
class IncomingCall:
    """One call on its way to its servicer.

    ``certificate`` reads the peer's, None where there is none; it raises PkiError where it names no site.
    ``traceparent`` reads the peer's word on which trace it belongs to, for a span and for nothing else.
    """

    method: str
    peer: str
    certificate: Callable[[], PeerCertificate | None]
    traceparent: Callable[[], str] = str

    @property
    def transport(self) -> str:
        """How it came."""
        return "http1" if self.peer.startswith("http1:") else "grpc"


def calling_site() -> SiteId:
    """The site behind the present call. Invariant: its certificate and state were checked for this very call."""
    return _site.get()


class Admission:
    """The gate of a listener; without ``identify`` (the enrolment listener) callers have no certificate."""

    def __init__(
        self,
        *,
        identify: IdentifySite | None,
        changes: Bell | None = None,
        meter: Meter | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        """Take how a certificate becomes a site, what rings when that may have changed, and who is told of calls."""
        self._tracing = tracing
        self._identify = identify
        self._changes = changes
        self._meter = meter

    @asynccontextmanager
    async def admitted(self, call: IncomingCall, *, timeout_s: float) -> AsyncIterator[None]:
        """Admit the caller, then bound in time and translate whatever happens inside; count how it ended.

        Raises:
            CallRefusedError: the caller is nobody, or the inside failed.
        """
        began, status = time.monotonic(), _CANCELLED
        try:
            # Each call has a context of its own, which ends with it.
            request_id = secrets.token_hex(8)
            structlog.contextvars.bind_contextvars(request_id=request_id)
            about = {"method": call.method, "transport": call.transport, "request_id": request_id}
            parent = ids_from_traceparent(call.traceparent()) if self._tracing.is_on else None
            with self._tracing.span(SpanName.CALL, about, parent=parent) as span:
                try:
                    async with self._admitted(call, timeout_s=timeout_s):
                        if (site_id := _site.get(None)) is not None:
                            span.set("site_id", site_id)
                        yield
                    status = grpc.StatusCode.OK
                except CallRefusedError as ended:
                    status = ended.refused.code
                    raise
                finally:
                    span.set("status", status.name)
        finally:
            self._count(call, status, seconds=time.monotonic() - began)

    def _count(self, call: IncomingCall, status: grpc.StatusCode, *, seconds: float) -> None:
        if self._meter is not None:
            name = call.method if call.method in MESSAGE_BOUNDS else _UNKNOWN_CALL
            self._meter.count(metrics.CALLS, name, call.transport, status.name)
            self._meter.observe(metrics.CALL_SECONDS, seconds, name, call.transport)

    @asynccontextmanager
    async def _admitted(self, call: IncomingCall, *, timeout_s: float) -> AsyncIterator[None]:
        deadline: _Deadline | None = None
        watch: CallWatch | None = None
        try:
            async with asyncio.timeout(timeout_s) as cut:
                deadline = _Deadline(cut, timeout_s)
                _deadline.set(deadline)
                watch = await self._admit(call)
                async with nullcontext() if watch is None else watch.watching(deadline.end):
                    yield
        except TimeoutError as error:
            ended: Exception = error
            if watch is not None and watch.refusal is not None:
                ended = watch.refusal
            elif deadline is not None and deadline.has_moved:
                ended = StreamIdleError("nothing moved on the stream; what came is held, go on from there")
            raise CallRefusedError(_refused(call, ended)) from error
        except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit, CallRefusedError):
            raise
        except Exception as error:  # the gateway's edge: logged with ids, told as a status
            raise CallRefusedError(_refused(call, error)) from error

    async def _admit(self, call: IncomingCall) -> CallWatch | None:
        """Check the caller; what watches that it may go on, where anything can."""
        identify, changes = self._identify, self._changes
        if identify is None:
            return None
        try:
            certificate = call.certificate()
            if certificate is None:
                raise CertificateUnknownError("the gateway speaks only to sites with a certificate")
        except PkiError as error:
            raise CertificateUnknownError("the certificate does not name a site") from error
        watch = None
        if changes is not None:
            watch = CallWatch(changes, lambda: identify(certificate.site_id, certificate.sha256))
        checked = await identify(certificate.site_id, certificate.sha256)
        _site.set(checked.site_id)
        return watch


def check_size(method: str, n_bytes: int) -> None:
    """Refuse a request that is larger than its method takes. Raises MessageTooLargeError."""
    if n_bytes > MESSAGE_BOUNDS[method]:
        raise MessageTooLargeError(
            "the message is larger than this method takes", n_bytes=n_bytes, limit=MESSAGE_BOUNDS[method]
        )


def check_readable(request: Message | UnreadableRequest) -> TypeGuard[Message]:
    """Refuse bytes that are no message. Raises InvalidMessageError; else True."""
    if isinstance(request, UnreadableRequest):
        raise InvalidMessageError("the bytes are no message of this call")
    return True


async def bounded_stream(method: str, requests: AsyncIterator[Message | UnreadableRequest]) -> AsyncIterator[Message]:
    """The stream, once each message is known to be one, and within the method's bound.

    Raises:
        InvalidMessageError, MessageTooLargeError: it is not.
    """
    async for request in requests:
        note_moved()
        assert check_readable(request), "otherwise it is refused"
        check_size(method, request.ByteSize())
        yield request


def _refused(call: IncomingCall, error: Exception) -> RefusedCall:
    site_id = _site.get(None)
    if isinstance(error, MessageTooLargeError):
        refused = refused_call(
            grpc.StatusCode.RESOURCE_EXHAUSTED, reason=error.code, message=error.message, facts=error.facts
        )
    elif isinstance(error, StreamIdleError):
        refused = refused_call(grpc.StatusCode.UNAVAILABLE, reason=error.code, message=error.message)
    elif isinstance(error, TimeoutError):
        refused = refused_call(
            grpc.StatusCode.DEADLINE_EXCEEDED, reason="deadline-exceeded", message="the call took too long"
        )
    elif isinstance(error, WardroundError) and (known := refused_call_from_error(error)) is not None:
        refused = known
    else:
        incident = secrets.token_hex(8)
        _log.error("call_failed_unexpectedly", method=call.method, site_id=site_id, incident=incident, exc_info=error)
        return refused_call(
            grpc.StatusCode.INTERNAL,
            reason="internal",
            message="something failed inside the coordinator; its log tells what",
            facts={"incident": incident},
        )
    code = error.code if isinstance(error, WardroundError) else "deadline-exceeded"
    _log.info("call_refused", method=call.method, site_id=site_id, peer=call.peer, code=code)
    return refused
