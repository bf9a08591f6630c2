"""What this site did in rounds, in its database: which it joined, with which M0, and the flags of steps taken once.

Every entry is written in one transaction with its audit event, and is on the disk when the call returns: no record, no
action. Invariants, across restarts:

- a (run, round, attempt) is joined with one M0 only, and attempts only rise;
- a flag (step, exchange) is set once; M9 sets one by the payload's digest too, and a payload whose flag is set is never
  masked again;
- an evaluation is revealed among one set of survivors only, whichever rounds and runs carry it;
- a reveal stays unresolved until the result of that very exchange, or of one with the same survivors, is settled, or
  the steward releases it by an explicit word.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import and_, bindparam, func, select, tuple_, update
from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditKind
from fl_protocol.clock import Clock
from fl_protocol.ids import RunId, SiteId
from fl_protocol.packing import pack, u32
from fl_protocol.spec.context import ExchangeContext, RoundContext
from site_agent.approvals.run_records import complete_run
from site_agent.audit.store import AuditLog
from site_agent.db.instants import instant_from_text, instant_text
from site_agent.db.models import JoinedRoundRow
from site_agent.db.tables import table_of
from site_agent.db.tx import SiteDb
from site_agent.errors import OneShotSpentError, RoundRefusedError
from site_agent.session.events import Step, round_of
from site_agent.session.machine import SessionPhase
from site_agent.state import payload_memory
from site_agent.state.joined_round import OVER, SUPERSEDED, JoinedRound, joined_from_row, survivors_digest
from site_agent.state.one_shot_flags import (
    PAYLOAD_FLAG,
    contexts_flagged,
    has_flag,
    is_payload_spent,
    last_flag_at,
    set_flag,
)
from site_agent.state.payload_memory import Evaluation, MaskedCohort, RevealedExchange

_ACTOR = "agent"
_SETTLED = SessionPhase.SETTLED.value
_TRAINING = SessionPhase.TRAINING.value

_ROUNDS = table_of(JoinedRoundRow)
_THE_ROUND = and_(
    _ROUNDS.c.run_id == bindparam("of_run"),
    _ROUNDS.c.round_index == bindparam("of_round"),
    _ROUNDS.c.round_attempt == bindparam("of_attempt"),
)
_READ_STATE = select(_ROUNDS.c.state).where(_THE_ROUND)
_MOVE_STATE = update(_ROUNDS).where(_THE_ROUND).values(state=bindparam("to_state"), updated_at=bindparam("now"))
"""Statements and no mapped rows: a round's state moves nine times."""


