from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from coordinator.ca.authority import CertificateAuthority, create_root
from coordinator.errors import LateError
from coordinator.gateway.admission import calling_site
from coordinator.gateway.interceptors import GatewayInterceptor
from coordinator.services.identify_site import CallingSite
from coordinator.services.refusals import CertificateUnknownError
from fl_protocol.ids import SiteId
from fl_protocol.pki.csr import make_csr
from fl_protocol.pki.keys import generate_private_key
from fl_protocol.wire.v1 import errors_pb2, round_pb2

NOW = datetime(2026, 3, 1, tzinfo=UTC)


class Ended(Exception):  # noqa: N818 # what grpc raises is no error of ours
    """Stands for grpc.aio.AbortError, which ends a call."""


class FakeContext:
    """What a servicer sees of a call."""

    def __init__(self, certificate_pem: bytes | None) -> None:
        self._chain = [] if certificate_pem is None else [certificate_pem]
        self.ended: tuple[grpc.StatusCode, str, errors_pb2.Refusal] | None = None

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": self._chain}

    def peer(self) -> str:
        return "ipv4:192.0.2.1:1"

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing_metadata: tuple[tuple[str, bytes], ...]
    ) -> None:
        self.ended = (code, details, errors_pb2.Refusal.FromString(dict(trailing_metadata)["wardround-refusal-bin"]))
        raise Ended


class Details:
    invocation_metadata = ()

    def __init__(self, method: str) -> None:
        self.method = f"/fl_protocol.wire.v1.RoundService/{method}"


@pytest.fixture(scope="module")
def certificate_pem() -> bytes:
    certificate, key = create_root(consortium="Test", now=NOW)
    authority = CertificateAuthority(certificate=certificate, key=key)
    csr = make_csr(generate_private_key())
    return authority.issue_site_certificate(site_id=SiteId("st-mary"), csr_der=csr, now=NOW).pem


async def identify_all(site_id: SiteId, certificate_sha256: str) -> CallingSite:
    return CallingSite(site_id=site_id, certificate_sha256=certificate_sha256)


async def identify_none(site_id: SiteId, certificate_sha256: str) -> CallingSite:
    raise CertificateUnknownError("revoked", site_id=site_id)


async def wrapped(interceptor: GatewayInterceptor, method: str, handler: object) -> grpc.RpcMethodHandler:
    async def continuation(_: object) -> object:
        return handler

    return await interceptor.intercept_service(continuation, Details(method))


async def test_servicer_learns_the_site_of_the_certificate(certificate_pem: bytes) -> None:
    async def accept(request: round_pb2.AcceptRoundRequest, context: object) -> str:
        return calling_site()

    handler = await wrapped(
        GatewayInterceptor(identify=identify_all), "AcceptRound", grpc.unary_unary_rpc_method_handler(accept)
    )
    answer = await handler.unary_unary(round_pb2.AcceptRoundRequest(), FakeContext(certificate_pem))
    assert answer == "st-mary"


@pytest.mark.parametrize("case", ["no-certificate", "refused", "no-site"])
async def test_caller_who_is_not_a_site_never_reaches_the_servicer(certificate_pem: bytes, case: str) -> None:
    async def accept(request: object, context: object) -> object:
        raise AssertionError("reached")

    identify = identify_none if case == "refused" else identify_all
    root, _ = create_root(consortium="Test", now=NOW)
    shown = {"no-certificate": None, "refused": certificate_pem, "no-site": root.public_bytes(Encoding.PEM)}[case]
    handler = await wrapped(
        GatewayInterceptor(identify=identify), "AcceptRound", grpc.unary_unary_rpc_method_handler(accept)
    )
    context = FakeContext(shown)
    with pytest.raises(Ended):
        await handler.unary_unary(round_pb2.AcceptRoundRequest(), context)
    assert context.ended is not None
    assert context.ended[0] == grpc.StatusCode.UNAUTHENTICATED
    assert context.ended[2].code == "certificate-unknown"


