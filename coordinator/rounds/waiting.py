"""What a run waits for, in one sentence for people. Every state that is not final names somebody or something.

Pure: the shell paints a ``RunPicture`` of what is in the database, and this puts it into words.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import assert_never

from coordinator.rounds.attempts import NextAttempt
from coordinator.rounds.cohort import exchange_candidates, is_present
from coordinator.rounds.exchange_machine import ExchangeState, ExchangeStatus, needed
from coordinator.rounds.participation_machine import ParticipationState
from coordinator.rounds.quorum import RoundRules
from coordinator.rounds.round_machine import RoundState, RoundStatus
from coordinator.rounds.run_machine import RunState
from fl_protocol.ids import SiteId


class SiteStanding(StrEnum):
    """Whether a site of the roster may be invited to a round, and why not."""

    MAY_TAKE_PART = "may take part"
    SAID_NOTHING = "has not approved"
    SAID_NO = "declined the run"
    WITHDREW = "withdrew its approval"
    APPROVAL_ENDED = "approved, and its approval has ended"
    NOT_ENROLLED = "is not enrolled"
    SUSPENDED = "is suspended"
    REVOKED = "is revoked"
    OTHER_KEY = "has another key than the run names"


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePicture:
    """A site of the roster: whether it may take part, and when it was last heard of."""

    standing: SiteStanding
    last_seen_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPicture:
    """How far a site's training is, as it said itself."""

    activity: str | None
    step: int | None
    steps: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectPicture:
    """The effect that is due now. ``error`` is the code of its last failure, None before one."""

    n_failures: int
    error: str | None
    next_try_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPicture:
    """The open round."""

    status: RoundStatus
    exchange: ExchangeStatus | None
    steps: Mapping[SiteId, StepPicture]
    effect: EffectPicture | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPicture:
    """A run. ``said`` is what sites gave as reasons in the attempt that ended last; ``release`` is still to be made."""

    state: RunState
    reason: str | None
    round_index: int
    n_rounds: int
    rules: RoundRules
    sites: Mapping[SiteId, SitePicture]
    round: RoundPicture | None
    following: NextAttempt
    said: Mapping[SiteId, str]
    now: datetime
    release: EffectPicture | None = None


_PLAIN: Mapping[RunState, str] = MappingProxyType(
    {
        RunState.DRAFT: "Waits for a study lead to start it.",
        RunState.CANCELLED: "Was cancelled.",
    }
)
_MESSAGES: Mapping[ExchangeState, str] = MappingProxyType(
    {
        ExchangeState.ADVERTISING: "the keys",
        ExchangeState.SHARING: "the sealed shares",
        ExchangeState.COLLECTING: "the masked update",
        ExchangeState.CONFIRMING: "the word on who is in the sum",
        ExchangeState.REVEALING: "the unmasking shares",
    }
)


def what_run_waits_for(picture: RunPicture) -> str:
    """One sentence."""
    if picture.state is RunState.FAILED:
        return f"Failed: {picture.reason}."
    if picture.state is RunState.COMPLETED:
        return _completed(picture)
    if picture.state in _PLAIN:
        return _PLAIN[picture.state]
    if picture.state is RunState.AWAITING_SITES:
        return _approvals(picture)
    is_paused = picture.state is RunState.PAUSED
    if picture.round is not None:
        said = _open_round(picture, picture.round)
        return f"{said[:-1]}; then the run is paused until a person resumes it." if is_paused else said
    return "Is paused, and waits for a person to resume it." if is_paused else _next_round(picture)


def _completed(picture: RunPicture) -> str:
    said = "All rounds are committed"
    return f"{said}." if picture.release is None else f"{said}; {_effect(picture, picture.release, 'the release')}."


def _approvals(picture: RunPicture) -> str:
    unapproved = {
        SiteStanding.SAID_NOTHING,
        SiteStanding.SAID_NO,
        SiteStanding.WITHDREW,
        SiteStanding.APPROVAL_ENDED,
    }
    n_approved = sum(1 for site in picture.sites.values() if site.standing not in unapproved)
    missing = [site for site, found in picture.sites.items() if found.standing in unapproved]
    return f"Waits for {picture.rules.quorum} approvals and has {n_approved}: {_listed(picture, missing)}."


def _next_round(picture: RunPicture) -> str:
    head, following = f"Round {picture.round_index}", picture.following
    if picture.round_index > picture.n_rounds:
        return "All rounds are committed, and the run is about to end."
    if following.is_given_up:
        return f"{head} was refused too often, and the run is about to fail."
    here = sorted(site for site in picture.sites if _is_here(picture, site))
    if len(here) < picture.rules.min_ready:
        missing = [site for site in picture.sites if site not in here]
        n_more = picture.rules.min_ready - len(here)
        return f"{head} waits for {n_more} more of {picture.rules.min_ready} sites: {_listed(picture, missing)}."
    if following.not_before is not None and following.not_before > picture.now:
        ended = "" if following.last_reason is None else f", the last one having ended in {following.last_reason.value}"
        said = ", ".join(f"{site} said {reason}" for site, reason in sorted(picture.said.items()))
        when = _clock(following.not_before, picture.now)
        attempt = f"{head} waits until {when} for its attempt {following.round_attempt + 1}"
        return f"{attempt}{ended}{f' ({said})' if said else ''}."
    return f"{head} is about to open among {', '.join(here)}."


