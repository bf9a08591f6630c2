"""The steward's explicit word on reveals whose result this site never saw (decision 2, decision record 0016).

After M9 a site masks from the same public state only among the same survivors again, until the result of that very
exchange resolves it. Where that result will never come, only a person who knows what it may cost can say that the
state may be used in another sum. This says it, once, for what is unresolved now; the automatic rules stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import RunId
from fl_protocol.spec.context import RoundContext
from site_agent.audit.store import AuditLog
from site_agent.db.instants import instant_text
from site_agent.db.models import JoinedRoundRow, RevealedEvaluationRow
from site_agent.db.tx import SiteDb
from site_agent.errors import StateError
from site_agent.state.joined_round import OVER, RELEASED, RESOLVED
from site_agent.state.one_shot_flags import is_payload_spent


class RevealReleaseError(StateError):
    """There is nothing that a steward may release.

    Attributes:
        advice: what to do instead, one sentence.
    """

    code = "reveal-not-releasable"

    def __init__(self, message: str, *, advice: str, run_id: str) -> None:
        """Keep the advice beside the sentence."""
        super().__init__(message, run_id=run_id[:80])
        self.advice = advice


@dataclass(frozen=True, slots=True, kw_only=True)
class UnresolvedReveal:
    """Shares that left for a sum over ``survivors`` (empty where they are not kept), whose result never came."""

    round: RoundContext
    survivors: tuple[str, ...]


def unresolved_reveals(session: Session, run_id: RunId) -> tuple[UnresolvedReveal, ...]:
    """What a release would resolve, in order.

    Raises:
        RevealReleaseError: nothing is unresolved; or a result may still come; or nobody may release it.
    """
    return tuple(
        UnresolvedReveal(round=_round(row), survivors=_survivors(session, row)) for row in _releasable(session, run_id)
    )


def release_reveals(
    db: SiteDb, audit: AuditLog, *, run_id: RunId, local_user: str, now: datetime
) -> tuple[UnresolvedReveal, ...]:
    """Let the public state that the run stands at be used in one more sum, over whichever sites.

    Safety: this permits two sums that hold payloads of one site from one state over different sites. Only a person may
    call it, after being shown what that may reveal; each reveal is recorded with that person's name.

    Raises:
        RevealReleaseError: see ``unresolved_reveals``.
        SiteDatabaseError: it could not be recorded, so nothing is released.
    """

    def write(session: Session) -> tuple[UnresolvedReveal, ...]:
        found = unresolved_reveals(session, run_id)
        rows = _releasable(session, run_id)
        for row in rows:
            row.state = RELEASED
            row.updated_at = instant_text(now)
        # The evaluation that those payloads carry is released with them, or no other survivors could ever be signed.
        for evaluation in _evaluations(session, [row.m9_exchange for row in _of_same_states(session, rows)]):
            session.delete(evaluation)
        session.flush()
        for reveal in found:
            audit.append(
                session,
                AuditKind.REVEAL_RELEASED,
                f"user:{local_user}",
                run_id=reveal.round.run_id,
                round_index=reveal.round.round_index,
                round_attempt=reveal.round.round_attempt,
                survivors=",".join(reveal.survivors),
            )
        return found

    return db.run_tx("release-reveals", write)


def _releasable(session: Session, run_id: RunId) -> Sequence[JoinedRoundRow]:
    query = (
        select(JoinedRoundRow)
        .where(JoinedRoundRow.run_id == run_id, JoinedRoundRow.m9_sent, JoinedRoundRow.state.not_in(RESOLVED))
        .order_by(JoinedRoundRow.round_index, JoinedRoundRow.round_attempt)
    )
    rows = session.scalars(query).all()
    if not rows:
        advice = "'wardround-site status' says what this site does, 'wardround-site audit export' what it did."
        raise RevealReleaseError("no reveal of this run is unresolved", advice=advice, run_id=run_id)
    if any(row.state not in OVER for row in rows):
        advice = "Wait for the round to end; the running agent takes the result as soon as it is published."
        raise RevealReleaseError("the round is still under way, and its result may come", advice=advice, run_id=run_id)
    for evaluation in _evaluations(session, [row.m9_exchange for row in rows]):
        if is_payload_spent(session, evaluation.evaluation_sha256):
            advice = "The run cannot be evaluated with this site any more; ask the study lead to cancel it."
            message = "an evaluation alone is the same every time, and is never in a second sum"
            raise RevealReleaseError(message, advice=advice, run_id=run_id)
    return rows


def _of_same_states(session: Session, rows: Sequence[JoinedRoundRow]) -> Sequence[JoinedRoundRow]:
    """Every reveal of the run from those states: an evaluation is remembered under the first of them."""
    query = select(JoinedRoundRow).where(
        JoinedRoundRow.run_id == rows[0].run_id,
        JoinedRoundRow.m9_sent,
        JoinedRoundRow.public_state_sha256.in_({row.public_state_sha256 for row in rows}),
    )
    return session.scalars(query).all()


def _evaluations(session: Session, contexts: Sequence[bytes | None]) -> Sequence[RevealedEvaluationRow]:
    known = [context for context in contexts if context is not None]
    return session.scalars(select(RevealedEvaluationRow).where(RevealedEvaluationRow.context.in_(known))).all()


def _survivors(session: Session, row: JoinedRoundRow) -> tuple[str, ...]:
    same = [other.m9_exchange for other in _of_same_states(session, [row]) if other.u3_digest == row.u3_digest]
    found = _evaluations(session, same)
    return tuple(json.loads(found[0].sites_json)) if found else ()


def _round(row: JoinedRoundRow) -> RoundContext:
    return RoundContext(run_id=RunId(row.run_id), round_index=row.round_index, round_attempt=row.round_attempt)
