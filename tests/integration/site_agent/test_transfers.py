"""Uploads and downloads against a real gRPC server on loopback that fails in the middle."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from fl_protocol.ids import SiteId
from fl_protocol.packing import pack, u64
from fl_protocol.signing.signed import sign_body
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.testing.entropy import SeededEntropy, seeded_signer
from fl_protocol.testing.federation import RUN_ID
from fl_protocol.wire.convert import proto_from_signed
from fl_protocol.wire.v1 import errors_pb2, round_pb2, round_pb2_grpc
from site_agent.errors import (
    AnswerInvalidError,
    BlobInvalidError,
    CoordinatorRefusedError,
    CoordinatorUnavailableError,
    ReceiptInvalidError,
)
from site_agent.link.backoff import Backoff, BackoffPlan
from site_agent.link.client import CoordinatorClient
from site_agent.link.downloader import Downloader
from site_agent.link.instructions import Idle
from site_agent.link.receipts import RECEIPT_KIND
from site_agent.link.refusals import REFUSAL_KEY
from site_agent.link.uploader import Upload, Uploader

COORDINATOR = seeded_signer("coordinator")
CONTEXT = ExchangeContext(run_id=RUN_ID, round_index=0, round_attempt=0, exchange_index=0, exchange_attempt=0)
MASKED = SeededEntropy("masked").draw((1 << 20) * 3 + 17)
HEADER = b"the signed header of M5"
AT_ONCE = BackoffPlan(first_s=0.001, longest_s=0.001)


class FlakyCoordinator(round_pb2_grpc.RoundServiceServicer):
    """Keeps what it received, and fails as often and in the way it is told."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.offsets: list[int] = []
        self.headers: set[bytes] = set()
        self.n_failures = 0
        self.fails_after = 1 << 20
        self.signer = COORDINATOR
        self.is_late = False
        self.is_broken = False
        self.claims: int | None = None
        self.blob = MASKED

    def receipt(self) -> bytes:
        digest = hashlib.sha256(HEADER).digest()
        return pack(CONTEXT.encode(), b"alpha", digest, u64(len(self.received)), bytes(32), b"2026-01-02T03:04:05Z")

    async def QueryUpload(self, request, context):  # noqa: N802, ANN001, ANN201
        answer = round_pb2.QueryUploadResponse(
            received_bytes=len(self.received) if self.claims is None else self.claims
        )
        if len(self.received) == len(MASKED):
            answer.receipt.CopyFrom(proto_from_signed(sign_body(self.signer, RECEIPT_KIND, self.receipt())))
        return answer

    async def UploadBlob(self, request_iterator, context):  # noqa: N802, ANN001, ANN201
        if self.is_late:
            refusal = errors_pb2.Refusal(code="late", message="the survivors are frozen", facts={"n": "3"})
            metadata = ((REFUSAL_KEY, refusal.SerializeToString()),)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "late", trailing_metadata=metadata)
        first = await anext(request_iterator)
        if self.is_broken:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
        self.headers.add(first.header.masked_input)
        self.offsets.append(first.header.offset)
        assert first.header.offset == len(self.received)
        async for part in request_iterator:
            assert part.chunk.offset == len(self.received)
            self.received += part.chunk.data
            if self.n_failures and len(self.received) >= self.fails_after:
                self.n_failures -= 1
                self.fails_after += 1 << 20
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
        return round_pb2.UploadBlobResponse(
            receipt=proto_from_signed(sign_body(self.signer, RECEIPT_KIND, self.receipt()))
        )

    async def DownloadBlob(self, request, context):  # noqa: N802, ANN001, ANN201
        self.offsets.append(request.offset)
        for start in range(request.offset, len(self.blob), 1 << 20):
            if self.n_failures and start >= self.fails_after:
                self.n_failures -= 1
                self.fails_after += 1 << 20
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
            data = self.blob[start : start + (1 << 20)]
            yield round_pb2.DownloadBlobResponse(chunk=round_pb2.BlobChunk(offset=start, data=data))

    async def PollAssignment(self, request, context):  # noqa: N802, ANN001, ANN201
        return round_pb2.PollAssignmentResponse(idle=round_pb2.Idle(retry_after_s=1.5))

    def _unused(self, request, context):  # noqa: ANN001, ANN202
        raise NotImplementedError

    AcceptRound = DeclineRound = ReportProgress = ReportReady = AdvertiseKeys = ShareKeys = Complain = _unused
    ConfirmSurvivors = RevealShares = AcknowledgeResult = GetResult = _unused


