"""What should this site do now? Derived from the state of its rounds, and asked again until something is due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from sqlalchemy.orm import Session

from coordinator.db.exchanges import context_of, find_exchange, kinds_sent, latest_exchange, messages_of
from coordinator.db.models import Exchange, Participation, Round
from coordinator.db.rounds import rounds_of_site
from coordinator.errors import NotFoundError
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
from coordinator.services.round_access import ref_of, require_active_site
from coordinator.services.site_presence import is_note_due, note_seen
from fl_protocol.ids import RunId, SiteId
from fl_protocol.secagg.coordinator_role import make_m2, make_m4, make_m6, make_m8
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext

MAX_WAIT_S = 25.0
_LOOK_AGAIN_S = 2.0
"""Another process may have moved the round without ringing here."""
_LOOKS_A_SECOND = 25.0
"""All sites that wait look so often together at most, so that many idle ones do not keep a core busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Nothing is due."""

    retry_after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRound:
    """M0."""

    round: RoundRef
    manifest: SignedBody


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenExchange:
    """Send M1."""

    exchange: ExchangeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayKeys:
    """M2: send M3."""

    exchange: ExchangeContext
    m2: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayShares:
    """M4: send M5."""

    exchange: ExchangeContext
    m4: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySurvivors:
    """M6: send M7."""

    exchange: ExchangeContext
    m6: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfirmations:
    """M8: send M9."""

    exchange: ExchangeContext
    m8: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedResult:
    """M10, and where the sum is."""

    exchange: ExchangeContext
    m10: bytes
    sum_blob_sha256: str
    sum_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AbandonRound:
    """Forget the round."""

    round: RoundRef
    reason: str


Instruction = (
    Idle
    | TrainRound
    | OpenExchange
    | RelayKeys
    | RelayShares
    | RelaySurvivors
    | RelayConfirmations
    | PublishedResult
    | AbandonRound
)


async def poll_instruction(
    ctx: EngineContext, *, site_id: SiteId, holding: Sequence[RoundRef], wait_s: float
) -> Instruction:
    """The next thing that this site should do, waited for at most ``wait_s`` and 25 seconds.

    Raises:
        SiteNotActiveError: the site may not act.
    """
    started = ctx.now()
    while True:
        seen = ctx.wakeups.sites.count
        seen_at = ctx.now()
        found, is_due = await ctx.db.read_async(
            "poll-instruction", lambda session: _look_and_note(ctx, session, site_id, holding)
        )
        if is_due:
            await _note_seen(ctx, site_id, seen_at)
        if found is not None:
            _count_relayed(ctx, site_id, found)
            return found
        left_s = min(wait_s, MAX_WAIT_S) - (ctx.now() - started).total_seconds()
        if left_s <= 0:
            return Idle(retry_after_s=0.0)
        pause_s = pause_before_looking_again_s(ctx.wakeups.sites.n_waiting)
        await ctx.wakeups.sites.wait(seen, timeout_s=min(left_s, pause_s))


def pause_before_looking_again_s(n_waiting: int) -> float:
    """How long a site that waits beside ``n_waiting`` others waits for the bell before it looks by itself."""
    return max(_LOOK_AGAIN_S, n_waiting / _LOOKS_A_SECOND)


def published_result(exchange: Exchange) -> PublishedResult:
    """M10 of an exchange that is SUMMED. Raises NotFoundError where there is none."""
    body, signature = exchange.result_body, exchange.result_signature
    if body is None or signature is None or exchange.sum_blob_sha256 is None or exchange.sum_bytes is None:
        raise NotFoundError("the exchange has no result", run_id=exchange.run_id, round_index=exchange.round_index)
    return PublishedResult(
        exchange=context_of(exchange),
        m10=SignedBody(body=body, signature=signature).encode(),
        sum_blob_sha256=exchange.sum_blob_sha256,
        sum_bytes=exchange.sum_bytes,
    )


async def _note_seen(ctx: EngineContext, site_id: SiteId, now: datetime) -> None:
    """A run may have waited for this site."""
    await ctx.db.run_tx_async("note-site-seen", lambda session: note_seen(session, site_id, now=now))
    ctx.wakeups.wake_driver()


def _look_and_note(
    ctx: EngineContext, session: Session, site_id: SiteId, holding: Sequence[RoundRef]
) -> tuple[Instruction | None, bool]:
    """What is due, and whether it is time to note that the site asked."""
    is_due = is_note_due(require_active_site(session, site_id).last_seen_at, now=ctx.now())
    return _look(ctx, session, site_id, holding), is_due


def _look(ctx: EngineContext, session: Session, site_id: SiteId, holding: Sequence[RoundRef]) -> Instruction | None:
    rows: dict[RoundRef, tuple[Round, Participation]] = {
        ref_of(round_row): (round_row, row) for round_row, row in rounds_of_site(session, site_id)
    }
    unknown: list[RoundRef] = []
    for ref in holding:
        if ref in rows:
            continue
        key = (ref.run_id, ref.round_index, ref.round_attempt)
        round_row, row = session.get(Round, key), session.get(Participation, (*key, site_id))
        if round_row is None or row is None:
            unknown.append(ref)
        else:
            rows[ref] = (round_row, row)
    views = [_view(session, round_row, row) for round_row, row in rows.values()]
    due = derive_due(views, holding=frozenset(holding), unknown=unknown)
    return None if due is None else _instruction(ctx, session, site_id, due)


def _view(session: Session, round_row: Round, row: Participation) -> RoundView:
    exchange = latest_exchange(session, round_row)
    return RoundView(
        ref=ref_of(round_row),
        state=RoundState(round_row.state),
        reason=round_row.reason,
        participation=ParticipationState(row.state),
        participation_reason=row.reason,
        is_acknowledged=row.acknowledged_at is not None,
        exchange=None if exchange is None else _exchange_view(session, exchange, SiteId(row.site_id)),
    )


def _exchange_view(session: Session, exchange: Exchange, site_id: SiteId) -> ExchangeView:
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
        sent=frozenset(MessageKind(kind) for kind in kinds_sent(session, context_of(exchange), site_id)),
    )


def _instruction(ctx: EngineContext, session: Session, site_id: SiteId, due: Due) -> Instruction:
    match due:
        case DueAbandon():
            return AbandonRound(round=due.ref, reason=due.reason)
        case DueTraining():
            row = session.get(Round, (due.ref.run_id, due.ref.round_index, due.ref.round_attempt))
            assert row is not None, "the view came from this row"
            manifest = SignedBody(body=row.manifest_body, signature=row.manifest_signature)
            return TrainRound(round=due.ref, manifest=manifest)
        case DueResult():
            return published_result(_exchange_of(session, due))
        case DueExchange():
            return _relay(ctx, session, site_id, due)
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


def _relay(ctx: EngineContext, session: Session, site_id: SiteId, due: DueExchange) -> Instruction:
    exchange = _exchange_of(session, due)
    context = context_of(exchange)
    roles = ctx.roles
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
            m7s = messages_of(session, context, kind=MessageKind.M7, sites=exchange.u4)
            m8 = roles.relay("m8", exchange, lambda: make_m8(surviving, m7s))
            return RelayConfirmations(exchange=context, m8=m8)
        case _:
            assert_never(due.task)


def _count_relayed(ctx: EngineContext, site_id: SiteId, instruction: Instruction) -> None:
    match instruction:
        case RelayKeys(exchange=context, m2=relayed):
            pass
        case RelayShares(exchange=context, m4=relayed):
            pass
        case RelaySurvivors(exchange=context, m6=relayed):
            pass
        case RelayConfirmations(exchange=context, m8=relayed):
            pass
        case PublishedResult(exchange=context, m10=relayed):
            pass
        case _:
            return
    ctx.traffic.add(site_id, context, len(relayed))
