"""What is due for each of several sites, read in one transaction: their rounds and exchanges once for all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import assert_never

from sqlalchemy.orm import Session

from coordinator.db.exchanges import context_of, find_exchange, kinds_sent_by_sites, latest_exchange_in, messages_of
from coordinator.db.models import Exchange, Participation, Round
from coordinator.db.rounds import SiteRound, rounds_of_sites
from coordinator.db.sites import presence_of_sites
from coordinator.db.states import SiteState
from coordinator.rounds.events import MessageKind
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.rounds.instructions import (
    Due,
    DueAbandon,
    DueExchange,
    DueResult,
    DueTraining,
    ExchangeTask,
    ExchangeView,
    RoundRef,
    RoundView,
    derive_due,
)
from coordinator.rounds.participation_machine import ParticipationState
from coordinator.rounds.round_machine import RoundState
from coordinator.services.context import EngineContext
from coordinator.services.round_access import inactive_site
from coordinator.services.site_instructions import (
    AbandonRound,
    Instruction,
    OpenExchange,
    RelayConfirmations,
    RelayKeys,
    RelayShares,
    RelaySurvivors,
    TrainRound,
    published_result,
)
from coordinator.services.site_presence import is_note_due
from fl_protocol.errors import WardroundError
from fl_protocol.ids import RunId, SiteId
from fl_protocol.secagg.coordinator_role import make_m2, make_m4, make_m6, make_m8
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteQuestion:
    """Which site asks, and the rounds it says it is at work on."""

    site_id: SiteId
    holding: Sequence[RoundRef]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAnswer:
    """What is due, if anything, and whether it is time to note that the site was heard of."""

    instruction: Instruction | None
    is_note_due: bool


def look_for_sites(
    ctx: EngineContext, session: Session, questions: Sequence[SiteQuestion]
) -> list[SiteAnswer | Exception]:
    """One answer a question, in their order; in the place of one that is refused, the refusal.

    Returned, not raised: SiteNotActiveError where the site may not act, ScrubbedError where the audit window closed.
    """
    now = ctx.now()
    names = sorted({question.site_id for question in questions})
    presence = presence_of_sites(session, names)
    seen = _Seen(ctx=ctx, session=session, names=names)
    for row in rounds_of_sites(session, names):
        seen.rounds[row.site_id].append(row)
    answers: list[SiteAnswer | Exception] = []
    for question in questions:
        site = presence.get(question.site_id)
        if site is None or site.state != SiteState.ENROLLED.value:
            answers.append(inactive_site(question.site_id, None if site is None else site.state))
            continue
        try:
            answers.append(_answer(seen, question, last_seen_at=site.last_seen_at, now=now))
        except WardroundError as refusal:
            # A round that was scrubbed, say: this site is told, and the others are answered.
            answers.append(refusal)
    return answers


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What was read for this look, each thing once."""

    ctx: EngineContext
    session: Session
    names: Sequence[SiteId]
    rounds: defaultdict[SiteId, list[SiteRound]] = field(default_factory=lambda: defaultdict(list))
    exchanges: dict[RoundRef, Exchange | None] = field(default_factory=dict)
    sent: dict[ExchangeContext, dict[SiteId, frozenset[str]]] = field(default_factory=dict)

    def exchange_of(self, ref: RoundRef) -> Exchange | None:
        """The latest exchange of the round."""
        if ref not in self.exchanges:
            key = (ref.run_id, ref.round_index, ref.round_attempt)
            self.exchanges[ref] = latest_exchange_in(self.session, key)
        return self.exchanges[ref]

    def kinds_sent(self, exchange: Exchange, site_id: SiteId) -> frozenset[MessageKind]:
        """Which messages the site has sent in the exchange."""
        context = context_of(exchange)
        if context not in self.sent:
            self.sent[context] = kinds_sent_by_sites(self.session, context, self.names)
        return frozenset(MessageKind(kind) for kind in self.sent[context].get(site_id, ()))


def _answer(seen: _Seen, question: SiteQuestion, *, last_seen_at: datetime | None, now: datetime) -> SiteAnswer:
    rows = {
        RoundRef(run_id=RunId(row.run_id), round_index=row.round_index, round_attempt=row.round_attempt): row
        for row in seen.rounds[question.site_id]
    }
    unknown: list[RoundRef] = []
    for ref in question.holding:
        if ref in rows:
            continue
        held = _held_round(seen.session, ref, question.site_id)
        if held is None:
            unknown.append(ref)
        else:
            rows[ref] = held
    views = [_view(seen, ref, row) for ref, row in rows.items()]
    due = derive_due(views, holding=frozenset(question.holding), unknown=unknown)
    return SiteAnswer(
        instruction=None if due is None else _instruction(seen, question.site_id, due),
        is_note_due=is_note_due(last_seen_at, now=now),
    )


