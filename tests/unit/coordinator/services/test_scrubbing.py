"""The audit window closes: what goes, what stays, when, and that a crash at any point changes nothing of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from coordinator_engine_lab import COORDINATOR, RUN_ID, EngineLab, parts_of
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.blob_references import reference_columns
from coordinator.db.models import AuditCheckpoint, AuditRow, Exchange, ExchangeMessage, Lease, Run, Upload
from coordinator.driver.janitor import LEASE_NAME, Janitor, JanitorSettings
from coordinator.errors import ConflictError, NotFoundError, ScrubbedError
from coordinator.services import collect_blobs
from coordinator.services.accept_reveal import accept_reveal
from coordinator.services.accept_upload import accept_upload, partial_name, query_upload
from coordinator.services.get_result import get_result
from coordinator.services.poll_instruction import poll_instruction
from coordinator.services.receive_upload import UploadTruncatedError
from coordinator.services.site_instructions import AbandonRound, Idle, PublishedResult, RelayShares
from fl_protocol.audit.chain import AuditRow as Leaf
from fl_protocol.audit.events import AuditKind, event_from_bytes
from fl_protocol.audit.verify import AuditVerified, verify_log
from fl_protocol.codec.merkle import leaf_hash, root_from_leaf_hashes
from fl_protocol.folds.algorithm import Publishes
from fl_protocol.folds.fedavg_lora import FedAvgLora
from fl_protocol.ids import SiteId
from fl_protocol.packing import pack, unpack
from fl_protocol.secagg.messages import StatementKind
from fl_protocol.signing.signed import SignedBody

MakeLab = Callable[..., EngineLab]
WINDOW_S = 86400.0
GRACE = timedelta(hours=24)


def janitor_of(lab: EngineLab, *, holder: str = "first") -> Janitor:
    return Janitor(lab.ctx, settings=JanitorSettings(grace=GRACE), holder=holder)


def messages(lab: EngineLab, kind: str | None = None) -> list[ExchangeMessage]:
    query = select(ExchangeMessage).order_by(ExchangeMessage.kind, ExchangeMessage.site_id)
    if kind is not None:
        query = query.where(ExchangeMessage.kind == kind)
    return lab.db.read("messages", lambda session: list(session.scalars(query)))


def uploads(lab: EngineLab, round_index: int = 0) -> list[Upload]:
    query = select(Upload).where(Upload.round_index == round_index)
    return lab.db.read("uploads", lambda session: list(session.scalars(query)))


def scrub_events(lab: EngineLab) -> list[dict[str, object]]:
    query = select(AuditRow.body).where(AuditRow.kind == AuditKind.ROUND_SCRUBBED.value).order_by(AuditRow.seq)
    bodies = lab.db.read("events", lambda session: list(session.scalars(query)))
    return [dict(event_from_bytes(body).event.facts) for body in bodies]


async def test_nothing_is_scrubbed_before_the_window_closes_and_all_of_it_after(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle()
    janitor = janitor_of(lab)
    lab.clock.advance(WINDOW_S - 1)
    assert await janitor.sweep()
    assert scrub_events(lab) == []
    assert all(lab.ctx.blobs.has(upload.blob_sha256 or "") for upload in uploads(lab))
    lab.clock.advance(2)
    await janitor.sweep()
    assert [(event["round_index"], event["n_uploads"], event["n_messages"]) for event in scrub_events(lab)] == [
        (0, 3, 6),
        (1, 3, 6),
    ]
    for upload in (*uploads(lab), *uploads(lab, 1)):
        assert upload.scrubbed_at == upload.blob_deleted_at == lab.clock.at
        assert not lab.ctx.blobs.has(upload.blob_sha256 or "")
        assert upload.receipt_body is not None
    for round_index in (0, 1):
        assert lab.round(round_index).scrubbed_at == lab.clock.at
    # Again is nothing.
    await janitor.sweep()
    assert len(scrub_events(lab)) == 2


async def test_shares_are_gone_and_the_transcript_root_can_still_be_computed(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle()
    before = {(row.kind, row.site_id, row.round_index): row for row in messages(lab)}
    secrets = [
        piece
        for row in before.values()
        if row.kind == "M3"
        for leaf in unpack(row.encoded)[1:]
        for piece in unpack(leaf)[1:]
        if piece
    ]
    reveals = [unpack(SignedBody.decode(row.encoded).body)[2] for row in before.values() if row.kind == "M9"]
    secrets += [unpack(revealed)[2] for one in reveals for revealed in unpack(one)]
    lab.clock.advance(WINDOW_S + 1)
    await janitor_of(lab).sweep()
    for row in messages(lab):
        was = before[(row.kind, row.site_id, row.round_index)]
        assert row.sha256 == hashlib.sha256(was.encoded).hexdigest()
        if row.kind in ("M3", "M9"):
            assert row.scrubbed_at is not None
            assert row.n_bytes == len(was.encoded)
        else:
            assert (row.encoded, row.scrubbed_at) == (was.encoded, None)
    assert len(secrets) > 30
    folder = Path(lab.db.engine.url.database or "").parent
    stored = b"".join(path.read_bytes() for path in folder.glob("coordinator.db*"))
    assert not [secret for secret in secrets if secret in stored]
    assert transcript_root_of_rows(lab) == lab.db.read("root", lambda session: exchange_of(session).transcript_root)


def exchange_of(session: Session, round_index: int = 0) -> Exchange:
    found = session.get(Exchange, (RUN_ID, round_index, 0, 0, 0))
    assert found is not None
    return found


def transcript_root_of_rows(lab: EngineLab) -> str:
    """As docs/protocol/secagg.md defines it, from what is kept."""
    round_row = lab.round(0)
    leaves = [leaf_hash(pack(b"SA1/sig/M0", round_row.manifest_body, round_row.manifest_signature))]
    for kind in ("M1", "M3", "M5", "M7", "M9"):
        for row in messages(lab, kind):
            if row.round_index != 0:
                continue
            if kind == "M9":
                leaves.append(bytes.fromhex(row.transcript_leaf_sha256 or ""))
                continue
            said = SignedBody.decode(row.encoded)
            leaves.append(leaf_hash(pack(StatementKind[kind].encode(), said.body, said.signature)))
    return root_from_leaf_hashes(leaves).hex()


async def test_round_is_kept_until_the_next_one_is_committed_however_long_that_takes(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    for site in lab.sites.values():
        site.silent.add(PublishedResult)

    def pause(session: Session) -> None:
        run = session.get(Run, RUN_ID)
        assert run is not None
        run.state = "PAUSED"

    lab.db.run_tx("pause", pause)
    lab.clock.advance(30 * WINDOW_S)
    await janitor_of(lab).sweep()
    assert lab.round(0).scrubbed_at is None

    def cancel(session: Session) -> None:
        run = session.get(Run, RUN_ID)
        assert run is not None
        run.state = "CANCELLED"

    lab.db.run_tx("cancel", cancel)
    while await lab.driver.step(RUN_ID):
        pass
    await janitor_of(lab).sweep()
    assert lab.round(0).scrubbed_at is not None


async def test_aborted_attempts_and_failed_exchanges_are_scrubbed_with_their_partial_uploads(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    asked = await lab.settle_until(RelayShares)
    site = lab.sites[SiteId("a-site")]
    relay = asked[SiteId("a-site")]
    assert isinstance(relay, RelayShares)
    site.mask(relay.exchange, relay.m4)
    data = site.uploads[relay.exchange]

    m5 = site.role(relay.exchange).last_message
    assert m5 is not None
    with pytest.raises(UploadTruncatedError):
        await accept_upload(
            lab.ctx, site_id=site.site_id, exchange=relay.exchange, m5=m5, offset=0, parts=parts_of(data[:100])
        )
    name = partial_name(relay.exchange, site.site_id)
    assert lab.ctx.blobs.partial_size(name) == 100
    for other in lab.sites.values():
        other.silent.add(RelayShares)

    def cancel(session: Session) -> None:
        run = session.get(Run, RUN_ID)
        assert run is not None
        run.state = "CANCELLED"

    lab.db.run_tx("cancel", cancel)
    while await lab.driver.step(RUN_ID):
        pass
    lab.clock.advance(WINDOW_S + 1)
    await janitor_of(lab).sweep()
    assert scrub_events(lab)
    assert {event["state"] for event in scrub_events(lab)} == {"ABORTED"}
    assert lab.ctx.blobs.partial_size(name) == 0
    assert all(len(row.encoded) < 300 for row in messages(lab, "M3"))


async def test_late_questions_about_a_scrubbed_round_have_typed_answers(make_lab: MakeLab) -> None:
    lab = make_lab("a-site", "b-site", "c-site", "d-site")
    late = lab.sites[SiteId("d-site")]
    late.silent.add(PublishedResult)
    await lab.settle()
    lab.clock.advance(3601)
    await lab.settle()
    assert lab.run().state == "COMPLETED"
    (exchange,) = {context for context in late.roles if context.round_index == 0}
    m9 = messages(lab, "M9")[0].encoded
    lab.clock.advance(WINDOW_S + 1)
    await janitor_of(lab).sweep()
    # The result is published, not scrubbed: a late site still gets it, folds it and acknowledges it.
    found = await poll_instruction(lab.ctx, site_id=late.site_id, holding=[], wait_s=0)
    assert isinstance(found, PublishedResult)
    late.silent.clear()
    while await late.turn():
        pass
    assert late.state.digest() == lab.run().public_state_sha256
    assert (await get_result(lab.ctx, site_id=late.site_id, run_id=RUN_ID, round_index=0)).result == found
    # The receipt of the upload is kept; the same M9 again is the same; another is a conflict.
    assert (await query_upload(lab.ctx, site_id=late.site_id, exchange=exchange)).receipt is not None
    await accept_reveal(lab.ctx, site_id=SiteId("a-site"), exchange=exchange, m9=m9)
    with pytest.raises(ConflictError):
        await accept_reveal(lab.ctx, site_id=SiteId("a-site"), exchange=exchange, m9=m9 + b"x")
    # Whoever would compute the sum again is told why that is over, also by a process that had it in memory.
    with pytest.raises(ScrubbedError) as refusal:
        lab.db.read("again", lambda session: lab.ctx.roles.surviving(session, exchange_of(session)))
    assert refusal.value.code == "scrubbed"
    assert refusal.value.facts["round_index"] == 0


@pytest.mark.parametrize("dies_at", ["scrub", "delete", "mark"])
async def test_janitor_killed_at_any_step_is_continued_by_the_next(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    lab = make_lab()
    await lab.settle()
    lab.clock.advance(WINDOW_S + 1)
    real_tx, real_delete = lab.db.run_tx, lab.ctx.blobs.delete
    names = {"scrub": "scrub-round", "mark": "mark-deleted"}

    def die_in_tx(name: str, fn: Callable[[Session], object]) -> object:
        if name == names.get(dies_at):
            raise KeyboardInterrupt
        return real_tx(name, fn)

    def die_in_delete(sha256: str) -> None:
        real_delete(sha256)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(lab.db, "run_tx", die_in_tx)
        if dies_at == "delete":
            patched.setattr(lab.ctx.blobs, "delete", die_in_delete)
        with pytest.raises(KeyboardInterrupt):
            janitor_of(lab)._sweep()
    # The dead one's lease has to run out first.
    assert not await janitor_of(lab, holder="second").sweep()
    lab.clock.advance(301)
    assert await janitor_of(lab, holder="second").sweep()
    assert len(scrub_events(lab)) == 2
    assert not [upload for upload in uploads(lab) if lab.ctx.blobs.has(upload.blob_sha256 or "")]
    assert all(upload.blob_deleted_at is not None for upload in uploads(lab))


async def test_two_janitors_do_not_fight(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle()
    first, second = janitor_of(lab), janitor_of(lab, holder="second")
    assert await first.sweep()
    assert not await second.sweep()
    lease = lab.db.read("lease", lambda session: session.get(Lease, LEASE_NAME))
    assert lease is not None
    assert lease.holder == "first"


async def test_blob_that_something_else_still_names_is_not_deleted(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle()
    kept = uploads(lab)[0].blob_sha256 or ""

    def name_it(session: Session) -> None:
        run = session.get(Run, RUN_ID)
        assert run is not None
        run.layout_blob_sha256 = kept

    lab.db.run_tx("name-it", name_it)
    lab.clock.advance(WINDOW_S + 1)
    await janitor_of(lab).sweep()
    assert lab.ctx.blobs.has(kept)
    published = {lab.run().public_state_blob_sha256, lab.run().initial_blob_sha256}
    published |= {lab.db.read("sum", lambda session: exchange_of(session).sum_blob_sha256) or ""}
    lab.clock.advance(100 * WINDOW_S)
    await janitor_of(lab).sweep()
    await janitor_of(lab).sweep()
    assert all(lab.ctx.blobs.has(sha256) for sha256 in published)


async def test_blob_that_stays_because_it_is_named_keeps_no_other_in_the_store(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_blobs, "_BATCH", 1)
    lab = make_lab()
    await lab.settle()
    first, *others = sorted((*uploads(lab), *uploads(lab, 1)), key=lambda upload: (upload.started_at, upload.site_id))

    def name_it(session: Session) -> None:
        run = session.get(Run, RUN_ID)
        assert run is not None
        run.layout_blob_sha256 = first.blob_sha256 or ""

    lab.db.run_tx("name-it", name_it)
    lab.clock.advance(WINDOW_S + 1)
    await janitor_of(lab).sweep()
    assert lab.ctx.blobs.has(first.blob_sha256 or "")
    assert not [upload for upload in others if lab.ctx.blobs.has(upload.blob_sha256 or "")]


async def test_orphan_goes_after_its_grace_and_not_if_it_was_named_meanwhile(make_lab: MakeLab) -> None:
    lab = make_lab()
    orphan = lab.ctx.blobs.put_bytes(b"stored before a transaction that never came").sha256
    named_late = lab.ctx.blobs.put_bytes(b"stored before a transaction that came late").sha256
    await janitor_of(lab).sweep()
    lab.clock.advance(GRACE.total_seconds() - 1)
    await janitor_of(lab).sweep()
    assert lab.ctx.blobs.has(orphan)

    def name_it(session: Session) -> None:
        run = session.get(Run, RUN_ID)
        assert run is not None
        run.layout_blob_sha256 = named_late

    lab.db.run_tx("name-it", name_it)
    lab.clock.advance(2)
    await janitor_of(lab).sweep()
    assert not lab.ctx.blobs.has(orphan)
    assert lab.ctx.blobs.has(named_late)
    assert lab.ctx.blobs.has(lab.run().initial_blob_sha256)


async def test_partial_of_an_upload_whose_exchange_ended_goes_before_the_window_closes(make_lab: MakeLab) -> None:
    lab = make_lab("a-site", "b-site", "c-site", "d-site")
    asked = await lab.settle_until(RelayShares)
    relay = asked[SiteId("d-site")]
    assert isinstance(relay, RelayShares)
    site = lab.sites[SiteId("d-site")]
    site.mask(relay.exchange, relay.m4)

    m5 = site.role(relay.exchange).last_message
    assert m5 is not None
    with pytest.raises(UploadTruncatedError):
        await accept_upload(
            lab.ctx,
            site_id=site.site_id,
            exchange=relay.exchange,
            m5=m5,
            offset=0,
            parts=parts_of(site.uploads[relay.exchange][:64]),
        )
    site.silent.add(RelayShares)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    lab.clock.advance(601)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    name = partial_name(relay.exchange, site.site_id)
    janitor = Janitor(lab.ctx, settings=JanitorSettings(grace=timedelta(hours=1)))
    await janitor.sweep()
    assert lab.ctx.blobs.partial_size(name) == 64
    lab.clock.advance(3601)
    await janitor.sweep()
    assert lab.ctx.blobs.partial_size(name) == 0
    assert lab.round(0).scrubbed_at is None


def test_every_column_that_holds_a_blob_is_known() -> None:
    assert {f"{column.table.name}.{column.name}" for column in reference_columns()} == {
        "runs.layout_blob_sha256",
        "runs.initial_blob_sha256",
        "runs.public_state_blob_sha256",
        "rounds.state_blob_sha256_after",
        "exchanges.sum_blob_sha256",
        "uploads.blob_sha256",
        "release_files.blob_sha256",
    }


async def test_log_with_scrubbed_rounds_verifies(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle()
    lab.clock.advance(WINDOW_S + 1)
    await janitor_of(lab).sweep()

    def read(session: Session) -> tuple[list[Leaf], list[SignedBody]]:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.seq))
        heads = session.scalars(select(AuditCheckpoint))
        return (
            [Leaf(seq=row.seq, body=row.body, leaf_sha256=row.leaf_sha256) for row in rows],  # type: ignore[arg-type]
            [SignedBody(body=one.body, signature=one.signature) for one in heads],
        )

    rows, heads = lab.db.read("audit", read)
    assert isinstance(verify_log(rows, heads, COORDINATOR.spki_der), AuditVerified)


async def test_sum_goes_with_the_window_where_only_its_fold_is_published(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FedAvgLora, "publishes", Publishes.FOLD)
    lab = make_lab()
    await lab.settle()
    exchange = lab.db.read("exchange", exchange_of)
    name = exchange.sum_blob_sha256 or ""
    assert lab.ctx.blobs.has(name)
    assert (await get_result(lab.ctx, site_id=SiteId("a-site"), run_id=RUN_ID, round_index=0)).result.sum_blob_sha256
    janitor = janitor_of(lab)
    lab.clock.advance(WINDOW_S + 1)
    await janitor.sweep()
    lab.clock.advance(GRACE.total_seconds() + 1)
    await janitor.sweep()
    lab.clock.advance(GRACE.total_seconds() + 1)
    await janitor.sweep()
    assert not lab.ctx.blobs.has(name)
    kept = lab.db.read("exchange", exchange_of)
    assert (kept.sum_blob_sha256, kept.sum_bytes) == (name, None)
    with pytest.raises(NotFoundError):
        await get_result(lab.ctx, site_id=SiteId("a-site"), run_id=RUN_ID, round_index=0)
    # What the fold made of it is still there.
    state = lab.round(0).state_blob_sha256_after
    assert state is not None
    assert lab.ctx.blobs.has(state)


async def test_site_that_was_away_until_its_sum_was_scrubbed_abandons_the_round_and_hears_of_others(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FedAvgLora, "publishes", Publishes.FOLD)
    lab = make_lab("a-site", "b-site", "c-site", "d-site")
    late = lab.sites[SiteId("d-site")]
    late.silent.add(PublishedResult)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    late.is_lost = True
    lab.clock.advance(600)
    await lab.settle()
    assert lab.run().state == "COMPLETED"
    assert lab.participation("d-site").state == "COUNTED"
    lab.clock.advance(WINDOW_S + 1)
    await janitor_of(lab).sweep()
    late.is_lost = False
    held = sorted(late.holding)
    asked = await poll_instruction(lab.ctx, site_id=late.site_id, holding=held, wait_s=0.0)
    assert asked == AbandonRound(round=held[0], reason="result-scrubbed")
    assert isinstance(await poll_instruction(lab.ctx, site_id=late.site_id, holding=[], wait_s=0.0), Idle)


async def test_sum_stays_where_it_is_what_is_published(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle()
    janitor = janitor_of(lab)
    for _ in range(3):
        lab.clock.advance(WINDOW_S + 1)
        await janitor.sweep()
    assert lab.ctx.blobs.has(lab.db.read("exchange", exchange_of).sum_blob_sha256 or "")
