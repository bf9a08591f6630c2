"""M5 to M10: what a site refuses from masking to the result. Each test is an attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest

from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import SiteId
from fl_protocol.packing import unpack
from fl_protocol.secagg import coordinator_role, shamir
from fl_protocol.secagg.messages import (
    Confirmation,
    ExchangeResult,
    Reveal,
    ShareKind,
    StatementKind,
    UploadHeader,
)
from fl_protocol.secagg.reasons import PhaseError, RefusalReason
from fl_protocol.secagg.site_role import SitePhase, SiteRole
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.testing.entropy import SeededEntropy, seeded_signer
from fl_protocol.testing.federation import LastSent
from fl_protocol.testing.scene import Scene
from tests.support.secagg_refusals import entries_of, m2_of, refusal

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