def _held_round(session: Session, ref: RoundRef, site_id: SiteId) -> SiteRound | None:
    """A round that the site says it is at work on and that asks nothing of it any more."""
    key = (ref.run_id, ref.round_index, ref.round_attempt)
    round_row, row = session.get(Round, key), session.get(Participation, (*key, site_id))
    return None if round_row is None or row is None else SiteRound.of(round_row, row)


def _view(seen: _Seen, ref: RoundRef, row: SiteRound) -> RoundView:
    exchange = seen.exchange_of(ref)
    return RoundView(
        ref=ref,
        state=RoundState(row.state),
        reason=row.reason,
        participation=ParticipationState(row.participation_state),
        participation_reason=row.participation_reason,
        is_acknowledged=row.acknowledged_at is not None,
        exchange=None if exchange is None else _exchange_view(seen, exchange, row.site_id),
    )


def _exchange_view(seen: _Seen, exchange: Exchange, site_id: SiteId) -> ExchangeView:
    state = ExchangeState(exchange.state)
    asked = {
        ExchangeState.ADVERTISING: exchange.invited,
        ExchangeState.SHARING: exchange.u1,
        ExchangeState.COLLECTING: exchange.u2,
        ExchangeState.CONFIRMING: exchange.u3,
        ExchangeState.REVEALING: exchange.u4 if exchange.u5 is None else None,
    }.get(state)
    return ExchangeView(
        exchange_index=exchange.exchange_index,
        exchange_attempt=exchange.exchange_attempt,
        state=state,
        is_asked=site_id in (asked or ()),
        is_survivor=site_id in (exchange.u3 or ()),
        sent=seen.kinds_sent(exchange, site_id),
        is_result_scrubbed=exchange.scrubbed_at is not None and exchange.sum_bytes is None,
    )


def _instruction(seen: _Seen, site_id: SiteId, due: Due) -> Instruction:
    match due:
        case DueAbandon():
            return AbandonRound(round=due.ref, reason=due.reason)
        case DueTraining():
            row = seen.session.get(Round, (due.ref.run_id, due.ref.round_index, due.ref.round_attempt))
            assert row is not None, "the view came from this row"
            manifest = SignedBody(body=row.manifest_body, signature=row.manifest_signature)
            return TrainRound(round=due.ref, manifest=manifest)
        case DueResult():
            return published_result(_exchange_of(seen.session, due))
        case DueExchange():
            return _relay(seen, site_id, due)
        case _:
            assert_never(due)


def _exchange_of(session: Session, due: DueResult | DueExchange) -> Exchange:
    context = ExchangeContext(
        run_id=RunId(due.ref.run_id),
        round_index=due.ref.round_index,
        round_attempt=due.ref.round_attempt,
        exchange_index=due.exchange_index,
        exchange_attempt=due.exchange_attempt,
    )
    exchange = find_exchange(session, context)
    assert exchange is not None, "the view came from this row"
    return exchange


def _relay(seen: _Seen, site_id: SiteId, due: DueExchange) -> Instruction:
    session, roles = seen.session, seen.ctx.roles
    exchange = _exchange_of(session, due)
    context = context_of(exchange)
    match due.task:
        case ExchangeTask.ADVERTISE:
            return OpenExchange(exchange=context)
        case ExchangeTask.SHARE:
            keyed = roles.keyed(session, exchange)
            return RelayKeys(exchange=context, m2=roles.relay("m2", exchange, lambda: make_m2(keyed)))
        case ExchangeTask.UPLOAD:
            return RelayShares(exchange=context, m4=make_m4(roles.shared(session, exchange), site_id))
        case ExchangeTask.CONFIRM:
            surviving = roles.surviving(session, exchange)
            return RelaySurvivors(exchange=context, m6=roles.relay("m6", exchange, lambda: make_m6(surviving)))
        case ExchangeTask.REVEAL:
            surviving = roles.surviving(session, exchange)

            def confirmations() -> bytes:
                m7s = messages_of(session, context, kind=MessageKind.M7, sites=exchange.u4)
                return make_m8(surviving, m7s)

            return RelayConfirmations(exchange=context, m8=roles.relay("m8", exchange, confirmations))
        case _:
            assert_never(due.task)
