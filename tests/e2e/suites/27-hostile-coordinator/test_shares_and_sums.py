"""Attacks on shares and results: false shares, false sums, a site left out (rows 11, 13, 14; decision 14)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import SiteId
from fl_protocol.packing import pack, u64
from fl_protocol.secagg import coordinator_role
from fl_protocol.secagg.messages import DealtShare, DealtShares, UploadHeader
from fl_protocol.secagg.reexecution import MaskedChunk, SumEvidence
from fl_protocol.secagg.sealing import HpkeSealer
from fl_protocol.signing.signed import SignedBody, verify_body
from fl_protocol.testing.entropy import seeded_signer
from site_agent.errors import CoordinatorRefusedError
from site_agent.link import instructions as asked
from site_agent.link.client import SumEvidenceAnswer
from site_agent.link.instructions import Instruction
from site_agent.session.events import Step
from tests.support.forgeries import only, site_in_a_body
from tests.support.hostile_coordinator import INSTANT
from tests.support.hostile_federation import HostileFederation, HostileFederationOf

ALPHA, BETA, DELTA = SiteId("alpha"), SiteId("beta"), SiteId("delta")


async def test_row_11_false_share_of_a_dealer_is_complained_of_and_recorded(
    federation_of: HostileFederationOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beta deals zeros to alpha, under its own signed root: the complaint names beta, and alpha's log does."""
    federation = federation_of(n_sites=3)
    coordinator = federation.coordinator
    honest = HpkeSealer.seal

    def seal(self: HpkeSealer, plaintext: bytes, *, public: bytes, info: bytes) -> bytes:
        is_betrayal = coordinator.exchange_attempt == 0 and info.endswith(pack(b"beta", b"alpha"))
        return honest(self, bytes(len(plaintext)) if is_betrayal else plaintext, public=public, info=info)

    monkeypatch.setattr(HpkeSealer, "seal", seal)
    await federation.run(lambda: bool(coordinator.complaints))
    sender, complaint = coordinator.complaints[0]
    cohort = coordinator.frozen["cohort"]
    said = coordinator_role.check_complaint(cohort, complaint, sender=sender)  # type: ignore[arg-type]
    assert (sender, said.dealer, said.reason.value) == ("alpha", "beta", "share-invalid")
    assert federation.sites[ALPHA].has_recorded("exchange.failed", reason="share-invalid", dealer="beta")
    assert coordinator.heard_of(Step.MASK, ALPHA) == []


def alter_share(entry: DealtShare) -> DealtShare:
    sealed = bytearray(entry.leaf.ciphertext)
    sealed[40] ^= 1
    return replace(entry, leaf=replace(entry.leaf, ciphertext=bytes(sealed)))


def alter_commitment(entry: DealtShare) -> DealtShare:
    return replace(entry, leaf=replace(entry.leaf, commitment=bytes(64)))


def alter_path(entry: DealtShare) -> DealtShare:
    return replace(entry, path=(bytes(32), *entry.path[1:]))


@pytest.mark.parametrize("alter", [alter_share, alter_commitment, alter_path])
async def test_row_11_share_that_was_altered_on_its_way_blames_nobody(
    federation_of: HostileFederationOf, alter: Callable[[DealtShare], DealtShare]
) -> None:
    """The coordinator cannot make a site accuse another: what the dealer did not sign is the coordinator's doing."""
    federation = federation_of(n_sites=3)
    coordinator = federation.coordinator

    def altered(_: SiteId, relayed: Instruction) -> Instruction:
        assert isinstance(relayed, asked.RelayShares)
        entries = DealtShares.decode(relayed.message).entries
        changed = tuple(
            alter(entry) if site_in_a_body(entry.header) == BETA and entry.leaf.holder != BETA else entry
            for entry in entries
        )
        return replace(relayed, message=DealtShares(entries=changed).encode())

    coordinator.alters[asked.RelayShares] = altered
    await federation.run_until_declined("share-missing", by=("alpha", "gamma"))
    assert coordinator.complaints == []
    assert coordinator.heard_of(Step.MASK, ALPHA) == []


async def test_row_11_share_that_was_sealed_to_another_site_is_refused(federation_of: HostileFederationOf) -> None:
    """Alpha is shown what gamma got: the leaf names its holder, and its place under the root is gamma's."""
    federation = federation_of(n_sites=3)
    coordinator = federation.coordinator
    coordinator.alters[asked.RelayShares] = lambda site, true: (
        replace(true, message=coordinator_role.make_m4(coordinator.frozen["sharers"], SiteId("gamma")))  # type: ignore[arg-type, type-var]
        if site == ALPHA
        else true
    )
    await federation.run_until_declined("share-missing", by=("alpha",))
    assert coordinator.heard_of(Step.MASK, ALPHA) == []


