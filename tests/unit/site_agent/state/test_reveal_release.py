"""The steward's word on a reveal whose result never came: what it resolves, what it leaves, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditEvent, event_from_bytes
from fl_protocol.clock import SystemClock
from fl_protocol.ids import SiteId
from fl_protocol.spec.context import ExchangeContext, RoundContext
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.testing.federation import RUN_ID
from site_agent.audit.store import AuditLog
from site_agent.db.models import AuditEventRow
from site_agent.db.tx import SiteDb, open_site_db
from site_agent.errors import OneShotSpentError
from site_agent.state.payload_memory import Evaluation, MaskedCohort, RevealedExchange
from site_agent.state.reveal_release import RevealReleaseError, release_reveals, unresolved_reveals
from site_agent.state.round_book import RoundBook

NOW = datetime(2026, 1, 1, tzinfo=UTC)
IN_TRAINING = Evaluation(sha256="77" * 32, is_alone=False)
ALONE = Evaluation(sha256="77" * 32, is_alone=True)
ABC = tuple(SiteId(name) for name in ("alpha", "beta", "gamma"))
ABD = tuple(SiteId(name) for name in ("alpha", "beta", "delta"))


@pytest.fixture
def db(tmp_path: Path) -> Iterator[SiteDb]:
    opened = open_site_db(tmp_path / "site.db")
    yield opened
    opened.close()


@pytest.fixture
def audit() -> AuditLog:
    return AuditLog(seeded_signer("site"), SystemClock(), "site:alpha")


@pytest.fixture
def book(db: SiteDb, audit: AuditLog) -> RoundBook:
    return RoundBook(db, audit, SystemClock())


def attempt(number: int) -> RoundContext:
    return RoundContext(run_id=RUN_ID, round_index=0, round_attempt=number)


def reveal(
    book: RoundBook,
    number: int,
    *,
    survivors: tuple[SiteId, ...] = ABC,
    evaluation: Evaluation = IN_TRAINING,
    end: str | None = "abandoned",
) -> None:
    """Join, mask and reveal in one attempt, all from one state; then hear that the round is over, or nothing."""
    place = attempt(number)
    context = ExchangeContext(run_id=RUN_ID, round_index=0, round_attempt=number, exchange_index=0, exchange_attempt=0)
    book.join(place, manifest_sha256=f"{number:02}" * 32, public_state_sha256="22" * 32)
    cohort = MaskedCohort(context=context, sites=frozenset(survivors), threshold=3)
    book.claim_mask(cohort, payload_sha256=f"{50 + number:02}" * 32, evaluation=evaluation)
    revealed = RevealedExchange(context=context, h_survivors=b"h" * 32)
    book.ensure_revealed(revealed, survivors=survivors, evaluation=evaluation)
    book.record_state(place, "revealed")
    if end is not None:
        book.record_state(place, end, outcome="too-few-revealed")


def release(db: SiteDb, audit: AuditLog) -> int:
    return len(release_reveals(db, audit, run_id=RUN_ID, local_user="maria", now=NOW))


def events(db: SiteDb) -> list[AuditEvent]:
    def read(session: Session) -> list[AuditEvent]:
        rows = session.scalars(select(AuditEventRow).order_by(AuditEventRow.seq))
        return [event_from_bytes(row.body).event for row in rows]

    return db.run_read("events", read)


def test_release_resolves_the_reveal_and_lets_other_survivors_be_signed(
    db: SiteDb, audit: AuditLog, book: RoundBook
) -> None:
    reveal(book, 0)
    (found,) = db.run_read("look", lambda session: unresolved_reveals(session, RUN_ID))
    assert (found.round, found.survivors) == (attempt(0), ABC)
    with pytest.raises(OneShotSpentError):
        reveal(book, 1, survivors=ABD)
    book.record_state(attempt(1), "failed", outcome="evaluation-revealed")
    assert release(db, audit) == 1
    assert not any(joined.is_unresolved for joined in book.joined(RUN_ID))
    reveal(book, 2, survivors=ABD)
    assert book.survivors_of(IN_TRAINING) == frozenset(ABD)


def test_release_is_for_what_is_unresolved_now_and_not_for_what_comes(
    db: SiteDb, audit: AuditLog, book: RoundBook
) -> None:
    reveal(book, 0)
    release(db, audit)
    reveal(book, 1, survivors=ABD)
    assert [joined.is_unresolved for joined in book.joined(RUN_ID)] == [False, True]
    with pytest.raises(OneShotSpentError):
        reveal(book, 2, survivors=ABC)


def test_release_is_recorded_with_the_steward_and_the_survivors(db: SiteDb, audit: AuditLog, book: RoundBook) -> None:
    reveal(book, 3)
    release(db, audit)
    last = events(db)[-1]
    assert (last.kind, last.actor) == ("reveal.released", "user:maria")
    assert last.facts == {"run_id": RUN_ID, "round_index": 0, "round_attempt": 3, "survivors": "alpha,beta,gamma"}


def test_release_keeps_the_payload_spent_and_the_cohorts_remembered(
    db: SiteDb, audit: AuditLog, book: RoundBook
) -> None:
    reveal(book, 0)
    release(db, audit)
    context = ExchangeContext(run_id=RUN_ID, round_index=0, round_attempt=1, exchange_index=0, exchange_attempt=0)
    book.join(attempt(1), manifest_sha256="44" * 32, public_state_sha256="22" * 32)
    cohort = MaskedCohort(context=context, sites=frozenset(ABD), threshold=3)
    with pytest.raises(OneShotSpentError):
        book.claim_mask(cohort, payload_sha256="50" * 32, evaluation=IN_TRAINING)
    assert [cohort.sites for cohort in book.cohorts_of(IN_TRAINING, besides=context)] == [frozenset(ABC)]


def test_release_while_the_round_is_under_way_is_refused(db: SiteDb, audit: AuditLog, book: RoundBook) -> None:
    reveal(book, 0, end=None)
    with pytest.raises(RevealReleaseError, match="under way"):
        release(db, audit)
    assert book.joined(RUN_ID)[0].is_unresolved


def test_release_of_an_evaluation_alone_is_refused(db: SiteDb, audit: AuditLog, book: RoundBook) -> None:
    reveal(book, 0, evaluation=ALONE)
    with pytest.raises(RevealReleaseError, match="never in a second sum"):
        release(db, audit)
    assert book.survivors_of(ALONE) == frozenset(ABC)


def test_release_of_nothing_is_refused(db: SiteDb, audit: AuditLog, book: RoundBook) -> None:
    with pytest.raises(RevealReleaseError, match="no reveal"):
        release(db, audit)
    reveal(book, 0)
    release(db, audit)
    n_events = len(events(db))
    with pytest.raises(RevealReleaseError, match="no reveal"):
        release(db, audit)
    assert len(events(db)) == n_events


def test_evaluation_that_a_reveal_with_the_same_survivors_remembered_first_is_released_too(
    db: SiteDb, audit: AuditLog, book: RoundBook
) -> None:
    reveal(book, 0)
    reveal(book, 1)
    assert release(db, audit) == 2
    reveal(book, 2, survivors=ABD)
