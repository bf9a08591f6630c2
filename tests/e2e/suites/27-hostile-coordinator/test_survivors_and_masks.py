"""Attacks on the sum: both secrets of a site, split survivors, one payload twice (rows 2, 3, 9, 10; decisions 1, 2)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import replace

import pytest

from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import RunId, SiteId
from fl_protocol.secagg import coordinator_role
from fl_protocol.secagg.messages import Reveal
from fl_protocol.signing.signed import SignedBody
from fl_protocol.testing.entropy import seeded_signer
from site_agent.link import instructions as asked
from site_agent.link.instructions import Instruction
from site_agent.session.events import Step
from tests.integration.site_agent.conftest import make_run
from tests.support.forgeries import list_of, only_dealers
from tests.support.hostile_coordinator import HostileCoordinator
from tests.support.hostile_federation import HostileFederation, HostileFederationOf

OTHER_RUN = RunId("run-" + "c" * 26)
REFUSED_STEP = {"code": "illegal-transition", "instruction": "RelaySurvivors"}


async def run_until_revealed(federation: HostileFederation, n_sites: int) -> None:
    """Until that many shares of a sum over everybody are here; the coordinator says nothing of a sum."""
    coordinator = federation.coordinator
    coordinator.commit = lambda: None  # type: ignore[method-assign]
    await federation.run(lambda: len(coordinator.messages(Step.REVEAL)) == n_sites)


def show_survivors(coordinator: HostileCoordinator, names: Collection[str]) -> None:
    """Say to everybody that only these survived, whatever was said before."""
    m6 = coordinator_role.make_m6(coordinator.survivors_among(names))
    coordinator.exchange_instruction = lambda _: asked.RelaySurvivors(  # type: ignore[method-assign]
        exchange=coordinator.context, message=m6
    )


async def test_row_2_second_survivor_set_after_the_reveal_brings_no_other_share(
    federation_of: HostileFederationOf,
) -> None:
    """After b of all four, the coordinator says that delta was lost, for its rho; also to agents that started again."""
    federation = federation_of(n_sites=4)
    coordinator = federation.coordinator
    await run_until_revealed(federation, 4)
    heard = list(coordinator.heard)
    show_survivors(coordinator, ("alpha", "beta", "gamma"))
    await federation.run_until_recorded("call.refused", **REFUSED_STEP)
    await federation.run_on()
    assert {(step, at, site, said) for step, at, site, said in coordinator.heard} == set(heard)
    for m9 in coordinator.heard_of(Step.REVEAL):
        assert {share.kind.value for share in Reveal.decode(SignedBody.decode(m9).body).shares} == {"b"}


async def test_row_2_second_survivor_set_after_the_first_was_signed_is_not_signed(
    federation_of: HostileFederationOf,
) -> None:
    federation = federation_of(n_sites=4)
    coordinator = federation.coordinator
    coordinator.holds_back = asked.RelayConfirmations
    await federation.run(lambda: len(coordinator.messages(Step.CONFIRM)) == 4)
    signed = dict(coordinator.messages(Step.CONFIRM))
    show_survivors(coordinator, ("alpha", "beta", "gamma"))
    await federation.run_until_recorded("call.refused", **REFUSED_STEP)
    assert coordinator.messages(Step.CONFIRM) == signed
    assert coordinator.heard_of(Step.REVEAL) == []


async def test_row_2_survivor_that_never_shared_is_refused(federation_of: HostileFederationOf) -> None:
    """A dishonest U2: delta is left out of the sharers at M4, and is among the survivors at M6, both shares open."""
    federation = federation_of(n_sites=4)
    coordinator = federation.coordinator
    three = set(coordinator.site_ids[:3])
    coordinator.alters[asked.RelayShares] = lambda site, true: only_dealers(three, true) if site in three else true

    def with_delta(site: SiteId) -> Instruction:
        # Everybody's own M5, delta's too: it masked among four, the others among three.
        m5s = coordinator.messages(Step.MASK)
        if len(m5s) < 4 or site not in m5s:
            return honest(site)
        return asked.RelaySurvivors(exchange=coordinator.context, message=list_of(*(m5s[name] for name in sorted(m5s))))

    honest = coordinator.exchange_instruction
    coordinator.exchange_instruction = with_delta  # type: ignore[method-assign]
    await federation.run_until_declined("site-unknown", by=three)
    assert coordinator.heard_of(Step.CONFIRM) == []


@pytest.mark.parametrize(
    ("m8_holds", "reason"), [("everybody's", "context-mismatch"), ("those of the own set", "quorum-missing")]
)
async def test_row_3_sites_that_signed_different_survivor_sets_reveal_nothing(
    federation_of: HostileFederationOf, m8_holds: str, reason: str
) -> None:
    """Five sites, t = 4: two sign all five as survivors, two sign four; each set alone lacks a threshold."""
    federation = federation_of(n_sites=5)
    coordinator = federation.coordinator
    sees_all = ("alpha", "beta")
    sees_four = ("gamma", "delta")
    coordinator.holds_back = asked.RelaySurvivors
    await federation.run(lambda: len(coordinator.uploads) == 5)
    coordinator.holds_back = None
    m6 = {
        **dict.fromkeys(sees_all, coordinator_role.make_m6(coordinator.survivors_among(coordinator.site_ids))),
        **dict.fromkeys(sees_four, coordinator_role.make_m6(coordinator.survivors_among(coordinator.site_ids[:4]))),
    }

    def split(site: SiteId) -> Instruction:
        m7s = coordinator.messages(Step.CONFIRM)
        if site not in m6 or (site in m7s and len(m7s) < 4):
            return asked.Idle(retry_after_s=0.0)
        if site not in m7s:
            return asked.RelaySurvivors(exchange=coordinator.context, message=m6[site])
        same = sees_all if site in sees_all else sees_four
        names = sorted(m7s if m8_holds == "everybody's" else same)
        m8 = list_of(*(m7s[SiteId(name)] for name in names))
        return asked.RelayConfirmations(exchange=coordinator.context, message=m8)

    coordinator.exchange_instruction = split  # type: ignore[method-assign]
    await federation.run_until_declined(reason, by=(*sees_all, *sees_four))
    assert len(coordinator.messages(Step.CONFIRM)) == 4
    assert coordinator.heard_of(Step.REVEAL) == []


async def test_row_9_second_attempt_at_the_exchange_after_the_reveal_gets_no_keys(
    federation_of: HostileFederationOf,
) -> None:
    federation = federation_of(n_sites=4)
    coordinator = federation.coordinator
    await run_until_revealed(federation, 4)
    coordinator.open_exchange(1)
    await federation.run_until_recorded("call.refused", code="illegal-transition", instruction="OpenExchange")
    # A restarted agent has forgotten nothing of it.
    await federation.run_on()
    assert len(coordinator.heard_of(Step.ADVERTISE)) == len(set(coordinator.heard_of(Step.ADVERTISE))) == 4


async def abandon_and_ask_fewer(federation: HostileFederation, n_sites: int) -> None:
    coordinator = federation.coordinator
    coordinator.abandons.append(coordinator.round)
    coordinator.round_attempt = 1
    coordinator.site_ids = coordinator.site_ids[:n_sites]
    coordinator.open_round()
    federation.leave(*list(federation.sites)[n_sites:])


async def test_row_9_second_attempt_at_the_round_among_fewer_after_the_reveal_is_not_masked(
    federation_of: HostileFederationOf,
) -> None:
    """Decision 2 as well: from the same state only the same survivors, or the result of the sum that was revealed."""
    federation = federation_of(n_sites=4)
    await run_until_revealed(federation, 4)
    await abandon_and_ask_fewer(federation, 3)
    await federation.run_until_declined("unresolved-reveal")
    assert federation.coordinator.uploads == {}


async def test_row_9_another_run_over_one_site_less_is_refused_before_training(
    federation_of: HostileFederationOf,
) -> None:
    """Decision 1: the evaluation of this adapter on this dataset was in a sum over four; three would differ."""
    federation = federation_of(n_sites=4)
    await federation.run_to_the_end()
    n_jobs = len(federation.sites[SiteId("alpha")].runner.seeds)
    federation.leave("delta")
    other_run(federation, federation.coordinator.site_ids[:3])
    await federation.run_until_declined("evaluation-revealed")
    assert len(federation.sites[SiteId("alpha")].runner.seeds) == n_jobs
    assert federation.coordinator.heard == []


def other_run(federation: HostileFederation, site_ids: tuple[SiteId, ...]) -> HostileCoordinator:
    """A second run, that each of its sites approved, over the same initial adapter."""
    spec, state = make_run(site_ids, rounds=1)
    other = HostileCoordinator(
        spec=spec, state=state, site_ids=site_ids, run_id=OTHER_RUN, log=federation.coordinator.log
    )
    for site in federation.sites.values():
        site.approve(other)
    federation.attack_with(other)
    return other


async def test_row_9_another_run_that_could_be_unmasked_beside_the_first_is_refused(
    federation_of: HostileFederationOf,
) -> None:
    """Nobody revealed yet. Two cohorts of four that share two sites have room for a threshold each."""
    federation = federation_of(n_sites=6, in_run=4)
    first = federation.coordinator
    first.holds_back = asked.RelaySurvivors
    await federation.run(lambda: len(first.uploads) == 4)
    federation.leave("gamma", "delta")
    other = other_run(federation, tuple(SiteId(name) for name in ("alpha", "beta", "epsilon", "eta")))
    await federation.run_until_declined("survivors-split", by=("alpha", "beta"))
    assert not {"alpha", "beta"} & set(other.uploads)


async def test_row_10_upload_that_is_said_to_be_lost_is_sent_again_byte_for_byte(
    federation_of: HostileFederationOf,
) -> None:
    federation = federation_of(n_sites=3)
    coordinator = federation.coordinator
    coordinator.n_forgotten_uploads = 6
    await federation.run_to_the_end()
    sent = [data for uploads in coordinator.arrived.values() for data in uploads]
    # Two rounds of three sites; six uploads were taken and denied.
    assert len(sent) == 12
    assert len(set(sent)) == 6


async def test_row_10_same_exchange_is_not_opened_twice_and_not_after_a_restart(
    federation_of: HostileFederationOf,
) -> None:
    federation = federation_of(n_sites=3)
    coordinator = federation.coordinator
    coordinator.holds_back = asked.RelaySurvivors
    await federation.run(lambda: len(coordinator.uploads) == 3)
    opened = asked.OpenExchange(exchange=coordinator.context)
    coordinator.exchange_instruction = lambda _: opened  # type: ignore[method-assign]
    for _ in range(2):
        # The second turn is a new process over the same files.
        await federation.run_until_recorded("call.refused", code="illegal-transition", instruction="OpenExchange")
        await federation.run_on()
    assert len(set(coordinator.heard_of(Step.ADVERTISE))) == 3


async def test_row_10_agent_that_starts_again_masks_nothing_anew(federation_of: HostileFederationOf) -> None:
    """M4 comes again after a restart, and the coordinator knows of no upload: it gets the bytes that it had."""
    federation = federation_of(n_sites=3)
    coordinator = federation.coordinator
    coordinator.holds_back = asked.RelaySurvivors
    await federation.run(lambda: len(coordinator.uploads) == 3)
    first = dict(coordinator.arrived)
    m5s = dict(coordinator.messages(Step.MASK))
    federation.gateway.servicer.forget_uploads()
    await federation.run(lambda: len(coordinator.uploads) == 3)
    assert coordinator.messages(Step.MASK) == m5s
    assert {key: len(sent) for key, sent in coordinator.arrived.items()} == dict.fromkeys(first, 2)


async def test_row_10_other_sharers_after_masking_are_refused(federation_of: HostileFederationOf) -> None:
    """Masks among three would not be those among four: the same payload twice, and the difference of two mask sets."""
    federation = federation_of(n_sites=4)
    coordinator = federation.coordinator
    coordinator.holds_back = asked.RelaySurvivors
    await federation.run(lambda: len(coordinator.uploads) == 4)
    three = set(coordinator.site_ids[:3])
    shared = coordinator.frozen["sharers"]

    def fewer(site: SiteId) -> Instruction:
        m4 = coordinator_role.make_m4(shared, site)  # type: ignore[arg-type]
        true = asked.RelayShares(exchange=coordinator.context, message=m4)
        return only_dealers(three, true) if site in three else asked.Idle(retry_after_s=0.0)

    coordinator.exchange_instruction = fewer  # type: ignore[method-assign]
    await federation.run_until_recorded(
        "call.refused", by=("alpha", "beta", "gamma"), code="illegal-transition", instruction="RelayShares"
    )
    await federation.run_on()


async def test_decision_1_second_exchange_of_a_round_among_others_gets_no_keys(
    federation_of: HostileFederationOf,
) -> None:
    """No algorithm has a second exchange in a round; one is asked for after the reveal, over one site less."""
    federation = federation_of(n_sites=4)
    coordinator = federation.coordinator
    await run_until_revealed(federation, 4)
    second = replace(coordinator.context, exchange_index=1, exchange_attempt=1)
    coordinator.exchange_instruction = lambda _: asked.OpenExchange(exchange=second)  # type: ignore[method-assign]
    await federation.run_until_recorded("call.refused", code="illegal-transition", instruction="OpenExchange")
    assert len(set(coordinator.heard_of(Step.ADVERTISE))) == 4


async def test_decision_1_evaluation_that_was_summed_is_never_masked_again(
    federation_of: HostileFederationOf,
) -> None:
    federation = federation_of(n_sites=3)
    await federation.run_to_the_end()
    coordinator = federation.coordinator
    coordinator.done.clear()
    coordinator.round_attempt = 1
    coordinator.previous_result = hashlib.sha256(coordinator.results[0][1].message).hexdigest()
    coordinator.open_round()
    n_masked = len(coordinator.heard_of(Step.MASK))
    await federation.run_until_declined("evaluation-revealed")
    assert len(coordinator.heard_of(Step.MASK)) == n_masked


async def test_decision_2_result_of_another_exchange_resolves_no_reveal(federation_of: HostileFederationOf) -> None:
    """Shares were revealed for four survivors. M10 names three of them: it is no result, and nothing is folded."""
    federation = federation_of(n_sites=4, rounds=2)
    coordinator = federation.coordinator
    await run_until_revealed(federation, 4)
    publish_for(coordinator, coordinator.site_ids[:3])
    await federation.run_until_recorded("result.refused", reason="result-unverified")
    # The next M0 starts from a state of the coordinator's making, and names that result as what led to it.
    coordinator.acknowledged[0] = dict.fromkeys(coordinator.site_ids, b"")
    coordinator.previous_result = hashlib.sha256(coordinator.results[0][1].message).hexdigest()
    coordinator.state = replace(coordinator.state, version=1)
    coordinator.round_index = 1
    coordinator.open_round()
    await federation.run_until_declined("result-unverified")
    assert [site.newest_version(coordinator.run_id) for site in federation.sites.values()] == [0] * 4
    assert all(len(site.runner.seeds) == 1 for site in federation.sites.values())


async def test_decision_2_next_round_without_the_result_is_not_joined(federation_of: HostileFederationOf) -> None:
    """The next M0 names a state and a result, and the coordinator shows the result to nobody."""
    federation = federation_of(n_sites=4, rounds=2)
    coordinator = federation.coordinator
    await run_until_revealed(federation, 4)
    coordinator.previous_result = "ee" * 32
    coordinator.state = replace(coordinator.state, version=1)
    coordinator.round_index = 1
    coordinator.open_round()
    await federation.run_until_declined("result-withheld")
    assert all(not site.has_recorded("round.joined", round_index=1) for site in federation.sites.values())
    assert all(len(site.runner.seeds) == 1 for site in federation.sites.values())


def publish_for(coordinator: HostileCoordinator, names: Collection[str]) -> None:
    """M10 over a survivor set of the coordinator's choice, with a sum of its making."""
    data = RingVector.zeros(coordinator.opened.layout.n_ring32, coordinator.opened.layout.n_ring64).to_bytes()
    digest = hashlib.sha256(data)
    coordinator.blobs[digest.hexdigest()] = data
    m10 = coordinator_role.make_m10(
        coordinator.survivors_among(names),
        seeded_signer("coordinator"),
        result_sha256=digest.digest(),
        transcript_root=bytes(32),
    )
    assert coordinator.manifest is not None
    published = asked.PublishedResult(
        exchange=coordinator.context, message=m10, sum_blob_sha256=digest.hexdigest(), sum_bytes=len(data)
    )
    coordinator.results[coordinator.round_index] = (coordinator.manifest, published)