def add_one(total: RingVector) -> None:
    total.ring32[5] += 1


def weigh_more(total: RingVector) -> None:
    total.ring64[0] += 1


async def refuse_the_first_result(federation: HostileFederation, reason: str) -> None:
    """Every site refuses the result of round 0 and says so in its log; none folds it, and none acknowledges it."""
    await federation.run_until_recorded("result.refused", reason=reason, round_index=0)
    assert federation.coordinator.acknowledged.get(0, {}) == {}
    assert all(site.newest_version(federation.coordinator.run_id) == 0 for site in federation.sites.values())


@pytest.mark.parametrize("lie", [add_one, weigh_more])
async def test_row_13_false_sum_is_refused_by_every_site(
    federation_of: HostileFederationOf, lie: Callable[[RingVector], None]
) -> None:
    """Decision 14: each site makes what it drew of the sum again, before it folds anything."""
    federation = federation_of(n_sites=3, rounds=2)
    federation.coordinator.falsifies = lie
    await refuse_the_first_result(federation, "sum-false")
    assert all(site.has_recorded("sum.refused", reason="sum-false") for site in federation.sites.values())


async def test_row_13_round_after_a_false_sum_is_not_joined(federation_of: HostileFederationOf) -> None:
    """Decision 14: the lie stays a lie. The coordinator goes on from it, and no site trains for that round."""
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator
    coordinator.falsifies = add_one
    await refuse_the_first_result(federation, "sum-false")
    coordinator.acknowledged[0] = dict.fromkeys(coordinator.site_ids, b"")
    await federation.run_until_declined("sum-false")
    assert all(len(site.runner.seeds) == 1 for site in federation.sites.values())


@pytest.mark.parametrize("status", ["NOT_FOUND", "UNIMPLEMENTED"])
async def test_row_13_evidence_that_is_withheld_is_refused(federation_of: HostileFederationOf, status: str) -> None:
    federation = federation_of(n_sites=3, rounds=2)

    def withheld(site: SiteId, round_index: int) -> SumEvidenceAnswer:
        raise CoordinatorRefusedError("no", status=status, refusal_code="", call="GetSumEvidence")

    federation.coordinator.sum_evidence = withheld  # type: ignore[method-assign]
    await refuse_the_first_result(federation, "sum-evidence-withheld")


