"""Attacks on who takes part: substituted keys, tiny cohorts, invented hospitals (rows 1, 4, 5; decision 5)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fl_protocol.ids import SiteId
from fl_protocol.secagg.key_agreement import key_pair_from_private
from fl_protocol.secagg.messages import KeyAdvertisement, SignedList, StatementKind
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.testing.entropy import seeded_signer
from site_agent.link import instructions as asked
from site_agent.link.instructions import Instruction
from site_agent.session.events import Step
from tests.support.forgeries import only, only_dealers
from tests.support.hostile_federation import HostileFederation, HostileFederationOf

EAVESDROPPER = seeded_signer("the coordinator's own key")
OWN_KEY, OTHER_KEY = (key_pair_from_private(bytes([n]) * 32).public for n in (1, 2))
STRANGER = SiteId("zeta")


def with_keys_of_the_coordinator(m1: SignedBody, *, is_pinned_key_named: bool) -> SignedBody:
    """M1 of a site with keys whose secret halves the coordinator knows, signed by the coordinator."""
    said = KeyAdvertisement.decode(m1.body)
    spki = said.spki_der if is_pinned_key_named else EAVESDROPPER.spki_der
    forged = replace(said, mask_key=OWN_KEY, transport_key=OTHER_KEY, spki_der=spki)
    return sign_body(EAVESDROPPER, StatementKind.M1.value, forged.encode())


def with_the_old_signature(m1: SignedBody) -> SignedBody:
    forged = replace(KeyAdvertisement.decode(m1.body), mask_key=OWN_KEY, transport_key=OTHER_KEY)
    return SignedBody(body=forged.encode(), signature=m1.signature)


def substitute(federation: HostileFederation, victim: str, forge: object) -> None:
    """Show every site M2 with another M1 under the victim's name."""

    def altered(_: SiteId, relayed: Instruction) -> Instruction:
        assert isinstance(relayed, asked.RelayKeys)
        entries = [
            forge(entry) if KeyAdvertisement.decode(entry.body).site == victim else entry  # type: ignore[operator]
            for entry in SignedList.decode(relayed.message).entries
        ]
        return replace(relayed, message=SignedList(entries=tuple(entries)).encode())

    federation.coordinator.alters[asked.RelayKeys] = altered


def assert_nothing_after_the_keys(federation: HostileFederation) -> None:
    """No share was dealt, nothing was masked: what was heard are fresh public keys."""
    coordinator = federation.coordinator
    assert {step for step, *_ in coordinator.heard} == {Step.ADVERTISE}
    assert coordinator.arrived == {}


async def test_row_1_keys_of_the_coordinator_under_a_site_s_name_are_refused(
    federation_of: HostileFederationOf,
) -> None:
    federation = federation_of(n_sites=3)
    substitute(federation, "beta", lambda m1: with_keys_of_the_coordinator(m1, is_pinned_key_named=False))
    await federation.run_until_declined("site-not-approved")
    assert_nothing_after_the_keys(federation)


@pytest.mark.parametrize(
    "forge",
    [lambda m1: with_keys_of_the_coordinator(m1, is_pinned_key_named=True), with_the_old_signature],
    ids=["signed by the coordinator", "with the site's signature of other keys"],
)
async def test_row_1_forged_keys_that_name_the_pinned_key_are_refused(
    federation_of: HostileFederationOf, forge: object
) -> None:
    federation = federation_of(n_sites=3)
    substitute(federation, "beta", forge)
    await federation.run_until_declined("signature-invalid")
    assert_nothing_after_the_keys(federation)


async def test_row_1_victim_of_a_substitution_that_is_shown_the_truth_is_left_alone(
    federation_of: HostileFederationOf,
) -> None:
    """A coordinator that shows the victim the true keys: the others refuse, and no share of theirs is sealed to it."""
    federation = federation_of(n_sites=3)
    coordinator = federation.coordinator
    substitute(federation, "beta", lambda m1: with_keys_of_the_coordinator(m1, is_pinned_key_named=False))
    lie = coordinator.alters[asked.RelayKeys]
    coordinator.alters[asked.RelayKeys] = lambda site, true: true if site == "beta" else lie(site, true)
    await federation.run_until_declined("site-not-approved", by=("alpha", "gamma"))
    assert coordinator.heard_of(Step.SHARE, SiteId("alpha")) == []
    assert coordinator.heard_of(Step.SHARE, SiteId("gamma")) == []
    assert coordinator.arrived == {}


