# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
"""A site is revoked while a call of it is open: the call ends with the reason, over either transport."""

from __future__ import annotations

import asyncio

import pytest

from fl_protocol.pki.keys import pem_from_private_key
from site_agent.errors import CoordinatorRefusedError
from site_agent.link.channel import TlsIdentity, open_channel
from site_agent.link.client import CoordinatorClient
from site_agent.link.http1_channel import Http1Channel


@pytest.mark.parametrize("transport", ["grpc", "http1"])
async def test_long_poll_of_a_site_that_is_revoked_ends_with_the_reason(enrolled, admin, transport) -> None:
    name = f"revoked-meanwhile-{transport}"
    site = await asyncio.to_thread(enrolled, name)
    identity = TlsIdentity(
        root_pem=site.answer.root_pem,
        certificate_pem=site.answer.certificate_pem,
        private_key_pem=pem_from_private_key(site.keys.tls),
        server_name=site.answer.gateway_server_name,
    )
    way = open_channel(site.answer.gateway_address, identity)
    if transport == "http1":
        await way.close()
        way = Http1Channel(site.answer.fallback_address, identity)
    client = CoordinatorClient(way, agent_version="test")
    # Much longer than it takes to be told: an answer that nothing is due would mean that it sat there to the end.
    asked = asyncio.create_task(client.poll_assignment(holding=(), wait_s=20))
    # Another process knows when the call is there; it is asked over REST.
    while (await asyncio.to_thread(admin.get, f"/api/v1/sites/{name}")).json()["last_seen_at"] is None:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    answer = await asyncio.to_thread(admin.post, f"/api/v1/sites/{name}:revoke", json={"reason": "left"})
    answer.raise_for_status()
    with pytest.raises(CoordinatorRefusedError) as refused:
        await asked
    assert refused.value.refusal_code == "site-not-active"
    await way.close()
