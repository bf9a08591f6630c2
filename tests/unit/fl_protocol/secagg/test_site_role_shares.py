"""M4: what a site refuses of other sites' shares. Each test is an attack, at the message where it happens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from fl_protocol.ids import SiteId
from fl_protocol.secagg import coordinator_role, shamir
from fl_protocol.secagg.messages import (
    DealtShares,
    ShareHeader,
    ShareKeys,
    StatementKind,
)
from fl_protocol.secagg.reasons import PhaseError, RefusalReason
from fl_protocol.secagg.sealing import HpkeSealer
from fl_protocol.secagg.site_role import SitePhase, SiteRole
from fl_protocol.secagg.transcript import commit_to_shares, sealing_info, tree_paths, tree_root
from fl_protocol.signing.signed import sign_body
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.testing.federation import Federation, LastSent, small_layout
from fl_protocol.testing.scene import Scene
from fl_protocol.testing.strategies import site_names
from tests.support.secagg_refusals import refusal

# --- M4 ---------------------------------------------------------------------------------------------------------------


def m4_with(scene: Scene, to_site: str, dealer: str, message: ShareKeys) -> bytes:
    """M4 in which one dealer's M3 is replaced by another that it signed."""
    m4 = DealtShares.decode(coordinator_role.make_m4(scene.shared, to_site))
    index = scene.sites.index(to_site)
    paths = tree_paths([leaf.encode() for leaf in message.leaves])
    entries = [
        dataclasses.replace(entry, header=message.header, leaf=message.leaves[index], path=paths[index])
        if site == dealer
        else entry
        for site, entry in zip(scene.sites, m4.entries, strict=True)
    ]
    return DealtShares(entries=tuple(entries)).encode()


def redealt(scene: Scene, dealer: str, **leaf_changes: object) -> ShareKeys:
    """The dealer's M3 with its leaf for site-1 changed, and signed again by the dealer."""
    message = ShareKeys.decode(scene.m3s[dealer])
    leaves = (dataclasses.replace(message.leaves[0], **leaf_changes), *message.leaves[1:])
    header = dataclasses.replace(
        ShareHeader.decode(message.header.body), root=tree_root([leaf.encode() for leaf in leaves])
    )
    signed = sign_body(scene.federation.signers[dealer], StatementKind.M3.value, header.encode())
    return ShareKeys(header=signed, leaves=leaves)


def sealed_for_site_1(scene: Scene, dealer: str, plaintext: bytes) -> bytes:
    cohort = scene.keyed.cohort
    return HpkeSealer().seal(
        plaintext,
        public=cohort.member("site-1").transport_key,
        info=sealing_info(cohort.h_cohort, dealer=dealer, holder="site-1"),
    )


def check_complaint(scene: Scene, role: SiteRole, dealer: str) -> None:
    assert role.phase is SitePhase.COMPLAINED
    complaint = coordinator_role.check_complaint(scene.keyed, role.last_message, sender="site-1")
    assert (complaint.dealer, complaint.reason) == (dealer, RefusalReason.SHARE_INVALID)
    with pytest.raises(PhaseError):
        role.mask(scene.vector("site-1"))


def test_accept_shares_ciphertext_that_does_not_open_names_the_dealer_in_a_signed_complaint(scene: Scene) -> None:
    scene.play(LastSent.M3)
    role = scene.roles["site-1"]
    m4 = m4_with(scene, "site-1", "site-3", redealt(scene, "site-3", ciphertext=bytes(112)))
    refused = refusal(role.accept_shares, m4)
    assert (refused.reason, refused.blamed) == (RefusalReason.SHARE_INVALID, "site-3")
    check_complaint(scene, role, "site-3")


def test_accept_shares_that_do_not_match_the_commitment_name_the_dealer(scene: Scene) -> None:
    scene.play(LastSent.M3)
    role = scene.roles["site-1"]
    other = shamir.element_to_bytes(5) + shamir.element_to_bytes(6)
    message = redealt(scene, "site-3", ciphertext=sealed_for_site_1(scene, "site-3", other))
    refused = refusal(role.accept_shares, m4_with(scene, "site-1", "site-3", message))
    assert (refused.reason, refused.blamed) == (RefusalReason.SHARE_INVALID, "site-3")
    check_complaint(scene, role, "site-3")


def test_accept_shares_that_are_no_elements_name_the_dealer(scene: Scene) -> None:
    scene.play(LastSent.M3)
    role = scene.roles["site-1"]
    share = b"\xff" * 32
    message = redealt(
        scene,
        "site-3",
        ciphertext=sealed_for_site_1(scene, "site-3", share + share),
        commitment=commit_to_shares(share, share, dealer="site-3", holder="site-1"),
    )
    refused = refusal(role.accept_shares, m4_with(scene, "site-1", "site-3", message))
    assert refused.blamed == "site-3"
    check_complaint(scene, role, "site-3")


def test_complaint_survives_a_restart_and_holds_no_secret(scene: Scene) -> None:
    scene.play(LastSent.M3)
    role = scene.roles["site-1"]
    refusal(role.accept_shares, m4_with(scene, "site-1", "site-3", redealt(scene, "site-3", ciphertext=bytes(112))))
    restored = scene.federation.restart("site-1", role)
    assert (restored.phase, restored.last_message) == (SitePhase.COMPLAINED, role.last_message)


def test_accept_shares_altered_leaf_blames_nobody(scene: Scene) -> None:
    """The coordinator alters a leaf: the dealer never signed it, and must not be accused."""
    scene.play(LastSent.M3)
    m4 = DealtShares.decode(coordinator_role.make_m4(scene.shared, "site-1"))
    bad = dataclasses.replace(m4.entries[2], leaf=dataclasses.replace(m4.entries[2].leaf, ciphertext=bytes(112)))
    data = DealtShares(entries=(*m4.entries[:2], bad, *m4.entries[3:])).encode()
    refused = refusal(scene.roles["site-1"].accept_shares, data)
    assert (refused.reason, refused.blamed) == (RefusalReason.SHARE_MISSING, None)
    assert scene.roles["site-1"].phase is SitePhase.SHARED