def pair_with(site: SiteId, sites: tuple[SiteId, ...]) -> set[SiteId]:
    """A site and one other: the smallest cohort that it could be shown with its own message in it."""
    return {site, sites[(sites.index(site) + 1) % len(sites)]}


@pytest.mark.parametrize(
    ("freeze", "next_step"),
    [(asked.RelayKeys, Step.SHARE), (asked.RelayShares, Step.MASK), (asked.RelaySurvivors, Step.CONFIRM)],
    ids=["U1", "U2", "U3"],
)
async def test_row_4_cohort_of_two_is_refused_at_every_freeze(
    federation_of: HostileFederationOf, freeze: type[Instruction], next_step: Step
) -> None:
    federation = federation_of(n_sites=3)
    coordinator = federation.coordinator

    def altered(site: SiteId, relayed: Instruction) -> Instruction:
        names = pair_with(site, coordinator.site_ids)
        if freeze is asked.RelayShares:
            return only_dealers(names, relayed)
        return only(names, relayed)

    coordinator.alters[freeze] = altered
    await federation.run_until_declined("cohort-too-small")
    assert coordinator.heard_of(next_step) == []


async def test_row_5_invented_hospital_in_the_cohort_is_refused(federation_of: HostileFederationOf) -> None:
    federation = federation_of(n_sites=3)
    invented = seeded_signer("an invented hospital")

    def altered(_: SiteId, relayed: Instruction) -> Instruction:
        assert isinstance(relayed, asked.RelayKeys)
        true = SignedList.decode(relayed.message).entries
        said = KeyAdvertisement.decode(true[0].body)
        sybil = replace(said, site=STRANGER, mask_key=OWN_KEY, transport_key=OTHER_KEY, spki_der=invented.spki_der)
        entry = sign_body(invented, StatementKind.M1.value, sybil.encode())
        return replace(relayed, message=SignedList(entries=(*true, entry)).encode())

    federation.coordinator.alters[asked.RelayKeys] = altered
    await federation.run_until_declined("site-not-approved")
    assert_nothing_after_the_keys(federation)


async def test_row_5_invented_hospital_under_an_approved_name_is_refused(federation_of: HostileFederationOf) -> None:
    """The roster's own names, with keys that no hospital has: a pin is of a key, not of a name."""
    federation = federation_of(n_sites=4)

    def altered(site: SiteId, relayed: Instruction) -> Instruction:
        assert isinstance(relayed, asked.RelayKeys)
        entries = [
            entry
            if KeyAdvertisement.decode(entry.body).site == site
            else with_keys_of_the_coordinator(entry, is_pinned_key_named=False)
            for entry in SignedList.decode(relayed.message).entries
        ]
        return replace(relayed, message=SignedList(entries=tuple(entries)).encode())

    federation.coordinator.alters[asked.RelayKeys] = altered
    await federation.run_until_declined("site-not-approved")
    assert_nothing_after_the_keys(federation)


async def test_decision_5_cohort_of_three_is_refused_by_a_site_that_assumes_one_colluder(
    federation_of: HostileFederationOf,
) -> None:
    federation = federation_of(n_sites=3)
    for site in federation.sites.values():
        site.judge.n_colluders = 1
    await federation.run_until_declined("cohort-too-small")
    assert_nothing_after_the_keys(federation)


async def test_decision_5_three_survivors_of_four_are_refused_by_a_site_that_assumes_one_colluder(
    federation_of: HostileFederationOf,
) -> None:
    """Four are enough to begin with. Three that survive are not: one that lies leaves two, and they subtract."""
    federation = federation_of(n_sites=4)
    coordinator = federation.coordinator
    for site in federation.sites.values():
        site.judge.n_colluders = 1
    coordinator.alters[asked.RelaySurvivors] = lambda _, true: only(set(coordinator.site_ids[:3]), true)
    await federation.run_until_declined("cohort-too-small", by=("alpha", "beta", "gamma"))
    assert coordinator.heard_of(Step.CONFIRM) == []
