"""What resolves a reveal: the result of that very exchange, for the survivors that were signed there, and no other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from fl_protocol.clock import SystemClock
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import SiteId
from fl_protocol.packing import pack, u32
from fl_protocol.secagg.messages import ExchangeResult, StatementKind
from fl_protocol.secagg.transcript import hash_manifest
from fl_protocol.signing.signed import sign_body
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.round_spec import RoundManifest
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.testing.federation import RUN_ID, Federation, small_layout
from site_agent.audit.store import AuditLog
from site_agent.db.tx import SiteDb, open_site_db
from site_agent.errors import RoundRefusedError
from site_agent.link.client import SumEvidenceAnswer, SumWitness
from site_agent.link.instructions import PublishedResult
from site_agent.session.events import round_of
from site_agent.state.payload_memory import Evaluation, MaskedCohort, RevealedExchange
from site_agent.state.public_state import StoredState
from site_agent.state.round_book import RoundBook
from site_agent.supervision.settlement import Settler

SITES = tuple(SiteId(name) for name in ("site-1", "site-2", "site-3"))
H_SURVIVORS = b"\x2a" * 32
EVALUATION = Evaluation(sha256="44" * 32, is_alone=False)
FEDERATION = Federation(SITES, small_layout())
SIGNED = FEDERATION.manifest()
MANIFEST = RoundManifest.decode(SIGNED.body)
LAYOUT = FEDERATION.layout
SUM = RingVector.zeros(LAYOUT.n_ring32, LAYOUT.n_ring64)


def exchange(attempt: int) -> ExchangeContext:
    return ExchangeContext(run_id=RUN_ID, round_index=0, round_attempt=0, exchange_index=0, exchange_attempt=attempt)


def publish(attempt: int, *, h_survivors: bytes) -> PublishedResult:
    """M10 as the coordinator would sign it for an exchange."""
    body = ExchangeResult(
        h_manifest=hash_manifest(SIGNED.body, exchange_index=0, exchange_attempt=attempt),
        h_survivors=h_survivors,
        result_sha256=SUM.sha256(),
        transcript_root=bytes(32),
    ).encode()
    return PublishedResult(
        exchange=exchange(attempt),
        message=sign_body(FEDERATION.coordinator, StatementKind.M10.value, body).encode(),
        sum_blob_sha256=SUM.sha256().hex(),
        sum_bytes=LAYOUT.n_bytes,
    )


@pytest.fixture
def book(tmp_path: Path) -> Iterator[RoundBook]:
    """The book of a site that revealed in exchange 0, and was then told that the round is given up."""
    db = open_site_db(tmp_path / "site.db")
    # It joined when the round was opened.
    clock = SimpleNamespace(now=lambda: datetime.fromisoformat(MANIFEST.opened_at))
    opened = RoundBook(db, AuditLog(seeded_signer("site"), clock, "site:site-1"), clock)
    round_context = round_of(exchange(0))
    opened.join(round_context, manifest_sha256="11" * 32, public_state_sha256=MANIFEST.public_state_sha256)
    cohort = MaskedCohort(context=exchange(0), sites=frozenset(SITES), threshold=3)
    opened.claim_mask(cohort, payload_sha256="33" * 32, evaluation=EVALUATION)
    opened.ensure_revealed(
        RevealedExchange(context=exchange(0), h_survivors=H_SURVIVORS), survivors=SITES, evaluation=EVALUATION
    )
    opened.record_state(round_context, "abandoned", outcome="aborted")
    yield opened
    db.close()


def acknowledged(published: PublishedResult) -> SumWitness:
    """Another site's word on the result: the audit window of this round is long over, so that nothing else is left."""
    digest = hashlib.sha256(published.message).digest()
    body = pack(RUN_ID.encode(), u32(0), digest, bytes(32))
    signer = FEDERATION.signers[SITES[1]]
    return SumWitness(
        site_id=SITES[1],
        signing_spki=signer.spki_der,
        acknowledgement=sign_body(signer, "WR/sig/ack", body),
    )