async def test_row_13_evidence_said_to_be_scrubbed_too_early_is_refused(federation_of: HostileFederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator
    honest = coordinator.make_manifest
    now = datetime.now(UTC).isoformat()
    coordinator.make_manifest = lambda **changes: honest(**{"opened_at": now, **changes})  # type: ignore[method-assign]
    coordinator.open_round()
    coordinator.sum_evidence = lambda site, round_index: SumEvidenceAnswer(evidence=b"")  # type: ignore[method-assign]
    await refuse_the_first_result(federation, "sum-evidence-withheld")


def forge_secret(true: SumEvidence) -> SumEvidence:
    return replace(true, secrets=(bytes(31) + b"\x01", *true.secrets[1:]))


def forge_header(true: SumEvidence) -> SumEvidence:
    """Another root under a site's M5, so that other chunks would fit."""
    said = replace(UploadHeader.decode(true.m5s[0].body), chunk_root=bytes(32))
    return replace(true, m5s=(SignedBody(body=said.encode(), signature=true.m5s[0].signature), *true.m5s[1:]))


def leave_one_out(true: SumEvidence) -> SumEvidence:
    return replace(true, m5s=true.m5s[:2])


@pytest.mark.parametrize("forge", [forge_secret, forge_header, leave_one_out])
async def test_row_13_evidence_that_is_forged_is_refused(
    federation_of: HostileFederationOf, forge: Callable[[SumEvidence], SumEvidence]
) -> None:
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator
    coordinator.falsifies = add_one
    coordinator.sum_evidence = lambda site, round_index: SumEvidenceAnswer(  # type: ignore[method-assign]
        evidence=forge(SumEvidence.decode(coordinator.evidence[round_index])).encode()
    )
    await refuse_the_first_result(federation, "sum-evidence-invalid")


async def test_row_13_chunk_that_was_altered_to_fit_the_lie_is_refused(federation_of: HostileFederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=2)
    coordinator = federation.coordinator
    coordinator.falsifies = add_one
    honest = coordinator.masked_chunk

    def altered(site: SiteId, round_index: int, of_site: SiteId, chunk_index: int) -> MaskedChunk:
        chunk = honest(site, round_index, of_site, chunk_index)
        word = (int.from_bytes(chunk.data[20:24], "little") + (of_site == ALPHA)) % 2**32
        return replace(chunk, data=chunk.data[:20] + word.to_bytes(4, "little") + chunk.data[24:])

    coordinator.masked_chunk = altered  # type: ignore[method-assign]
    await refuse_the_first_result(federation, "sum-false")
    assert all(site.has_recorded("sum.refused", reason="chunk-invalid") for site in federation.sites.values())


async def test_row_14_site_that_is_left_out_confirms_nothing_and_holds_the_proof(
    federation_of: HostileFederationOf,
) -> None:
    """Delta's upload was receipted. M6 names three; delta signs no such set, and its log holds the receipt."""
    federation = federation_of(n_sites=4)
    coordinator = federation.coordinator
    three = coordinator.site_ids[:3]
    coordinator.alters[asked.RelaySurvivors] = lambda _, true: only(three, true)
    await federation.run_until_declined("own-message-altered", by=("delta",))
    assert coordinator.heard_of(Step.CONFIRM, DELTA) == []
    assert coordinator.heard_of(Step.REVEAL, DELTA) == []
    # What delta can show to anybody: the coordinator's own signature under the digest of this very upload.
    entries = federation.sites[DELTA].audit()
    (receipt,) = [facts["receipt"] for kind, facts in entries if kind == "payload.sent"]
    key = (coordinator.context.encode(), DELTA)
    m5 = coordinator.heard_of(Step.MASK, DELTA)[0]
    (sent,) = coordinator.arrived[key]
    header = UploadHeader.decode(SignedBody.decode(m5).body)
    signed = SignedBody.decode(bytes.fromhex(str(receipt)))
    body = verify_body(seeded_signer("coordinator").spki_der, "WR/sig/receipt", signed)
    what = (hashlib.sha256(m5).digest(), u64(len(sent)), header.chunk_root)
    assert body == pack(key[0], b"delta", *what, INSTANT.encode())


def leave_out(federation: HostileFederation, victim: SiteId) -> None:
    """Make the sum over everybody else, whose word is a threshold."""
    coordinator = federation.coordinator
    honest = coordinator.exchange_instruction
    idle = asked.Idle(retry_after_s=0.0)
    others = [site for site in coordinator.site_ids if site != victim]

    def leaving_out(site: SiteId) -> Instruction:
        if "survivors" not in coordinator.frozen:
            if len(coordinator.uploads) < len(coordinator.site_ids):
                return honest(site)
            coordinator.frozen["survivors"] = coordinator.survivors_among(others)
            del coordinator.uploads[victim]
        confirmed, revealed = coordinator.messages(Step.CONFIRM), coordinator.messages(Step.REVEAL)
        survivors = coordinator.frozen["survivors"]
        if site != victim and site not in confirmed:
            m6 = coordinator_role.make_m6(survivors)  # type: ignore[arg-type]
            return asked.RelaySurvivors(exchange=coordinator.context, message=m6)
        if site != victim and len(confirmed) == len(others) and site not in revealed:
            m8 = coordinator_role.make_m8(survivors, confirmed)  # type: ignore[arg-type]
            return asked.RelayConfirmations(exchange=coordinator.context, message=m8)
        if len(revealed) == len(others):
            coordinator.commit()
        return idle

    coordinator.exchange_instruction = leaving_out  # type: ignore[method-assign]


async def test_row_14_sum_without_a_site_is_made_and_the_log_of_the_one_left_out_says_so(
    federation_of: HostileFederationOf,
) -> None:
    """It cannot be prevented. Delta's log has the receipt of its upload, and the names of those whose sum it is."""
    federation = federation_of(n_sites=4, rounds=1)
    leave_out(federation, DELTA)
    await federation.run_until_recorded("sum.checked", sites="alpha,beta,gamma", round_index=0)
    delta = federation.sites[DELTA]
    assert delta.has_recorded("payload.sent", round_index=0)
    assert not delta.has_recorded("survivors.confirmed", round_index=0)
    assert federation.coordinator.heard_of(Step.REVEAL, DELTA) == []


@pytest.mark.parametrize("forged", ["another key", "another upload"])
async def test_row_14_receipt_that_proves_nothing_is_refused_and_recorded(
    federation_of: HostileFederationOf, forged: str
) -> None:
    federation = federation_of(n_sites=3)
    coordinator = federation.coordinator
    if forged == "another key":
        coordinator.receipt_signer = seeded_signer("nobody")
    else:
        honest = coordinator.receipt
        coordinator.receipt = lambda site, context, header, data: honest(  # type: ignore[method-assign]
            site, context, header + b".", data
        )
    await federation.run_until_recorded("call.refused", code="receipt-invalid", instruction="RelayShares")
    assert not any(site.has_recorded("payload.sent") for site in federation.sites.values())
