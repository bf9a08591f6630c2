"""What a transition asks for, in the imperative: done in its own transaction, or performed from the outbox after it."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.rounds.participation_machine import DropReason
from fl_protocol.ids import SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSites:
    """Stop waiting for these sites in this round."""

    sites: tuple[SiteId, ...]
    reason: DropReason


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnSites:
    """These sites were given up for their silence, and are there again with their payloads."""

    sites: tuple[SiteId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenExchange:
    """Begin an attempt at the round's exchange among these sites."""

    exchange_index: int
    exchange_attempt: int
    invited: tuple[SiteId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeSum:
    """Add the uploads of U3, remove the masks, check the sum, store and sign it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldRound:
    """Decode the sums and compute the new public state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRound:
    """Make the new public state the run's, and count the sites of U3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndExchange:
    """The round has ended over its exchange: no step of it is open any more."""


ExchangeEffect = DropSites | ComputeSum
RoundEffect = DropSites | ReturnSites | OpenExchange | FoldRound | CommitRound | EndExchange
