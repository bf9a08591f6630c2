"""A site in a long poll, and a firewall that drops its packets without a word. Run in a network of its own.

    unshare --net -- sh -c 'ip link set lo up && exec python -m tests.support.dropped_path'

Prints one JSON document: after how many seconds the poll failed, and whether the next call came through anew.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time

from coordinator.gateway.server import SERVER_OPTIONS
from site_agent.errors import CoordinatorUnavailableError
from site_agent.link.channel import Keepalive, open_channel
from site_agent.link.client import CoordinatorClient
from tests.support.gateway import KeepingServicer, Pki, running_gateway
from tests.support.tools import tool


def source_ports(port: int) -> list[int]:
    """The local ports of the connections to ``port``."""
    listed = subprocess.run(
        ["ss", "-Htn", "state", "established", f"( dport = :{port} )"], capture_output=True, text=True, check=True
    ).stdout
    return [int(line.split()[2].rpartition(":")[2]) for line in listed.splitlines()]


def drop(port: int, source: int) -> None:
    """Drop every packet of one connection, both ways."""
    for ends in ((port, source), (source, port)):
        rule = ["INPUT", "-p", "tcp", "--dport", str(ends[0]), "--sport", str(ends[1]), "-j", "DROP"]
        subprocess.run([tool("iptables"), "-I", *rule], check=True)


async def main() -> None:
    """Poll, drop, wait, poll again."""
    pki, servicer = Pki(), KeepingServicer(poll_s=60.0)
    async with running_gateway(pki, servicer, grpc_options=SERVER_OPTIONS) as gateway:
        port = int(gateway.grpc_address.rpartition(":")[2])
        keepalive = Keepalive(time_s=2.0, timeout_s=2.0)
        channel = open_channel(gateway.grpc_address, pki.site("st-mary"), keepalive=keepalive)
        client = CoordinatorClient(channel, agent_version="test")
        polling = asyncio.create_task(client.poll_assignment(holding=(), wait_s=60.0))
        await asyncio.wait_for(servicer.has_polled.wait(), 10)
        (connection,) = source_ports(port)
        drop(port, connection)
        dropped_at = time.monotonic()
        failure = (await asyncio.gather(polling, return_exceptions=True))[0]
        noticed_s = time.monotonic() - dropped_at
        servicer.poll_s = 0.0
        n_failures = 0
        while True:
            try:
                await client.poll_assignment(holding=(), wait_s=0.0)
                break
            except CoordinatorUnavailableError:
                n_failures += 1
                await asyncio.sleep(0.5)
        new = source_ports(port)
        await channel.close()
    said = {
        "failure": type(failure).__name__,
        "noticed_s": noticed_s,
        "reconnected_s": time.monotonic() - dropped_at,
        "n_failures": n_failures,
        "is_another_connection": connection not in new or len(new) > 1,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    asyncio.run(main())
