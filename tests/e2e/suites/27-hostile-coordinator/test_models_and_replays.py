"""Attacks by the model, and by messages of the past (rows 6, 7, 8)."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import SiteId
from fl_protocol.secagg.messages import KeyAdvertisement
from fl_protocol.signing.signed import SignedBody
from site_agent.link import instructions as asked
from site_agent.link.instructions import Instruction
from site_agent.session.events import Step
from tests.support.forgeries import list_of
from tests.support.hostile_coordinator import HostileCoordinator
from tests.support.hostile_federation import HostileFederation, HostileFederationOf

BETA = SiteId("beta")


def show_manifests(coordinator: HostileCoordinator, manifests: dict[SiteId, SignedBody]) -> None:
    """Open the round with another M0 for these sites, each signed with the coordinator's own key."""

    def altered(site: SiteId, true: Instruction) -> Instruction:
        assert isinstance(true, asked.TrainRound)
        return replace(true, manifest=manifests.get(site, true.manifest))

    coordinator.alters[asked.TrainRound] = altered


def has_trained(federation: HostileFederation) -> dict[str, int]:
    return {name: len(site.runner.seeds) for name, site in federation.sites.items()}


async def test_row_6_another_model_for_one_site_is_declined_before_training(
    federation_of: HostileFederationOf,
) -> None:
    federation = federation_of(n_sites=3)
    coordinator = federation.coordinator
    other = crafted(coordinator.state)
    coordinator.blobs[other.digest()] = other.to_bytes()
    show_manifests(coordinator, {BETA: coordinator.make_manifest(public_state_sha256=other.digest())})
    await federation.run_until_declined("public-state-mismatch", by=("beta",))
    assert has_trained(federation)["beta"] == 0
    assert coordinator.heard_of(Step.ADVERTISE, BETA) == []


async def test_row_6_manifests_that_differ_where_no_site_can_look_are_refused_at_the_keys(
    federation_of: HostileFederationOf,
) -> None:
    """Each M0 is plausible alone. They are not one: keys of another hM are keys of another exchange."""
    federation = federation_of(n_sites=3)
    coordinator = federation.coordinator
    show_manifests(coordinator, {BETA: coordinator.make_manifest(opened_at="2026-01-02T03:04:06+00:00")})

    def keys(site: SiteId) -> Instruction:
        m1s = coordinator.messages(Step.ADVERTISE)
        if site not in m1s:
            return asked.OpenExchange(exchange=coordinator.context)
        if len(m1s) < 3:
            return asked.Idle(retry_after_s=0.0)
        return asked.RelayKeys(exchange=coordinator.context, message=list_of(*(m1s[name] for name in sorted(m1s))))

    coordinator.exchange_instruction = keys  # type: ignore[method-assign]
    await federation.run_until_declined("context-mismatch")
    assert coordinator.heard_of(Step.SHARE) == []


def crafted(state: PublicState) -> PublicState:
    """A state as good as the true one but for one weight, which the coordinator chose."""
    adapter = {name: tensor.copy() for name, tensor in state.adapter.items()}
    first = next(iter(adapter.values()))
    first.reshape(-1)[0] = np.float32(1000.0)
    return replace(state, adapter=adapter)


async def test_row_7_state_that_is_not_the_fold_of_the_published_sum_is_declined_by_all(
    federation_of: HostileFederationOf,
) -> None:
    """The same crafted model for everybody, under the true sum: each site folded that sum itself."""
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator
    honest = coordinator.open_round

    def open_crafted() -> None:
        if coordinator.round_index == 1:
            coordinator.state = crafted(coordinator.state)
            coordinator.blobs[coordinator.state.digest()] = coordinator.state.to_bytes()
        honest()

    coordinator.open_round = open_crafted  # type: ignore[method-assign]
    await federation.run_until_declined("public-state-mismatch")
    assert has_trained(federation) == {"alpha": 1, "beta": 1, "gamma": 1}
    assert all(site.newest_version(coordinator.run_id) == 1 for site in federation.sites.values())


async def test_row_7_another_initial_model_than_the_approved_one_is_refused_and_recorded(
    federation_of: HostileFederationOf,
) -> None:
    federation = federation_of(n_sites=3)
    coordinator = federation.coordinator
    coordinator.blobs[coordinator.state.digest()] = crafted(coordinator.state).to_bytes()
    await federation.run_until_recorded("call.refused", code="blob-invalid", instruction="TrainRound")
    assert has_trained(federation) == {"alpha": 0, "beta": 0, "gamma": 0}
    assert coordinator.heard == []


REPLAYED = {
    asked.RelayKeys: (Step.SHARE, "context-mismatch"),
    asked.RelayShares: (Step.MASK, "context-mismatch"),
    asked.RelaySurvivors: (Step.CONFIRM, "context-mismatch"),
    asked.RelayConfirmations: (Step.REVEAL, "context-mismatch"),
}


