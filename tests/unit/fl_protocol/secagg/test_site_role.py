"""What a site refuses. Each test is an attack by a coordinator, or by a peer, at the message where it happens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest

from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import SiteId
from fl_protocol.packing import unpack
from fl_protocol.secagg import coordinator_role, shamir
from fl_protocol.secagg.messages import (
    Confirmation,
    DealtShares,
    ExchangeResult,
    KeyAdvertisement,
    Reveal,
    ShareHeader,
    ShareKeys,
    ShareKind,
    SignedList,
    StatementKind,
    UploadHeader,
)
from fl_protocol.secagg.reading import PeerVerifier
from fl_protocol.secagg.reasons import PhaseError, RefusalReason, SecAggRefusedError
from fl_protocol.secagg.sealing import HpkeSealer
from fl_protocol.secagg.site_role import SitePhase, SiteRole
from fl_protocol.secagg.transcript import commit_to_shares, sealing_info, tree_paths, tree_root
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.testing.entropy import SeededEntropy, seeded_signer
from fl_protocol.testing.federation import RUN_ID, Federation, LastSent, small_layout
from fl_protocol.testing.scene import Scene
from fl_protocol.testing.strategies import site_names


def refusal(call: Callable[..., object], *args: object, **kwargs: object) -> SecAggRefusedError:
    with pytest.raises(SecAggRefusedError) as caught:
        call(*args, **kwargs)
    return caught.value


def m2_of(entries: Iterable[SignedBody]) -> bytes:
    return SignedList(entries=tuple(entries)).encode()


def entries_of(data: bytes) -> list[SignedBody]:
    return list(SignedList.decode(data).entries)


# --- M0 ---------------------------------------------------------------------------------------------------------------


def open_with(scene: Scene, **changes: object) -> SiteRole:
    federation = scene.federation
    arguments = {
        "site_id": "site-1",
        "context": dataclasses.replace(coordinator_context(scene), exchange_attempt=scene.opened.exchange_attempt),
        "manifest": scene.opened.manifest,
        "coordinator_spki": federation.coordinator.spki_der,
        "layout": federation.layout,
        "params": federation.params,
        "peers": PeerVerifier(approved=federation.roster),
        "signer": federation.signers["site-1"],
        "entropy": SeededEntropy("x"),
    }
    return SiteRole.open(**(arguments | changes))


def coordinator_context(scene: Scene) -> ExchangeContext:
    from fl_protocol.spec.round_spec import RoundManifest

    return RoundManifest.decode(scene.opened.manifest.body).exchange(0, 0)


def test_open_manifest_of_another_coordinator_is_refused(scene: Scene) -> None:
    other = seeded_signer("somebody else")
    assert refusal(open_with, scene, coordinator_spki=other.spki_der).reason is RefusalReason.SIGNATURE_INVALID


def test_open_manifest_of_another_round_is_refused(scene: Scene) -> None:
    context = dataclasses.replace(coordinator_context(scene), round_index=1)
    assert refusal(open_with, scene, context=context).reason is RefusalReason.CONTEXT_MISMATCH


def test_open_manifest_with_another_layout_is_refused(scene: Scene) -> None:
    layout = small_layout(n_ring32=6)
    assert refusal(open_with, scene, layout=layout).reason is RefusalReason.LAYOUT_MISMATCH


def test_open_manifest_that_is_none_is_refused(scene: Scene) -> None:
    signed = sign_body(scene.federation.coordinator, StatementKind.M0.value, b"not a manifest")
    assert refusal(open_with, scene, manifest=signed).reason is RefusalReason.MESSAGE_MALFORMED


# --- M2 ---------------------------------------------------------------------------------------------------------------


def test_share_substituted_key_with_the_site_s_own_name_is_refused(scene: Scene) -> None:
    """The coordinator puts itself in a peer's place: it signs the peer's M1 with a key of its own."""
    scene.play(LastSent.M1)
    impostor = seeded_signer("impostor")
    forged = dataclasses.replace(
        KeyAdvertisement.decode(SignedBody.decode(scene.m1s["site-2"]).body),
        mask_key=bytes([9]) * 32,
        spki_der=impostor.spki_der,
    )
    entries = [SignedBody.decode(scene.m1s[site]) for site in scene.sites]
    entries[1] = sign_body(impostor, StatementKind.M1.value, forged.encode())
    assert refusal(scene.roles["site-1"].share, m2_of(entries)).reason is RefusalReason.SITE_NOT_APPROVED


def test_share_altered_key_under_the_true_signature_is_refused(scene: Scene) -> None:
    scene.play(LastSent.M1)
    entries = entries_of(scene.m2)
    said = dataclasses.replace(KeyAdvertisement.decode(entries[1].body), mask_key=bytes([9]) * 32)
    entries[1] = SignedBody(body=said.encode(), signature=entries[1].signature)
    assert refusal(scene.roles["site-1"].share, m2_of(entries)).reason is RefusalReason.SIGNATURE_INVALID


def test_share_invented_site_is_refused(scene: Scene) -> None:
    scene.play(LastSent.M1)
    sybil = seeded_signer("sybil")
    said = dataclasses.replace(
        KeyAdvertisement.decode(SignedBody.decode(scene.m1s["site-2"]).body), site="site-9", spki_der=sybil.spki_der
    )
    entries = [*entries_of(scene.m2), sign_body(sybil, StatementKind.M1.value, said.encode())]
    refused = refusal(scene.roles["site-1"].share, m2_of(entries))
    assert (refused.reason, refused.facts["site"]) == (RefusalReason.SITE_NOT_APPROVED, "site-9")


def test_share_key_of_another_exchange_is_refused(scene: Scene, new_scene: Callable[..., Scene]) -> None:
    scene.play(LastSent.M1)
    earlier = new_scene(federation=scene.federation, exchange_attempt=1).play(LastSent.M1)
    entries = entries_of(scene.m2)
    entries[1] = SignedBody.decode(earlier.m1s["site-2"])
    assert refusal(scene.roles["site-1"].share, m2_of(entries)).reason is RefusalReason.CONTEXT_MISMATCH


@pytest.mark.parametrize("order", [[0, 1, 1, 2, 3, 4], [1, 0, 2, 3, 4]])
def test_share_repeated_or_unsorted_member_is_refused(scene: Scene, order: list[int]) -> None:
    scene.play(LastSent.M1)
    entries = entries_of(scene.m2)
    refused = refusal(scene.roles["site-1"].share, m2_of(entries[index] for index in order))
    assert refused.reason is RefusalReason.SITE_REPEATED


@pytest.mark.parametrize("field", ["mask_key", "transport_key"])
def test_share_key_of_another_member_is_refused(scene: Scene, field: str) -> None:
    """A colluding member advertises a victim's key as its own."""
    scene.play(LastSent.M1)
    entries = entries_of(scene.m2)
    victim = KeyAdvertisement.decode(entries[2].body)
    said = dataclasses.replace(KeyAdvertisement.decode(entries[1].body), **{field: victim.mask_key})
    entries[1] = sign_body(scene.federation.signers["site-2"], StatementKind.M1.value, said.encode())
    assert refusal(scene.roles["site-1"].share, m2_of(entries)).reason is RefusalReason.KEY_REPEATED


