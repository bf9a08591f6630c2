"""Real squid, real packet filters: what hospitals have, with the gateway's own listeners behind."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from coordinator.gateway.server import SERVER_OPTIONS
from fl_protocol.testing.entropy import SeededEntropy
from fl_protocol.wire.v1 import round_pb2
from site_agent.link.channel import open_channel
from site_agent.link.client import CoordinatorClient
from site_agent.link.http1_channel import Http1Channel
from site_agent.link.probe import Way, probe_way
from site_agent.link.proxy import ProxyCredentials, ProxyRoute
from tests.support.gateway import Gateway, KeepingServicer, Pki, running_gateway
from tests.support.proxies import Squid, squid
from tests.support.tools import need_root, tool

pytestmark = pytest.mark.system

VECTOR = SeededEntropy("vector").draw((9 << 20) + 17)
CREDENTIALS = ProxyCredentials(user="st-mary", password="s3:cr@t/%")


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


@pytest_asyncio.fixture
async def gateway(pki: Pki) -> AsyncIterator[Gateway[KeepingServicer]]:
    servicer = KeepingServicer(n_bytes=len(VECTOR), blob=VECTOR, poll_s=0.5)
    async with running_gateway(pki, servicer, grpc_options=SERVER_OPTIONS) as running:
        yield running


async def upload_parts() -> AsyncIterator[round_pb2.UploadBlobRequest]:
    yield round_pb2.UploadBlobRequest(header=round_pb2.UploadHeader(masked_input=b"header"))
    for start in range(0, len(VECTOR), 1 << 20):
        data = VECTOR[start : start + (1 << 20)]
        yield round_pb2.UploadBlobRequest(chunk=round_pb2.BlobChunk(offset=start, data=data))


def route_to(proxy: Squid, credentials: ProxyCredentials | None) -> ProxyRoute:
    return ProxyRoute(host=proxy.host, port=proxy.port, credentials=credentials)


@pytest.mark.parametrize("transport", ["grpc", "http/1.1"])
@pytest.mark.parametrize("credentials", [None, CREDENTIALS], ids=["open", "basic"])
async def test_every_kind_of_call_goes_through_squid(
    pki: Pki,
    gateway: Gateway[KeepingServicer],
    tmp_path: Path,
    transport: str,
    credentials: ProxyCredentials | None,
) -> None:
    address = gateway.grpc_address if transport == "grpc" else gateway.http1_address
    known = None if credentials is None else f"{credentials.user}:{credentials.password}"
    with squid(tmp_path / "squid", connect_ports=(int(address.rpartition(":")[2]),), credentials=known) as proxy:
        identity, route = pki.site("st-mary"), route_to(proxy, credentials)
        channel = (
            open_channel(address, identity, proxy=route)
            if transport == "grpc"
            else Http1Channel(address, identity, proxy=route)
        )
        client = CoordinatorClient(channel, agent_version="test")  # type: ignore[arg-type]
        await client.poll_assignment(holding=(), wait_s=5.0)
        await client.rounds.UploadBlob(upload_parts(), timeout=60.0)
        request = round_pb2.DownloadBlobRequest()
        got = [a.chunk.data async for a in client.rounds.DownloadBlob(request, timeout=60.0)]
        await channel.close()
        assert b"".join(got) == VECTOR
        assert bytes(gateway.servicer.held["st-mary"]) == VECTOR
        if credentials is not None:
            steps = await asyncio.to_thread(
                probe_way, Way(address=address, identity=identity, proxy=route_to(proxy, None)), is_http2=True
            )
            assert [step.fault for step in steps] == ["proxy-credentials"]
        other = Way(address="127.0.0.1:1", identity=identity, proxy=route)
        assert [step.fault for step in await asyncio.to_thread(probe_way, other, is_http2=True)] == ["proxy-forbids"]


def test_connection_whose_packets_are_dropped_is_noticed_and_dialled_anew() -> None:
    need_root()
    tool("iptables")
    tool("ss")
    scenario = f"ip link set lo up && exec {sys.executable} -m tests.support.dropped_path"
    done = subprocess.run(
        [tool("unshare"), "--net", "--", "sh", "-c", scenario],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["failure"] == "CoordinatorUnavailableError"
    # Two seconds until the ping, two for its answer; a busy machine may take a few more. Unnoticed, it would be 75.
    assert said["noticed_s"] < 15.0
    assert said["reconnected_s"] < 30.0
    assert said["is_another_connection"]
