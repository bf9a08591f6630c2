"""The certificate is changed under calls that go on: an upload ends over the old one, what follows is under the new."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from coordinator.gateway.server import SERVER_OPTIONS
from fl_protocol.testing.entropy import SeededEntropy
from fl_protocol.wire.v1 import round_pb2
from site_agent.link.channel import Keepalive, TlsIdentity
from site_agent.link.client import CoordinatorClient
from site_agent.link.link_channel import LinkChannel, LinkOptions
from site_agent.link.probe import Way
from site_agent.link.transport_choice import Transport, TransportChoice
from tests.support.gateway import KeepingServicer, Pki, running_gateway

VECTOR = SeededEntropy("vector").draw((9 << 20) + 17)


async def upload() -> AsyncIterator[round_pb2.UploadBlobRequest]:
    yield round_pb2.UploadBlobRequest(header=round_pb2.UploadHeader(masked_input=b"header", offset=0))
    for start in range(0, len(VECTOR), 1 << 20):
        data = VECTOR[start : start + (1 << 20)]
        yield round_pb2.UploadBlobRequest(chunk=round_pb2.BlobChunk(offset=start, data=data))


@pytest.mark.parametrize("transport", list(Transport))
async def test_upload_goes_on_while_the_link_is_renewed_and_the_next_call_shows_the_new_certificate(
    transport: Transport,
) -> None:
    pki = Pki()
    servicer = KeepingServicer(slow_s=0.15, n_bytes=len(VECTOR))
    async with running_gateway(pki, servicer, grpc_options=SERVER_OPTIONS) as gateway:

        def options(identity: TlsIdentity) -> LinkOptions:
            grpc = Way(address=gateway.grpc_address, identity=identity, proxy=None)
            http1 = Way(address=gateway.http1_address, identity=identity, proxy=None)
            return LinkOptions(way=grpc, fallback=http1, keepalive=Keepalive())

        # Two names, so that the servicer tells which certificate a call came under.
        link = LinkChannel(
            options(pki.site("before")),
            clock_s=time.monotonic,
            choice=TransportChoice(has_other=True, current=transport),
        )
        client = CoordinatorClient(link, agent_version="test")
        uploading = asyncio.create_task(client.rounds.UploadBlob(upload(), timeout=60.0))
        async with asyncio.timeout(20):
            while len(servicer.held.get("before", b"")) < (1 << 20):  # noqa: ASYNC110 - it happens elsewhere
                await asyncio.sleep(0.02)
        link.renew(options(pki.site("after")))
        asked = await client.rounds.QueryUpload(round_pb2.QueryUploadRequest(), timeout=20.0)
        # The one that asks is another now, and has uploaded nothing.
        assert asked.received_bytes == 0
        assert not uploading.done()
        await uploading
        assert bytes(servicer.held["before"]) == VECTOR
        if transport is Transport.GRPC:
            assert servicer.offsets == [0]
        await link.close()


async def test_connections_of_before_are_closed_once_nothing_is_on_them() -> None:
    pki = Pki()
    servicer = KeepingServicer(poll_s=0.5)
    async with running_gateway(pki, servicer, grpc_options=SERVER_OPTIONS) as gateway:
        way = Way(address=gateway.grpc_address, identity=pki.site("before"), proxy=None)
        link = LinkChannel(LinkOptions(way=way, fallback=None, keepalive=Keepalive()), clock_s=time.monotonic)
        client = CoordinatorClient(link, agent_version="test")
        polling = asyncio.create_task(client.poll_assignment(holding=(), wait_s=0.5))
        await servicer.has_polled.wait()
        link.renew(LinkOptions(way=way, fallback=None, keepalive=Keepalive()))
        assert len(link._closing) == 1
        await polling
        async with asyncio.timeout(10):
            while link._closing:  # noqa: ASYNC110 - it happens elsewhere
                await asyncio.sleep(0.02)
        assert not servicer.was_cancelled.is_set()
        await link.close()