def _open_round(picture: RunPicture, found: RoundPicture) -> str:
    head, status = f"Round {picture.round_index}", found.status
    match status.state:
        case RoundState.PLANNED:
            return f"{head} is about to open among {', '.join(sorted(status.participations))}."
        case RoundState.TRAINING:
            return f"{head} {_training(picture, found)}."
        case RoundState.EXCHANGING:
            if found.exchange is None or found.exchange.state.is_final:
                return f"{head} {_fresh_exchange(picture, status)}."
            return f"{head} {_exchange(picture, found, found.exchange)}."
        case RoundState.FOLDING:
            return f"{head} {_effect(picture, found.effect, 'the new public state')}."
        case RoundState.COMMITTED | RoundState.ABORTED:
            return f"{head} has ended, and the next is about to be planned."
        case _:
            assert_never(status.state)


def _training(picture: RunPicture, found: RoundPicture) -> str:
    status = found.status
    at_work = sorted(site for site, state in status.participations.items() if state.is_at_work)
    listed = ", ".join(f"{site} ({_step(found, site)})" for site in at_work)
    if picture.now < status.deadline_at:
        until = f"at least until {_clock(status.deadline_at, picture.now)}"
    else:
        until = f"while they make progress at least every {_span(picture.rules.phase_deadline)}"
    return f"waits for training at {listed or 'no site'}, {until}"


def _step(found: RoundPicture, site: SiteId) -> str:
    if found.status.participations[site] is ParticipationState.INVITED:
        return "has not begun"
    step = found.steps.get(site)
    if step is None or step.activity is None:
        return "has begun"
    return f"{step.activity}, step {step.step} of {step.steps}"


def _exchange(picture: RunPicture, found: RoundPicture, exchange: ExchangeStatus) -> str:
    if exchange.u5 is not None:
        return _effect(picture, found.effect, "the sum")
    missing = ", ".join(_with_note(picture, site) for site in exchange.missing) or "no site"
    n_here, n_needed = len(exchange.arrived), needed(exchange, picture.rules)
    said = f"waits for {_MESSAGES[exchange.state]} of {missing}; it has {n_here} and needs {n_needed}"
    if exchange.state in {ExchangeState.CONFIRMING, ExchangeState.REVEALING} and n_here < n_needed:
        return said
    return f"{said}, and who makes no progress until {_clock(exchange.phase_deadline_at, picture.now)} is left out"


def _fresh_exchange(picture: RunPicture, status: RoundStatus) -> str:
    candidates = set(exchange_candidates(status.participations)) | status.silent
    missing = sorted(candidates & status.away)
    n_more = max(0, picture.rules.min_ready - len(candidates - status.away))
    listed = ", ".join(_with_note(picture, site) for site in missing) or "no site"
    more = f"{n_more} more of {picture.rules.min_ready} sites"
    said = f"keeps what was trained and waits for {more}, to begin its secure sum afresh: {listed}"
    if status.exchange_failed_at is None:
        return said
    return f"{said}, until {_clock(status.exchange_failed_at + picture.rules.round_deadline, picture.now)}"


def _effect(picture: RunPicture, effect: EffectPicture | None, what: str) -> str:
    if effect is None or effect.error is None or effect.next_try_at is None:
        return f"waits for {what} to be computed"
    when = _clock(effect.next_try_at, picture.now)
    return f"waits for {what}, which failed {effect.n_failures} times with {effect.error} and is tried again at {when}"


def _is_here(picture: RunPicture, site: SiteId) -> bool:
    found = picture.sites[site]
    return found.standing is SiteStanding.MAY_TAKE_PART and is_present(found.last_seen_at, now=picture.now)


def _listed(picture: RunPicture, sites: Collection[SiteId]) -> str:
    return ", ".join(_with_note(picture, site) for site in sorted(sites)) or "every site has given its word"


def _with_note(picture: RunPicture, site: SiteId) -> str:
    found = picture.sites.get(site)
    if found is None:
        return site
    notes = [] if found.standing is SiteStanding.MAY_TAKE_PART else [found.standing.value]
    if found.last_seen_at is None:
        notes.append("never heard of")
    elif not is_present(found.last_seen_at, now=picture.now):
        ago = _span(picture.now - found.last_seen_at)
        notes.append(f"last heard of at {_clock(found.last_seen_at, picture.now)}, {ago} ago")
    return f"{site} ({'; '.join(notes)})" if notes else site


def _clock(at: datetime, now: datetime) -> str:
    """An instant, to the minute; with its date where that is not today's."""
    return f"{at:%H:%M} UTC" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M} UTC"


def _span(span: timedelta) -> str:
    seconds = int(span.total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"
