"""Uploads and downloads against a real gRPC server on loopback that fails in the middle."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
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
    DownloadDiskError,
    ReceiptInvalidError,
    TransferIdleError,
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
IDLE_S = 1.0
MIB = 1 << 20


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
        self.flips: set[int] = set()
        self.n_busy = 0
        self.n_stalls = 0
        self.sends_leaves = True
        self.sends_prefixes = False
        self.n_queries = 0

    def receipt(self) -> bytes:
        digest = hashlib.sha256(HEADER).digest()
        return pack(CONTEXT.encode(), b"alpha", digest, u64(len(self.received)), bytes(32), b"2026-01-02T03:04:05Z")

    async def QueryUpload(self, request, context):  # noqa: N802, ANN001, ANN201
        self.n_queries += 1
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
        if self.n_busy:
            self.n_busy -= 1
            await self.refuse(context, grpc.StatusCode.UNAVAILABLE, "uploads-busy", {"retry_after_s": "0.01"})
        if self.is_broken:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
        self.headers.add(first.header.masked_input)
        self.offsets.append(first.header.offset)
        assert first.header.offset == len(self.received)
        async for part in request_iterator:
            assert part.chunk.offset == len(self.received)
            data = bytearray(part.chunk.data)
            if part.chunk.offset in self.flips:
                self.flips.discard(part.chunk.offset)
                data[len(data) // 2] ^= 1
            if hashlib.sha256(b"\x00" + data).digest() != part.chunk.leaf_sha256:
                await self.refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "chunk-altered", {})
            self.received += data
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
            leaf = hashlib.sha256(b"\x00" + data).digest() if self.sends_leaves else b""
            if start in self.flips:
                self.flips.discard(start)
                data = bytes([data[0] ^ 1]) + data[1:]
            if self.n_stalls:
                self.n_stalls -= 1
                await asyncio.sleep(60)
            chunk = round_pb2.BlobChunk(offset=start, data=data, leaf_sha256=leaf)
            if self.sends_prefixes:
                prefix = hashlib.sha256(self.blob[: start + (1 << 20)]).digest()
                chunk = round_pb2.BlobChunk(offset=start, data=data, prefix_sha256=prefix)
            yield round_pb2.DownloadBlobResponse(chunk=chunk)

    async def refuse(self, context, status, code, facts):  # noqa: ANN001, ANN201
        refusal = errors_pb2.Refusal(code=code, message=code, facts=facts)
        await context.abort(status, code, trailing_metadata=((REFUSAL_KEY, refusal.SerializeToString()),))

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
    return Uploader(client, coordinator_spki=COORDINATOR.spki_der, backoff=backoff, idle_deadline_s=IDLE_S)


@pytest.fixture
def downloader(client: CoordinatorClient, tmp_path: Path) -> Downloader:
    return downloader_in(tmp_path, client)


def downloader_in(folder: Path, client: CoordinatorClient) -> Downloader:
    backoff = Backoff(lambda: 0.0, AT_ONCE)
    return Downloader(
        client, backoff=backoff, folder=folder / "downloads", idle_deadline_s=IDLE_S, in_memory_bytes=1 << 18
    )


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


async def test_upload_that_was_masked_just_now_begins_unasked_and_asks_after_a_break(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload
) -> None:
    new = replace(upload, is_new=True)
    await uploader.upload(new)
    assert (coordinator.n_queries, coordinator.offsets) == (0, [0])
    coordinator.received.clear()
    coordinator.offsets.clear()
    coordinator.n_failures = 1
    await uploader.upload(new)
    assert bytes(coordinator.received) == MASKED
    assert coordinator.n_queries == 1
    assert len(coordinator.offsets) == 2
    assert coordinator.offsets[1] > 0


async def test_upload_complete_before_a_crash_sends_no_byte_again(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload
) -> None:
    coordinator.received += MASKED
    await uploader.upload(upload)
    assert coordinator.offsets == []


async def test_upload_without_a_new_byte_is_given_up_after_the_idle_deadline_and_may_be_taken_up_again(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload
) -> None:
    coordinator.is_broken = True
    began = time.monotonic()
    with pytest.raises(TransferIdleError):
        await uploader.upload(upload)
    assert IDLE_S * 0.8 < time.monotonic() - began < 20 * IDLE_S
    coordinator.is_broken = False
    await uploader.upload(upload)
    assert bytes(coordinator.received) == MASKED


@pytest.mark.parametrize("chunk", range(4))
async def test_flipped_bit_in_a_chunk_costs_that_chunk(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload, chunk: int
) -> None:
    coordinator.flips = {chunk * MIB}
    await uploader.upload(upload)
    assert bytes(coordinator.received) == MASKED
    assert coordinator.offsets == [0, chunk * MIB]


@pytest.mark.parametrize("held", [MIB, 2 * MIB, 3 * MIB, 1, MIB - 1, MIB + 7, len(MASKED) - 1])
async def test_upload_goes_on_at_any_offset_and_sends_only_what_is_missing(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload, held: int
) -> None:
    coordinator.received += MASKED[:held]
    await uploader.upload(upload)
    assert bytes(coordinator.received) == MASKED
    assert coordinator.offsets == [held]


async def test_busy_coordinator_is_neither_failure_nor_death(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload
) -> None:
    coordinator.n_busy = 300  # three seconds of waiting at least, against an idle deadline of one
    began = time.monotonic()
    await uploader.upload(upload)
    assert time.monotonic() - began > IDLE_S
    assert bytes(coordinator.received) == MASKED


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


async def test_download_broken_resumes_and_is_verified(coordinator: FlakyCoordinator, downloader: Downloader) -> None:
    coordinator.n_failures = 2
    digest = hashlib.sha256(MASKED).hexdigest()
    assert await downloader.download(RUN_ID, digest, max_bytes=len(MASKED)) == MASKED
    assert coordinator.offsets == [0, 1 << 20, 2 << 20]


async def test_download_of_other_bytes_is_thrown_away_and_refused(
    coordinator: FlakyCoordinator, downloader: Downloader, tmp_path: Path
) -> None:
    coordinator.blob = MASKED[:-1] + b"x"
    with pytest.raises(BlobInvalidError):
        await downloader.download(RUN_ID, hashlib.sha256(MASKED).hexdigest(), max_bytes=len(MASKED))
    assert list((tmp_path / "downloads").iterdir()) == []


async def test_download_larger_than_it_may_be_is_cut_off(downloader: Downloader) -> None:
    with pytest.raises(BlobInvalidError):
        await downloader.download(RUN_ID, hashlib.sha256(MASKED).hexdigest(), max_bytes=1 << 20)


async def test_download_is_resumed_by_another_process_where_it_ended(
    coordinator: FlakyCoordinator, client: CoordinatorClient, tmp_path: Path
) -> None:
    digest = hashlib.sha256(MASKED).hexdigest()
    folder = tmp_path / "downloads"
    folder.mkdir(mode=0o700)
    (folder / f"{digest}.part").write_bytes(MASKED[: 2 * MIB])
    assert await downloader_in(tmp_path, client).download(RUN_ID, digest, max_bytes=len(MASKED)) == MASKED
    assert coordinator.offsets == [2 * MIB]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("sends_prefixes", [False, True])
async def test_download_over_what_a_crash_damaged_is_thrown_away_and_begins_anew(
    coordinator: FlakyCoordinator, client: CoordinatorClient, tmp_path: Path, *, sends_prefixes: bool
) -> None:
    coordinator.sends_prefixes = sends_prefixes
    digest = hashlib.sha256(MASKED).hexdigest()
    folder = tmp_path / "downloads"
    folder.mkdir(mode=0o700)
    (folder / f"{digest}.part").write_bytes(bytes(2 * MIB))
    with pytest.raises(BlobInvalidError):
        await downloader_in(tmp_path, client).download(RUN_ID, digest, max_bytes=len(MASKED))
    assert await downloader_in(tmp_path, client).download(RUN_ID, digest, max_bytes=len(MASKED)) == MASKED
    assert coordinator.offsets == [2 * MIB, 0]


@pytest.mark.parametrize("sends_prefixes", [False, True])
@pytest.mark.parametrize("chunk", range(4))
async def test_download_asks_again_for_a_chunk_that_was_altered(
    coordinator: FlakyCoordinator, downloader: Downloader, chunk: int, *, sends_prefixes: bool
) -> None:
    coordinator.flips = {chunk * MIB}
    coordinator.sends_prefixes = sends_prefixes
    digest = hashlib.sha256(MASKED).hexdigest()
    assert await downloader.download(RUN_ID, digest, max_bytes=len(MASKED)) == MASKED
    assert coordinator.offsets == [0, chunk * MIB]


async def test_coordinator_of_the_last_version_sends_no_chunk_digests_and_is_understood(
    coordinator: FlakyCoordinator, downloader: Downloader
) -> None:
    coordinator.sends_leaves = False
    digest = hashlib.sha256(MASKED).hexdigest()
    assert await downloader.download(RUN_ID, digest, max_bytes=len(MASKED)) == MASKED


async def test_prefixes_of_another_blob_do_not_make_its_bytes_the_ones_that_were_named(
    coordinator: FlakyCoordinator, downloader: Downloader, tmp_path: Path
) -> None:
    coordinator.blob = MASKED[:-1] + b"x"
    coordinator.sends_prefixes = True
    with pytest.raises(BlobInvalidError):
        await downloader.download(RUN_ID, hashlib.sha256(MASKED).hexdigest(), max_bytes=len(MASKED))
    assert list((tmp_path / "downloads").iterdir()) == []


def leaves_of(data: bytes) -> bytes:
    return b"".join(hashlib.sha256(b"\x00" + data[at : at + MIB]).digest() for at in range(0, len(data), MIB))


async def test_leaves_behind_the_vector_are_sent_and_are_no_part_of_it(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload
) -> None:
    upload.path.write_bytes(MASKED + leaves_of(MASKED))
    await uploader.upload(upload)
    assert bytes(coordinator.received) == MASKED


async def test_leaves_that_are_damaged_cost_one_attempt_and_nothing_else(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload
) -> None:
    """The coordinator refuses the chunk by its own leaf; the next attempt takes each leaf from the bytes."""
    good = leaves_of(MASKED)
    upload.path.write_bytes(MASKED + good[:32] + bytes(32) + good[64:])
    await uploader.upload(upload)
    assert bytes(coordinator.received) == MASKED
    assert coordinator.offsets == [0, MIB]


@pytest.mark.parametrize("behind", [b"x", leaves_of(MASKED)[:-1], leaves_of(MASKED) + b"x"])
async def test_bytes_behind_the_vector_that_are_no_leaves_are_not_sent(
    coordinator: FlakyCoordinator, uploader: Uploader, upload: Upload, behind: bytes
) -> None:
    upload.path.write_bytes(MASKED + behind)
    await uploader.upload(upload)
    assert bytes(coordinator.received) == MASKED


async def test_download_on_an_open_line_without_a_byte_is_cut_and_resumed(
    coordinator: FlakyCoordinator, client: CoordinatorClient, tmp_path: Path
) -> None:
    coordinator.n_stalls = 1
    digest = hashlib.sha256(MASKED).hexdigest()
    downloader = downloader_in(tmp_path, client)
    with pytest.raises(TransferIdleError):
        await downloader.download(RUN_ID, digest, max_bytes=len(MASKED))
    assert await downloader.download(RUN_ID, digest, max_bytes=len(MASKED)) == MASKED


async def test_full_disk_at_the_site_is_said_and_what_came_is_kept(
    downloader: Downloader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digest = hashlib.sha256(MASKED).hexdigest()
    real_pwrite = os.pwrite

    def pwrite(file: int, data: memoryview, offset: int) -> int:
        if offset >= 2 * MIB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_pwrite(file, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(DownloadDiskError):
            await downloader.download(RUN_ID, digest, max_bytes=len(MASKED))
    assert (tmp_path / "downloads" / f"{digest}.part").stat().st_size == 2 * MIB
    assert await downloader.download(RUN_ID, digest, max_bytes=len(MASKED)) == MASKED


async def test_poll_answer_is_a_value(client: CoordinatorClient) -> None:
    assert await client.poll_assignment(holding=(), wait_s=0.1) == Idle(retry_after_s=1.5)


async def test_call_to_nobody_is_unavailable() -> None:
    channel = grpc.aio.insecure_channel("127.0.0.1:1")
    with pytest.raises(CoordinatorUnavailableError):
        await CoordinatorClient(channel, agent_version="test").query_upload(CONTEXT)
    await channel.close()
