"""A gateway without a database: real listeners of both transports in this process, and servicers that keep what comes.

The certificates are real, admission is real but for the look into the database, and what the sites send is the wire's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Generic, TypeVar

import grpc
import grpc.aio

from coordinator.ca.authority import GATEWAY_SERVER_NAME, ServerIdentity
from coordinator.errors import NotFoundError, SiteNotActiveError
from coordinator.gateway.admission import Admission, calling_site
from coordinator.gateway.http1_app import Http1Gateway, gateway_handlers
from coordinator.gateway.http1_server import Http1Listener, http1_listener
from coordinator.gateway.interceptors import GatewayInterceptor
from coordinator.http_server import bound_socket
from coordinator.services.accept_upload import UploadTruncatedError
from coordinator.services.identify_site import CallingSite
from fl_protocol.ids import SiteId
from fl_protocol.packing import pack, u64
from fl_protocol.pki.certificates import LeafNames, Validity, issue_leaf, make_ca_certificate, new_serial
from fl_protocol.pki.identity import site_uri
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key
from fl_protocol.pki.tls import pem_from_certificate
from fl_protocol.signing.signed import sign_body
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.wire.convert import proto_from_signed
from fl_protocol.wire.v1 import round_pb2, round_pb2_grpc, run_pb2, run_pb2_grpc
from site_agent.link.channel import TlsIdentity
from site_agent.link.receipts import RECEIPT_KIND

COORDINATOR = seeded_signer("coordinator")


def validity(*, days: float = 1, began_days_ago: float = 1) -> Validity:
    """From some days ago until some days from now."""
    now = datetime.now(UTC).replace(microsecond=0)
    return Validity(not_before=now - timedelta(days=began_days_ago), not_after=now + timedelta(days=days))


class Pki:
    """An authority, and what it issues."""

    def __init__(self, name: str = "Wardround test") -> None:
        self.key = generate_private_key()
        self.root = make_ca_certificate(
            self.key, common_name=name, validity=validity(days=9, began_days_ago=9), serial=new_serial()
        )
        self.root_pem = pem_from_certificate(self.root)

    def server(self, *names: str) -> ServerIdentity:
        """A server's certificate and key."""
        key = generate_private_key()
        leaf = issue_leaf(
            self.key,
            self.root,
            public_key=key.public_key(),
            common_name=names[0],
            names=LeafNames(dns_names=names),
            validity=validity(),
            serial=new_serial(),
        )
        return ServerIdentity(certificate_pem=pem_from_certificate(leaf), key_pem=pem_from_private_key(key))

    def site(self, site_id: str, *, lifetime: Validity | None = None, root_pem: bytes | None = None) -> TlsIdentity:
        """What a site of this authority shows. It believes ``root_pem``, by default this authority's."""
        key = generate_private_key()
        leaf = issue_leaf(
            self.key,
            self.root,
            public_key=key.public_key(),
            common_name=site_id,
            names=LeafNames(uris=(site_uri(SiteId(site_id)),)),
            validity=lifetime or validity(),
            serial=new_serial(),
        )
        return TlsIdentity(
            root_pem=root_pem or self.root_pem,
            certificate_pem=pem_from_certificate(leaf),
            private_key_pem=pem_from_private_key(key),
            server_name=GATEWAY_SERVER_NAME,
        )

    def write(self, folder: Path, identity: ServerIdentity) -> tuple[Path, Path]:
        """Certificate and key as files, for servers that want them so."""
        folder.mkdir(parents=True, exist_ok=True)
        certificate, key = folder / "certificate.pem", folder / "key.pem"
        certificate.write_bytes(identity.certificate_pem)
        key.touch(mode=0o600)
        key.write_bytes(identity.key_pem)
        return certificate, key


