"""The link over bad networks: silence, ageing connections, pings, proxies, and a middlebox that breaks HTTP/2."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from coordinator.gateway.server import SERVER_OPTIONS
from fl_protocol.testing.entropy import SeededEntropy
from fl_protocol.wire.v1 import round_pb2
from site_agent.errors import CoordinatorRefusedError, CoordinatorUnavailableError
from site_agent.link.channel import Keepalive, TlsIdentity, open_channel
from site_agent.link.client import CoordinatorClient
from site_agent.link.link_channel import LinkChannel, LinkOptions
from site_agent.link.probe import Way
from site_agent.link.proxy import ProxyCredentials, ProxyRoute
from site_agent.link.refusals import typed_errors
from site_agent.link.transport_choice import Transport
from tests.support.gateway import Gateway, KeepingServicer, Pki, running_gateway
from tests.support.relay import ConnectProxy, Http2Breaker, Relay

VECTOR = SeededEntropy("vector").draw((9 << 20) + 17)
QUICK = Keepalive(time_s=1.0, timeout_s=4.0)


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


@pytest_asyncio.fixture
async def gateway(pki: Pki) -> AsyncIterator[Gateway]:
    async with running_gateway(pki, KeepingServicer(), grpc_options=SERVER_OPTIONS) as running:
        yield running


@asynccontextmanager
async def client_over(
    address: str, identity: TlsIdentity, *, proxy: ProxyRoute | None = None, keepalive: Keepalive = QUICK
) -> AsyncIterator[CoordinatorClient]:
    channel = open_channel(address, identity, proxy=proxy, keepalive=keepalive)
    try:
        yield CoordinatorClient(channel, agent_version="test")
    finally:
        await channel.close()


async def poll(client: CoordinatorClient, wait_s: float = 0.0) -> None:
    await client.poll_assignment(holding=(), wait_s=wait_s)


async def has_polled(client: CoordinatorClient) -> bool:
    try:
        await poll(client)
    except CoordinatorUnavailableError:
        return False
    return True


async def eventually(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for happens elsewhere
            await asyncio.sleep(0.02)


async def upload_from(offset: int) -> AsyncIterator[round_pb2.UploadBlobRequest]:
    yield round_pb2.UploadBlobRequest(header=round_pb2.UploadHeader(masked_input=b"header", offset=offset))
    for start in range(offset, len(VECTOR), 1 << 20):
        data = VECTOR[start : start + (1 << 20)]
        yield round_pb2.UploadBlobRequest(chunk=round_pb2.BlobChunk(offset=start, data=data))


async def test_path_that_goes_silent_in_a_poll_is_noticed_by_the_keepalive_and_dialled_anew(
    pki: Pki, gateway: Gateway
) -> None:
    gateway.servicer.poll_s = 60.0
    with Relay(gateway.grpc_address) as relay:
        async with client_over(relay.address, pki.site("st-mary")) as client:
            polling = asyncio.create_task(poll(client, 60.0))
            await asyncio.wait_for(gateway.servicer.has_polled.wait(), 10)
            relay.freeze()
            frozen_at = time.monotonic()
            with pytest.raises(CoordinatorUnavailableError):
                await polling
                # A second until the ping, four for its answer, and time for a busy machine: the poll has 75 s,
                # and gRPC's own patience would be a minute.
            assert time.monotonic() - frozen_at < 25.0
            gateway.servicer.poll_s = 0.0
            # A call may still be given to the connection that is on its way out; the agent asks again.
            async with asyncio.timeout(20):
                while not await has_polled(client):  # noqa: ASYNC110 - what is waited for happens elsewhere
                    await asyncio.sleep(0.2)
        assert relay.n_connections >= 2


# gRPC sends pings no more often than once a second; the third strike of its default ends a connection.
PINGS = Keepalive(time_s=1.0, timeout_s=5.0)
IN_PROPORTION = (("grpc.keepalive_permit_without_calls", 1), ("grpc.http2.min_ping_interval_without_data_ms", 667))
"""The gateway's 20 s to the site's 30 s, without the forgiveness that the gateway has besides."""


@pytest.mark.parametrize("options", [SERVER_OPTIONS, IN_PROPORTION], ids=["gateway", "in-proportion"])
async def test_pings_through_a_long_idle_poll_are_not_too_many(pki: Pki, options: tuple[tuple[str, int], ...]) -> None:
    async with running_gateway(pki, KeepingServicer(poll_s=8.0), grpc_options=options) as gateway:
        with Relay(gateway.grpc_address) as relay:
            async with client_over(relay.address, pki.site("st-mary"), keepalive=PINGS) as client:
                await poll(client, 60.0)
                gateway.servicer.poll_s = 0.0
                await poll(client)
            assert relay.n_connections == 1


async def test_the_same_pings_are_too_many_for_a_server_that_was_not_told(pki: Pki) -> None:
    """What the test above would see without the gateway's options."""
    async with (
        running_gateway(pki, KeepingServicer(poll_s=8.0)) as gateway,
        client_over(gateway.grpc_address, pki.site("st-mary"), keepalive=PINGS) as client,
    ):
        with pytest.raises((CoordinatorUnavailableError, CoordinatorRefusedError)):
            await poll(client, 60.0)