def test_share_key_of_small_order_is_refused_and_its_owner_named(scene: Scene) -> None:
    scene.play(LastSent.M1)
    entries = entries_of(scene.m2)
    said = dataclasses.replace(KeyAdvertisement.decode(entries[1].body), mask_key=bytes(32))
    entries[1] = sign_body(scene.federation.signers["site-2"], StatementKind.M1.value, said.encode())
    refused = refusal(scene.roles["site-1"].share, m2_of(entries))
    assert (refused.reason, refused.blamed) == (RefusalReason.KEY_INVALID, "site-2")


def test_share_list_without_the_own_message_is_refused(scene: Scene) -> None:
    scene.play(LastSent.M1)
    refused = refusal(scene.roles["site-1"].share, m2_of(entries_of(scene.m2)[1:]))
    assert refused.reason is RefusalReason.OWN_MESSAGE_ALTERED


@pytest.mark.parametrize("n", [1, 2])
def test_share_cohort_below_three_is_refused_by_the_site(scene: Scene, n: int) -> None:
    scene.play(LastSent.M1)
    refused = refusal(scene.roles["site-1"].share, m2_of(entries_of(scene.m2)[:n]))
    assert refused.reason is RefusalReason.COHORT_TOO_SMALL


def test_share_cohort_below_the_site_s_own_policy_is_refused_by_the_site() -> None:
    strict = SecAggParams(min_cohort=5, chunk_bytes=16)
    federation = Federation(site_names(4), small_layout(), params_of={"site-3": strict})
    vectors = {site: RingVector.zeros(5, 2) for site in federation.site_ids}
    assert refusal(federation.exchange, vectors).reason is RefusalReason.COHORT_TOO_SMALL