@dataclass
class KeepingServicer(round_pb2_grpc.RoundServiceServicer):
    """Uploads and downloads as the engine answers them, without rounds: one upload a site."""

    blob: bytes = field(default=b"", repr=False)
    poll_s: float = 0.0
    held: dict[str, bytearray] = field(default_factory=dict, repr=False)
    n_bytes: int = 0
    offsets: list[int] = field(default_factory=list)
    n_polls: int = 0
    has_polled: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    was_cancelled: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    slow_s: float = 0.0
    fails_with: Exception | None = None

    def receipt(self, held: bytearray, header: bytes) -> round_pb2.UploadBlobResponse:
        body = pack(hashlib.sha256(header).digest(), u64(len(held)), hashlib.sha256(held).digest())
        return round_pb2.UploadBlobResponse(receipt=proto_from_signed(sign_body(COORDINATOR, RECEIPT_KIND, body)))

    async def PollAssignment(self, request, context):  # noqa: N802, ANN001, ANN201
        self.n_polls += 1
        self.has_polled.set()
        if self.fails_with is not None:
            raise self.fails_with
        try:
            await asyncio.sleep(min(self.poll_s, request.wait_s))
        except asyncio.CancelledError:
            self.was_cancelled.set()
            raise
        return round_pb2.PollAssignmentResponse(idle=round_pb2.Idle(retry_after_s=1.5))

    async def QueryUpload(self, request, context):  # noqa: N802, ANN001, ANN201
        return round_pb2.QueryUploadResponse(received_bytes=len(self.held.get(calling_site(), b"")))

    async def UploadBlob(self, request_iterator, context):  # noqa: N802, ANN001, ANN201
        first = await anext(request_iterator)
        held = self.held.setdefault(calling_site(), bytearray())
        self.offsets.append(first.header.offset)
        assert first.header.offset == len(held)
        async for part in request_iterator:
            assert part.chunk.offset == len(held)
            held += part.chunk.data
            if self.slow_s:
                await asyncio.sleep(self.slow_s)
        if len(held) < self.n_bytes:
            raise UploadTruncatedError("the stream ended early", received_bytes=len(held))
        return self.receipt(held, first.header.masked_input)

    async def DownloadBlob(self, request, context):  # noqa: N802, ANN001, ANN201
        if not self.blob:
            raise NotFoundError("the run publishes no such blob", run_id=request.run_id)
        for start in range(request.offset, len(self.blob), 1 << 20):
            data = self.blob[start : start + (1 << 20)]
            if self.slow_s:
                await asyncio.sleep(self.slow_s)
            yield round_pb2.DownloadBlobResponse(chunk=round_pb2.BlobChunk(offset=start, data=data))
        if self.fails_with is not None:
            raise self.fails_with

    async def ReportReady(self, request, context):  # noqa: N802, ANN001, ANN201
        return round_pb2.ReportReadyResponse()

    def _unused(self, request, context):  # noqa: ANN001, ANN202
        raise NotImplementedError

    AcceptRound = DeclineRound = ReportProgress = AdvertiseKeys = ShareKeys = Complain = _unused
    ConfirmSurvivors = RevealShares = AcknowledgeResult = GetResult = _unused


class QuietRunServicer(run_pb2_grpc.RunServiceServicer):
    """Nothing waits for anybody."""

    async def ListPending(self, request, context):  # noqa: N802, ANN001, ANN201
        return run_pb2.ListPendingResponse()

    def _unused(self, request, context):  # noqa: ANN001, ANN202
        raise NotImplementedError

    GetRun = SubmitApproval = Withdraw = GetRoster = ReportDatasetWithdrawn = _unused


class OlderCoordinator(grpc.aio.ServerInterceptor):
    """Knows none of these calls, as a version from before them."""

    def __init__(self, unknown_calls: Collection[str]) -> None:
        self._unknown = unknown_calls

    async def intercept_service(self, continuation, handler_call_details):  # noqa: ANN001, ANN201
        if handler_call_details.method.rpartition("/")[2] in self._unknown:
            return None
        return await continuation(handler_call_details)


TServicer = TypeVar("TServicer", bound=round_pb2_grpc.RoundServiceServicer)


@dataclass
class Gateway(Generic[TServicer]):
    """Both listeners, up."""

    pki: Pki
    servicer: TServicer
    revoked: set[str]
    grpc_address: str
    http1_address: str
    server: grpc.aio.Server
    http1: Http1Listener


@contextlib.asynccontextmanager
async def running_gateway(
    pki: Pki,
    servicer: TServicer,
    *,
    grpc_options: tuple[tuple[str, int], ...] = (),
    grpc_port: int = 0,
    http1_port: int = 0,
    runs: run_pb2_grpc.RunServiceServicer | None = None,
    unknown_calls: Collection[str] = (),
) -> AsyncIterator[Gateway[TServicer]]:
    """Open both on loopback with these servicers behind them, and end them."""
    revoked: set[str] = set()
    run_servicer = runs or QuietRunServicer()

    async def identify(site_id: SiteId, certificate_sha256: str) -> CallingSite:
        if site_id in revoked:
            raise SiteNotActiveError("this site is REVOKED; ask the consortium's admin", site_id=site_id)
        return CallingSite(site_id=site_id, certificate_sha256=certificate_sha256)

    identity = pki.server(GATEWAY_SERVER_NAME)
    server = grpc.aio.server(
        interceptors=[OlderCoordinator(unknown_calls), GatewayInterceptor(identify=identify)], options=grpc_options
    )
    round_pb2_grpc.add_RoundServiceServicer_to_server(servicer, server)
    run_pb2_grpc.add_RunServiceServicer_to_server(run_servicer, server)
    credentials = grpc.ssl_server_credentials(
        [(identity.key_pem, identity.certificate_pem)], root_certificates=pki.root_pem, require_client_auth=True
    )
    port = server.add_secure_port(f"127.0.0.1:{grpc_port}", credentials)
    await server.start()
    handlers = {
        path: handler
        for path, handler in gateway_handlers(servicer, run_servicer).items()
        if path.rpartition("/")[2] not in unknown_calls
    }
    app = Http1Gateway(admission=Admission(identify=identify), handlers=handlers)
    bound = bound_socket("127.0.0.1", http1_port, listener="http/1.1")
    http1 = http1_listener(app, bound, root_pem=pki.root_pem, identity=identity, grace_s=2.0)
    serving = asyncio.create_task(http1.server.serve(sockets=[bound]))
    await http1.server.is_up.wait()
    try:
        yield Gateway(
            pki=pki,
            servicer=servicer,
            revoked=revoked,
            grpc_address=f"127.0.0.1:{port}",
            http1_address=http1.address,
            server=server,
            http1=http1,
        )
    finally:
        http1.stop()
        await serving
        await server.stop(None)
