"""Who takes part: invited from the roster when a round opens, candidates for an exchange when training is over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coordinator.rounds.participation_machine import ParticipationState
from fl_protocol.ids import SiteId


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