def test_share_cohort_that_assumed_colluders_could_split_is_refused_by_the_site() -> None:
    """With c = 2 a cohort of four has too few honest members: |U3| >= 3 + c."""
    wary = SecAggParams(assumed_colluders=2, chunk_bytes=16)
    federation = Federation(site_names(4), small_layout(), params_of={"site-1": wary})
    vectors = {site: RingVector.zeros(5, 2) for site in federation.site_ids}
    assert refusal(federation.exchange, vectors).reason is RefusalReason.COHORT_TOO_SMALL


def test_share_cohort_above_the_capacity_proof_is_refused_by_the_site(scene: Scene) -> None:
    federation = Federation(site_names(4), small_layout(max_sites=3))
    opened = federation.open_exchange()
    roles = {site: federation.open_role(site, opened) for site in federation.site_ids}
    m2 = m2_of(SignedBody.decode(role.advertise()) for _, role in sorted(roles.items()))
    assert refusal(roles["site-1"].share, m2).reason is RefusalReason.COHORT_TOO_LARGE


def test_share_refused_message_leaves_the_phase_so_that_the_true_one_is_accepted(scene: Scene) -> None:
    scene.play(LastSent.M1)
    role = scene.roles["site-1"]
    refusal(role.share, scene.m2[:-1])
    assert role.phase is SitePhase.ADVERTISED
    role.share(scene.m2)
    assert role.phase is SitePhase.SHARED


def test_share_second_cohort_is_refused(scene: Scene) -> None:
    scene.play(LastSent.M1)
    role = scene.roles["site-1"]
    role.share(scene.m2)
    with pytest.raises(PhaseError):
        role.share(m2_of(entries_of(scene.m2)[:4]))


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


# --- M5 ---------------------------------------------------------------------------------------------------------------


def agreed(scene: Scene, site: SiteId = "site-1") -> SiteRole:
    scene.play(LastSent.M3)
    scene.roles[site].accept_shares(coordinator_role.make_m4(scene.shared, site))
    return scene.roles[site]


def test_mask_second_time_is_refused_before_and_after_a_restart(scene: Scene) -> None:
    role = agreed(scene)
    role.mask(scene.vector("site-1"))
    for again in (role, scene.federation.restart("site-1", role)):
        vector = scene.vector("site-1")
        with pytest.raises(PhaseError):
            again.mask(vector)
        assert vector.equals(scene.vector("site-1"))


def test_mask_interrupted_leaves_no_role_that_could_mask_again(scene: Scene) -> None:
    role = agreed(scene)

    def interrupted(work: Sequence[Callable[[], None]]) -> None:
        work[0]()
        raise MemoryError

    with pytest.raises(MemoryError):
        role.mask(scene.vector("site-1"), run_all=interrupted)
    for call in (lambda: role.mask(scene.vector("site-1")), role.snapshot, lambda: role.phase):
        with pytest.raises(PhaseError):
            call()


def test_mask_vector_of_another_shape_is_refused_and_the_phase_kept(scene: Scene) -> None:
    role = agreed(scene)
    assert refusal(role.mask, RingVector.zeros(6, 2)).reason is RefusalReason.LAYOUT_MISMATCH
    role.mask(scene.vector("site-1"))


