"""A site is revoked while an upload of it is open and its agent waits for work: both end within a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from fl_protocol.wire.v1 import round_pb2
from site_agent.enrolment.identity_file import load_identity
from site_agent.errors import CoordinatorRefusedError
from site_agent.link.channel import open_channel
from site_agent.link.client import CoordinatorClient
from site_agent.link.refusals import typed_errors
from site_agent.settings import load_settings
from site_agent.way_out import find_way_out
from tests.e2e.suites.conftest import MakeFederation
from tests.e2e.support.federation import Federation
from tests.e2e.support.identity import agent_status, call_site, site_events

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SITE = "st-mary"
AT_MOST_S = 1.0


async def nothing_yet() -> AsyncIterator[round_pb2.UploadBlobRequest]:
    """An upload whose first byte does not come."""
    await asyncio.sleep(60)
    yield round_pb2.UploadBlobRequest()


async def revoked_after(federation: Federation) -> tuple[str, float]:
    """The code by which an open stream ended, and how long after the revocation was answered."""
    folder = federation.site_dir(SITE)
    way = find_way_out(load_settings(folder), load_identity(load_settings(folder).folder), environment={}).gateway
    channel = open_channel(way.address, way.identity)
    client = CoordinatorClient(channel, agent_version="test")
    await client.list_pending()

    async def upload() -> str:
        try:
            with typed_errors("UploadBlob"):
                await client.rounds.UploadBlob(nothing_yet(), timeout=60.0)
        except CoordinatorRefusedError as refused:
            return refused.refusal_code
        return "ended well"

    uploading = asyncio.create_task(upload())
    await asyncio.sleep(1.0)
    assert not uploading.done()
    await asyncio.to_thread(federation.client.post, f"/api/v1/sites/{SITE}:revoke", {"reason": "left the study"})
    since = time.monotonic()
    code = await uploading
    took_s = time.monotonic() - since
    await channel.close()
    return code, took_s


def test_open_stream_and_long_poll_of_a_revoked_site_end_within_a_second(make_federation: MakeFederation) -> None:
    federation = make_federation(sites=[SITE])
    federation.start()
    folder = federation.site_dir(SITE)
    federation.wait_until(
        "the agent waits for work", lambda: federation.client.get(f"/api/v1/sites/{SITE}")["last_seen_at"]
    )
    code, took_s = asyncio.run(revoked_after(federation))
    assert code == "site-not-active"
    assert took_s <= AT_MOST_S, f"the stream went on for {took_s:.2f} s"
    # The agent's own poll had twenty seconds to go.
    since = time.monotonic()
    federation.wait_until(
        "the agent knows", lambda: agent_status(folder)["problem"] == "coordinator-refused", timeout_s=5
    )
    assert time.monotonic() - since <= AT_MOST_S
    # No way leads back: not a renewal by the certificate, nor one by the signing key.
    federation.processes.stop(SITE)
    renewal = call_site(folder, "identity", "renew")
    assert (renewal.exit_code, renewal.document["error"]["facts"]["refusal_code"]) == (1, "site-not-active")
    assert "certificate.renewed" not in {event.event.kind for event in site_events(folder)}