class RoundBook:
    """The rounds of this site. All methods block on the disk: call them in a thread."""

    def __init__(self, db: SiteDb, audit: AuditLog, clock: Clock) -> None:
        """Write to this database; every change with its audit event."""
        self._db = db
        self._audit = audit
        self._clock = clock

    def joined(self, run_id: RunId) -> tuple[JoinedRound, ...]:
        """The rounds of a run that this site joined, in order."""

        def read(session: Session) -> tuple[JoinedRound, ...]:
            order = (JoinedRoundRow.round_index, JoinedRoundRow.round_attempt)
            rows = session.scalars(select(JoinedRoundRow).where(JoinedRoundRow.run_id == run_id).order_by(*order))
            return tuple(joined_from_row(row) for row in rows)

        return self._db.run_read("joined-rounds", read)

    def last_act_at(self, round_context: RoundContext) -> datetime | None:
        """When this site took its last step in that attempt at a round, or joined it, or else the last one before it.

        By this site's own clock; None where it joined none. A step may leave a little later, and never earlier.
        """

        def read(session: Session) -> datetime | None:
            run_id, round_index, round_attempt = _key(round_context)
            # Rounds of a run follow each other: whoever was in an earlier one was there before this one began.
            is_no_later = tuple_(_ROUNDS.c.round_index, _ROUNDS.c.round_attempt) <= (round_index, round_attempt)
            query = select(func.max(_ROUNDS.c.joined_at)).where(_ROUNDS.c.run_id == run_id, is_no_later)
            stepped = last_flag_at(session, pack(run_id.encode(), u32(round_index), u32(round_attempt)))
            acts = [at for at in (session.execute(query).scalar_one(), stepped) if at is not None]
            return max(map(instant_from_text, acts), default=None)

        return self._db.run_read("last-act", read)

    def open_rounds(self) -> tuple[JoinedRound, ...]:
        """Every round that is not over, of all runs, in order."""

        def read(session: Session) -> tuple[JoinedRound, ...]:
            order = (JoinedRoundRow.run_id, JoinedRoundRow.round_index, JoinedRoundRow.round_attempt)
            query = select(JoinedRoundRow).where(JoinedRoundRow.state.not_in(OVER)).order_by(*order)
            return tuple(joined_from_row(row) for row in session.scalars(query))

        return self._db.run_read("open-rounds", read)

    def join(self, round_context: RoundContext, *, manifest_sha256: str, public_state_sha256: str) -> None:
        """Record that this site takes part; joining again with the same M0 does nothing.

        Raises:
            RoundRefusedError: joined with another M0, or a later attempt was joined already, or this site is past
                training in it: only training that was cut short is assigned again.
        """

        def write(session: Session) -> None:
            row = session.get(JoinedRoundRow, _key(round_context))
            if row is not None:
                if row.manifest_digest != manifest_sha256:
                    raise _refused("manifest-changed", "this attempt was joined with another manifest", round_context)
                if row.state != _TRAINING or row.m9_sent:
                    raise _refused("round-over", "this site is past training in this attempt", round_context)
                return
            _check_rises(session, round_context)
            now = instant_text(self._clock.now())
            session.add(
                JoinedRoundRow(
                    run_id=round_context.run_id,
                    round_index=round_context.round_index,
                    round_attempt=round_context.round_attempt,
                    manifest_digest=manifest_sha256,
                    public_state_sha256=public_state_sha256,
                    payload_sha256=None,
                    state=_TRAINING,
                    m9_sent=False,
                    u3_digest=None,
                    joined_at=now,
                    updated_at=now,
                )
            )
            self._audit.append(
                session, AuditKind.ROUND_JOINED, _ACTOR, **_facts(round_context), manifest_sha256=manifest_sha256
            )

        self._db.run_tx("join-round", write)

    def record_state(self, round_context: RoundContext, state: str, *, outcome: str | None = None) -> None:
        """Record how far this site is; an end is an audit event too. A round that was never joined has no row."""

        def write(session: Session) -> None:
            where = dict(zip(("of_run", "of_round", "of_attempt"), _key(round_context), strict=True))
            held = session.execute(_READ_STATE, where).scalar_one_or_none()
            if held in OVER:
                # A round ends once; declining it again, because the first word was lost, changes nothing.
                return
            if held is not None:
                session.execute(_MOVE_STATE, {**where, "to_state": state, "now": instant_text(self._clock.now())})
            if state in OVER:
                self._audit.append(
                    session, AuditKind.PARTICIPATION_STATE, _ACTOR, **_facts(round_context), state=state, reason=outcome
                )

        self._db.run_tx("record-round-state", write)

    def record_event(self, kind: AuditKind, round_context: RoundContext, **facts: str | int | bool | None) -> None:
        """Record an audit event of a round that changes nothing else."""

        def write(session: Session) -> None:
            self._audit.append(session, kind, _ACTOR, **_facts(round_context), **facts)

        self._db.run_tx("record-event", write)

    def ensure_advertised(self, context: ExchangeContext) -> None:
        """Set the flag of M1 before it leaves: an exchange is entered once, also when its journal is gone."""

        def write(session: Session) -> None:
            if has_flag(session, Step.ADVERTISE.value, context.encode()):
                return
            self._claim(session, Step.ADVERTISE.value, context.encode(), None)
            self._audit.append(session, AuditKind.EXCHANGE_JOINED, _ACTOR, **_exchange_facts(context))

        self._db.run_tx("ensure-advertised", write)

    def claim_mask(self, cohort: MaskedCohort, *, payload_sha256: str, evaluation: Evaluation) -> None:
        """Check that the payload was not revealed, and record that it is masked, and among whom.

        Args:
            cohort: the exchange, its U1, and the threshold under which this site dealt.
            payload_sha256: of the encoded vector.
            evaluation: what the payload carries.

        Raises:
            OneShotSpentError: the payload was unmasked in a sum before.
        """
        context = cohort.context

        def write(session: Session) -> None:
            for digest in payload_memory.payload_names(payload_sha256, evaluation):
                if is_payload_spent(session, digest):
                    message = "this payload was in a sum that was unmasked; it is never masked again"
                    raise OneShotSpentError(message, payload_sha256=digest)
            session.get_one(JoinedRoundRow, _key(round_of(context))).payload_sha256 = payload_sha256
            payload_memory.remember_cohort(session, evaluation, cohort, at=instant_text(self._clock.now()))
            # Safety: the digest of a payload that others could guess stays out of the log, which is exported.
            self._audit.append(session, AuditKind.PAYLOAD_MASKED, _ACTOR, **_exchange_facts(context))

        self._db.run_tx("claim-mask", write)

    def is_spent(self, evaluation: Evaluation) -> bool:
        """Whether a payload that was this evaluation and nothing else was revealed."""
        return self._db.run_read("read-payload-flag", lambda session: is_payload_spent(session, evaluation.sha256))

    def cohorts_of(self, evaluation: Evaluation, *, besides: ExchangeContext) -> tuple[MaskedCohort, ...]:
        """Among whom the evaluation was masked, in every exchange but one."""
        return self._db.run_read(
            "masked-cohorts", lambda session: payload_memory.cohorts_of(session, evaluation, besides=besides)
        )

    def survivors_of(self, evaluation: Evaluation) -> frozenset[SiteId] | None:
        """Among whom the evaluation was revealed; None where it never was."""
        return self._db.run_read("revealed-survivors", lambda session: payload_memory.survivors_of(session, evaluation))

    def revealed_in(self, round_context: RoundContext) -> RevealedExchange | None:
        """The exchange of this attempt in which shares were revealed; None where none were."""

        def read(session: Session) -> RevealedExchange | None:
            row = session.get(JoinedRoundRow, _key(round_context))
            if row is None or row.m9_exchange is None or row.h_survivors is None:
                return None
            return RevealedExchange(
                context=ExchangeContext.decode(row.m9_exchange), h_survivors=bytes.fromhex(row.h_survivors)
            )

        return self._db.run_read("revealed-exchange", read)

    def is_taken(self, step: Step, context: ExchangeContext) -> bool:
        """Whether the flag of that step is set."""
        return self._db.run_read("read-flag", lambda session: has_flag(session, step.value, context.encode()))

    def last_exchange_attempt(self, round_context: RoundContext) -> int:
        """The highest exchange attempt of the round that this site entered; -1 for none."""

        def read(session: Session) -> int:
            contexts = [ExchangeContext.decode(flagged) for flagged in contexts_flagged(session, Step.ADVERTISE.value)]
            return max((c.exchange_attempt for c in contexts if round_of(c) == round_context), default=-1)

        return self._db.run_read("last-exchange-attempt", read)

    def ensure_confirmed(self, context: ExchangeContext, *, survivors: Collection[SiteId]) -> None:
        """Set the flag of M7 before it leaves. Its bytes are in the journal, so setting it again is sending again."""

        def write(session: Session) -> None:
            if has_flag(session, Step.CONFIRM.value, context.encode()):
                return
            self._claim(session, Step.CONFIRM.value, context.encode(), None)
            self._audit.append(
                session,
                AuditKind.SURVIVORS_CONFIRMED,
                _ACTOR,
                **_exchange_facts(context),
                sites=",".join(sorted(survivors)),
            )

        self._db.run_tx("ensure-confirmed", write)

    def ensure_revealed(
        self, revealed: RevealedExchange, *, survivors: Collection[SiteId], evaluation: Evaluation
    ) -> None:
        """Set the flags of M9, by exchange, payload and evaluation, before it leaves. Its bytes are in the journal.

        Args:
            revealed: the exchange, and ``hU3`` as M9 states it.
            survivors: U3.
            evaluation: what the payload carries.

        Raises:
            OneShotSpentError: the round's attempt, the payload, or its evaluation among others, was revealed before.
        """
        context = revealed.context

        def write(session: Session) -> None:
            if has_flag(session, Step.REVEAL.value, context.encode()):
                return
            row = session.get_one(JoinedRoundRow, _key(round_of(context)))
            if row.m9_sent or row.payload_sha256 is None:
                message = "shares are revealed once in an attempt at a round, of what was masked there"
                raise OneShotSpentError(message, step=Step.REVEAL.value)
            self._claim(session, Step.REVEAL.value, context.encode(), row.payload_sha256)
            for digest in payload_memory.payload_names(row.payload_sha256, evaluation):
                self._claim(session, PAYLOAD_FLAG, bytes.fromhex(digest), digest)
            at = instant_text(self._clock.now())
            payload_memory.remember_survivors(session, evaluation, context, survivors, at=at)
            row.m9_sent = True
            row.u3_digest = survivors_digest(survivors)
            row.m9_exchange = context.encode()
            row.h_survivors = revealed.h_survivors.hex()
            self._audit.append(session, AuditKind.SHARES_REVEALED, _ACTOR, **_exchange_facts(context))

        self._db.run_tx("ensure-revealed", write)

    def record_settled(
        self, context: ExchangeContext, *, result_sha256: str, public_state_sha256: str, ends_run: bool = False
    ) -> None:
        """Record that the result of an exchange is folded; reveals that it resolves are resolved with it.

        Args:
            context: the exchange.
            result_sha256: of M10.
            public_state_sha256: of the state that followed.
            ends_run: whether it was the last round. In the same transaction: whoever dies behind it takes up nothing.

        Raises:
            RoundRefusedError: this site revealed shares in another exchange of that round.
        """
        round_context = round_of(context)

        def write(session: Session) -> None:
            row = session.get(JoinedRoundRow, _key(round_context))
            if row is not None:
                if row.m9_sent and row.m9_exchange != context.encode():
                    message = "the result is not that of the exchange in which this site revealed shares"
                    raise _refused("result-unverified", message, round_context)
                row.state = _SETTLED
                row.updated_at = instant_text(self._clock.now())
                _resolve_like(session, row)
            self._audit.append(
                session,
                AuditKind.RESULT_VERIFIED,
                _ACTOR,
                **_exchange_facts(context),
                result_sha256=result_sha256,
                public_state_sha256=public_state_sha256,
            )
            if ends_run:
                complete_run(session, self._audit, context.run_id)

        self._db.run_tx("record-settled", write)

    def _claim(self, session: Session, kind: str, context: bytes, payload_sha256: str | None) -> None:
        set_flag(session, kind, context, payload_sha256=payload_sha256, at=instant_text(self._clock.now()))


