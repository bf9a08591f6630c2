"""The round book: one M0 an attempt, attempts that rise, flags set once, reveals unresolved until they are settled."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditKind, event_from_bytes
from fl_protocol.clock import SystemClock
from fl_protocol.ids import RunId, SiteId
from fl_protocol.spec.context import ExchangeContext, RoundContext
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.testing.federation import RUN_ID
from site_agent.audit.store import AuditLog
from site_agent.db.errors import SiteDatabaseError
from site_agent.db.models import AuditEventRow
from site_agent.db.tx import SiteDb, open_site_db
from site_agent.errors import OneShotSpentError, RoundRefusedError
from site_agent.session.events import Step
from site_agent.state.payload_memory import Evaluation, MaskedCohort, RevealedExchange, evaluation_name
from site_agent.state.round_book import RoundBook

STATE = "22" * 32
PAYLOAD = "33" * 32
IN_TRAINING = Evaluation(sha256="77" * 32, is_alone=False)
ALONE = Evaluation(sha256="77" * 32, is_alone=True)
SITES = tuple(SiteId(name) for name in ("alpha", "beta", "gamma"))


class HandClock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 2, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at


def attempt(round_attempt: int = 0, *, round_index: int = 0) -> RoundContext:
    return RoundContext(run_id=RUN_ID, round_index=round_index, round_attempt=round_attempt)


def exchange(round_context: RoundContext, exchange_attempt: int = 0) -> ExchangeContext:
    return ExchangeContext(
        run_id=round_context.run_id,
        round_index=round_context.round_index,
        round_attempt=round_context.round_attempt,
        exchange_index=0,
        exchange_attempt=exchange_attempt,
    )


@pytest.fixture
def db(tmp_path: Path) -> Iterator[SiteDb]:
    opened = open_site_db(tmp_path / "site.db")
    yield opened
    opened.close()


@pytest.fixture
def book(db: SiteDb) -> RoundBook:
    clock = SystemClock()
    return RoundBook(db, AuditLog(seeded_signer("site"), clock, "site:alpha"), clock)


def join(book: RoundBook, round_context: RoundContext, *, manifest: str = "11" * 32, state: str = STATE) -> None:
    book.join(round_context, manifest_sha256=manifest, public_state_sha256=state)


def mask(
    book: RoundBook, context: ExchangeContext, *, payload: str = PAYLOAD, evaluation: Evaluation = IN_TRAINING
) -> None:
    cohort = MaskedCohort(context=context, sites=frozenset(SITES), threshold=3)
    book.claim_mask(cohort, payload_sha256=payload, evaluation=evaluation)


def send_m9(
    book: RoundBook,
    context: ExchangeContext,
    *,
    survivors: tuple[SiteId, ...] = SITES,
    evaluation: Evaluation = IN_TRAINING,
) -> None:
    revealed = RevealedExchange(context=context, h_survivors=b"h" * 32)
    book.ensure_revealed(revealed, survivors=survivors, evaluation=evaluation)


def reveal(book: RoundBook, round_context: RoundContext, *, payload: str = PAYLOAD) -> None:
    mask(book, exchange(round_context), payload=payload)
    send_m9(book, exchange(round_context))


def kinds(db: SiteDb) -> list[AuditKind]:
    def read(session: Session) -> list[AuditKind]:
        rows = session.scalars(select(AuditEventRow).order_by(AuditEventRow.seq))
        return [event_from_bytes(row.body).event.kind for row in rows]

    return db.run_read("kinds", read)


@pytest.mark.parametrize(
    ("asked", "joined_h"),
    [
        (attempt(), 1),
        (attempt(7), 1),
        (attempt(round_index=1), 2),
        (attempt(1, round_index=1), 3),
        (attempt(round_index=2), 3),
        (attempt(round_index=10), 10),
    ],
)
def test_last_joined_is_of_that_attempt_or_of_the_last_before_it(
    db: SiteDb, asked: RoundContext, joined_h: int
) -> None:
    clock = HandClock()
    book = RoundBook(db, AuditLog(seeded_signer("site"), clock, "site:alpha"), clock)
    joined = {1: attempt(), 2: attempt(round_index=1), 3: attempt(1, round_index=1), 10: attempt(round_index=10)}
    for hour, round_context in joined.items():
        clock.at = datetime(2026, 1, 2, hour, tzinfo=UTC)
        join(book, round_context)
    assert book.last_joined_at(asked) == datetime(2026, 1, 2, joined_h, tzinfo=UTC)


def test_last_joined_of_another_run_is_none(book: RoundBook) -> None:
    join(book, attempt())
    other = RoundContext(run_id=RunId("run-" + "z" * 26), round_index=5, round_attempt=0)
    assert book.last_joined_at(other) is None


def test_round_joined_twice_with_the_same_manifest_is_joined_once(book: RoundBook, db: SiteDb) -> None:
    join(book, attempt())
    join(book, attempt())
    assert [joined.round for joined in book.joined(RUN_ID)] == [attempt()]
    assert kinds(db) == [AuditKind.ROUND_JOINED]


def test_round_joined_with_another_manifest_is_refused(book: RoundBook) -> None:
    join(book, attempt())
    with pytest.raises(RoundRefusedError) as refused:
        join(book, attempt(), manifest="44" * 32)
    assert refused.value.reason == "manifest-changed"


@pytest.mark.parametrize("earlier", [attempt(1, round_index=1), attempt(0, round_index=2)])
def test_attempt_that_does_not_rise_is_refused(book: RoundBook, earlier: RoundContext) -> None:
    join(book, attempt(2, round_index=2))
    with pytest.raises(RoundRefusedError) as refused:
        join(book, earlier)
    assert refused.value.reason == "attempt-not-rising"


def test_round_that_is_over_is_not_joined_again(book: RoundBook) -> None:
    join(book, attempt())
    book.record_state(attempt(), "failed", outcome="job-failed")
    with pytest.raises(RoundRefusedError) as refused:
        join(book, attempt())
    assert refused.value.reason == "round-over"


def test_round_that_went_beyond_training_is_not_joined_again(book: RoundBook) -> None:
    join(book, attempt())
    join(book, attempt())  # training that was cut short is assigned again
    mask(book, exchange(attempt()))
    book.record_state(attempt(), "masked")
    with pytest.raises(RoundRefusedError) as refused:
        join(book, attempt())
    assert refused.value.reason == "round-over"


def test_round_in_which_shares_were_revealed_is_not_joined_again_whatever_its_state_says(book: RoundBook) -> None:
    join(book, attempt())
    reveal(book, attempt())
    with pytest.raises(RoundRefusedError) as refused:
        join(book, attempt())
    assert refused.value.reason == "round-over"


def test_round_ends_once(book: RoundBook) -> None:
    join(book, attempt())
    book.record_settled(exchange(attempt()), result_sha256="55" * 32, public_state_sha256=STATE)
    book.record_state(attempt(), "declined", outcome="round-over")
    assert [joined.state for joined in book.joined(RUN_ID)] == ["settled"]


def test_payload_revealed_is_never_masked_again(book: RoundBook) -> None:
    join(book, attempt(0))
    reveal(book, attempt(0))
    join(book, attempt(1))
    with pytest.raises(OneShotSpentError):
        mask(book, exchange(attempt(1)))
    mask(book, exchange(attempt(1)), payload="66" * 32)


def test_payload_masked_but_not_revealed_may_be_masked_again(book: RoundBook) -> None:
    join(book, attempt())
    mask(book, exchange(attempt(), 0))
    mask(book, exchange(attempt(), 1))


def test_evaluation_alone_is_known_by_what_it_evaluates_too(book: RoundBook) -> None:
    join(book, attempt(0))
    mask(book, exchange(attempt(0)), evaluation=ALONE)
    send_m9(book, exchange(attempt(0)), evaluation=ALONE)
    assert book.is_spent(ALONE)
    join(book, attempt(1))
    with pytest.raises(OneShotSpentError):
        mask(book, exchange(attempt(1)), payload="88" * 32, evaluation=ALONE)


def test_training_spends_its_vector_and_not_the_evaluation_that_it_carries(book: RoundBook) -> None:
    join(book, attempt())
    reveal(book, attempt())
    assert not book.is_spent(ALONE)
    assert book.survivors_of(ALONE) == frozenset(SITES)


def test_evaluation_is_revealed_among_one_set_of_survivors_only(book: RoundBook) -> None:
    join(book, attempt(0))
    reveal(book, attempt(0))
    join(book, attempt(1))
    mask(book, exchange(attempt(1)), payload="66" * 32)
    with pytest.raises(OneShotSpentError):
        send_m9(book, exchange(attempt(1)), survivors=SITES[:2])
    assert not book.is_taken(Step.REVEAL, exchange(attempt(1)))
    assert not book.joined(RUN_ID)[1].is_revealed
    send_m9(book, exchange(attempt(1)))
    assert book.survivors_of(IN_TRAINING) == frozenset(SITES)


def test_cohorts_are_kept_by_evaluation_over_rounds_and_runs_but_the_exchange_at_work(book: RoundBook) -> None:
    first, second = attempt(), RoundContext(run_id=RunId("run-" + "c" * 26), round_index=0, round_attempt=0)
    for round_context in (first, second):
        join(book, round_context)
        mask(book, exchange(round_context))
        mask(book, exchange(round_context))
    others = Evaluation(sha256="99" * 32, is_alone=False)
    cohort = MaskedCohort(context=exchange(first), sites=frozenset(SITES), threshold=3)
    assert book.cohorts_of(IN_TRAINING, besides=exchange(second)) == (cohort,)
    assert book.cohorts_of(others, besides=exchange(second)) == ()


def test_evaluation_is_named_by_adapter_and_dataset() -> None:
    names = {
        evaluation_name(adapter_sha256=adapter, dataset_sha256=dataset)
        for adapter in ("aa" * 32, "bb" * 32)
        for dataset in ("aa" * 32, "bb" * 32)
    }
    assert len(names) == 4


def test_shares_are_revealed_in_one_exchange_of_an_attempt(book: RoundBook) -> None:
    join(book, attempt())
    reveal(book, attempt())
    assert book.revealed_in(attempt()) == RevealedExchange(context=exchange(attempt()), h_survivors=b"h" * 32)
    assert book.revealed_in(attempt(1)) is None
    with pytest.raises(OneShotSpentError):
        send_m9(book, exchange(attempt(), 1))


def test_flags_survive_a_restart(book: RoundBook, tmp_path: Path) -> None:
    join(book, attempt())
    book.ensure_advertised(exchange(attempt(), 2))
    mask(book, exchange(attempt()))
    book.ensure_confirmed(exchange(attempt()), survivors=SITES)
    send_m9(book, exchange(attempt()))
    again = open_site_db(tmp_path / "site.db")
    clock = SystemClock()
    reopened = RoundBook(again, AuditLog(seeded_signer("site"), clock, "site:alpha"), clock)
    assert reopened.is_taken(Step.CONFIRM, exchange(attempt()))
    assert reopened.is_taken(Step.REVEAL, exchange(attempt()))
    assert not reopened.is_taken(Step.REVEAL, exchange(attempt(), 1))
    assert reopened.last_exchange_attempt(attempt()) == 2
    assert reopened.last_exchange_attempt(attempt(1)) == -1
    again.close()


def test_flag_set_again_is_one_flag_and_one_event(book: RoundBook, db: SiteDb) -> None:
    join(book, attempt())
    mask(book, exchange(attempt()))
    for _ in range(2):
        book.ensure_confirmed(exchange(attempt()), survivors=SITES)
        send_m9(book, exchange(attempt()))
    assert kinds(db).count(AuditKind.SURVIVORS_CONFIRMED) == 1
    assert kinds(db).count(AuditKind.SHARES_REVEALED) == 1


def test_reveal_stays_unresolved_until_its_result_is_settled(book: RoundBook) -> None:
    join(book, attempt())
    reveal(book, attempt())
    book.record_state(attempt(), "abandoned", outcome="aborted")
    assert [joined.is_unresolved for joined in book.joined(RUN_ID)] == [True]
    book.record_settled(exchange(attempt()), result_sha256="55" * 32, public_state_sha256=STATE)
    assert [joined.is_unresolved for joined in book.joined(RUN_ID)] == [False]


def test_reveal_is_resolved_by_a_later_sum_over_the_same_survivors_only(book: RoundBook) -> None:
    for number, survivors in enumerate([SITES, SITES[:2], SITES]):
        join(book, attempt(number))
        # Another dataset each time: the evaluation alone would refuse the second.
        other = Evaluation(sha256=f"{number + 50:02d}" * 32, is_alone=False)
        mask(book, exchange(attempt(number)), payload=f"{number:02d}" * 32, evaluation=other)
        send_m9(book, exchange(attempt(number)), survivors=survivors, evaluation=other)
        book.record_state(attempt(number), "abandoned", outcome="aborted")
    book.record_settled(exchange(attempt(2)), result_sha256="55" * 32, public_state_sha256=STATE)
    assert [joined.is_unresolved for joined in book.joined(RUN_ID)] == [False, True, False]


def test_audit_that_fails_takes_the_flag_with_it(db: SiteDb) -> None:
    class BrokenAudit(AuditLog):
        def append(self, session: Session, kind: AuditKind, actor: str = "agent", **facts: object) -> int:
            raise SiteDatabaseError("the disk is full")

    clock = SystemClock()
    book = RoundBook(db, BrokenAudit(seeded_signer("site"), clock, "site:alpha"), clock)
    with pytest.raises(SiteDatabaseError):
        join(book, attempt())
    with pytest.raises(SiteDatabaseError):
        book.ensure_confirmed(exchange(attempt()), survivors=SITES)
    assert book.joined(RUN_ID) == ()
    assert not book.is_taken(Step.CONFIRM, exchange(attempt()))
