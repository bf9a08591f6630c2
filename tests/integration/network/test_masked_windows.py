"""The chunks of a window over either transport: in one call, chunk by chunk from an older coordinator, never half."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest

from coordinator.errors import DatabaseUnavailableError, NotFoundError
from fl_protocol.ids import RunId, SiteId
from fl_protocol.secagg.reexecution import MaskedChunk
from fl_protocol.testing.entropy import SeededEntropy
from fl_protocol.wire.v1 import round_pb2
from site_agent.errors import CoordinatorRefusedError, CoordinatorUnavailableError
from site_agent.link.channel import open_channel
from site_agent.link.client import CoordinatorClient, ShownChunk
from site_agent.link.http1_channel import Http1Channel
from tests.support.gateway import Gateway, KeepingServicer, Pki, running_gateway

RUN_ID = RunId("run-" + "b" * 26)
SITES = (SiteId("alpha"), SiteId("beta"), SiteId("gamma"))
CHUNKS = range(3, 5)


def chunk_of(site: str, index: int) -> MaskedChunk:
    """A mebibyte, and a path of two nodes."""
    noise = SeededEntropy(f"{site}/{index}").draw((1 << 20) + 64)
    return MaskedChunk(data=noise[64:], path=(noise[:32], noise[32:64]))


@dataclass
class ShowingServicer(KeepingServicer):
    """Shows made up chunks, and counts what it is asked."""

    asked: Counter[str] = field(default_factory=Counter)
    ends_with: Exception | None = None
    """What happens after the first chunk of a window."""
    aborts_with: grpc.StatusCode | None = None

    async def GetMaskedWindow(self, request, context):  # noqa: N802, ANN001, ANN201
        self.asked["window"] += 1
        for site in SITES:
            for index in range(request.first_chunk, request.first_chunk + request.n_chunks):
                chunk = chunk_of(site, index)
                yield round_pb2.GetMaskedWindowResponse(
                    site_id=site, chunk_index=index, data=chunk.data, path=chunk.path
                )
                if self.ends_with is not None:
                    raise self.ends_with
                if self.aborts_with is not None:
                    await context.abort(self.aborts_with, "no")

    async def GetMaskedChunk(self, request, context):  # noqa: N802, ANN001, ANN201
        self.asked["chunk"] += 1
        chunk = chunk_of(request.site_id, request.chunk_index)
        return round_pb2.GetMaskedChunkResponse(data=chunk.data, path=chunk.path)


@asynccontextmanager
async def showing(
    transport: str, *, unknown_calls: Collection[str] = ()
) -> AsyncIterator[tuple[CoordinatorClient, ShowingServicer]]:
    pki = Pki()
    gateway: Gateway[ShowingServicer]
    async with running_gateway(pki, ShowingServicer(), unknown_calls=unknown_calls) as gateway:
        identity = pki.site("st-mary")
        if transport == "grpc":
            channel = open_channel(gateway.grpc_address, identity)
        else:
            channel = Http1Channel(gateway.http1_address, identity)
        yield CoordinatorClient(channel, agent_version="test"), gateway.servicer
        await channel.close()


async def window(client: CoordinatorClient) -> list[ShownChunk]:
    return [shown async for shown in client.get_masked_window(RUN_ID, 7, of_sites=SITES, chunks=CHUNKS)]


EXPECTED = [
    ShownChunk(site_id=site, chunk_index=index, chunk=chunk_of(site, index)) for site in SITES for index in CHUNKS
]


@pytest.mark.parametrize("transport", ["grpc", "http1"])
async def test_window_comes_in_one_call(transport: str) -> None:
    async with showing(transport) as (client, servicer):
        assert await window(client) == EXPECTED
    assert servicer.asked == {"window": 1}


@pytest.mark.parametrize("transport", ["grpc", "http1"])
async def test_coordinator_that_knows_no_windows_is_asked_chunk_by_chunk(transport: str) -> None:
    async with showing(transport, unknown_calls=["GetMaskedWindow"]) as (client, servicer):
        assert await window(client) == EXPECTED
    assert servicer.asked == {"chunk": len(EXPECTED)}


@pytest.mark.parametrize("transport", ["grpc", "http1"])
@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (DatabaseUnavailableError("the database went away"), CoordinatorUnavailableError),
        (NotFoundError("scrubbed meanwhile"), CoordinatorRefusedError),
    ],
)
async def test_window_that_breaks_off_is_an_error_and_not_a_shorter_one(
    transport: str, ending: Exception, expected: type[Exception]
) -> None:
    async with showing(transport) as (client, servicer):
        servicer.ends_with = ending
        with pytest.raises(expected):
            await window(client)
    assert servicer.asked == {"window": 1}


async def test_window_that_breaks_off_as_if_it_were_unknown_is_not_begun_anew() -> None:
    async with showing("grpc") as (client, servicer):
        servicer.aborts_with = grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(CoordinatorRefusedError):
            await window(client)
    assert servicer.asked == {"window": 1}


@pytest.mark.parametrize("transport", ["grpc", "http1"])
async def test_whoever_has_seen_enough_of_a_window_lets_go_of_it(transport: str) -> None:
    async with showing(transport) as (client, servicer):
        shown = client.get_masked_window(RUN_ID, 7, of_sites=SITES, chunks=CHUNKS)
        assert await anext(shown) == EXPECTED[0]
        await shown.aclose()
        assert await window(client) == EXPECTED
    assert servicer.asked == {"window": 2}
