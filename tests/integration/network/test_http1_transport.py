"""The second transport between a real listener and a real channel, both under mutual TLS on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import httpx
import pytest
import pytest_asyncio

from fl_protocol.pki.certificates import Validity
from fl_protocol.pki.contexts import client_context
from fl_protocol.testing.entropy import SeededEntropy
from fl_protocol.wire import http1
from fl_protocol.wire.v1 import errors_pb2, round_pb2, round_pb2_grpc
from site_agent.errors import CoordinatorRefusedError, CoordinatorUnavailableError
from site_agent.link.channel import TlsIdentity
from site_agent.link.client import CoordinatorClient
from site_agent.link.http1_channel import Http1Channel
from site_agent.link.instructions import Idle
from site_agent.link.proxy import ProxyCredentials, ProxyRoute
from site_agent.link.refusals import CallFailedError, typed_errors
from tests.support.gateway import Gateway, KeepingServicer, Pki, running_gateway
from tests.support.relay import ConnectProxy, Relay

ROUND_SERVICE = "/fl_protocol.wire.v1.RoundService"
VECTOR = SeededEntropy("vector").draw((20 << 20) + 17)


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


@pytest_asyncio.fixture
async def gateway(pki: Pki) -> AsyncIterator[Gateway]:
    async with running_gateway(pki, KeepingServicer()) as running:
        yield running


@pytest_asyncio.fixture
async def channel(pki: Pki, gateway: Gateway) -> AsyncIterator[Http1Channel]:
    opened = Http1Channel(gateway.http1_address, pki.site("st-mary"))
    yield opened
    await opened.close()


async def upload_from(offset: int) -> AsyncIterator[round_pb2.UploadBlobRequest]:
    yield round_pb2.UploadBlobRequest(header=round_pb2.UploadHeader(masked_input=b"header", offset=offset))
    for start in range(offset, len(VECTOR), 1 << 20):
        data = VECTOR[start : start + (1 << 20)]
        yield round_pb2.UploadBlobRequest(chunk=round_pb2.BlobChunk(offset=start, data=data))


async def raw(
    gateway: Gateway, identity: TlsIdentity, path: str, content: bytes | AsyncIterator[bytes], *, method: str = "POST"
) -> httpx.Response:
    context = client_context(
        root_pem=identity.root_pem,
        certificate_pem=identity.certificate_pem,
        private_key_pem=identity.private_key_pem,
    )
    context.check_hostname = False
    async with httpx.AsyncClient(verify=context, trust_env=False) as client:
        return await client.request(method, f"https://{gateway.http1_address}{path}", content=content)


def refusal_in(response: httpx.Response) -> errors_pb2.Refusal:
    end = http1.call_end_from_headers(response.headers[http1.STATUS_HEADER], response.headers[http1.REFUSAL_HEADER])
    assert end is not None
    return errors_pb2.Refusal.FromString(end.refusal)


async def test_unary_call_is_answered_as_over_grpc(channel: Http1Channel) -> None:
    client = CoordinatorClient(channel, agent_version="test")
    assert await client.poll_assignment(holding=(), wait_s=0.0) == Idle(retry_after_s=1.5)
    assert await client.list_pending() == ()


async def test_long_poll_is_held_open(channel: Http1Channel, gateway: Gateway) -> None:
    gateway.servicer.poll_s = 0.5
    client = CoordinatorClient(channel, agent_version="test")
    began = asyncio.get_running_loop().time()
    await client.poll_assignment(holding=(), wait_s=5.0)
    assert asyncio.get_running_loop().time() - began >= 0.5


async def test_call_ends_at_its_deadline_by_the_coordinators_word(channel: Http1Channel, gateway: Gateway) -> None:
    gateway.servicer.poll_s = 30.0
    stub = round_pb2_grpc.RoundServiceStub(channel)
    with pytest.raises(CallFailedError) as ended:
        await stub.PollAssignment(round_pb2.PollAssignmentRequest(wait_s=30.0), timeout=0.3)
    assert ended.value.status is grpc.StatusCode.DEADLINE_EXCEEDED
    assert ended.value.refusal is not None
    assert ended.value.refusal.code == "deadline-exceeded"


async def test_call_is_cancelled_when_its_site_hangs_up(channel: Http1Channel, gateway: Gateway) -> None:
    gateway.servicer.poll_s = 30.0
    stub = round_pb2_grpc.RoundServiceStub(channel)
    call = asyncio.create_task(stub.PollAssignment(round_pb2.PollAssignmentRequest(wait_s=30.0), timeout=30.0))
    async with asyncio.timeout(10):
        await gateway.servicer.has_polled.wait()
        call.cancel()
        await gateway.servicer.was_cancelled.wait()


async def test_upload_goes_in_bounded_requests(channel: Http1Channel, gateway: Gateway) -> None:
    gateway.servicer.n_bytes = len(VECTOR)
    answer = await round_pb2_grpc.RoundServiceStub(channel).UploadBlob(upload_from(0), timeout=60.0)
    held = gateway.servicer.held["st-mary"]
    assert hashlib.sha256(held).digest() == hashlib.sha256(VECTOR).digest()
    # At most 8 MiB a request, frames and header included: seven chunks of 1 MiB fit.
    assert gateway.servicer.offsets == [0, 7 << 20, 14 << 20]
    assert answer.receipt.body == gateway.servicer.receipt(held, b"header").receipt.body


async def test_streams_without_a_deadline_last_as_long_as_they_move(channel: Http1Channel, gateway: Gateway) -> None:
    gateway.servicer.n_bytes, gateway.servicer.blob, gateway.servicer.slow_s = len(VECTOR), VECTOR, 0.05
    stub = round_pb2_grpc.RoundServiceStub(channel)
    await stub.UploadBlob(upload_from(0), timeout=None)
    got = [a.chunk.data async for a in stub.DownloadBlob(round_pb2.DownloadBlobRequest(), timeout=None)]
    assert b"".join(got) == bytes(gateway.servicer.held["st-mary"]) == VECTOR


async def test_upload_over_a_line_that_is_cut_is_resumed_by_offset(pki: Pki, gateway: Gateway) -> None:
    gateway.servicer.n_bytes = len(VECTOR)
    with Relay(gateway.http1_address, cut_after_bytes=5 << 20) as relay:
        channel = Http1Channel(relay.address, pki.site("st-mary"))
        stub = round_pb2_grpc.RoundServiceStub(channel)
        try:
            with pytest.raises(CoordinatorUnavailableError), typed_errors("UploadBlob"):
                await stub.UploadBlob(upload_from(0), timeout=60.0)
            relay.cut_after_bytes = None
            held = (await stub.QueryUpload(round_pb2.QueryUploadRequest(), timeout=10.0)).received_bytes
            assert 0 < held < 5 << 20
            await stub.UploadBlob(upload_from(held), timeout=60.0)
        finally:
            await channel.close()
    assert bytes(gateway.servicer.held["st-mary"]) == VECTOR


async def test_download_is_a_stream_of_frames(channel: Http1Channel, gateway: Gateway) -> None:
    gateway.servicer.blob = VECTOR
    stub = round_pb2_grpc.RoundServiceStub(channel)
    received = bytearray()
    async for answer in stub.DownloadBlob(round_pb2.DownloadBlobRequest(offset=1 << 20), timeout=60.0):
        received += answer.chunk.data
    assert bytes(received) == VECTOR[1 << 20 :]


async def test_download_that_is_refused_before_and_after_its_first_byte(
    channel: Http1Channel, gateway: Gateway
) -> None:
    stub = round_pb2_grpc.RoundServiceStub(channel)

    async def download() -> int:
        with typed_errors("DownloadBlob"):
            return len([a async for a in stub.DownloadBlob(round_pb2.DownloadBlobRequest(), timeout=60.0)])

    with pytest.raises(CoordinatorRefusedError) as refused:
        await download()
    assert (refused.value.refusal_code, refused.value.status) == ("not-found", "NOT_FOUND")
    gateway.servicer.blob, gateway.servicer.fails_with = b"first", RuntimeError("/var/lib/secret")
    with pytest.raises(CoordinatorRefusedError) as refused:
        await download()
    assert refused.value.refusal_code == "internal"
    assert "secret" not in str(refused.value)


async def test_download_that_is_cut_is_not_taken_for_whole(pki: Pki, gateway: Gateway) -> None:
    gateway.servicer.blob, gateway.servicer.slow_s = VECTOR, 0.05
    with Relay(gateway.http1_address) as relay:
        channel = Http1Channel(relay.address, pki.site("st-mary"))
        stub = round_pb2_grpc.RoundServiceStub(channel)

        async def download() -> None:
            with typed_errors("DownloadBlob"):
                async for _ in stub.DownloadBlob(round_pb2.DownloadBlobRequest(), timeout=60.0):
                    relay.cut()

        with pytest.raises(CoordinatorUnavailableError):
            await download()
        await channel.close()


async def test_revoked_site_is_refused_at_its_next_call(channel: Http1Channel, gateway: Gateway) -> None:
    client = CoordinatorClient(channel, agent_version="test")
    await client.poll_assignment(holding=(), wait_s=0.0)
    await channel.probe(timeout_s=5.0)
    gateway.revoked.add("st-mary")
    with pytest.raises(CoordinatorRefusedError) as refused:
        await client.poll_assignment(holding=(), wait_s=0.0)
    assert (refused.value.refusal_code, refused.value.status) == ("site-not-active", "PERMISSION_DENIED")
    with pytest.raises(CallFailedError) as failed:
        await channel.probe(timeout_s=5.0)
    assert failed.value.status is grpc.StatusCode.PERMISSION_DENIED
    assert gateway.servicer.n_polls == 1


@pytest.mark.parametrize("case", ["none", "foreign", "expired", "servers"])
async def test_client_without_a_certificate_of_the_root_is_refused_at_the_handshake(
    pki: Pki, gateway: Gateway, case: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pki.root_pem.decode())
    context.check_hostname = False
    now = datetime.now(UTC).replace(microsecond=0)
    ended = Validity(not_before=now - timedelta(days=3), not_after=now - timedelta(days=1))
    shown = {
        "none": lambda: None,
        "foreign": lambda: Pki("Another").site("st-mary", root_pem=pki.root_pem),
        "expired": lambda: pki.site("st-mary", lifetime=ended),
        "servers": lambda: pki.server("gateway.wardround.internal"),
    }[case]()
    if isinstance(shown, TlsIdentity):
        context = client_context(
            root_pem=pki.root_pem, certificate_pem=shown.certificate_pem, private_key_pem=shown.private_key_pem
        )
        context.check_hostname = False
    elif shown is not None:
        context = client_context(
            root_pem=pki.root_pem, certificate_pem=shown.certificate_pem, private_key_pem=shown.key_pem
        )
        context.check_hostname = False
    async with httpx.AsyncClient(verify=context, trust_env=False) as client:
        with pytest.raises(httpx.TransportError):
            await client.get(f"https://{gateway.http1_address}{http1.PROBE_PATH}")
    # Nobody of them reached the application, and a site still does.
    response = await raw(gateway, pki.site("st-mary"), http1.PROBE_PATH, b"", method="GET")
    assert response.status_code == 204


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
async def test_old_tls_is_refused(pki: Pki, gateway: Gateway) -> None:
    identity = pki.site("st-mary")
    context = client_context(
        root_pem=identity.root_pem, certificate_pem=identity.certificate_pem, private_key_pem=identity.private_key_pem
    )
    context.check_hostname = False
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1_1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with httpx.AsyncClient(verify=context, trust_env=False) as client:
        with pytest.raises(httpx.TransportError):
            await client.get(f"https://{gateway.http1_address}{http1.PROBE_PATH}")


def frames(*payloads: bytes, end: bool = True) -> bytes:
    body = b"".join(http1.message_frame(payload) for payload in payloads)
    return body + (http1.end_frame(http1.CallEnd(status=grpc.StatusCode.OK)) if end else b"")


HEADER = round_pb2.UploadBlobRequest(header=round_pb2.UploadHeader(masked_input=b"h")).SerializeToString()
LARGE = round_pb2.UploadBlobRequest(chunk=round_pb2.BlobChunk(data=bytes(2 << 20))).SerializeToString()


@pytest.mark.parametrize(
    ("path", "content", "http_status", "code"),
    [
        ("PollAssignment", bytes(300_000), 429, "message-too-large"),
        ("PollAssignment", b"\xff\xff\xff", 400, "invalid-message"),
        ("UploadBlob", frames(HEADER, LARGE), 429, "message-too-large"),
        ("UploadBlob", frames(HEADER, end=False), 400, "request-cut"),
        ("UploadBlob", frames(HEADER) + b"more", 400, "frame-invalid"),
        ("UploadBlob", b"\x07\x00\x00\x00\x01x", 400, "frame-invalid"),
        ("UploadBlob", b"\x00\xff\xff\xff\xff", 429, "message-too-large"),
        ("UploadBlob", frames(b"\xff\xff\xff"), 400, "invalid-message"),
        ("NoSuchCall", b"", 400, "method-unknown"),
    ],
)
async def test_malformed_and_oversized_requests_get_typed_refusals(
    pki: Pki, gateway: Gateway, path: str, content: bytes, http_status: int, code: str
) -> None:
    response = await raw(gateway, pki.site("st-mary"), f"{ROUND_SERVICE}/{path}", content)
    assert (response.status_code, refusal_in(response).code, response.content) == (http_status, code, b"")


async def test_body_of_one_request_is_bounded(pki: Pki, gateway: Gateway) -> None:
    gateway.servicer.n_bytes = 1 << 30
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield http1.message_frame(HEADER)
        for index in range(64):
            chunk = round_pb2.BlobChunk(offset=index << 20, data=bytes(1 << 20))
            sent += 1 << 20
            yield http1.message_frame(round_pb2.UploadBlobRequest(chunk=chunk).SerializeToString())

    response = await raw(gateway, pki.site("st-mary"), f"{ROUND_SERVICE}/UploadBlob", endless())
    assert refusal_in(response).code == "message-too-large"
    assert len(gateway.servicer.held["st-mary"]) <= 2 * http1.PART_BYTES


async def test_failure_inside_tells_an_incident_and_nothing_else(pki: Pki, gateway: Gateway) -> None:
    gateway.servicer.fails_with = RuntimeError("/var/lib/secret: a value of a record")
    request = round_pb2.PollAssignmentRequest().SerializeToString()
    response = await raw(gateway, pki.site("st-mary"), f"{ROUND_SERVICE}/PollAssignment", request)
    refusal = refusal_in(response)
    assert (response.status_code, refusal.code, set(refusal.facts)) == (500, "internal", {"incident"})
    shown = f"{response.headers} {response.text} {refusal}"
    assert "secret" not in shown
    assert "uvicorn" not in shown.lower()


async def test_request_that_is_no_http_leaks_nothing(pki: Pki, gateway: Gateway) -> None:
    identity = pki.site("st-mary")
    context = client_context(
        root_pem=identity.root_pem, certificate_pem=identity.certificate_pem, private_key_pem=identity.private_key_pem
    )
    host, _, port = gateway.http1_address.rpartition(":")
    reader, writer = await asyncio.open_connection(
        host, int(port), ssl=context, server_hostname="gateway.wardround.internal"
    )
    writer.write(b"\x00\x01\x02 no http\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Traceback" not in answer
    assert b"uvicorn" not in answer.lower()


@pytest.mark.parametrize("credentials", [None, ProxyCredentials(user="st-mary", password="s3:cr€t")])
async def test_calls_go_through_a_proxy(pki: Pki, gateway: Gateway, credentials: ProxyCredentials | None) -> None:
    gateway.servicer.blob = VECTOR[: 3 << 20]
    gateway.servicer.n_bytes = len(VECTOR)
    port = int(gateway.http1_address.rpartition(":")[2])
    expected = None if credentials is None else f"{credentials.user}:{credentials.password}"
    with ConnectProxy({port}, credentials=expected) as proxy:
        host, _, proxy_port = proxy.address.rpartition(":")
        route = ProxyRoute(host=host, port=int(proxy_port), credentials=credentials)
        channel = Http1Channel(gateway.http1_address, pki.site("st-mary"), proxy=route)
        stub = round_pb2_grpc.RoundServiceStub(channel)
        await stub.PollAssignment(round_pb2.PollAssignmentRequest(), timeout=10.0)
        await stub.UploadBlob(upload_from(0), timeout=60.0)
        got = [a.chunk.data async for a in stub.DownloadBlob(round_pb2.DownloadBlobRequest(), timeout=60.0)]
        await channel.close()
        assert b"".join(got) == VECTOR[: 3 << 20]
        assert set(proxy.requests) == {f"CONNECT {gateway.http1_address} HTTP/1.1"}


@pytest.mark.parametrize(
    ("credentials", "allows", "fault"),
    [("a:b", True, "proxy-credentials"), (None, False, "proxy-forbids")],
)
async def test_proxy_that_says_no_is_told_by_name(
    pki: Pki, gateway: Gateway, credentials: str | None, allows: bool, fault: str
) -> None:
    port = int(gateway.http1_address.rpartition(":")[2])
    with ConnectProxy({port if allows else 1}, credentials=credentials) as proxy:
        host, _, proxy_port = proxy.address.rpartition(":")
        channel = Http1Channel(
            gateway.http1_address, pki.site("st-mary"), proxy=ProxyRoute(host=host, port=int(proxy_port))
        )
        client = CoordinatorClient(channel, agent_version="test")
        with pytest.raises(CoordinatorUnavailableError) as failed:
            await client.list_pending()
        await channel.close()
        assert failed.value.facts["fault"] == fault


async def test_site_does_not_speak_to_a_gateway_of_another_root(pki: Pki, gateway: Gateway, tmp_path: Path) -> None:
    stranger = pki.site("st-mary", root_pem=Pki("Another").root_pem)
    channel = Http1Channel(gateway.http1_address, stranger)
    with pytest.raises(CoordinatorUnavailableError) as failed:
        await CoordinatorClient(channel, agent_version="test").list_pending()
    await channel.close()
    assert failed.value.facts["fault"] == "tls-intercepted"
    assert gateway.servicer.n_polls == 0
