# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
"""The third listener of a real coordinator process: the same sites, the same answers, over HTTP/1.1."""

from __future__ import annotations

import asyncio
import json

import pytest
import yaml

from fl_protocol.pki.keys import pem_from_private_key
from site_agent.errors import CoordinatorRefusedError
from site_agent.link.channel import TlsIdentity
from site_agent.link.client import CoordinatorClient
from site_agent.link.http1_channel import Http1Channel


def identity_of(site) -> TlsIdentity:
    return TlsIdentity(
        root_pem=site.answer.root_pem,
        certificate_pem=site.answer.certificate_pem,
        private_key_pem=pem_from_private_key(site.keys.tls),
        server_name=site.answer.gateway_server_name,
    )


async def test_enrolled_site_is_told_the_address_and_is_served_there(enrolled, coordinator, admin) -> None:
    site = await asyncio.to_thread(enrolled, "over-http1")
    assert site.answer.fallback_address == coordinator.addresses()["gateway_http1"]
    channel = Http1Channel(site.answer.fallback_address, identity_of(site))
    client = CoordinatorClient(channel, agent_version="test")
    assert await client.list_pending() == ()
    await client.poll_assignment(holding=(), wait_s=0.2)
    assert admin.get("/api/v1/sites/over-http1").json()["last_seen_at"] is not None
    await channel.close()


async def test_revoked_site_is_refused_over_http1_at_its_next_call(enrolled, admin) -> None:
    site = await asyncio.to_thread(enrolled, "http1-revoked")
    channel = Http1Channel(site.answer.fallback_address, identity_of(site))
    client = CoordinatorClient(channel, agent_version="test")
    await client.list_pending()
    admin.post("/api/v1/sites/http1-revoked:revoke", json={"reason": "left"}).raise_for_status()
    with pytest.raises(CoordinatorRefusedError) as refused:
        await client.list_pending()
    assert (refused.value.refusal_code, refused.value.status) == ("site-not-active", "PERMISSION_DENIED")
    await channel.close()


def test_listener_is_turned_off_by_null(new_coordinator) -> None:
    new_coordinator.init()
    document = yaml.safe_load(new_coordinator.config.read_text())
    assert document["gateway"]["http1_port"] == 0
    document["gateway"]["http1_port"] = None
    new_coordinator.config.write_text(yaml.safe_dump(document))
    new_coordinator.start()
    addresses = new_coordinator.addresses()
    assert addresses["gateway_http1"] is None
    assert addresses["gateway"] is not None
    new_coordinator.stop()
    findings = json.loads(new_coordinator.run("--json", "doctor", "--config", str(new_coordinator.config)).stdout)
    assert "turned off" in json.dumps(findings)
