"""What sites may get wrong, or do on purpose: a typed refusal, nothing lost, and the liar named."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import pytest
from coordinator_engine_lab import COORDINATOR, RUN_ID, EngineLab, LabSite, parts_of
from sqlalchemy import select
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from coordinator.db.models import ExchangeMessage, Upload
from coordinator.errors import (
    BlobNotFoundError,
    ConflictError,
    InvalidMessageError,
    LateError,
    NotFoundError,
    NotInCohortError,
    SiteNotActiveError,
    WrongPhaseError,
)
from coordinator.services.accept_advertisement import accept_advertisement
from coordinator.services.accept_confirmation import accept_confirmation
from coordinator.services.accept_reveal import accept_reveal
from coordinator.services.accept_round import DeclineKind, accept_round, decline_round
from coordinator.services.accept_shares import accept_shares
from coordinator.services.accept_upload import (
    RECEIPT_KIND,
    UploadAlteredError,
    accept_upload,
    query_upload,
)
from coordinator.services.acknowledge_result import ACKNOWLEDGEMENT_KIND, acknowledge_result
from coordinator.services.aggregate_round import aggregate_round
from coordinator.services.get_result import download_blob
from coordinator.services.receive_upload import UploadTruncatedError
from coordinator.services.report_progress import SiteActivity, report_progress, report_ready
from coordinator.services.site_instructions import (
    OpenExchange,
    PublishedResult,
    RelayConfirmations,
    RelayKeys,
    RelayShares,
    RelaySurvivors,
    TrainRound,
)
from fl_protocol.ids import SiteId
from fl_protocol.packing import pack, u32
from fl_protocol.secagg.messages import Reveal
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.signing.keys import SignatureInvalidError
from fl_protocol.signing.signed import SignedBody, sign_body, verify_body
from fl_protocol.testing.entropy import SeededEntropy, SeededSealer, seeded_signer

MakeLab = Callable[..., EngineLab]
A, B, C = SiteId("a-site"), SiteId("b-site"), SiteId("c-site")
FIVE = ("a-site", "b-site", "c-site", "d-site", "e-site")


async def test_advertisement_sent_again_is_taken_once_and_another_is_refused(make_lab: MakeLab) -> None:
    lab = make_lab()
    asked = await lab.settle_until(OpenExchange)
    context = asked[A].exchange
    m1 = lab.sites[A].role(context).advertise()
    for _ in range(2):
        await accept_advertisement(lab.ctx, site_id=A, exchange=context, m1=m1)
    other = sign_body(seeded_signer("a-site"), "SA1/sig/M1", SignedBody.decode(m1).body + b"x").encode()
    with pytest.raises(ConflictError):
        await accept_advertisement(lab.ctx, site_id=A, exchange=context, m1=other)
    lab.sites[A].silent.clear()
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    assert lab.round().state == "COMMITTED"


async def test_message_of_another_site_is_refused(make_lab: MakeLab) -> None:
    lab = make_lab()
    asked = await lab.settle_until(OpenExchange)
    m1 = lab.sites[A].role(asked[A].exchange).advertise()
    with pytest.raises(SecAggRefusedError):
        await accept_advertisement(lab.ctx, site_id=B, exchange=asked[A].exchange, m1=m1)
    assert lab.participation("b-site").state == "READY"


async def test_key_that_another_site_advertised_is_refused(make_lab: MakeLab) -> None:
    lab = make_lab()
    asked = await lab.settle_until(OpenExchange)
    context = asked[A].exchange
    await lab.sites[A].turn()
    copied = lab.sites[B].role(context)
    copied._entropy = SeededEntropy(f"a-site/{context}")
    with pytest.raises(SecAggRefusedError) as caught:
        await accept_advertisement(lab.ctx, site_id=B, exchange=context, m1=copied.advertise())
    assert caught.value.reason is RefusalReason.KEY_REPEATED


async def test_step_before_its_phase_and_unknown_exchange_are_refused(make_lab: MakeLab) -> None:
    lab = make_lab()
    asked = await lab.settle_until(OpenExchange)
    context = asked[A].exchange
    for send in (
        lambda: accept_shares(lab.ctx, site_id=A, exchange=context, m3=b"x"),
        lambda: accept_confirmation(lab.ctx, site_id=A, exchange=context, m7=b"x"),
        lambda: accept_reveal(lab.ctx, site_id=A, exchange=context, m9=b"x"),
    ):
        # No set is frozen yet, so that it is the phase that is wrong, not the site.
        with pytest.raises(WrongPhaseError) as caught:
            await send()
        assert not isinstance(caught.value, LateError)
    unknown = dataclasses.replace(context, exchange_attempt=1)
    with pytest.raises(NotFoundError):
        await accept_advertisement(lab.ctx, site_id=A, exchange=unknown, m1=b"x")


async def test_upload_that_is_altered_is_thrown_away_and_the_right_bytes_are_taken(make_lab: MakeLab) -> None:
    lab = make_lab()
    asked = await lab.settle_until(RelayShares)
    site, context = lab.sites[A], asked[A].exchange
    site.mask(context, asked[A].m4)
    m5 = site.role(context).last_message
    good = site.uploads[context]
    bad = bytes([good[0] ^ 1]) + good[1:]
    with pytest.raises(UploadAlteredError):
        await accept_upload(lab.ctx, site_id=A, exchange=context, m5=m5, offset=0, parts=parts_of(bad))
    assert (await query_upload(lab.ctx, site_id=A, exchange=context)).received_bytes == 0
    receipt = await accept_upload(lab.ctx, site_id=A, exchange=context, m5=m5, offset=0, parts=parts_of(good))
    verify_body(COORDINATOR.spki_der, RECEIPT_KIND, receipt)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    assert lab.round().state == "COMMITTED"


async def test_upload_cut_short_is_resumed_and_repeated_gives_the_same_receipt(make_lab: MakeLab) -> None:
    lab = make_lab()
    asked = await lab.settle_until(RelayShares)
    site, context = lab.sites[A], asked[A].exchange
    site.mask(context, asked[A].m4)
    m5, data = site.role(context).last_message, site.uploads[context]
    with pytest.raises(UploadTruncatedError):
        await accept_upload(lab.ctx, site_id=A, exchange=context, m5=m5, offset=0, parts=parts_of(data[:70]))
    held = (await query_upload(lab.ctx, site_id=A, exchange=context)).received_bytes
    assert held == 70
    receipt = await accept_upload(
        lab.ctx, site_id=A, exchange=context, m5=m5, offset=held, parts=parts_of(data, offset=held)
    )
    again = await accept_upload(lab.ctx, site_id=A, exchange=context, m5=m5, offset=0, parts=parts_of(data))
    assert again == receipt == (await query_upload(lab.ctx, site_id=A, exchange=context)).receipt
    n_bytes = lab.participation("a-site").bytes_up
    assert n_bytes == len(data) + len(m5) + sum(
        len(sent) for sent in lab.db.read("sent", lambda session: _sent(session, A)) if sent != m5
    )


def _sent(session: Session, site_id: SiteId) -> list[bytes]:
    return list(session.scalars(select(ExchangeMessage.encoded).where(ExchangeMessage.site_id == site_id)))


async def test_upload_with_a_gap_or_beyond_its_length_is_refused(make_lab: MakeLab) -> None:
    lab = make_lab()
    asked = await lab.settle_until(RelayShares)
    site, context = lab.sites[A], asked[A].exchange
    site.mask(context, asked[A].m4)
    m5, data = site.role(context).last_message, site.uploads[context]
    with pytest.raises(InvalidMessageError):
        await accept_upload(lab.ctx, site_id=A, exchange=context, m5=m5, offset=0, parts=parts_of(data, offset=64))
    with pytest.raises(InvalidMessageError):
        await accept_upload(lab.ctx, site_id=A, exchange=context, m5=m5, offset=0, parts=parts_of(data + b"12345678"))
    with pytest.raises(SecAggRefusedError):
        await accept_upload(lab.ctx, site_id=B, exchange=context, m5=m5, offset=0, parts=parts_of(data))


async def test_upload_after_the_survivors_are_frozen_is_late_and_stays_out(make_lab: MakeLab) -> None:
    lab = make_lab(*FIVE)
    asked = await lab.settle_until(RelayShares)
    site, context = lab.sites[A], asked[A].exchange
    site.mask(context, asked[A].m4)
    site.silent.add(RelayShares)
    lab.clock.advance(60)
    await lab.settle()
    lab.clock.advance(601)
    await lab.settle(until=lambda: lab.participation("a-site").state == "DROPPED")
    with pytest.raises(LateError):
        await site.send_upload(context, m5=site.role(context).last_message)
    assert lab.db.read("none", lambda session: session.get(Upload, (*dataclasses.astuple(context), A))) is None
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    assert lab.participation("a-site").state == "DROPPED"


async def test_site_outside_the_cohort_is_refused_everywhere(make_lab: MakeLab) -> None:
    lab = make_lab("a-site", "b-site", "c-site", "d-site")
    outsider = lab.sites[SiteId("d-site")]
    outsider.silent.add(OpenExchange)
    await lab.settle()
    lab.clock.advance(601)
    asked = await lab.settle_until(RelayShares)
    context = asked[A].exchange
    site = lab.sites[A]
    site.mask(context, asked[A].m4)
    m5, data = site.role(context).last_message, site.uploads[context]
    with pytest.raises(NotInCohortError):
        await accept_upload(lab.ctx, site_id=outsider.site_id, exchange=context, m5=m5, offset=0, parts=parts_of(data))
    with pytest.raises(NotInCohortError):
        await accept_shares(lab.ctx, site_id=outsider.site_id, exchange=context, m3=b"x")
    with pytest.raises(SiteNotActiveError):
        await accept_shares(lab.ctx, site_id=SiteId("nobody"), exchange=context, m3=b"x")


def _false_reveal(site: LabSite, m9: bytes) -> bytes:
    reveal = Reveal.decode(SignedBody.decode(m9).body)
    first = reveal.shares[0]
    altered = dataclasses.replace(first, share=bytes([first.share[0] ^ 1]) + first.share[1:])
    body = dataclasses.replace(reveal, shares=(altered, *reveal.shares[1:])).encode()
    return sign_body(seeded_signer(site.site_id), "SA1/sig/M9", body).encode()


async def test_site_that_reveals_false_shares_is_named_and_the_sum_is_made_without_them(make_lab: MakeLab) -> None:
    lab = make_lab(*FIVE)
    asked = await lab.settle_until(RelayConfirmations)
    liar = lab.sites[B]
    m9 = liar.role(asked[B].exchange).reveal(asked[B].m8)
    with pytest.raises(SecAggRefusedError) as caught:
        await accept_reveal(lab.ctx, site_id=B, exchange=asked[B].exchange, m9=_false_reveal(liar, m9))
    assert caught.value.blamed == B
    row = lab.participation("b-site")
    assert (row.state, row.reason) == ("REJECTED", "shares-false")
    with pytest.raises(WrongPhaseError):
        await accept_reveal(lab.ctx, site_id=B, exchange=asked[B].exchange, m9=m9)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    assert lab.round().state == "COMMITTED"
    assert lab.participation("b-site").state == "REJECTED"
    assert lab.participation("a-site").state == "COUNTED"


async def test_too_few_honest_reveals_abort_the_round_and_no_exchange_is_repeated(make_lab: MakeLab) -> None:
    lab = make_lab()
    asked = await lab.settle_until(RelayConfirmations)
    liar = lab.sites[B]
    m9 = liar.role(asked[B].exchange).reveal(asked[B].m8)
    with pytest.raises(SecAggRefusedError):
        await accept_reveal(lab.ctx, site_id=B, exchange=asked[B].exchange, m9=_false_reveal(liar, m9))
    while await lab.driver.step(RUN_ID):
        pass
    assert (lab.round().state, lab.round().reason) == ("ABORTED", "too-few-revealed")
    await lab.live(40, until=lambda: lab.run().next_round_attempt == 2)
    assert lab.round(0, 1).state == "TRAINING"


class _BadSealer(SeededSealer):
    """Seals one share wrongly: the second holder's."""

    def __init__(self) -> None:
        self._count = 0

    def seal(self, plaintext: bytes, *, public: bytes, info: bytes) -> bytes:
        self._count += 1
        sealed = super().seal(plaintext, public=public, info=info)
        return sealed[:-1] + bytes([sealed[-1] ^ 1]) if self._count == 1 else sealed


