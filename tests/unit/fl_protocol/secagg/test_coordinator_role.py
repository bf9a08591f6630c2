"""What the coordinator refuses, and whom it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import pytest

from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.secagg import coordinator_role, shamir
from fl_protocol.secagg.key_agreement import self_seed
from fl_protocol.secagg.masking import MaskSign, add_into, apply_masks, mask_term
from fl_protocol.secagg.messages import (
    Complaint,
    KeyAdvertisement,
    Reveal,
    ShareHeader,
    ShareKeys,
    ShareKind,
    StatementKind,
    UploadHeader,
)
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.secagg.sealing import HpkeSealer
from fl_protocol.secagg.transcript import commit_to_shares, sealing_info, tree_root
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.testing.entropy import SeededEntropy, seeded_signer
from fl_protocol.testing.federation import Federation, LastSent, small_layout
from fl_protocol.testing.scene import Scene
from fl_protocol.testing.strategies import site_names


class Encodable(Protocol):
    def encode(self) -> bytes: ...


def refusal(call: Callable[..., object], *args: object, **kwargs: object) -> SecAggRefusedError:
    with pytest.raises(SecAggRefusedError) as caught:
        call(*args, **kwargs)
    return caught.value


def resigned(scene: Scene, site: str, kind: StatementKind, body: Encodable) -> bytes:
    return sign_body(scene.federation.signers[site], kind.value, body.encode()).encode()


def test_check_m1_of_a_site_outside_the_roster_is_refused(scene: Scene) -> None:
    stranger = seeded_signer("stranger")
    said = KeyAdvertisement.decode(SignedBody.decode(scene.roles["site-1"].advertise()).body)
    said = dataclasses.replace(said, site="site-9", spki_der=stranger.spki_der)
    data = sign_body(stranger, StatementKind.M1.value, said.encode()).encode()
    refused = refusal(coordinator_role.check_m1, scene.opened, data, sender="site-9")
    assert refused.reason is RefusalReason.SITE_NOT_APPROVED


def test_check_m1_sent_by_another_site_is_refused(scene: Scene) -> None:
    data = scene.roles["site-1"].advertise()
    refused = refusal(coordinator_role.check_m1, scene.opened, data, sender="site-2")
    assert (refused.reason, refused.blamed) == (RefusalReason.SENDER_MISMATCH, "site-2")


def test_check_m1_of_another_exchange_is_refused(scene: Scene) -> None:
    data = scene.roles["site-1"].advertise()
    later = scene.federation.open_exchange(exchange_attempt=1)
    assert refusal(coordinator_role.check_m1, later, data, sender="site-1").reason is RefusalReason.CONTEXT_MISMATCH


def test_freeze_cohort_below_the_minimum_is_refused(new_scene: Callable[..., Scene]) -> None:
    scene = new_scene(3)
    m1s = {site: role.advertise() for site, role in scene.roles.items()}
    m1s.pop("site-1")
    assert refusal(coordinator_role.freeze_cohort, scene.opened, m1s).reason is RefusalReason.COHORT_TOO_SMALL


def test_check_m3_leaf_missing_extra_or_empty_names_the_dealer(scene: Scene) -> None:
    scene.play(LastSent.M3)
    message = ShareKeys.decode(scene.m3s["site-2"])
    empty = dataclasses.replace(message.leaves[0], ciphertext=b"")
    own = dataclasses.replace(message.leaves[1], ciphertext=bytes(112))
    for leaves in (
        message.leaves[1:],
        (*message.leaves, message.leaves[0]),
        (empty, *message.leaves[1:]),
        (message.leaves[0], own, *message.leaves[2:]),
    ):
        data = dataclasses.replace(message, leaves=leaves).encode()
        refused = refusal(coordinator_role.check_m3, scene.keyed, data, sender="site-2")
        assert (refused.reason, refused.blamed) == (RefusalReason.SHARE_MISSING, "site-2")


def test_check_m3_leaf_that_is_not_under_the_signed_root_names_the_dealer(scene: Scene) -> None:
    scene.play(LastSent.M3)
    message = ShareKeys.decode(scene.m3s["site-2"])
    leaves = (dataclasses.replace(message.leaves[0], commitment=bytes(64)), *message.leaves[1:])
    data = dataclasses.replace(message, leaves=leaves).encode()
    refused = refusal(coordinator_role.check_m3, scene.keyed, data, sender="site-2")
    assert (refused.reason, refused.blamed) == (RefusalReason.SHARE_INVALID, "site-2")


def test_make_m4_for_a_site_outside_the_sharers_is_refused(scene: Scene) -> None:
    scene.play(LastSent.M3)
    assert refusal(coordinator_role.make_m4, scene.shared, "site-9").reason is RefusalReason.SITE_UNKNOWN


def test_check_m5_altered_truncated_replayed_or_foreign_header_is_refused(
    scene: Scene, new_scene: Callable[..., Scene]
) -> None:
    scene.play(LastSent.M5)
    other = new_scene(federation=scene.federation, exchange_attempt=1).play(LastSent.M5)
    true = SignedBody.decode(scene.m5s["site-1"])
    header = UploadHeader.decode(true.body)
    altered = SignedBody(
        body=dataclasses.replace(header, chunk_root=bytes(32)).encode(), signature=true.signature
    ).encode()
    cases = {
        altered: RefusalReason.SIGNATURE_INVALID,
        scene.m5s["site-1"][:-3]: RefusalReason.MESSAGE_MALFORMED,
        other.m5s["site-1"]: RefusalReason.CONTEXT_MISMATCH,
        scene.m5s["site-2"]: RefusalReason.SENDER_MISMATCH,
        resigned(
            scene, "site-1", StatementKind.M5, dataclasses.replace(header, site="site-9")
        ): RefusalReason.SITE_UNKNOWN,
        resigned(
            scene, "site-1", StatementKind.M5, dataclasses.replace(header, n_bytes=8)
        ): RefusalReason.SIZE_MISMATCH,
        # The right body, signed as another kind of statement.
        resigned(scene, "site-1", StatementKind.M7, header): RefusalReason.SIGNATURE_INVALID,
    }
    for data, reason in cases.items():
        assert refusal(coordinator_role.check_m5, scene.shared, data, sender="site-1").reason is reason


def test_freeze_survivors_below_the_threshold_is_refused(scene: Scene) -> None:
    scene.play(LastSent.M5)
    three = dict(list(scene.m5s.items())[:3])
    assert refusal(coordinator_role.freeze_survivors, scene.shared, three).reason is RefusalReason.COHORT_TOO_SMALL


def test_make_m8_below_the_threshold_is_refused(scene: Scene) -> None:
    scene.play(LastSent.M7)
    three = dict(list(scene.m7s.items())[:3])
    assert refusal(coordinator_role.make_m8, scene.surviving, three).reason is RefusalReason.QUORUM_MISSING


def reveal_with(scene: Scene, site: str, index: int, **changes: object) -> bytes:
    reveal = Reveal.decode(SignedBody.decode(scene.m9s[site]).body)
    shares = list(reveal.shares)
    shares[index] = dataclasses.replace(shares[index], **changes)
    return resigned(scene, site, StatementKind.M9, dataclasses.replace(reveal, shares=tuple(shares)))


@pytest.mark.parametrize("index", [0, 3])
def test_check_m9_share_that_does_not_match_its_commitment_names_the_liar(scene: Scene, index: int) -> None:
    scene.play(LastSent.M9, lost=("site-4",))
    data = reveal_with(scene, "site-2", index, share=shamir.element_to_bytes(1234))
    refused = refusal(coordinator_role.check_m9, scene.surviving, data, sender="site-2")
    assert (refused.reason, refused.blamed) == (RefusalReason.SHARE_INVALID, "site-2")
    m9s = scene.m9s | {"site-2": data}
    assert refusal(coordinator_role.recover_mask_terms, scene.surviving, m9s).blamed == "site-2"


def test_check_m9_share_of_the_other_kind_names_the_liar(scene: Scene) -> None:
    scene.play(LastSent.M9, lost=("site-4",))
    for index, kind in ((0, ShareKind.MASK_KEY), (3, ShareKind.SELF_MASK)):
        data = reveal_with(scene, "site-2", index, kind=kind)
        refused = refusal(coordinator_role.check_m9, scene.surviving, data, sender="site-2")
        assert (refused.reason, refused.blamed) == (RefusalReason.SHARE_MISSING, "site-2")


def test_check_m9_missing_share_names_the_sender(scene: Scene) -> None:
    scene.play(LastSent.M9)
    reveal = Reveal.decode(SignedBody.decode(scene.m9s["site-2"]).body)
    data = resigned(scene, "site-2", StatementKind.M9, dataclasses.replace(reveal, shares=reveal.shares[1:]))
    refused = refusal(coordinator_role.check_m9, scene.surviving, data, sender="site-2")
    assert (refused.reason, refused.blamed) == (RefusalReason.SHARE_MISSING, "site-2")


def test_check_m9_from_a_site_that_did_not_survive_is_refused(scene: Scene) -> None:
    scene.play(LastSent.M9, lost=("site-4",))
    reveal = Reveal.decode(SignedBody.decode(scene.m9s["site-2"]).body)
    data = resigned(scene, "site-4", StatementKind.M9, dataclasses.replace(reveal, site="site-4"))
    refused = refusal(coordinator_role.check_m9, scene.surviving, data, sender="site-4")
    assert refused.reason is RefusalReason.SITE_UNKNOWN


def test_recover_fewer_reveals_than_the_threshold_are_refused(scene: Scene) -> None:
    scene.play(LastSent.M9)
    three = dict(list(scene.m9s.items())[:3])
    assert refusal(coordinator_role.recover_mask_terms, scene.surviving, three).reason is RefusalReason.QUORUM_MISSING


def cheating_m3(scene: Scene, dealer: str, *, rho: int, b: int) -> bytes:
    """Shares of other secrets than those behind E and beta: consistent with their commitments, and useless."""
    cohort = scene.keyed.cohort
    entropy = SeededEntropy("cheat")
    threshold = SecAggParams().threshold(cohort.n)
    message = ShareKeys.decode(scene.m3s[dealer])
    dealt = zip(
        shamir.split(rho, threshold=threshold, n=cohort.n, entropy=entropy),
        shamir.split(b, threshold=threshold, n=cohort.n, entropy=entropy),
        strict=True,
    )
    leaves = []
    for leaf, member, (rho_share, b_share) in zip(message.leaves, cohort.members, dealt, strict=True):
        pair = shamir.element_to_bytes(rho_share), shamir.element_to_bytes(b_share)
        info = sealing_info(cohort.h_cohort, dealer=dealer, holder=member.site)
        sealed = HpkeSealer().seal(pair[0] + pair[1], public=member.transport_key, info=info)
        leaves.append(
            dataclasses.replace(
                leaf,
                ciphertext=b"" if member.site == dealer else sealed,
                commitment=commit_to_shares(*pair, dealer=dealer, holder=member.site),
            )
        )
    header = dataclasses.replace(
        ShareHeader.decode(message.header.body), root=tree_root([leaf.encode() for leaf in leaves])
    )
    signed = sign_body(scene.federation.signers[dealer], StatementKind.M3.value, header.encode())
    return ShareKeys(header=signed, leaves=tuple(leaves)).encode()


@pytest.mark.parametrize("lies_about", ["rho", "b"])
def test_recover_secret_that_the_dealer_never_had_names_the_dealer(scene: Scene, lies_about: str) -> None:
    """Site-5 deals shares of nonsense and vanishes (rho), or stays (b): both are seen, and it is named."""
    scene.play(LastSent.M3)
    state = scene.roles["site-5"]._state
    secrets = {"rho": state.secrets.rho, "b": state.secrets.b, lies_about: 77}
    forged = cheating_m3(scene, "site-5", **secrets)
    # The cheat is the fifth site's own software: its role must find its own header.
    rho_share, b_share = (shamir.element_to_bytes(0), shamir.element_to_bytes(0))
    own = dataclasses.replace(state.own_share, rho_share=rho_share, b_share=b_share)
    scene.roles["site-5"]._state = dataclasses.replace(state, m3=forged, own_share=own)
    scene.m3s["site-5"] = forged
    scene.shared = coordinator_role.freeze_sharers(scene.keyed, scene.m3s)
    lost = ("site-5",) if lies_about == "rho" else ()
    scene.m5s = {}
    for site in scene.sites:
        if site not in lost:
            scene.roles[site].accept_shares(coordinator_role.make_m4(scene.shared, site))
            scene.m5s[site] = scene.roles[site].mask(scene.vector(site)).header
    scene.surviving = coordinator_role.freeze_survivors(scene.shared, scene.m5s)
    m6 = coordinator_role.make_m6(scene.surviving)
    m7s = {site: scene.roles[site].confirm(m6) for site in scene.m5s}
    m8 = coordinator_role.make_m8(scene.surviving, m7s)
    m9s = {site: scene.roles[site].reveal(m8) for site in m7s if site != "site-5"}
    refused = refusal(coordinator_role.recover_mask_terms, scene.surviving, m9s)
    assert (refused.reason, refused.blamed) == (RefusalReason.SECRET_INVALID, "site-5")


def test_recover_dealer_under_a_higher_threshold_needs_as_many_reveals() -> None:
    """Site-1 assumes two colluders among six: it deals, and insists on signatures, at its own threshold."""
    wary = SecAggParams(assumed_colluders=3, chunk_bytes=16)
    federation = Federation(site_names(6), small_layout(), params_of={"site-1": wary})
    assert wary.threshold(6) == SecAggParams().threshold(6) == 5
    vectors = {site: RingVector.zeros(5, 2) for site in federation.site_ids}
    assert federation.exchange(vectors).survivors == federation.site_ids
    # |U3| >= 3 + c = 6: with one site lost, the wary one does not confirm, the others do.
    lost = {"site-6": LastSent.M3}
    assert refusal(federation.exchange, vectors, last_sent=lost).reason is RefusalReason.COHORT_TOO_SMALL


def test_check_complaint_from_outside_or_about_outsiders_is_refused(scene: Scene) -> None:
    scene.play(LastSent.M1)
    h_cohort = scene.keyed.cohort.h_cohort
    about = Complaint(site="site-1", h_cohort=h_cohort, dealer="site-9", reason=RefusalReason.SHARE_INVALID)
    data = resigned(scene, "site-1", StatementKind.COMPLAINT, about)
    refused = refusal(coordinator_role.check_complaint, scene.keyed, data, sender="site-1")
    assert refused.reason is RefusalReason.SITE_UNKNOWN
    forged = resigned(scene, "site-2", StatementKind.COMPLAINT, dataclasses.replace(about, dealer="site-3"))
    refused = refusal(coordinator_role.check_complaint, scene.keyed, forged, sender="site-1")
    assert refused.reason is RefusalReason.SIGNATURE_INVALID


def test_late_upload_of_a_lost_site_stays_hidden_by_its_self_mask(scene: Scene) -> None:
    """Site-4's vector arrives after its rho is known: all its pair masks can be removed, its self-mask cannot."""
    scene.play(LastSent.M3)
    late = {}
    b_of_site_4 = scene.roles["site-4"]._state.secrets.b
    for site in scene.sites:
        scene.roles[site].accept_shares(coordinator_role.make_m4(scene.shared, site))
        late[site] = scene.roles[site].mask(scene.vector(site))
    m5s = {site: upload.header for site, upload in late.items() if site != "site-4"}
    surviving = coordinator_role.freeze_survivors(scene.shared, m5s)
    m6 = coordinator_role.make_m6(surviving)
    m7s = {site: scene.roles[site].confirm(m6) for site in m5s}
    m8 = coordinator_role.make_m8(surviving, m7s)
    terms = coordinator_role.recover_mask_terms(surviving, {site: scene.roles[site].reveal(m8) for site in m7s})
    total = RingVector.zeros(5, 2)
    for site in surviving.sites:
        add_into(total, late[site].vector)
    apply_masks(total, terms)
    assert total.ring32.tolist() == [1 + 2 + 3 + 5] * 5
    # What the survivors added for site-4 is the opposite of what it added itself.
    pair_terms = [dataclasses.replace(term, sign=term.sign.opposite) for term in terms[len(surviving.sites) :]]
    assert len(pair_terms) == 4
    stripped = late["site-4"].vector.copy()
    apply_masks(stripped, pair_terms)
    assert stripped.ring32.tolist() != [4] * 5
    assert stripped.ring64.tolist() != [4] * 2
    # Only b, which nobody revealed, takes the rest away.
    seed = self_seed(b_of_site_4, site="site-4", h_sharers=scene.shared.sharers.h_sharers)
    apply_masks(stripped, [mask_term(seed, MaskSign.SUBTRACT)])
    assert stripped.ring32.tolist() == [4] * 5


def test_transcript_root_changes_with_any_message(scene: Scene) -> None:
    scene.play(LastSent.M9)
    root = coordinator_role.transcript_root(scene.surviving, scene.m7s, scene.m9s)
    fewer = dict(list(scene.m9s.items())[:4])
    assert coordinator_role.transcript_root(scene.surviving, scene.m7s, fewer) != root