async def test_unexpected_error_tells_its_peer_an_incident_and_nothing_else(certificate_pem: bytes) -> None:
    async def accept(request: object, context: object) -> object:
        raise RuntimeError("/var/lib/secret: a value of a record")

    handler = await wrapped(
        GatewayInterceptor(identify=identify_all), "AcceptRound", grpc.unary_unary_rpc_method_handler(accept)
    )
    context = FakeContext(certificate_pem)
    with pytest.raises(Ended):
        await handler.unary_unary(round_pb2.AcceptRoundRequest(), context)
    assert context.ended is not None
    code, message, refusal = context.ended
    assert (code, refusal.code) == (grpc.StatusCode.INTERNAL, "internal")
    assert set(refusal.facts) == {"incident"}
    assert "secret" not in message + str(refusal)


async def test_error_in_a_stream_ends_it_with_its_status(certificate_pem: bytes) -> None:
    async def download(request: object, context: object) -> AsyncIterator[round_pb2.DownloadBlobResponse]:
        yield round_pb2.DownloadBlobResponse()
        raise LateError("too late")

    handler = await wrapped(
        GatewayInterceptor(identify=identify_all), "DownloadBlob", grpc.unary_stream_rpc_method_handler(download)
    )
    context = FakeContext(certificate_pem)
    stream = handler.unary_stream(round_pb2.DownloadBlobRequest(), context)
    assert await anext(stream) == round_pb2.DownloadBlobResponse()
    with pytest.raises(Ended):
        await anext(stream)
    assert context.ended is not None
    assert (context.ended[0], context.ended[2].code) == (grpc.StatusCode.FAILED_PRECONDITION, "late")


async def test_chunk_over_its_bound_ends_the_upload(certificate_pem: bytes) -> None:
    async def upload(requests: AsyncIterator[round_pb2.UploadBlobRequest], context: object) -> int:
        return len([request async for request in requests])

    async def parts(size: int) -> AsyncIterator[round_pb2.UploadBlobRequest]:
        yield round_pb2.UploadBlobRequest(chunk=round_pb2.BlobChunk(data=bytes(1 << 20)))
        yield round_pb2.UploadBlobRequest(chunk=round_pb2.BlobChunk(data=bytes(size)))

    handler = await wrapped(
        GatewayInterceptor(identify=identify_all), "UploadBlob", grpc.stream_unary_rpc_method_handler(upload)
    )
    assert await handler.stream_unary(parts(1 << 20), FakeContext(certificate_pem)) == 2
    context = FakeContext(certificate_pem)
    with pytest.raises(Ended):
        await handler.stream_unary(parts(2 << 20), context)
    assert context.ended is not None
    assert context.ended[2].code == "message-too-large"


NO_MESSAGE = b"\xff\xff\xff\xff"


@pytest.mark.parametrize("kind", ["unary", "download", "upload"])
async def test_bytes_that_are_no_message_are_refused_by_the_gate_and_in_its_words(
    certificate_pem: bytes, kind: str
) -> None:
    """gRPC would say UNKNOWN, and what protobuf's decoder says: before anybody asked who calls."""

    async def answer(request: object, context: object) -> object:
        raise AssertionError("reached")

    async def download(request: object, context: object) -> AsyncIterator[object]:
        raise AssertionError("reached")
        yield

    async def upload(requests: AsyncIterator[object], context: object) -> object:
        return [request async for request in requests]

    method, message = {
        "unary": ("AcceptRound", round_pb2.AcceptRoundRequest),
        "download": ("DownloadBlob", round_pb2.DownloadBlobRequest),
        "upload": ("UploadBlob", round_pb2.UploadBlobRequest),
    }[kind]
    made = {
        "unary": grpc.unary_unary_rpc_method_handler(answer, request_deserializer=message.FromString),
        "download": grpc.unary_stream_rpc_method_handler(download, request_deserializer=message.FromString),
        "upload": grpc.stream_unary_rpc_method_handler(upload, request_deserializer=message.FromString),
    }[kind]
    for identify, code in ((identify_none, "certificate-unknown"), (identify_all, "invalid-message")):
        handler = await wrapped(GatewayInterceptor(identify=identify), method, made)
        request = handler.request_deserializer(NO_MESSAGE)
        context = FakeContext(certificate_pem)
        if kind == "unary":
            call = handler.unary_unary(request, context)
        elif kind == "download":
            call = anext(handler.unary_stream(request, context))
        else:
            call = handler.stream_unary(_one(request), context)
        with pytest.raises(Ended):
            await call
        assert context.ended is not None
        assert context.ended[2].code == code
        assert "pars" not in context.ended[1].lower()


async def _one(item: object) -> AsyncIterator[object]:
    yield item
