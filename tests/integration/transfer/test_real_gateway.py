"""Uploads through the real gateway in a process of its own, which is killed, doubled, full and told lies."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest

from benchmarks.transport import Rig, running_rig
from benchmarks.transport_rig import RUN_ID
from coordinator.blobs.filesystem import FilesystemBlobStore
from fl_protocol.signing.signed import SignedBody
from fl_protocol.wire.convert import proto_from_exchange, signed_from_proto
from fl_protocol.wire.v1 import errors_pb2, round_pb2
from site_agent.link.backoff import Backoff, BackoffPlan
from site_agent.link.channel import open_channel
from site_agent.link.client import CoordinatorClient
from site_agent.link.downloader import Downloader
from site_agent.link.refusals import REFUSAL_KEY
from site_agent.link.uploader import Uploader
from tests.support.blob_names import blob_name
from tests.support.relay import Relay

MIB = 1 << 20
N_PARAMETERS = 1_000_000
SOON = BackoffPlan(first_s=0.05, longest_s=0.2)
StartRig = Callable[..., Rig]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator whose exchange is COLLECTING; each test works on a copy."""
    folder = tmp_path_factory.mktemp("rig") / "prepared"
    with running_rig(folder, "--parameters", str(N_PARAMETERS)):
        pass
    return folder


@pytest.fixture
def start_rig(prepared: Path, tmp_path: Path) -> Iterator[StartRig]:
    folder = tmp_path / "rig"
    shutil.copytree(prepared, folder)
    with ExitStack() as running:
        yield lambda *arguments: running.enter_context(running_rig(folder, *arguments))


class CountingRounds:
    """The stub, and what was handed to it to be sent."""

    def __init__(self, rounds: object) -> None:
        self._rounds = rounds
        self.sent: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._rounds, name)

    @property
    def n_bytes(self) -> int:
        return sum(n for _, n in self.sent)

    async def UploadBlob(self, parts, timeout=None):  # noqa: N802, ANN001, ANN201, ASYNC109 # the stub's shape
        async def counted():  # noqa: ANN202
            async for part in parts:
                if part.WhichOneof("part") == "chunk":
                    self.sent.append((part.chunk.offset, len(part.chunk.data)))
                yield part

        return await self._rounds.UploadBlob(counted(), timeout=timeout)


@asynccontextmanager
async def link(rig: Rig, site: str, *, address: str | None = None) -> AsyncIterator[CoordinatorClient]:
    channel = open_channel(address or f"127.0.0.1:{rig.gateway}", rig.identity(site))
    client = CoordinatorClient(channel, agent_version="test")
    client.rounds = CountingRounds(client.rounds)  # type: ignore[assignment]
    yield client
    await channel.close()


def uploader_of(rig: Rig, client: CoordinatorClient, site: str) -> Uploader:
    spki = (rig.folder / "sites" / site / "coordinator.spki").read_bytes()
    return Uploader(client, coordinator_spki=spki, backoff=Backoff(lambda: 0.5, SOON), idle_deadline_s=30)


def masked(rig: Rig, site: str) -> bytes:
    upload = rig.upload(site)
    # Behind the vector are its chunks' leaves.
    return upload.path.read_bytes()[: upload.n_bytes]


def stored(rig: Rig) -> set[str]:
    return set(FilesystemBlobStore(rig.folder / "coordinator" / "blobs").iter_digests())


async def send_raw(
    client: CoordinatorClient,
    rig: Rig,
    site: str,
    *,
    chunks: list[tuple[int, bytes]],
    header: bytes | None = None,
    leaves: bool = True,
    then: asyncio.Event | None = None,
) -> SignedBody:
    """An upload as no honest site would send it; ``then`` keeps the stream open until it is set."""
    upload = rig.upload(site)

    async def parts():  # noqa: ANN202
        exchange = proto_from_exchange(upload.context)
        offset = chunks[0][0] if chunks else 0
        said = round_pb2.UploadHeader(exchange=exchange, masked_input=header or upload.header, offset=offset)
        yield round_pb2.UploadBlobRequest(header=said)
        for start, data in chunks:
            leaf = hashlib.sha256(b"\x00" + masked(rig, site)[start : start + len(data)]).digest() if leaves else b""
            yield round_pb2.UploadBlobRequest(chunk=round_pb2.BlobChunk(offset=start, data=data, leaf_sha256=leaf))
        if then is not None:
            await then.wait()

    answer = await client.rounds.UploadBlob(parts(), timeout=30)
    return signed_from_proto(answer.receipt)