def _resolve_like(session: Session, settled: JoinedRoundRow) -> None:
    """Two sums over the same survivors differ by no site: an earlier reveal with the same ones is resolved too."""
    if settled.u3_digest is None:
        return
    earlier = select(JoinedRoundRow).where(
        JoinedRoundRow.run_id == settled.run_id,
        JoinedRoundRow.public_state_sha256 == settled.public_state_sha256,
        JoinedRoundRow.u3_digest == settled.u3_digest,
        JoinedRoundRow.m9_sent,
        JoinedRoundRow.state != _SETTLED,
    )
    for row in session.scalars(earlier):
        row.state = SUPERSEDED


def _check_rises(session: Session, round_context: RoundContext) -> None:
    later = select(JoinedRoundRow).where(
        JoinedRoundRow.run_id == round_context.run_id,
        JoinedRoundRow.round_index >= round_context.round_index,
    )
    position = (round_context.round_index, round_context.round_attempt)
    for row in session.scalars(later):
        if (row.round_index, row.round_attempt) > position:
            raise _refused("attempt-not-rising", "a later round or attempt was joined already", round_context)


def _refused(reason: str, message: str, round_context: RoundContext) -> RoundRefusedError:
    return RoundRefusedError(message, reason=reason, **_facts(round_context))


def _key(round_context: RoundContext) -> tuple[str, int, int]:
    return (round_context.run_id, round_context.round_index, round_context.round_attempt)


def _facts(round_context: RoundContext) -> dict[str, str | int]:
    return {
        "run_id": round_context.run_id,
        "round_index": round_context.round_index,
        "round_attempt": round_context.round_attempt,
    }


def _exchange_facts(context: ExchangeContext) -> dict[str, str | int]:
    return {
        **_facts(round_of(context)),
        "exchange_index": context.exchange_index,
        "exchange_attempt": context.exchange_attempt,
    }
