"""What a run waits for, in one sentence for people: a picture of the rows, put into words by ``rounds.waiting``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.db.exchanges import latest_exchange
from coordinator.db.models import Participation, Run, Site
from coordinator.db.outbox import first_open_effect
from coordinator.db.rounds import latest_round, open_round, participations_of
from coordinator.db.runs import SiteWord, site_words
from coordinator.db.sites import sites_by_name
from coordinator.db.states import ApprovalDecision, SiteState
from coordinator.rounds.participation_machine import ParticipationState
from coordinator.rounds.run_machine import RunState
from coordinator.rounds.space import WAITS_FOR_SPACE
from coordinator.rounds.waiting import (
    EffectPicture,
    RoundPicture,
    RunPicture,
    SitePicture,
    SiteStanding,
    StepPicture,
    what_run_waits_for,
)
from coordinator.services.epochs import show_epochs, unacknowledged_restore
from coordinator.services.plan_round import following_attempt
from coordinator.services.role_cache import RoleCache
from coordinator.services.round_status import exchange_status, round_status
from fl_protocol.ids import SiteId

_ROLES = RoleCache()
"""Parsed RunSpecs, by digest; what it holds is derived from frozen bytes."""

_SAID: Mapping[str, SiteStanding] = {
    ApprovalDecision.APPROVED.value: SiteStanding.APPROVAL_ENDED,
    ApprovalDecision.REFUSED.value: SiteStanding.SAID_NO,
    ApprovalDecision.WITHDRAWN.value: SiteStanding.WITHDREW,
}
_BARRED: Mapping[str, SiteStanding] = {
    SiteState.INVITED.value: SiteStanding.NOT_ENROLLED,
    SiteState.SUSPENDED.value: SiteStanding.SUSPENDED,
    SiteState.REVOKED.value: SiteStanding.REVOKED,
}


def waiting_for(session: Session, run: Run, now: datetime) -> str:
    """What the run waits for, or that it has ended."""
    if not RunState(run.state).is_final and unacknowledged_restore(session) is not None:
        return f"{show_epochs(session)[-1].sentence()} Waits for `wardround-coordinator acknowledge-restore`."
    reason = run.reason or ""
    if run.state == RunState.ACTIVE.value and reason.startswith(WAITS_FOR_SPACE):
        figures = reason.removeprefix(WAITS_FOR_SPACE)
        return f"Round {run.next_round_index} waits for space in the blob store{figures}."
    return what_run_waits_for(paint_run(session, run, now))


def paint_run(session: Session, run: Run, now: datetime) -> RunPicture:
    """The run as the sentence is made from it."""
    facts = _ROLES.run_facts(run)
    pins = facts.spec.cohort.pins
    sites = sites_by_name(session, pins)
    words = site_words(session, run.run_id, now=now)
    state = RunState(run.state)
    return RunPicture(
        state=state,
        reason=run.reason,
        round_index=run.next_round_index,
        n_rounds=facts.spec.rounds,
        rules=facts.rules,
        sites={site: _site(sites.get(site), words.get(site), pin=pin) for site, pin in pins.items()},
        round=_round(session, run, sites, now=now),
        following=following_attempt(session, run),
        said=_said_last(session, run),
        now=now,
        release=_effect(session, run) if state is RunState.COMPLETED else None,
    )


def _site(row: Site | None, word: SiteWord | None, *, pin: str) -> SitePicture:
    last_seen_at = None if row is None else row.last_seen_at
    if row is None:
        standing = SiteStanding.NOT_ENROLLED
    elif word is None or not word.is_yes:
        standing = _standing(word)
    elif row.state != SiteState.ENROLLED.value:
        standing = _BARRED[row.state]
    elif row.signing_key_sha256 != pin:
        standing = SiteStanding.OTHER_KEY
    else:
        standing = SiteStanding.MAY_TAKE_PART
    return SitePicture(standing=standing, last_seen_at=last_seen_at)


def _standing(word: SiteWord | None) -> SiteStanding:
    """Of a site whose standing word is not yes."""
    return SiteStanding.SAID_NOTHING if word is None else _SAID[word.decision]


def _round(session: Session, run: Run, sites: Mapping[SiteId, Site], *, now: datetime) -> RoundPicture | None:
    row = open_round(session, run.run_id)
    if row is None:
        return None
    participations = participations_of(session, row)
    exchange = latest_exchange(session, row)
    return RoundPicture(
        status=round_status(row, exchange, participations, sites, now=now),
        exchange=None if exchange is None else exchange_status(exchange, participations, sites),
        steps={site: _step(part) for site, part in participations.items()},
        effect=_effect(session, run),
    )


def _step(row: Participation) -> StepPicture:
    return StepPicture(activity=row.activity, step=row.step, steps=row.steps)


def _effect(session: Session, run: Run) -> EffectPicture | None:
    entry = first_open_effect(session, run.run_id)
    if entry is None:
        return None
    code = None if entry.last_error is None else entry.last_error.split(":", 1)[0]
    return EffectPicture(n_failures=entry.attempts, error=code, next_try_at=entry.next_try_at)


def _said_last(session: Session, run: Run) -> dict[SiteId, str]:
    """What sites gave as reasons for leaving the attempt that ended last, if it was one at the round to come."""
    last = latest_round(session, run.run_id)
    if last is None or last.round_index != run.next_round_index:
        return {}
    return {
        site: row.reason
        for site, row in participations_of(session, last).items()
        if ParticipationState(row.state).is_gone and row.reason is not None
    }