@pytest.fixture
def coordinator() -> FlakyCoordinator:
    return FlakyCoordinator()


@pytest_asyncio.fixture
async def client(coordinator: FlakyCoordinator) -> AsyncIterator[CoordinatorClient]:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 5 << 20)])
    round_pb2_grpc.add_RoundServiceServicer_to_server(coordinator, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    yield CoordinatorClient(channel, agent_version="test")
    await channel.close()
    await server.stop(None)


@pytest.fixture
def uploader(client: CoordinatorClient) -> Uploader:
    backoff = Backoff(lambda: 0.0, AT_ONCE)
    return Uploader(client, coordinator_spki=COORDINATOR.spki_der, backoff=backoff, n_attempts=2)


@pytest.fixture
def upload(tmp_path: Path) -> Upload:
    path = tmp_path / "masked.bin"
    path.write_bytes(MASKED)
    return Upload(context=CONTEXT, site_id=SiteId("alpha"), header=HEADER, path=path, n_bytes=len(MASKED))


async def test_upload_unbroken_arrives_once_with_a_receipt(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload
) -> None:
    await uploader.upload(upload)
    assert bytes(coordinator.received) == MASKED
    assert coordinator.offsets == [0]


async def test_upload_broken_twice_resumes_where_the_coordinator_stands(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload
) -> None:
    coordinator.n_failures = 2
    await uploader.upload(upload)
    assert bytes(coordinator.received) == MASKED
    assert len(coordinator.offsets) == 3
    assert coordinator.offsets == sorted(set(coordinator.offsets))
    assert coordinator.headers == {HEADER}


async def test_upload_complete_before_a_crash_sends_no_byte_again(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload
) -> None:
    coordinator.received += MASKED
    await uploader.upload(upload)
    assert coordinator.offsets == []


async def test_upload_that_never_advances_is_given_up(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload
) -> None:
    coordinator.is_broken = True
    with pytest.raises(CoordinatorUnavailableError):
        await uploader.upload(upload)


async def test_upload_after_the_freeze_is_refused_with_the_coordinators_code(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload
) -> None:
    coordinator.is_late = True
    with pytest.raises(CoordinatorRefusedError) as refused:
        await uploader.upload(upload)
    assert (refused.value.refusal_code, refused.value.status) == ("late", "FAILED_PRECONDITION")


async def test_receipt_of_another_key_does_not_end_an_upload(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload
) -> None:
    coordinator.signer = seeded_signer("an impostor")
    with pytest.raises(ReceiptInvalidError):
        await uploader.upload(upload)


async def test_coordinator_that_claims_more_than_was_sent_is_not_believed(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload
) -> None:
    coordinator.claims = len(MASKED) + 1
    with pytest.raises(AnswerInvalidError):
        await uploader.upload(upload)


async def test_download_broken_resumes_and_is_verified(
    coordinator: FlakyCoordinator, client: CoordinatorClient
) -> None:
    coordinator.n_failures = 2
    downloader = Downloader(client, backoff=Backoff(lambda: 0.0, AT_ONCE))
    digest = hashlib.sha256(MASKED).hexdigest()
    assert await downloader.download(RUN_ID, digest, max_bytes=len(MASKED)) == MASKED
    assert coordinator.offsets == [0, 1 << 20, 2 << 20]


async def test_download_of_other_bytes_is_refused(coordinator: FlakyCoordinator, client: CoordinatorClient) -> None:
    coordinator.blob = MASKED[:-1] + b"x"
    downloader = Downloader(client, backoff=Backoff(lambda: 0.0, AT_ONCE))
    with pytest.raises(BlobInvalidError):
        await downloader.download(RUN_ID, hashlib.sha256(MASKED).hexdigest(), max_bytes=len(MASKED))


async def test_download_larger_than_it_may_be_is_cut_off(client: CoordinatorClient) -> None:
    downloader = Downloader(client, backoff=Backoff(lambda: 0.0, AT_ONCE))
    with pytest.raises(BlobInvalidError):
        await downloader.download(RUN_ID, hashlib.sha256(MASKED).hexdigest(), max_bytes=1 << 20)


async def test_poll_answer_is_a_value(client: CoordinatorClient) -> None:
    assert await client.poll_assignment(holding=(), wait_s=0.1) == Idle(retry_after_s=1.5)


async def test_call_to_nobody_is_unavailable() -> None:
    channel = grpc.aio.insecure_channel("127.0.0.1:1")
    with pytest.raises(CoordinatorUnavailableError):
        await CoordinatorClient(channel, agent_version="test").query_upload(CONTEXT)
    await channel.close()