async def settle(book: RoundBook, published: PublishedResult, folder: Path, *, saved: list[object]) -> None:
    """Settle a result, and note the states that are saved."""
    db = open_site_db(folder / "site.db")
    try:
        await settle_in(db, book, published, folder, saved=saved)
    finally:
        db.close()


async def settle_in(
    db: SiteDb, book: RoundBook, published: PublishedResult, folder: Path, *, saved: list[object]
) -> None:
    base = StoredState(
        run_id=RUN_ID, version=0, sha256=MANIFEST.public_state_sha256, result_sha256=None, path=folder / "v0"
    )

    async def download(*_: object, **__: object) -> bytes:
        return SUM.to_bytes()

    def save(_: object, state: object, *, result_sha256: str) -> SimpleNamespace:
        saved.append(state)
        return SimpleNamespace(version=1, sha256="77" * 32, result_sha256=result_sha256)

    async def get_sum_evidence(*_: object) -> SumEvidenceAnswer:
        return SumEvidenceAnswer(evidence=b"", witnesses=(acknowledged(published),))

    seams = SimpleNamespace(
        site_id=SITES[0],
        clock=SystemClock(),
        db=db,
        client=SimpleNamespace(get_sum_evidence=get_sum_evidence),
        judge=SimpleNamespace(assumed_colluders=lambda: 0),
        coordinator_spki=FEDERATION.coordinator.spki_der,
        book=book,
        jobs=SimpleNamespace(private_states_dir=folder / "private"),
        downloader=SimpleNamespace(download=download),
        states=SimpleNamespace(find=lambda _, version: base if version == 0 else None, load=lambda _: None, save=save),
    )
    run = SimpleNamespace(
        run_id=RUN_ID,
        run_spec_sha256=MANIFEST.run_spec_sha256,
        spec=SimpleNamespace(cohort=SimpleNamespace(pins=FEDERATION.roster)),
        layout=None,
        payload_layout=lambda _: LAYOUT,
        is_last_round=lambda _: False,
        algorithm=SimpleNamespace(fold=lambda *_, **__: SimpleNamespace(state=None)),
    )
    await Settler(seams).settle(run, SIGNED, published)  # type: ignore[arg-type]


async def assert_refused(book: RoundBook, published: PublishedResult, folder: Path) -> None:
    saved: list[object] = []
    with pytest.raises(RoundRefusedError) as refused:
        await settle(book, published, folder, saved=saved)
    assert refused.value.reason == "result-unverified"
    assert saved == []
    assert unresolved(book) == [True]


def unresolved(book: RoundBook) -> list[bool]:
    return [joined.is_unresolved for joined in book.joined(RUN_ID)]


async def test_reveal_is_not_resolved_by_the_result_of_another_exchange_of_its_round(
    book: RoundBook, tmp_path: Path
) -> None:
    await assert_refused(book, publish(1, h_survivors=H_SURVIVORS), tmp_path)


async def test_reveal_is_not_resolved_by_a_result_for_other_survivors(book: RoundBook, tmp_path: Path) -> None:
    await assert_refused(book, publish(0, h_survivors=bytes(32)), tmp_path)


async def test_reveal_is_resolved_by_the_result_of_its_own_exchange(book: RoundBook, tmp_path: Path) -> None:
    saved: list[object] = []
    await settle(book, publish(0, h_survivors=H_SURVIVORS), tmp_path, saved=saved)
    assert len(saved) == 1
    assert unresolved(book) == [False]


def test_book_resolves_no_reveal_by_another_exchange(book: RoundBook) -> None:
    with pytest.raises(RoundRefusedError) as refused:
        book.record_settled(exchange(1), result_sha256="55" * 32, public_state_sha256="22" * 32)
    assert refused.value.reason == "result-unverified"
    assert unresolved(book) == [True]