def cut(data: bytes, *, until: int | None = None) -> list[tuple[int, bytes]]:
    end = len(data) if until is None else until
    return [(start, data[start : min(start + MIB, end)]) for start in range(0, end, MIB)]


def code_of(error: grpc.aio.AioRpcError) -> str:
    return next(
        errors_pb2.Refusal.FromString(value).code for key, value in error.trailing_metadata() if key == REFUSAL_KEY
    )


async def held_at_least(client: CoordinatorClient, rig: Rig, site: str, n_bytes: int) -> int:
    async with asyncio.timeout(30):
        while True:
            held = (await client.query_upload(rig.upload(site).context)).received_bytes
            if held >= n_bytes:
                return held
            await asyncio.sleep(0.02)


async def test_upload_ends_with_a_receipt_and_again_with_the_same_one(start_rig: StartRig) -> None:
    rig = start_rig()
    async with link(rig, "site-00") as client:
        receipt = await uploader_of(rig, client, "site-00").upload(rig.upload("site-00"))
        assert client.rounds.n_bytes == rig.n_bytes
        # The receipt was lost: the site asks, and sends nothing.
        assert await uploader_of(rig, client, "site-00").upload(rig.upload("site-00")) == receipt
        assert client.rounds.n_bytes == rig.n_bytes
        # A site that sends all the same is given the same receipt.
        assert await send_raw(client, rig, "site-00", chunks=cut(masked(rig, "site-00"))) == receipt
    assert blob_name(masked(rig, "site-00")) in stored(rig)
    assert list((rig.folder / "coordinator" / "blobs" / "partial").iterdir()) == []


async def test_gateway_killed_in_the_middle_is_sent_only_what_is_missing(start_rig: StartRig) -> None:
    rig = start_rig()
    data, stop = masked(rig, "site-00"), asyncio.Event()
    async with link(rig, "site-00") as client:
        sending = asyncio.create_task(send_raw(client, rig, "site-00", chunks=cut(data, until=2 * MIB), then=stop))
        held = await held_at_least(client, rig, "site-00", 2 * MIB)
        rig.process.send_signal(signal.SIGKILL)
        rig.process.wait()
        with pytest.raises(grpc.aio.AioRpcError):
            await sending
        restarted = start_rig("--port", str(rig.gateway))
        assert restarted.gateway == rig.gateway
        client.rounds.sent.clear()
        await uploader_of(rig, client, "site-00").upload(rig.upload("site-00"))
        assert client.rounds.sent[0][0] == held == 2 * MIB
        assert client.rounds.n_bytes == len(data) - held
    assert blob_name(data) in stored(rig)


async def test_two_gateways_on_one_folder_each_take_half(start_rig: StartRig) -> None:
    rig, other = start_rig(), start_rig()
    data, never = masked(rig, "site-00"), asyncio.Event()
    async with link(rig, "site-00") as client, link(other, "site-00") as beside:
        half = asyncio.create_task(send_raw(client, rig, "site-00", chunks=cut(data, until=2 * MIB), then=never))
        await held_at_least(beside, rig, "site-00", 2 * MIB)
        # The older stream is still open at the other gateway; the newer one wins.
        await uploader_of(other, beside, "site-00").upload(rig.upload("site-00"))
        assert beside.rounds.sent[0][0] == 2 * MIB
        half.cancel()
    assert blob_name(data) in stored(rig)


async def test_newer_stream_of_one_upload_ends_the_older_at_one_gateway(start_rig: StartRig) -> None:
    rig = start_rig("--max-uploads", "1")
    data, never = masked(rig, "site-00"), asyncio.Event()
    async with link(rig, "site-00") as client:
        older = asyncio.create_task(send_raw(client, rig, "site-00", chunks=cut(data, until=MIB), then=never))
        await held_at_least(client, rig, "site-00", MIB)
        # It needs no place of its own: it takes the older one's.
        await uploader_of(rig, client, "site-00").upload(rig.upload("site-00"))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await older
        assert (ended.value.code(), code_of(ended.value)) == (grpc.StatusCode.ABORTED, "upload-taken-over")


async def test_upload_beyond_the_last_place_waits_and_then_arrives(start_rig: StartRig) -> None:
    rig = start_rig("--max-uploads", "1")
    stop = asyncio.Event()
    async with link(rig, "site-00") as first, link(rig, "site-01") as second:
        data = masked(rig, "site-00")
        holding = asyncio.create_task(send_raw(first, rig, "site-00", chunks=cut(data), then=stop))
        await held_at_least(first, rig, "site-00", len(data) - MIB)
        waiting = asyncio.create_task(uploader_of(rig, second, "site-01").upload(rig.upload("site-01")))
        with pytest.raises(grpc.aio.AioRpcError) as busy:
            await send_raw(second, rig, "site-01", chunks=[])
        assert (busy.value.code(), code_of(busy.value)) == (grpc.StatusCode.UNAVAILABLE, "uploads-busy")
        assert not waiting.done()
        stop.set()
        await holding
        await waiting
    assert {blob_name(masked(rig, site)) for site in ("site-00", "site-01")} <= stored(rig)


