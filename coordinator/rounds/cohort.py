"""Who takes part: invited from the roster when a round opens, candidates for an exchange when training is over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from coordinator.rounds.participation_machine import ParticipationState
from fl_protocol.ids import SiteId

PRESENCE_WINDOW = timedelta(seconds=120)
"""A site is present that was heard of within this time.

A site that has nothing to do asks at least every 25 s, after a failure every 30 s, and that it asked is noted at most
every 30 s; so this forgives one question that was lost.
"""


def is_present(last_seen_at: datetime | None, *, now: datetime) -> bool:
    """Whether a site was heard of lately."""
    return last_seen_at is not None and now - last_seen_at < PRESENCE_WINDOW


def invited_sites(
    roster: Iterable[SiteId], *, approved: Iterable[SiteId], active: Iterable[SiteId]
) -> tuple[SiteId, ...]:
    """Roster members that approved the run and may act, sorted. Decision 10: one that has not approved is never in."""
    return tuple(sorted(set(roster) & set(approved) & set(active)))


def exchange_candidates(participations: Mapping[SiteId, ParticipationState]) -> tuple[SiteId, ...]:
    """Sites with a payload that is still theirs to send, sorted."""
    return tuple(sorted(site for site, state in participations.items() if state.can_exchange))


def gone_sites(participations: Mapping[SiteId, ParticipationState]) -> frozenset[SiteId]:
    """Sites of which nothing more is expected."""
    return frozenset(site for site, state in participations.items() if state.is_gone)
