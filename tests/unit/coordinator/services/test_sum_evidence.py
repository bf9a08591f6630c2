"""What the coordinator shows of a sum: enough to make it again, to sites of the run, of survivors only, in time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from coordinator_engine_lab import RUN_ID, EngineLab
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.db.models import Site, Upload
from coordinator.driver.janitor import Janitor, JanitorSettings
from coordinator.errors import InvalidMessageError, NotFoundError, NotInCohortError, ScrubbedError
from coordinator.services.get_result import get_result
from coordinator.services.get_sum_evidence import SentMaskedChunk, get_masked_chunk, get_masked_window, get_sum_evidence
from coordinator.services.site_instructions import RelayShares
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import SiteId
from fl_protocol.packing import unpack
from fl_protocol.secagg.messages import ExchangeResult
from fl_protocol.secagg.reading import PeerVerifier
from fl_protocol.secagg.reexecution import MaskedChunk, Reexecution, decode_sum_evidence, read_sum_evidence
from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.signing.signed import SignedBody, verify_body
from fl_protocol.spec.round_spec import RoundManifest
from fl_protocol.testing.entropy import seeded_signer

MakeLab = Callable[..., EngineLab]
WINDOW_S = 86400.0

A_SITE, D_SITE = SiteId("a-site"), SiteId("d-site")
FIVE = ("a-site", "b-site", "c-site", "d-site", "e-site")


async def lab_with_a_sum(make_lab: MakeLab, *, lost: str | None = None) -> EngineLab:
    """Round 0 is committed; one site may have dealt its shares and sent nothing more."""
    lab = make_lab(*FIVE)
    if lost is not None:
        lab.sites[SiteId(lost)].silent.add(RelayShares)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    if lost is not None:
        lab.clock.advance(601)
        await lab.settle(until=lambda: lab.run().next_round_index == 1)
    return lab


async def reexecution_of(lab: EngineLab, site: SiteId) -> tuple[Reexecution, RingVector]:
    found = await get_result(lab.ctx, site_id=site, run_id=RUN_ID, round_index=0)
    said = ExchangeResult.decode(SignedBody.decode(found.result.m10).body)
    answer = await get_sum_evidence(lab.ctx, site_id=site, run_id=RUN_ID, round_index=0)
    member = lab.sites[A_SITE]
    kind = RoundManifest.decode(found.manifest.body).kind
    facts = lab.ctx.roles.run_facts(lab.run())
    layout = facts.payload(kind)
    reexecution = read_sum_evidence(
        decode_sum_evidence(answer.evidence),
        h_manifest=said.h_manifest,
        h_survivors=said.h_survivors,
        peers=PeerVerifier(approved=lab.spec.cohort.pins),
        layout=layout,
    )
    data = await member.fetch_sum(found.result)
    return reexecution, RingVector.from_bytes(data, n32=layout.n_ring32, n64=layout.n_ring64)


@pytest.mark.parametrize("lost", [None, "d-site"])
async def test_sum_is_made_again_from_what_any_site_of_the_run_is_shown(make_lab: MakeLab, lost: str | None) -> None:
    lab = await lab_with_a_sum(make_lab, lost=lost)
    # D has lost the round, and asks as one that was absent.
    reexecution, total = await reexecution_of(lab, D_SITE)
    assert reexecution.sites == tuple(name for name in FIVE if name != lost)
    for index in range(reexecution.n_chunks):
        window = reexecution.window_of(index)
        again = reexecution.begin(window)
        for site in reexecution.sites:
            sent = [
                await get_masked_chunk(
                    lab.ctx, site_id=D_SITE, run_id=RUN_ID, round_index=0, of_site=site, chunk_index=number
                )
                for number in window.chunks
            ]
            again.add(site, [MaskedChunk(data=chunk.data, path=chunk.path) for chunk in sent])
        again.compare(total)


async def test_vector_of_a_site_that_is_not_in_the_sum_is_never_shown(make_lab: MakeLab) -> None:
    """Its rho is in the evidence: with its vector, only the self-mask would be left between a reader and its update."""
    lab = await lab_with_a_sum(make_lab, lost="d-site")
    for asks in FIVE:
        with pytest.raises(NotFoundError):
            await get_masked_chunk(
                lab.ctx, site_id=SiteId(asks), run_id=RUN_ID, round_index=0, of_site=D_SITE, chunk_index=0
            )


async def window_of(lab: EngineLab, site: SiteId, chunks: range, *, round_index: int = 0) -> list[SentMaskedChunk]:
    found = get_masked_window(lab.ctx, site_id=site, run_id=RUN_ID, round_index=round_index, chunks=chunks)
    return [sent async for sent in found]


@pytest.mark.parametrize("lost", [None, "d-site"])
async def test_window_is_every_survivor_s_chunk_and_nobody_else_s(make_lab: MakeLab, lost: str | None) -> None:
    lab = await lab_with_a_sum(make_lab, lost=lost)
    reexecution, total = await reexecution_of(lab, D_SITE)
    for index in range(reexecution.n_chunks):
        window = reexecution.window_of(index)
        shown = await window_of(lab, D_SITE, window.chunks)
        assert [(sent.site_id, sent.chunk_index) for sent in shown] == [
            (name, number) for name in FIVE if name != lost for number in window.chunks
        ]
        again = reexecution.begin(window)
        for site in reexecution.sites:
            own = [sent for sent in shown if sent.site_id == site]
            again.add(site, [MaskedChunk(data=sent.data, path=sent.path) for sent in own])
        again.compare(total)


async def test_window_is_counted_as_traffic_of_the_site_that_asked_also_where_it_hangs_up(make_lab: MakeLab) -> None:
    lab = await lab_with_a_sum(make_lab)
    counted: list[tuple[SiteId, int]] = []
    lab.ctx.traffic.add = lambda site, _context, n_bytes: counted.append((site, n_bytes))  # type: ignore[method-assign]
    shown = get_masked_window(lab.ctx, site_id=D_SITE, run_id=RUN_ID, round_index=0, chunks=range(1))
    first = await anext(shown)
    await shown.aclose()  # type: ignore[attr-defined]
    assert counted == [(D_SITE, len(first.data))]


async def test_window_that_is_empty_or_past_the_end_is_refused(make_lab: MakeLab) -> None:
    lab = await lab_with_a_sum(make_lab)
    with pytest.raises(InvalidMessageError):
        await window_of(lab, A_SITE, range(3, 3))
    with pytest.raises(NotFoundError):
        await window_of(lab, A_SITE, range(2**32))


async def test_evidence_holds_one_secret_of_each_sharer_and_no_second(make_lab: MakeLab) -> None:
    lab = await lab_with_a_sum(make_lab)
    answer = await get_sum_evidence(lab.ctx, site_id=A_SITE, run_id=RUN_ID, round_index=0)
    *_, secrets = unpack(answer.evidence, 4)
    assert len(unpack(secrets)) == len(FIVE)
    assert answer.witnesses == ()


def add_stranger(session: Session) -> None:
    """A hospital of the consortium that is not of this run."""
    spki = seeded_signer("z-site").spki_der
    at = datetime(2026, 1, 2, tzinfo=UTC)
    session.add(
        Site(
            site_id="z-site",
            state="ENROLLED",
            signing_spki=spki,
            signing_key_sha256=spki_fingerprint(spki),
            created_at=at,
            enrolled_at=at,
        )
    )


async def test_site_outside_the_run_and_unfinished_rounds_get_nothing(make_lab: MakeLab) -> None:
    lab = await lab_with_a_sum(make_lab)
    lab.db.run_tx("stranger", add_stranger)
    with pytest.raises(NotInCohortError):
        await get_sum_evidence(lab.ctx, site_id=SiteId("z-site"), run_id=RUN_ID, round_index=0)
    with pytest.raises(NotInCohortError):
        await get_masked_chunk(
            lab.ctx, site_id=SiteId("z-site"), run_id=RUN_ID, round_index=0, of_site=A_SITE, chunk_index=0
        )
    with pytest.raises(NotInCohortError):
        await window_of(lab, SiteId("z-site"), range(1))
    with pytest.raises(NotFoundError):
        await window_of(lab, A_SITE, range(1), round_index=1)
    with pytest.raises(NotFoundError):
        await get_sum_evidence(lab.ctx, site_id=A_SITE, run_id=RUN_ID, round_index=1)
    with pytest.raises(NotFoundError):
        await get_masked_chunk(lab.ctx, site_id=A_SITE, run_id=RUN_ID, round_index=0, of_site=A_SITE, chunk_index=10**6)


async def test_after_the_window_there_are_the_signed_words_of_those_that_checked(make_lab: MakeLab) -> None:
    lab = make_lab(*FIVE)
    await lab.settle()
    assert lab.run().state == "COMPLETED"
    before = await get_sum_evidence(lab.ctx, site_id=A_SITE, run_id=RUN_ID, round_index=0)
    assert before.evidence
    lab.clock.advance(WINDOW_S + 1)
    await Janitor(lab.ctx, settings=JanitorSettings(), holder="janitor").sweep()
    answer = await get_sum_evidence(lab.ctx, site_id=A_SITE, run_id=RUN_ID, round_index=0)
    assert answer.evidence == b""
    assert [witness.site_id for witness in answer.witnesses] == list(FIVE)
    found = await get_result(lab.ctx, site_id=A_SITE, run_id=RUN_ID, round_index=0)
    for witness in answer.witnesses:
        assert spki_fingerprint(witness.signing_spki) == lab.spec.cohort.pins[witness.site_id]
        body = verify_body(witness.signing_spki, "WR/sig/ack", witness.acknowledgement)
        assert unpack(body, 4)[2] == hashlib.sha256(found.result.m10).digest()
    with pytest.raises(ScrubbedError):
        await get_masked_chunk(lab.ctx, site_id=A_SITE, run_id=RUN_ID, round_index=0, of_site=A_SITE, chunk_index=0)
    with pytest.raises(ScrubbedError):
        await window_of(lab, A_SITE, range(1))


async def test_the_process_that_received_the_uploads_reads_none_of_them_for_its_paths(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    lab = await lab_with_a_sum(make_lab)
    nothing = FilesystemBlobStore(tmp_path / "no-blob")
    names = lab.db.read("names", lambda session: session.scalars(select(Upload.blob_sha256)).all())
    assert len(names) == len(FIVE)
    for name in names:
        assert name is not None
        assert len(lab.ctx.upload_leaves.of(nothing, name)) >= 1
