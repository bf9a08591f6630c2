"""A round opens: the coordinator signs M0 and invites the sites that approved and may act."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from coordinator.db.audit import audit_head
from coordinator.db.models import Exchange, Participation, Round, Run
from coordinator.rounds.events import RoundOpened
from coordinator.rounds.participation_machine import ParticipationState
from coordinator.rounds.round_machine import RoundState, RoundStatus, step_round
from coordinator.services.audit_trail import AuditTrail
from coordinator.services.context import EngineContext
from coordinator.services.role_cache import RunFacts
from coordinator.services.round_access import exchange_facts, ref_of, round_facts
from fl_protocol.audit.events import AuditKind, text_from_instant
from fl_protocol.ids import RunId, Sha256Hex, SiteId
from fl_protocol.signing.signed import sign_body
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.round_spec import NO_DIGEST, RoundKind, RoundManifest

MANIFEST_KIND = "SA1/sig/M0"


def open_round(
    ctx: EngineContext,
    session: Session,
    run: Run,
    *,
    round_attempt: int,
    invited: tuple[SiteId, ...],
    trail: AuditTrail,
    now: datetime,
) -> Round:
    """Write the run's next round and its participations.

    The manifest names the head of the log as it was before this transaction, so that a site can hold us to it.
    """
    facts = ctx.roles.run_facts(run)
    round_index = run.next_round_index
    kind = RoundKind.EVALUATE if round_index == facts.spec.rounds else RoundKind.TRAIN
    manifest = _manifest(session, run, facts, kind=kind, round_attempt=round_attempt, now=now)
    signed = sign_body(ctx.signer, MANIFEST_KIND, manifest.encode())
    deadline = now + facts.rules.round_deadline
    planned = RoundStatus(
        state=RoundState.PLANNED,
        participations=dict.fromkeys(invited, ParticipationState.INVITED),
        deadline_at=deadline,
    )
    opened = step_round(planned, RoundOpened(), rules=facts.rules, now=now).status
    row = Round(
        run_id=run.run_id,
        round_index=round_index,
        round_attempt=round_attempt,
        kind=kind.value,
        state=opened.state.value,
        manifest_body=signed.body,
        manifest_signature=signed.signature,
        opened_at=now,
        deadline_at=deadline,
    )
    session.add(row)
    session.flush()
    for site_id in invited:
        session.add(
            Participation(
                run_id=run.run_id,
                round_index=round_index,
                round_attempt=round_attempt,
                site_id=site_id,
                state=ParticipationState.INVITED.value,
                bytes_up=0,
                bytes_down=0,
                updated_at=now,
            )
        )
    run.next_round_attempt = round_attempt + 1
    trail.add(
        AuditKind.ROUND_OPENED,
        {
            **round_facts(ref_of(row)),
            "kind": kind.value,
            "invited": ",".join(invited),
            "public_state_sha256": run.public_state_sha256,
        },
    )
    return row


def open_exchange(
    session: Session,
    row: Round,
    *,
    exchange_index: int,
    exchange_attempt: int,
    invited: tuple[SiteId, ...],
    phase_deadline: timedelta,
    trail: AuditTrail,
    now: datetime,
) -> Exchange:
    """Write an attempt at the round's exchange."""
    exchange = Exchange(
        run_id=row.run_id,
        round_index=row.round_index,
        round_attempt=row.round_attempt,
        exchange_index=exchange_index,
        exchange_attempt=exchange_attempt,
        state="ADVERTISING",
        invited=[str(site) for site in invited],
        arrived=[],
        opened_at=now,
        phase_deadline_at=now + phase_deadline,
    )
    session.add(exchange)
    session.flush()
    context = ExchangeContext(
        run_id=RunId(row.run_id),
        round_index=row.round_index,
        round_attempt=row.round_attempt,
        exchange_index=exchange_index,
        exchange_attempt=exchange_attempt,
    )
    trail.add(AuditKind.EXCHANGE_OPENED, {**exchange_facts(context), "invited": ",".join(invited)})
    return exchange


def _manifest(
    session: Session, run: Run, facts: RunFacts, *, kind: RoundKind, round_attempt: int, now: datetime
) -> RoundManifest:
    size, head = audit_head(session)
    secagg = facts.spec.secure_aggregation
    return RoundManifest(
        run_id=RunId(run.run_id),
        round_index=run.next_round_index,
        round_attempt=round_attempt,
        kind=kind,
        suite=secagg.suite.value,
        run_spec_sha256=Sha256Hex(run.run_spec_sha256),
        public_state_sha256=Sha256Hex(run.public_state_sha256),
        public_state_version=run.public_state_version,
        previous_result_sha256=NO_DIGEST if run.last_result_sha256 is None else Sha256Hex(run.last_result_sha256),
        payload_layout_sha256=facts.payload(kind).digest(),
        min_cohort=secagg.min_cohort,
        audit_window_s=secagg.audit_window_s,
        opened_at=text_from_instant(now),
        audit_size=size,
        audit_head=head if size else NO_DIGEST,
    )