@pytest.mark.parametrize("chunk", [0, 2, 3])
async def test_altered_chunk_is_refused_and_everything_before_it_is_held(start_rig: StartRig, chunk: int) -> None:
    rig = start_rig()
    data = masked(rig, "site-00")
    bad = cut(data)
    bad[chunk] = (chunk * MIB, bytes([bad[chunk][1][0] ^ 1]) + bad[chunk][1][1:])
    async with link(rig, "site-00") as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await send_raw(client, rig, "site-00", chunks=bad)
        assert code_of(refused.value) == "chunk-altered"
        client.rounds.sent.clear()
        await uploader_of(rig, client, "site-00").upload(rig.upload("site-00"))
        assert client.rounds.sent[0][0] == chunk * MIB


async def test_site_of_the_last_version_without_chunk_digests_is_served_and_its_altered_bytes_are_not_counted(
    start_rig: StartRig,
) -> None:
    rig = start_rig()
    data = masked(rig, "site-00")
    async with link(rig, "site-00") as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await send_raw(client, rig, "site-00", chunks=cut(data[:-1] + bytes([data[-1] ^ 1])), leaves=False)
        assert code_of(refused.value) == "upload-altered"
        assert (await client.query_upload(rig.upload("site-00").context)).received_bytes == 0
        await send_raw(client, rig, "site-00", chunks=cut(data), leaves=False)
    assert blob_name(data) in stored(rig)


async def test_other_content_under_another_header_of_the_same_site_is_refused(start_rig: StartRig) -> None:
    rig = start_rig()
    async with link(rig, "site-00") as client:
        await uploader_of(rig, client, "site-00").upload(rig.upload("site-00"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await send_raw(client, rig, "site-00", chunks=[], header=rig.upload("site-01").header)
        assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize("cut_after", [100_000, MIB + 5, 2 * MIB, 3 * MIB + 77])
async def test_line_that_breaks_anywhere_costs_little(start_rig: StartRig, cut_after: int) -> None:
    rig = start_rig()
    with Relay(f"127.0.0.1:{rig.gateway}", cut_after_bytes=cut_after) as relay:
        async with link(rig, "site-00", address=relay.address) as client:
            sending = asyncio.create_task(uploader_of(rig, client, "site-00").upload(rig.upload("site-00")))
            await asyncio.to_thread(relay.wait_for, lambda seen: seen.n_connections > 1)
            relay.cut_after_bytes = None
            await sending
    starts = [offset for offset, _ in client.rounds.sent]
    assert starts[-1] == (rig.n_bytes - 1) // MIB * MIB
    assert blob_name(masked(rig, "site-00")) in stored(rig)


async def test_initial_state_comes_down_through_a_file_and_resumes(start_rig: StartRig, tmp_path: Path) -> None:
    rig = start_rig()
    blob = FilesystemBlobStore(rig.folder / "coordinator" / "blobs").read(rig.initial_sha256)
    folder = tmp_path / "downloads"
    folder.mkdir(mode=0o700)
    (folder / f"{rig.initial_sha256}.part").write_bytes(blob[: MIB + 3])
    async with link(rig, "site-00") as client:
        downloader = Downloader(client, backoff=Backoff(lambda: 0.5, SOON), folder=folder, in_memory_bytes=0)
        assert await downloader.download(RUN_ID, rig.initial_sha256, max_bytes=len(blob)) == blob


async def test_full_disk_holds_an_upload_up_until_it_is_freed(start_rig: StartRig) -> None:
    """The limit is set on the running gateway, as a full disk would come over it."""
    rig = start_rig()
    hard = resource.prlimit(rig.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(rig.process.pid, resource.RLIMIT_FSIZE, (2 * MIB + 5, hard))
    async with link(rig, "site-00") as client:
        sending = asyncio.create_task(uploader_of(rig, client, "site-00").upload(rig.upload("site-00")))
        assert await held_at_least(client, rig, "site-00", 2 * MIB) == 2 * MIB
        await asyncio.sleep(0.5)
        assert not sending.done()
        resource.prlimit(rig.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        await sending
    assert blob_name(masked(rig, "site-00")) in stored(rig)