@pytest.mark.parametrize("kind", list(REPLAYED), ids=["M2", "M4", "M6", "M8"])
async def test_row_8_message_of_an_earlier_round_is_refused(
    federation_of: HostileFederationOf, kind: type[Instruction]
) -> None:
    """What was true in round 0 is shown again in round 1, in the name of its exchange."""
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator
    next_step, reason = REPLAYED[kind]

    def replayed(site: SiteId, true: Instruction) -> Instruction:
        if coordinator.round_index == 0:
            return true
        earlier = coordinator.shown_of(kind, site)[0]
        return replace(true, message=earlier.message)  # type: ignore[type-var, union-attr, call-arg]

    coordinator.alters[kind] = replayed
    await federation.run_until_declined(reason)
    assert coordinator.round_index == 1
    assert coordinator.messages(next_step) == {}


@pytest.mark.parametrize("kind", list(REPLAYED), ids=["M2", "M4", "M6", "M8"])
async def test_row_8_message_of_an_earlier_exchange_is_refused(
    federation_of: HostileFederationOf, kind: type[Instruction]
) -> None:
    """The same round, the second attempt at its exchange: each attempt has keys of its own."""
    federation = federation_of(n_sites=3, rounds=1)
    coordinator = federation.coordinator
    next_step, reason = REPLAYED[kind]
    # The first attempt goes as far as it can without a reveal, and M8 of it is put together by hand.
    coordinator.holds_back = asked.RelayConfirmations
    await federation.run(lambda: len(coordinator.messages(Step.CONFIRM)) == 3)
    m7s = coordinator.messages(Step.CONFIRM)
    m8 = list_of(*(m7s[site] for site in sorted(m7s)))
    earlier = {site: [shown.message for shown in coordinator.shown_of(kind, site)] for site in coordinator.site_ids}
    coordinator.holds_back = None
    coordinator.open_exchange(1)
    coordinator.alters[kind] = lambda site, true: replace(  # type: ignore[type-var]
        true, message=m8 if kind is asked.RelayConfirmations else earlier[site][0]
    )
    await federation.run_until_declined(reason)
    assert coordinator.messages(next_step) == {}


async def test_row_8_whole_conversation_of_an_earlier_round_is_refused(federation_of: HostileFederationOf) -> None:
    """Not only the messages: the instructions of round 0 as they were, in their order, while round 1 is under way."""
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator
    idle = asked.Idle(retry_after_s=0.0)
    coordinator.alters[asked.RelayShares] = lambda _, true: idle if coordinator.round_index == 1 else true
    await federation.run(lambda: coordinator.round_index == 1 and len(coordinator.messages(Step.SHARE)) == 3)
    heard = list(coordinator.heard)
    kinds = (asked.OpenExchange, *REPLAYED)
    past = {
        site: [shown for kind in kinds for shown in coordinator.shown_of(kind, site)[:1]]
        for site in coordinator.site_ids
    }
    turns = dict.fromkeys(coordinator.site_ids, 0)

    def replayed(site: SiteId) -> Instruction:
        turns[site] += 1
        return past[site][turns[site] % len(kinds)]

    assert all(len(shown) == len(kinds) for shown in past.values())
    coordinator.alters.clear()
    coordinator.exchange_instruction = replayed  # type: ignore[method-assign]
    await federation.run(lambda: min(turns.values()) > 3 * len(kinds))
    for site in federation.sites.values():
        # Five lies that take turns are five entries, however long it goes on.
        refused = [(facts["instruction"], facts["code"]) for kind, facts in site.audit() if kind == "call.refused"]
        assert len(refused) == len(set(refused)) == len(kinds)
    for kind in kinds:
        await federation.run_until_recorded("call.refused", round_index=0, instruction=kind.__name__)
    assert coordinator.heard == heard


async def test_row_8_result_of_an_earlier_round_is_refused(federation_of: HostileFederationOf) -> None:
    """M10 and the sum of round 0, published as those of round 1."""
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator
    honest = coordinator.commit

    def replay() -> None:
        honest()
        if 1 in coordinator.results:
            manifest, published = coordinator.results[1]
            _, earlier = coordinator.results[0]
            coordinator.results[1] = (manifest, replace(earlier, exchange=published.exchange))

    coordinator.commit = replay  # type: ignore[method-assign]
    await federation.run_until_recorded("result.refused", reason="result-unverified", round_index=1)
    assert coordinator.acknowledged.get(1, {}) == {}
    assert all(site.newest_version(coordinator.run_id) == 1 for site in federation.sites.values())


async def test_row_8_keys_of_one_round_are_those_of_no_other(federation_of: HostileFederationOf) -> None:
    """What makes a replay useless: no key and no masked vector comes twice."""
    federation = federation_of(n_sites=3, rounds=2)
    await federation.run_to_the_end()
    coordinator = federation.coordinator
    digests = [hashlib.sha256(data).digest() for sent in coordinator.arrived.values() for data in sent]
    assert len(digests) == len(set(digests)) == 9
    m1s = coordinator.heard_of(Step.ADVERTISE)
    keys = [key for m1 in m1s for key in keys_in(m1)]
    assert len(keys) == len(set(keys)) == 18


def keys_in(m1: bytes) -> tuple[bytes, bytes]:
    said = KeyAdvertisement.decode(SignedBody.decode(m1).body)
    return said.mask_key, said.transport_key
