"""A coordinator whose disk is full says so before it loses anything, and goes on when there is room."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Callable

import pytest
from coordinator_engine_lab import RUN_ID, EngineLab, parts_of
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from coordinator.blobs.partial_file import PartialFile
from coordinator.db.faults import Fault, fault_of
from coordinator.db.models import Site
from coordinator.errors import BlobError, BlobStoreFullError, BlobStoreUnavailableError, DatabaseFullError
from coordinator.gateway.status import refused_call_from_error
from coordinator.rounds.space import MARGIN_BYTES, judge_space, space_for_round
from coordinator.services import accept_upload as accept_upload_module
from coordinator.services.accept_shares import accept_shares
from coordinator.services.accept_upload import accept_upload
from coordinator.services.describe_run import waiting_for
from coordinator.services.site_instructions import RelayKeys, RelayShares
from fl_protocol.ids import RunId, SiteId

MakeLab = Callable[..., EngineLab]
MIB = 1 << 20


def said_of_run(lab: EngineLab) -> str:
    return lab.db.read("say", lambda session: waiting_for(session, lab.run(), lab.clock.at))


def test_space_that_a_round_needs_is_its_uploads_their_sum_the_state_and_a_margin() -> None:
    needed = space_for_round(n_sites=8, payload_bytes=100 * MIB, state_bytes=200 * MIB)
    assert needed == (8 + 1) * 100 * MIB + 200 * MIB + 64 * MIB
    assert judge_space(needed, needed) is None
    assert judge_space(needed, None) is None
    short = judge_space(needed, needed - 1)
    assert short is not None
    assert short.reason() == "waits-for-space: needs 1164 MiB, has 1163 MiB"


async def test_round_does_not_open_without_room_and_the_run_says_what_it_waits_for(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    room = {"free": MARGIN_BYTES}
    monkeypatch.setattr(type(lab.ctx.blobs), "free_bytes", lambda self: room["free"])
    await lab.settle()
    assert lab.run().state == "ACTIVE"
    assert said_of_run(lab) == "Round 0 waits for space in the blob store: needs 65 MiB, has 64 MiB."
    # It is said once, and not written again at every look.
    assert not await lab.driver.step(RUN_ID)
    room["free"] = 2 * MARGIN_BYTES
    await lab.settle()
    assert (lab.run().state, lab.run().reason) == ("COMPLETED", None)


async def test_run_that_lacks_room_and_then_sites_says_that_it_waits_for_sites(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    monkeypatch.setattr(type(lab.ctx.blobs), "free_bytes", lambda self: MARGIN_BYTES)
    await lab.settle()
    assert "waits for space" in said_of_run(lab)
    lab.clock.advance(600)
    while await lab.driver.step(RUN_ID):
        pass
    assert said_of_run(lab).startswith("Round 0 waits for 3 more of 3 sites: a-site (last heard of at ")


async def test_run_whose_release_finds_no_room_says_that_it_waits_for_it(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()

    async def full(run_id: RunId) -> None:
        raise BlobStoreFullError("the blob store is full", run_id=run_id)

    monkeypatch.setattr(lab, "_release", full)
    lab.driver = lab.new_driver()
    await lab.settle()
    assert lab.run().state == "COMPLETED"
    assert said_of_run(lab) == (
        "All rounds are committed; waits for the release, which failed 1 times with blob-store-full and is tried again"
        " at 12:00 UTC."
    )
    monkeypatch.undo()
    lab.driver = lab.new_driver()
    lab.clock.advance(61)
    await lab.settle()
    assert lab.released == [RUN_ID]
    assert said_of_run(lab) == "All rounds are committed."


async def test_upload_without_room_is_refused_before_its_first_byte_and_taken_later(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    await lab.settle_until(RelayShares)
    site = lab.sites[SiteId("a-site")]
    relay = site.last
    assert isinstance(relay, RelayShares)
    site.mask(relay.exchange, relay.m4)
    m5 = site.role(relay.exchange).last_message
    assert m5 is not None
    with monkeypatch.context() as patched:
        patched.setattr(type(lab.ctx.blobs), "free_bytes", lambda self: 10)
        with pytest.raises(BlobStoreFullError) as refusal:
            await accept_upload(
                lab.ctx,
                site_id=site.site_id,
                exchange=relay.exchange,
                m5=m5,
                offset=0,
                parts=parts_of(site.uploads[relay.exchange]),
            )
    assert refusal.value.facts["free_bytes"] == 10
    assert int(str(refusal.value.facts["needed_bytes"])) == len(site.uploads[relay.exchange])
    call = refused_call_from_error(refusal.value)
    assert call is not None
    assert call.code.name == "RESOURCE_EXHAUSTED"
    await lab.settle()
    assert lab.run().state == "COMPLETED"
    assert set(lab.states().values()) == {"COUNTED"}


@pytest.mark.parametrize(
    ("where", "error"), [("before the first byte", BlobStoreFullError), ("in the middle", BlobStoreUnavailableError)]
)
async def test_exchange_waits_for_its_uploads_while_the_store_takes_none(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch, where: str, error: type[BlobError]
) -> None:
    lab = make_lab()
    await lab.settle_until(RelayShares)

    def fails(*_: object, **__: object) -> None:
        raise error("the store takes nothing now")

    with monkeypatch.context() as patched:
        if where == "before the first byte":
            patched.setattr(accept_upload_module, "_check_space", fails)
        else:
            patched.setattr(PartialFile, "append", fails)
        # Longer than the idle deadline of ten minutes; the sites try again and again.
        for _ in range(4):
            lab.clock.advance(300)
            for site in lab.sites.values():
                with contextlib.suppress(error):
                    await site.turn()
            while await lab.driver.step(RUN_ID):
                pass
    exchange = lab.exchange()
    assert exchange is not None
    assert exchange.state == "COLLECTING"
    await lab.settle()
    assert lab.run().state == "COMPLETED"
    assert set(lab.states().values()) == {"COUNTED"}


async def test_sum_that_finds_no_room_is_computed_again_for_as_long_as_it_takes(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    real_put = lab.ctx.blobs.put
    tries = []

    def full(chunks: object, *, expected_sha256: str | None = None) -> object:
        tries.append(1)
        raise BlobStoreFullError("the blob store is full")

    monkeypatch.setattr(lab.ctx.blobs, "put", full)
    for _ in range(10):
        await lab.settle()
        lab.clock.advance(61)
    assert len(tries) >= 7
    assert lab.round().state == "EXCHANGING"
    monkeypatch.setattr(lab.ctx.blobs, "put", real_put)
    lab.clock.advance(61)
    await lab.settle()
    assert lab.run().state == "COMPLETED"
    assert lab.round().round_attempt == 0


def no_room() -> OperationalError:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return OperationalError("INSERT", {}, error)


@pytest.mark.parametrize("every", [2, 3])
async def test_driver_without_room_at_its_writes_loses_no_event_and_counts_nothing_twice(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    lab = make_lab()
    real = lab.db.run_tx
    n_writes: Counter[str] = Counter()
    failed: set[str] = set()
    of_the_driver = {"advance-run", "complete-sum", "complete-fold", "note-effect-failure", "complete-release"}

    def sometimes(name: str, fn: Callable[[Session], object]) -> object:
        if name in of_the_driver:
            n_writes[name] += 1
            # The first write of each kind, and then every so many.
            if n_writes[name] % every == 1:
                failed.add(name)
                raise DatabaseFullError("no room", tx=name)
        return real(name, fn)

    monkeypatch.setattr(lab.db, "run_tx", sometimes)
    for _ in range(500):
        with contextlib.suppress(DatabaseFullError):
            await lab.settle()
        if lab.run().state == "COMPLETED":
            break
        # What failed is tried again after a pause.
        lab.clock.advance(2)
    assert {"advance-run", "complete-sum", "complete-fold"} <= failed
    assert lab.run().state == "COMPLETED"
    assert (lab.round().round_attempt, set(lab.states().values())) == (0, {"COUNTED"})
    report = lab.round().report
    assert report is not None
    assert report["n_records"] == sum(site.n_records for site in lab.sites.values())


async def test_message_that_could_not_be_kept_is_taken_when_it_comes_again(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    asked = await lab.settle_until(RelayKeys)
    site, relay = lab.sites[SiteId("a-site")], asked[SiteId("a-site")]
    assert isinstance(relay, RelayKeys)
    m3 = site.role(relay.exchange).share(relay.m2)
    real = lab.db.run_tx

    def full(name: str, fn: Callable[[Session], object]) -> object:
        def written_and_lost(session: Session) -> None:
            fn(session)
            session.flush()
            raise no_room()

        return real(name, written_and_lost)

    with monkeypatch.context() as patched:
        patched.setattr(lab.db, "run_tx", full)
        with pytest.raises(DatabaseFullError):
            await accept_shares(lab.ctx, site_id=site.site_id, exchange=relay.exchange, m3=m3)
    for _ in range(2):
        await accept_shares(lab.ctx, site_id=site.site_id, exchange=relay.exchange, m3=m3)
    await lab.settle()
    assert set(lab.states().values()) == {"COUNTED"}


def test_full_database_is_a_typed_error_that_asks_to_try_again(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    assert fault_of(no_room()) is Fault.FULL

    def write(session: Session) -> None:
        site = session.get(Site, "a-site")
        assert site is not None
        site.reason = "changed"
        raise no_room()

    with pytest.raises(DatabaseFullError) as refusal:
        lab.db.run_tx("write", write)
    assert refusal.value.code == "database-full"
    call = refused_call_from_error(refusal.value)
    assert call is not None
    assert call.code.name == "UNAVAILABLE"
    found = lab.db.read("look", lambda session: session.get(Site, "a-site"))
    assert found is not None
    assert found.reason is None


def test_postgresql_without_room_is_the_same_error() -> None:
    class ServerError(Exception):
        pass

    assert fault_of(OperationalError("x", {}, ServerError({"C": "53100", "M": "could not extend file"}))) is Fault.FULL