def test_accept_shares_meant_for_another_holder_are_refused(scene: Scene) -> None:
    scene.play(LastSent.M3)
    data = coordinator_role.make_m4(scene.shared, "site-2")
    assert refusal(scene.roles["site-1"].accept_shares, data).reason is RefusalReason.SHARE_MISSING


def test_accept_shares_dealt_to_another_cohort_are_refused(scene: Scene, new_scene: Callable[..., Scene]) -> None:
    scene.play(LastSent.M3)
    other = new_scene(federation=scene.federation, exchange_attempt=1).play(LastSent.M3)
    data = coordinator_role.make_m4(other.shared, "site-1")
    assert refusal(scene.roles["site-1"].accept_shares, data).reason is RefusalReason.CONTEXT_MISMATCH


def test_accept_shares_fewer_sharers_than_the_threshold_are_refused(scene: Scene) -> None:
    scene.play(LastSent.M3)
    m4 = DealtShares.decode(coordinator_role.make_m4(scene.shared, "site-1"))
    data = DealtShares(entries=m4.entries[:3]).encode()
    assert refusal(scene.roles["site-1"].accept_shares, data).reason is RefusalReason.COHORT_TOO_SMALL


def test_accept_shares_without_the_own_header_are_refused(scene: Scene) -> None:
    scene.play(LastSent.M3)
    m4 = DealtShares.decode(coordinator_role.make_m4(scene.shared, "site-1"))
    data = DealtShares(entries=m4.entries[1:]).encode()
    assert refusal(scene.roles["site-1"].accept_shares, data).reason is RefusalReason.OWN_MESSAGE_ALTERED


def test_accept_shares_dealer_with_a_low_threshold_is_named(scene: Scene) -> None:
    scene.play(LastSent.M3)
    message = ShareKeys.decode(scene.m3s["site-3"])
    header = dataclasses.replace(ShareHeader.decode(message.header.body), threshold=2)
    signed = sign_body(scene.federation.signers["site-3"], StatementKind.M3.value, header.encode())
    m4 = m4_with(scene, "site-1", "site-3", dataclasses.replace(message, header=signed))
    refused = refusal(scene.roles["site-1"].accept_shares, m4)
    assert (refused.reason, refused.blamed) == (RefusalReason.THRESHOLD_INVALID, "site-3")


def test_accept_shares_second_time_is_refused(scene: Scene) -> None:
    scene.play(LastSent.M3)
    m4 = coordinator_role.make_m4(scene.shared, "site-1")
    scene.roles["site-1"].accept_shares(m4)
    with pytest.raises(PhaseError):
        scene.roles["site-1"].accept_shares(m4)


# --- M4, of a payload that was masked before --------------------------------------------------------------------------


@pytest.mark.parametrize(("n_returning", "is_refused"), [(1, True), (2, True), (3, False)])
def test_accept_shares_payload_whose_earlier_sum_others_could_complete_is_refused(
    scene: Scene, n_returning: int, is_refused: bool
) -> None:
    """Cohort of 7, t = 5: five may have unmasked it without this site's M7, which need not have been shown an M6."""
    elsewhere = tuple(SiteId(f"elsewhere-{number}") for number in range(7 - n_returning))
    earlier = frozenset((*scene.sites[:n_returning], *elsewhere))
    scene.play(LastSent.M3)
    role, m4 = scene.roles["site-1"], coordinator_role.make_m4(scene.shared, "site-1")
    if is_refused:
        refused = refusal(role.accept_shares, m4, earlier_cohorts=[earlier])
        assert (refused.reason, refused.blamed) == (RefusalReason.SURVIVORS_SPLIT, None)
        assert role.phase is SitePhase.SHARED
    else:
        role.accept_shares(m4, earlier_cohorts=[earlier])
        assert role.phase is SitePhase.AGREED


def test_accept_shares_every_earlier_cohort_of_the_payload_counts(scene: Scene) -> None:
    scene.play(LastSent.M3)
    m4 = coordinator_role.make_m4(scene.shared, "site-1")
    cohorts = [frozenset(scene.sites), frozenset(("site-1", "far-1", "far-2", "far-3"))]
    role = scene.roles["site-1"]
    assert refusal(role.accept_shares, m4, earlier_cohorts=cohorts).reason is RefusalReason.SURVIVORS_SPLIT
    role.accept_shares(m4, earlier_cohorts=cohorts[:1])


def test_accept_shares_assumed_colluders_are_not_counted_among_those_who_left_the_earlier_sum() -> None:
    federation = Federation(site_names(5), small_layout(), params=SecAggParams(chunk_bytes=16, assumed_colluders=1))
    opened = federation.open_exchange()
    roles = {site: federation.open_role(site, opened) for site in federation.site_ids}
    scene = Scene(federation=federation, opened=opened, roles=roles).play(LastSent.M3)
    m4 = coordinator_role.make_m4(scene.shared, "site-1")
    role = roles[SiteId("site-1")]
    # Cohort of 6, t = 5: one can be left over, and the colluder stands in both.
    earlier = [frozenset((*scene.sites[:2], *(SiteId(f"far-{number}") for number in range(4))))]
    assert refusal(role.accept_shares, m4, earlier_cohorts=earlier).reason is RefusalReason.SURVIVORS_SPLIT
    role.accept_shares(m4, earlier_cohorts=[frozenset((*scene.sites[:3], *sorted(earlier[0])[:3]))])