async def test_dealer_that_a_site_complains_of_is_left_out_of_the_next_exchange(make_lab: MakeLab) -> None:
    lab = make_lab(*FIVE)
    await lab.settle_until(OpenExchange)
    dealer = lab.sites[C]
    await dealer.turn()
    (role,) = dealer.roles.values()
    role._sealer = _BadSealer()
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    row = lab.participation("c-site")
    assert (row.state, row.reason) == ("REJECTED", "deal-contested")
    assert lab.round().state == "COMMITTED"
    counted = {name for name, state in lab.states().items() if state == "COUNTED"}
    assert counted == set(FIVE) - {"c-site"}


async def test_sum_performed_twice_is_completed_once(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle_until(RelayConfirmations)
    for site in lab.sites.values():
        await site.turn()
    assert await lab.driver.step(RUN_ID)
    (effect,) = await lab.driver._performer.due(RUN_ID)
    (context,) = lab.sites[A].roles
    for _ in range(2):
        aggregate_round(lab.ctx, context, effect_id=effect.effect_id)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    assert lab.round().state == "COMMITTED"


async def test_effect_that_its_own_inputs_forbid_ends_in_an_aborted_round_that_says_so(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle_until(RelayConfirmations)
    short = lab.ctx.blobs.put_bytes(b"shorter than the layout says")

    def swap(session: Session) -> None:
        session.scalars(select(Upload)).first().blob_sha256 = short.sha256

    lab.db.run_tx("swap", swap)
    for site in lab.sites.values():
        await site.turn()
    with capture_logs() as logs:
        for _ in range(8):
            while lab.round().state != "ABORTED" and await lab.driver.step(RUN_ID):
                pass
            lab.clock.advance(61)
    failures = [entry for entry in logs if entry["event"] == "effect_failed"]
    assert [entry["attempt"] for entry in failures] == [1, 2, 3, 4, 5, 6]
    assert {entry["run_id"] for entry in failures} == {RUN_ID}
    assert (lab.round().state, lab.round().reason) == ("ABORTED", "effect-failed")


async def test_progress_and_readiness_only_while_training(make_lab: MakeLab) -> None:
    lab = make_lab()
    asked = await lab.settle_until(TrainRound)
    ref = asked[A].round
    with pytest.raises(WrongPhaseError):
        await report_progress(lab.ctx, site_id=A, round=ref, activity=SiteActivity.LOADING, step=0, steps=1)
    with pytest.raises(WrongPhaseError):
        await report_ready(lab.ctx, site_id=A, round=ref)
    await accept_round(lab.ctx, site_id=A, round=ref)
    await accept_round(lab.ctx, site_id=A, round=ref)
    with pytest.raises(InvalidMessageError):
        await report_progress(lab.ctx, site_id=A, round=ref, activity=SiteActivity.TRAINING, step=3, steps=2)
    await report_progress(lab.ctx, site_id=A, round=ref, activity=SiteActivity.TRAINING, step=1, steps=2)
    row = lab.participation("a-site")
    assert (row.activity, row.step, row.steps) == ("training", 1, 2)


async def test_declined_and_failed_sites_are_told_apart_and_the_round_goes_on(make_lab: MakeLab) -> None:
    lab = make_lab(*FIVE)
    asked = await lab.settle_until(TrainRound)
    ref = asked[A].round
    with pytest.raises(InvalidMessageError):
        await decline_round(lab.ctx, site_id=A, round=ref, kind=DeclineKind.REFUSED, reason="Not today!")
    await decline_round(lab.ctx, site_id=A, round=ref, kind=DeclineKind.REFUSED, reason="hours.train")
    await decline_round(lab.ctx, site_id=B, round=ref, kind=DeclineKind.FAILED, reason="out-of-memory")
    with pytest.raises(WrongPhaseError):
        await accept_round(lab.ctx, site_id=A, round=ref)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    assert lab.round().state == "COMMITTED"
    rows = [lab.participation(name) for name in ("a-site", "b-site")]
    assert [(row.state, row.reason) for row in rows] == [("DECLINED", "hours.train"), ("DROPPED", "out-of-memory")]
    with pytest.raises(LateError):
        await decline_round(lab.ctx, site_id=C, round=ref, kind=DeclineKind.FAILED, reason="late")


async def test_acknowledgement_of_another_key_is_refused_and_of_another_state_is_recorded(make_lab: MakeLab) -> None:
    lab = make_lab()
    asked = await lab.settle_until(PublishedResult)
    found = asked[A]
    body = pack(RUN_ID.encode(), u32(0), hashlib.sha256(found.m10).digest(), bytes(32))
    forged = sign_body(seeded_signer("b-site"), ACKNOWLEDGEMENT_KIND, body)
    with pytest.raises(SignatureInvalidError):
        await acknowledge_result(lab.ctx, site_id=A, exchange=found.exchange, acknowledgement=forged)
    wrong = sign_body(
        seeded_signer("a-site"), ACKNOWLEDGEMENT_KIND, pack(RUN_ID.encode(), u32(0), bytes(32), bytes(32))
    )
    with pytest.raises(InvalidMessageError):
        await acknowledge_result(lab.ctx, site_id=A, exchange=found.exchange, acknowledgement=wrong)
    differing = sign_body(seeded_signer("a-site"), ACKNOWLEDGEMENT_KIND, body)
    await acknowledge_result(lab.ctx, site_id=A, exchange=found.exchange, acknowledgement=differing)
    assert lab.participation("a-site").acknowledged_state_sha256 == "00" * 32


async def test_blobs_that_the_run_does_not_publish_are_not_given(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle_until(RelaySurvivors)
    uploads = lab.db.read("uploads", lambda session: list(session.scalars(select(Upload.blob_sha256))))
    for sha256 in (uploads[0], "0" * 64, "../secret"):
        with pytest.raises((NotFoundError, BlobNotFoundError)):
            _ = [p async for p in download_blob(lab.ctx, site_id=A, run_id=RUN_ID, sha256=sha256, offset=0)]
    initial = lab.run().initial_blob_sha256
    got = [p.data async for p in download_blob(lab.ctx, site_id=A, run_id=RUN_ID, sha256=initial, offset=5)]
    assert b"".join(got) == lab.ctx.blobs.read(initial)[5:]
    with pytest.raises(SiteNotActiveError):
        _ = [p async for p in download_blob(lab.ctx, site_id=SiteId("x"), run_id=RUN_ID, sha256=initial, offset=0)]


async def test_shares_from_a_second_cohort_are_refused(make_lab: MakeLab) -> None:
    lab = make_lab()
    asked = await lab.settle_until(RelayKeys)
    context = asked[A].exchange
    m3 = lab.sites[A].role(context).share(asked[A].m2)
    with pytest.raises(SecAggRefusedError):
        await accept_shares(lab.ctx, site_id=A, exchange=context, m3=m3[:-1] + bytes([m3[-1] ^ 1]))
    await accept_shares(lab.ctx, site_id=A, exchange=context, m3=m3)
    with pytest.raises(ConflictError):
        await accept_shares(lab.ctx, site_id=A, exchange=context, m3=m3[:-1] + bytes([m3[-1] ^ 1]))
