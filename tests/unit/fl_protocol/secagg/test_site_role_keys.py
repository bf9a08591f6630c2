"""M0 and M2: what a site refuses before it deals shares. Each test is an attack, at the message where it happens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.secagg.messages import (
    KeyAdvertisement,
    StatementKind,
)
from fl_protocol.secagg.reading import PeerVerifier
from fl_protocol.secagg.reasons import PhaseError, RefusalReason
from fl_protocol.secagg.site_role import SitePhase, SiteRole
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.testing.entropy import SeededEntropy, seeded_signer
from fl_protocol.testing.federation import RUN_ID, Federation, LastSent, small_layout
from fl_protocol.testing.scene import Scene
from fl_protocol.testing.strategies import site_names
from tests.support.secagg_refusals import entries_of, m2_of, refusal

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


def test_context_names_the_run_the_round_and_the_exchange(scene: Scene) -> None:
    context = coordinator_context(scene)
    assert (context.run_id, context.exchange_index, context.exchange_attempt) == (RUN_ID, 0, 0)
    assert type(context).decode(context.encode()) == context