def test_mask_happens_in_place_and_in_ranges_alike(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from fl_protocol.secagg import masking

    monkeypatch.setattr(masking, "CACHE_CHUNK_BYTES", 8)
    role = agreed(scene)
    twin = scene.federation.restart("site-1", role)
    vector, other = scene.vector("site-1"), scene.vector("site-1")
    upload = role.mask(vector)
    twin.mask(other, n_ranges=3, run_all=lambda work: [piece() for piece in reversed(work)])
    assert upload.vector is vector
    assert upload.vector.equals(other)
    assert UploadHeader.decode(SignedBody.decode(upload.header).body).chunk_root == upload.chunk_root


def test_snapshot_after_masking_holds_no_key_that_made_a_mask(scene: Scene) -> None:
    role = agreed(scene)
    state = role._state
    secrets = [shamir.element_to_bytes(state.secrets.rho), shamir.element_to_bytes(state.secrets.b)]
    before = role.snapshot()
    assert all(secret in before for secret in secrets)
    role.mask(scene.vector("site-1"))
    assert not any(secret in role.snapshot() for secret in secrets)


def test_snapshot_from_agreement_on_holds_no_transport_key(scene: Scene) -> None:
    scene.play(LastSent.M3)
    role = scene.roles["site-1"]
    private = role._state.transport_private
    assert private in role.snapshot()
    role.accept_shares(coordinator_role.make_m4(scene.shared, "site-1"))
    assert private not in role.snapshot()


# --- M6 ---------------------------------------------------------------------------------------------------------------


def test_confirm_upload_from_outside_the_sharers_is_refused(scene: Scene) -> None:
    """Site-5 never dealt shares to this set of sharers; the coordinator adds its header anyway."""
    scene.play(LastSent.M3)
    scene.shared = coordinator_role.freeze_sharers(
        scene.keyed, {site: m3 for site, m3 in scene.m3s.items() if site != "site-5"}
    )
    for site in scene.shared.sites:
        scene.roles[site].accept_shares(coordinator_role.make_m4(scene.shared, site))
        scene.m5s[site] = scene.roles[site].mask(scene.vector(site)).header
    header = UploadHeader(
        site="site-5",
        h_sharers=scene.shared.sharers.h_sharers,
        chunk_root=bytes(32),
        n_bytes=scene.vector("site-1").n_bytes,
    )
    outsider = sign_body(scene.federation.signers["site-5"], StatementKind.M5.value, header.encode())
    m6 = m2_of([*(SignedBody.decode(scene.m5s[site]) for site in scene.shared.sites), outsider])
    assert refusal(scene.roles["site-1"].confirm, m6).reason is RefusalReason.SITE_UNKNOWN


def test_confirm_altered_header_is_refused(scene: Scene) -> None:
    scene.play(LastSent.M5)
    entries = entries_of(scene.m6)
    header = dataclasses.replace(UploadHeader.decode(entries[1].body), chunk_root=bytes(32))
    entries[1] = SignedBody(body=header.encode(), signature=entries[1].signature)
    assert refusal(scene.roles["site-1"].confirm, m2_of(entries)).reason is RefusalReason.SIGNATURE_INVALID


def test_confirm_header_of_another_exchange_is_refused(scene: Scene, new_scene: Callable[..., Scene]) -> None:
    scene.play(LastSent.M5)
    other = new_scene(federation=scene.federation, exchange_attempt=1).play(LastSent.M5)
    entries = entries_of(scene.m6)
    entries[1] = SignedBody.decode(other.m5s["site-2"])
    assert refusal(scene.roles["site-1"].confirm, m2_of(entries)).reason is RefusalReason.CONTEXT_MISMATCH


def test_confirm_own_header_replaced_by_another_is_refused(scene: Scene) -> None:
    """Even one that this site's key signed: what it sent in this phase is what it must find."""
    scene.play(LastSent.M5)
    entries = entries_of(scene.m6)
    header = dataclasses.replace(UploadHeader.decode(entries[0].body), chunk_root=bytes(32))
    entries[0] = sign_body(scene.federation.signers["site-1"], StatementKind.M5.value, header.encode())
    assert refusal(scene.roles["site-1"].confirm, m2_of(entries)).reason is RefusalReason.OWN_MESSAGE_ALTERED


def test_confirm_upload_of_another_size_is_refused_and_its_sender_named(scene: Scene) -> None:
    scene.play(LastSent.M5)
    entries = entries_of(scene.m6)
    header = dataclasses.replace(UploadHeader.decode(entries[1].body), n_bytes=4)
    entries[1] = sign_body(scene.federation.signers["site-2"], StatementKind.M5.value, header.encode())
    refused = refusal(scene.roles["site-1"].confirm, m2_of(entries))
    assert (refused.reason, refused.blamed) == (RefusalReason.SIZE_MISMATCH, "site-2")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_confirm_fewer_survivors_than_the_threshold_are_refused(scene: Scene, n: int) -> None:
    scene.play(LastSent.M5)
    refused = refusal(scene.roles["site-1"].confirm, m2_of(entries_of(scene.m6)[:n]))
    assert refused.reason is RefusalReason.COHORT_TOO_SMALL


def test_confirm_second_survivor_set_is_refused_before_and_after_a_restart(scene: Scene) -> None:
    scene.play(LastSent.M5)
    role = scene.roles["site-1"]
    role.confirm(m2_of(entries_of(scene.m6)[:4]))
    for again in (role, scene.federation.restart("site-1", role)):
        with pytest.raises(PhaseError):
            again.confirm(scene.m6)


def test_confirm_survivors_other_than_the_required_are_refused(scene: Scene) -> None:
    scene.play(LastSent.M5)
    role = scene.roles["site-1"]
    refused = refusal(role.confirm, scene.m6, required=scene.sites[:4])
    assert refused.reason is RefusalReason.SURVIVORS_CHANGED
    role.confirm(scene.m6, required=scene.sites)


# --- M8, M9 -----------------------------------------------------------------------------------------------------------


def test_reveal_fewer_confirmations_than_the_threshold_are_refused(scene: Scene) -> None:
    scene.play(LastSent.M7)
    refused = refusal(scene.roles["site-1"].reveal, m2_of(entries_of(scene.m8)[:3]))
    assert refused.reason is RefusalReason.QUORUM_MISSING


def test_reveal_one_confirmation_repeated_is_refused(scene: Scene) -> None:
    scene.play(LastSent.M7)
    entries = entries_of(scene.m8)
    refused = refusal(scene.roles["site-1"].reveal, m2_of([entries[0]] * 4))
    assert refused.reason is RefusalReason.SITE_REPEATED


def test_reveal_confirmations_of_two_survivor_sets_are_refused(scene: Scene) -> None:
    """The split view: two sites were shown a smaller set, and their signatures are mixed in."""
    scene.play(LastSent.M5)
    smaller = m2_of(entries_of(scene.m6)[:4])
    m7s = {
        site: scene.roles[site].confirm(smaller if site in ("site-3", "site-4") else scene.m6) for site in scene.sites
    }
    m8 = m2_of(SignedBody.decode(m7s[site]) for site in scene.sites)
    for site in scene.sites:
        assert refusal(scene.roles[site].reveal, m8).reason is RefusalReason.CONTEXT_MISMATCH


def test_reveal_confirmation_from_outside_the_survivors_is_refused(scene: Scene) -> None:
    scene.play(LastSent.M7, lost=("site-5",))
    said = Confirmation(site="site-5", h_survivors=scene.surviving.survivors.h_survivors)
    outsider = sign_body(scene.federation.signers["site-5"], StatementKind.M7.value, said.encode())
    m8 = m2_of([*entries_of(scene.m8)[:3], outsider])
    assert refusal(scene.roles["site-1"].reveal, m8).reason is RefusalReason.SITE_UNKNOWN


def test_reveal_is_one_kind_a_peer_by_the_site_s_own_table(scene: Scene) -> None:
    scene.play(LastSent.M9, lost=("site-4",))
    for m9 in scene.m9s.values():
        shares = Reveal.decode(SignedBody.decode(m9).body).shares
        kinds = {share.peer: share.kind for share in shares}
        assert len(kinds) == len(shares) == 5
        assert kinds == {site: ShareKind.MASK_KEY if site == "site-4" else ShareKind.SELF_MASK for site in scene.sites}


def test_reveal_second_time_is_refused_and_no_share_is_left(scene: Scene) -> None:
    scene.play(LastSent.M7)
    role = scene.roles["site-1"]
    held = role._state.held
    role.reveal(scene.m8)
    snapshot = role.snapshot()
    # The revealed b shares are inside M9 itself; the rho shares are nowhere any more.
    assert not any(share.rho_share in snapshot for share in held)
    for again in (role, scene.federation.restart("site-1", role)):
        with pytest.raises(PhaseError):
            again.reveal(scene.m8)
        assert again.last_message == role.last_message


# --- M10 --------------------------------------------------------------------------------------------------------------


def m10_of(scene: Scene, signer: Signer | None = None, **changes: object) -> bytes:
    body = ExchangeResult(
        h_manifest=scene.keyed.cohort.h_manifest,
        h_survivors=scene.surviving.survivors.h_survivors,
        result_sha256=bytes(32),
        transcript_root=bytes(32),
    )
    body = dataclasses.replace(body, **changes)
    return sign_body(signer or scene.federation.coordinator, StatementKind.M10.value, body.encode()).encode()


def test_finish_result_of_this_exchange_is_accepted_with_or_without_a_reveal(scene: Scene) -> None:
    scene.play(LastSent.M7)
    scene.roles["site-1"].reveal(scene.m8)
    for site in ("site-1", "site-2"):
        role = scene.roles[site]
        assert role.finish(m10_of(scene)).result_sha256 == bytes(32)
        assert role.phase is SitePhase.FINISHED
        assert scene.federation.restart(site, role).phase is SitePhase.FINISHED


@pytest.mark.parametrize("field", ["h_manifest", "h_survivors"])
def test_finish_result_of_another_exchange_or_set_is_refused(scene: Scene, field: str) -> None:
    scene.play(LastSent.M9)
    refused = refusal(scene.roles["site-1"].finish, m10_of(scene, **{field: bytes(32)}))
    assert refused.reason is RefusalReason.CONTEXT_MISMATCH


def test_finish_result_signed_by_a_site_is_refused(scene: Scene) -> None:
    scene.play(LastSent.M9)
    refused = refusal(scene.roles["site-1"].finish, m10_of(scene, signer=scene.federation.signers["site-2"]))
    assert refused.reason is RefusalReason.SIGNATURE_INVALID


def test_finish_before_confirming_is_refused(scene: Scene) -> None:
    scene.play(LastSent.M5)
    with pytest.raises(PhaseError):
        scene.roles["site-1"].finish(m10_of(scene))


# --- all phases -------------------------------------------------------------------------------------------------------


def test_role_every_step_out_of_order_is_refused(scene: Scene) -> None:
    role = scene.roles["site-1"]
    calls = {
        "share": lambda: role.share(b""),
        "accept": lambda: role.accept_shares(b""),
        "mask": lambda: role.mask(scene.vector("site-1")),
        "confirm": lambda: role.confirm(b""),
        "reveal": lambda: role.reveal(b""),
        "finish": lambda: role.finish(b""),
    }
    for call in calls.values():
        with pytest.raises(PhaseError):
            call()
    role.advertise()
    with pytest.raises(PhaseError):
        role.advertise()


def test_role_knows_the_three_sets_as_they_freeze(scene: Scene) -> None:
    role = scene.roles["site-1"]
    assert (role.cohort, role.sharers, role.survivors, role.last_message) == ((), (), (), None)
    scene.play(LastSent.M9, lost=("site-2",))
    assert role.cohort == role.sharers == scene.sites
    assert role.survivors == ("site-1", "site-3", "site-4", "site-5")


def test_role_repr_of_every_phase_hides_secrets(scene: Scene) -> None:
    scene.play(LastSent.M1)
    role = scene.roles["site-1"]
    state = role._state
    assert repr(role) == "SiteRole(advertised)"
    assert str(state.secrets.rho) not in repr(state)
    assert repr(state.transport_private) not in repr(state)


def test_snapshot_of_another_version_is_refused(scene: Scene) -> None:
    from fl_protocol.packing import pack
    from fl_protocol.secagg.site_role.snapshot import SnapshotInvalidError

    snapshot = scene.roles["site-1"].snapshot()
    _, *rest = unpack(snapshot)
    with pytest.raises(SnapshotInvalidError):
        SiteRole.restore(pack(b"WR/site-role/0", *rest), signer=seeded_signer("x"), entropy=SeededEntropy("x"))


def test_context_names_the_run_the_round_and_the_exchange(scene: Scene) -> None:
    context = coordinator_context(scene)
    assert (context.run_id, context.exchange_index, context.exchange_attempt) == (RUN_ID, 0, 0)
    np.testing.assert_equal(type(context).decode(context.encode()), context)