async def test_connection_that_has_grown_old_breaks_neither_upload_nor_poll(pki: Pki) -> None:
    options = (
        *(each for each in SERVER_OPTIONS if "connection_age" not in each[0]),
        ("grpc.max_connection_age_ms", 500),
        ("grpc.max_connection_age_grace_ms", 60_000),
    )
    servicer = KeepingServicer(n_bytes=len(VECTOR), slow_s=0.2, poll_s=2.0)
    async with running_gateway(pki, servicer, grpc_options=options) as gateway:
        with Relay(gateway.grpc_address) as relay:
            async with client_over(relay.address, pki.site("st-mary"), keepalive=Keepalive()) as client:
                polling = asyncio.create_task(poll(client, 60.0))
                with typed_errors("UploadBlob"):
                    await client.rounds.UploadBlob(upload_from(0), timeout=60.0)
                await polling
                for _ in range(3):
                    await poll(client)
            assert bytes(servicer.held["st-mary"]) == VECTOR
            assert servicer.offsets == [0]
            assert relay.n_connections > 1


@pytest.mark.parametrize("credentials", [None, ProxyCredentials(user="st-mary", password="s3:cr€t@/%")])
async def test_grpc_goes_through_a_proxy_whatever_no_proxy_says(
    pki: Pki, gateway: Gateway, credentials: ProxyCredentials | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("no_grpc_proxy", "127.0.0.1")
    gateway.servicer.n_bytes = len(VECTOR)
    port = int(gateway.grpc_address.rpartition(":")[2])
    expected = None if credentials is None else f"{credentials.user}:{credentials.password}"
    with ConnectProxy({port}, credentials=expected) as proxy:
        host, _, proxy_port = proxy.address.rpartition(":")
        route = ProxyRoute(host=host, port=int(proxy_port), credentials=credentials)
        async with client_over(gateway.grpc_address, pki.site("st-mary"), proxy=route) as client:
            await poll(client)
            await client.rounds.UploadBlob(upload_from(0), timeout=60.0)
        assert proxy.requests == [f"CONNECT {gateway.grpc_address} HTTP/1.1"]


async def test_grpc_looks_at_no_environment_of_its_own(
    pki: Pki, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    async with client_over(gateway.grpc_address, pki.site("st-mary")) as client:
        await poll(client)


@pytest.mark.parametrize(
    ("credentials", "allows", "fault"), [("a:b", True, "proxy-credentials"), (None, False, "proxy-forbids")]
)
async def test_proxy_that_says_no_to_grpc_is_told_by_name(
    pki: Pki, gateway: Gateway, credentials: str | None, allows: bool, fault: str
) -> None:
    port = int(gateway.grpc_address.rpartition(":")[2])
    with ConnectProxy({port if allows else 1}, credentials=credentials) as proxy:
        host, _, proxy_port = proxy.address.rpartition(":")
        route = ProxyRoute(host=host, port=int(proxy_port))
        async with client_over(gateway.grpc_address, pki.site("st-mary"), proxy=route) as client:
            with pytest.raises(CoordinatorUnavailableError) as failed:
                await poll(client)
    assert failed.value.facts["fault"] == fault


@asynccontextmanager
async def link_over(
    gateway_address: str, fallback_address: str | None, identity: TlsIdentity, *, speed: float = 1.0
) -> AsyncIterator[tuple[LinkChannel, CoordinatorClient]]:
    def way(address: str) -> Way:
        return Way(address=address, identity=identity, proxy=None)

    options = LinkOptions(
        way=way(gateway_address),
        fallback=None if fallback_address is None else way(fallback_address),
        keepalive=Keepalive(),
        turn_s=0.1,
    )
    link = LinkChannel(options, clock_s=lambda: time.monotonic() * speed)
    keeping = asyncio.create_task(link.keep())
    try:
        yield link, CoordinatorClient(link, agent_version="test")
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await link.close()


async def test_broken_http2_is_seen_at_the_first_failure_and_the_log_says_so(pki: Pki, gateway: Gateway) -> None:
    gateway.servicer.n_bytes, gateway.servicer.blob = len(VECTOR), VECTOR
    with Http2Breaker(gateway.grpc_address) as breaker, capture_logs() as logs:
        async with link_over(breaker.address, gateway.http1_address, pki.site("st-mary")) as (link, client):
            with pytest.raises(CoordinatorUnavailableError):
                await poll(client)
            await eventually(lambda: link.transport is Transport.HTTP1)
            await poll(client)
            await client.rounds.UploadBlob(upload_from(0), timeout=60.0)
            request = round_pb2.DownloadBlobRequest()
            got = [a.chunk.data async for a in client.rounds.DownloadBlob(request, timeout=60.0)]
            assert b"".join(got) == VECTOR
    said = [entry for entry in logs if entry["event"] == "transport_changed"]
    assert [(entry["from"], entry["to"], entry["reason"]) for entry in said] == [("grpc", "http/1.1", "http2-broken")]
    assert bytes(gateway.servicer.held["st-mary"]) == VECTOR


async def test_grpc_that_is_dead_for_long_is_left_and_taken_up_again(pki: Pki, gateway: Gateway) -> None:
    with Relay(gateway.grpc_address) as relay, capture_logs() as logs:
        relay.refuse()
        # The link's twenty seconds pass in two.
        async with link_over(relay.address, gateway.http1_address, pki.site("st-mary"), speed=10.0) as (link, client):

            async def poll_until(transport: Transport) -> None:
                async with asyncio.timeout(60):
                    while link.transport is not transport:
                        with contextlib.suppress(CoordinatorUnavailableError):
                            await poll(client)
                        await asyncio.sleep(0.1)

            began = time.monotonic()
            await poll_until(Transport.HTTP1)
            assert time.monotonic() - began >= 2.0
            await poll(client)
    # Where a reset is met, in the connection or in the handshake, is a matter of microseconds.
    (reason,) = [entry["reason"] for entry in logs if entry["event"] == "transport_changed"]
    assert reason in {"unreachable", "tls-ends"}


async def test_link_returns_to_grpc_when_it_works_again(pki: Pki, gateway: Gateway) -> None:
    with Http2Breaker(gateway.grpc_address) as breaker, capture_logs() as logs:
        async with link_over(breaker.address, gateway.http1_address, pki.site("st-mary"), speed=200.0) as (
            link,
            client,
        ):
            with pytest.raises(CoordinatorUnavailableError):
                await poll(client)
            await eventually(lambda: link.transport is Transport.HTTP1)
            breaker.is_breaking = False
            await eventually(lambda: link.transport is Transport.GRPC)
            await poll(client)
    changes = [(entry["to"], entry["reason"]) for entry in logs if entry["event"] == "transport_changed"]
    assert changes == [("http/1.1", "http2-broken"), ("grpc", "grpc-works-again")]


async def test_coordinator_that_is_away_changes_nothing(pki: Pki, gateway: Gateway) -> None:
    with Relay(gateway.grpc_address) as grpc_way, Relay(gateway.http1_address) as http1_way, capture_logs() as logs:
        grpc_way.refuse()
        http1_way.refuse()
        async with link_over(grpc_way.address, http1_way.address, pki.site("st-mary"), speed=50.0) as (link, client):
            for _ in range(6):
                with pytest.raises(CoordinatorUnavailableError):
                    await poll(client)
                await asyncio.sleep(0.3)
            assert link.transport is Transport.GRPC
    assert not [entry for entry in logs if entry["event"] == "transport_changed"]


async def test_refusals_change_nothing(pki: Pki, gateway: Gateway) -> None:
    gateway.revoked.add("st-mary")
    async with link_over(gateway.grpc_address, gateway.http1_address, pki.site("st-mary"), speed=50.0) as (
        link,
        client,
    ):
        for _ in range(6):
            with pytest.raises(CoordinatorRefusedError):
                await poll(client)
            await asyncio.sleep(0.2)
        assert link.transport is Transport.GRPC


async def test_delayed_line_serves_both_transports(pki: Pki, gateway: Gateway) -> None:
    gateway.servicer.n_bytes = len(VECTOR)
    with Relay(gateway.grpc_address, delay_s=0.02) as slow, Relay(gateway.http1_address, delay_s=0.02) as slow1:
        async with link_over(slow.address, slow1.address, pki.site("st-mary")) as (_, client):
            await poll(client)
            await client.rounds.UploadBlob(upload_from(0), timeout=60.0)
    assert bytes(gateway.servicer.held["st-mary"]) == VECTOR
