"""A stream lasts as long as it moves, and no longer; through the real listener, with a short idle deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest

from coordinator.gateway import interceptors
from fl_protocol.wire.v1 import errors_pb2, round_pb2, round_pb2_grpc
from site_agent.link.channel import open_channel
from site_agent.link.refusals import REFUSAL_KEY
from tests.support.gateway import KeepingServicer, Pki, running_gateway

IDLE_S = 1.5
N_CHUNKS = 8


@pytest.fixture(autouse=True)
def _short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptors, "STREAM_TIMEOUT_S", IDLE_S)


async def parts(*, pause_s: float, then_s: float = 0.0) -> AsyncIterator[round_pb2.UploadBlobRequest]:
    yield round_pb2.UploadBlobRequest(header=round_pb2.UploadHeader(masked_input=b"header"))
    for number in range(N_CHUNKS):
        await asyncio.sleep(pause_s)
        yield round_pb2.UploadBlobRequest(chunk=round_pb2.BlobChunk(offset=number, data=b"x"))
    await asyncio.sleep(then_s)


async def test_slow_upload_outlasts_the_deadline_and_a_silent_one_is_cut() -> None:
    pki = Pki()
    servicer = KeepingServicer(n_bytes=N_CHUNKS)
    async with running_gateway(pki, servicer) as gateway:
        channel = open_channel(gateway.grpc_address, pki.site("alpha"))
        stub = round_pb2_grpc.RoundServiceStub(channel)
        began = asyncio.get_running_loop().time()
        await stub.UploadBlob(parts(pause_s=IDLE_S / 4))
        assert asyncio.get_running_loop().time() - began > IDLE_S * 1.5
        assert bytes(servicer.held["alpha"]) == b"x" * N_CHUNKS
        await channel.close()

        channel = open_channel(gateway.grpc_address, pki.site("beta"))
        stub = round_pb2_grpc.RoundServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            await stub.UploadBlob(parts(pause_s=0.0, then_s=60.0), timeout=30)
        assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
        refusal = dict(cut.value.trailing_metadata())[REFUSAL_KEY]
        assert errors_pb2.Refusal.FromString(refusal).code == "stream-idle"
        assert bytes(servicer.held["beta"]) == b"x" * N_CHUNKS
        await channel.close()


async def test_slow_download_outlasts_the_deadline() -> None:
    pki = Pki()
    servicer = KeepingServicer(blob=bytes(N_CHUNKS << 20), slow_s=IDLE_S / 4)
    async with running_gateway(pki, servicer) as gateway:
        channel = open_channel(gateway.grpc_address, pki.site("alpha"))
        stub = round_pb2_grpc.RoundServiceStub(channel)
        n_bytes = 0
        async for answer in stub.DownloadBlob(round_pb2.DownloadBlobRequest(run_id="run", sha256="0" * 64)):
            n_bytes += len(answer.chunk.data)
        assert n_bytes == N_CHUNKS << 20
        await channel.close()
