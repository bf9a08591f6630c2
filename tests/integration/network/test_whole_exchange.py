"""A run of three sites, each on another kind of network, against a real engine behind both listeners.

One breaks HTTP/2 and ends up on HTTP/1.1, one has a proxy that asks for credentials, one has nothing in between. The
sum has to be the mean of all three, and each has to have gone its own way.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from coordinator.gateway.round_servicer import RoundServicer
from coordinator.gateway.server import SERVER_OPTIONS
from coordinator.rounds.instructions import RoundRef
from coordinator.services.acknowledge_result import ACKNOWLEDGEMENT_KIND
from fl_protocol.codec.fixed_point import quantisation_step
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import SiteId
from fl_protocol.packing import pack, u32
from fl_protocol.signing.signed import sign_body
from fl_protocol.spec.context import RoundContext
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.testing.entropy import seeded_signer
from site_agent.errors import CoordinatorUnavailableError
from site_agent.link import instructions as asked
from site_agent.link.backoff import Backoff, BackoffPlan
from site_agent.link.channel import Keepalive
from site_agent.link.client import CoordinatorClient
from site_agent.link.downloader import Downloader
from site_agent.link.link_channel import LinkChannel, LinkOptions
from site_agent.link.probe import Way
from site_agent.link.proxy import ProxyCredentials, ProxyRoute
from site_agent.link.transport_choice import Transport
from site_agent.link.uploader import Upload, Uploader
from site_agent.session.events import Step
from tests.support.gateway import Gateway, Pki, running_gateway
from tests.support.relay import ConnectProxy, Http2Breaker
from tests.unit.coordinator.services.engine_lab import ADAPTER, COORDINATOR, RUN_ID, EngineLab, LabSite, initial_state

AT_ONCE = BackoffPlan(first_s=0.01, longest_s=0.01)
NAMES = ("broken-http2", "with-proxy", "straight")


class WiredSite:
    """An honest site of the lab whose every word goes over a link."""

    def __init__(self, site: LabSite, link: LinkChannel, spool: Path) -> None:
        self.site = site
        self.link = link
        self.client = CoordinatorClient(link, agent_version="test")
        backoff = Backoff(lambda: 0.0, AT_ONCE)
        self.uploader = Uploader(self.client, coordinator_spki=COORDINATOR.spki_der, backoff=backoff)
        self.downloader = Downloader(self.client, backoff=backoff, folder=spool.with_suffix(".downloads"))
        self.spool = spool
        self.used: set[Transport] = set()

    async def turn(self) -> bool:
        holding = [
            RoundContext(run_id=ref.run_id, round_index=ref.round_index, round_attempt=ref.round_attempt)
            for ref in sorted(self.site.holding)
        ]
        try:
            found = await self.client.poll_assignment(holding=holding, wait_s=0.0)
            self.used.add(self.link.transport)
            if isinstance(found, asked.Idle):
                return False
            await self.follow(found)
        except CoordinatorUnavailableError:
            await asyncio.sleep(0.05)
        return True

    async def follow(self, found: asked.Instruction) -> None:
        client, site = self.client, self.site
        match found:
            case asked.TrainRound(round=ref, manifest=manifest):
                held = RoundRef(run_id=ref.run_id, round_index=ref.round_index, round_attempt=ref.round_attempt)
                site.manifests[held] = manifest
                site.holding.add(held)
                await client.accept_round(ref)
                await client.report_progress(ref, "training", step=1, steps=2)
                await client.report_ready(ref)
            case asked.OpenExchange(exchange=context):
                role = site.role(context)
                m1 = role.last_message if role.last_message is not None else role.advertise()
                await client.send_statement(Step.ADVERTISE, context, message=m1)
            case asked.RelayKeys(exchange=context, message=m2):
                await client.send_statement(Step.SHARE, context, message=site.role(context).share(m2))
            case asked.RelayShares(exchange=context, message=m4):
                assert site.mask(context, m4)
                m5, vector = site.role(context).last_message, site.uploads[context]
                assert m5 is not None
                self.spool.write_bytes(vector)
                await self.uploader.upload(
                    Upload(context=context, site_id=site.site_id, header=m5, path=self.spool, n_bytes=len(vector))
                )
            case asked.RelaySurvivors(exchange=context, message=m6):
                await client.send_statement(Step.CONFIRM, context, message=site.role(context).confirm(m6))
            case asked.RelayConfirmations(exchange=context, message=m8):
                await client.send_statement(Step.REVEAL, context, message=site.role(context).reveal(m8))
            case asked.PublishedResult():
                await self.take(found)
            case _:
                raise AssertionError(found)

    async def take(self, result: asked.PublishedResult) -> None:
        context, site = result.exchange, self.site
        said = site.role(context).finish(result.message)
        data = bytes(await self.downloader.download(context.run_id, result.sum_blob_sha256, max_bytes=result.sum_bytes))
        assert hashlib.sha256(data).digest() == said.result_sha256
        site.fold(data, context)
        body = pack(
            context.run_id.encode(),
            u32(context.round_index),
            hashlib.sha256(result.message).digest(),
            bytes.fromhex(site.state.digest()),
        )
        signed = sign_body(seeded_signer(site.site_id), ACKNOWLEDGEMENT_KIND, body)
        await self.client.acknowledge_result(context, acknowledgement=signed)
        site.holding.discard(site.ref(context))


@asynccontextmanager
async def linked(options: LinkOptions) -> AsyncIterator[LinkChannel]:
    link = LinkChannel(options, clock_s=time.monotonic)
    keeping = asyncio.create_task(link.keep())
    try:
        yield link
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await link.close()


def ways(gateway: Gateway[RoundServicer], relays: ExitStack) -> Mapping[str, LinkOptions]:
    breaker = relays.enter_context(Http2Breaker(gateway.grpc_address))
    port = int(gateway.grpc_address.rpartition(":")[2])
    proxy = relays.enter_context(ConnectProxy({port}, credentials="hospital:s3cret"))
    host, _, proxy_port = proxy.address.rpartition(":")
    route = ProxyRoute(
        host=host, port=int(proxy_port), credentials=ProxyCredentials(user="hospital", password="s3cret")
    )

    def options(name: str, address: str, route: ProxyRoute | None) -> LinkOptions:
        identity = gateway.pki.site(name)
        fallback = Way(address=gateway.http1_address, identity=identity, proxy=None)
        way = Way(address=address, identity=identity, proxy=route)
        return LinkOptions(way=way, fallback=fallback, keepalive=Keepalive(), turn_s=0.05)

    return {
        "broken-http2": options("broken-http2", breaker.address, None),
        "with-proxy": options("with-proxy", gateway.grpc_address, route),
        "straight": options("straight", gateway.grpc_address, None),
    }


@pytest.mark.parametrize("rounds", [1])
async def test_three_sites_on_three_networks_reach_the_mean_of_their_updates(tmp_path: Path, rounds: int) -> None:
    lab = EngineLab(tmp_path, NAMES, rounds=rounds)
    async with AsyncExitStack() as stack:
        relays = stack.enter_context(ExitStack())
        servicer = RoundServicer(lab.ctx)
        gateway = await stack.enter_async_context(running_gateway(Pki(), servicer, grpc_options=SERVER_OPTIONS))
        sites = {
            name: WiredSite(
                lab.sites[SiteId(name)], await stack.enter_async_context(linked(options)), tmp_path / f"{name}.spool"
            )
            for name, options in ways(gateway, relays).items()
        }
        async with asyncio.timeout(60):
            while lab.run().state != "COMPLETED":
                while await lab.driver.step(RUN_ID):
                    pass
                for site in sites.values():
                    await site.turn()
    lab.db.dispose()
    assert {name: site.used for name, site in sites.items()} == {
        "broken-http2": {Transport.HTTP1},
        "with-proxy": {Transport.GRPC},
        "straight": {Transport.GRPC},
    }
    assert set(lab.states(0).values()) == {"COUNTED"}
    assert lab.round(0).round_attempt == 0
    assert np.abs(update_of(lab) - plaintext_mean(lab)).max() <= rounding_of(lab)
    assert {site.site.state.digest() for site in sites.values()} == {lab.run().public_state_sha256}


def update_of(lab: EngineLab) -> np.ndarray:
    state = PublicState.from_bytes(lab.ctx.blobs.read(lab.round().state_blob_sha256_after or ""))
    after = ADAPTER.flatten(dict(state.adapter)).astype(np.float64)
    return after - ADAPTER.flatten(dict(initial_state().adapter)).astype(np.float64)


def plaintext_mean(lab: EngineLab) -> np.ndarray:
    """FedAvg's equation in float64, over what the sites hold."""
    total, weight = np.zeros(ADAPTER.n_parameters), 0
    for site in lab.sites.values():
        update = site.raw(min(site.manifests), RoundKind.TRAIN)["adapter_update"].astype(np.float64)
        total += site.n_records * update
        weight += site.n_records
    return total / weight


def rounding_of(lab: EngineLab) -> float:
    layout = ALGORITHMS["fedavg-lora"].segments(lab.spec, ADAPTER, RoundKind.TRAIN)
    weights = sum(site.n_records for site in lab.sites.values())
    step = quantisation_step(layout, "adapter_update")
    return float(len(NAMES) * step * lab.spec.privacy.weight_cap / weights + 1e-6)
