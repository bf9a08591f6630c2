"""A round that this site joined, how it may have ended, and which ends resolve what was revealed in it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from fl_protocol.ids import RunId, SiteId
from fl_protocol.packing import pack
from fl_protocol.spec.context import RoundContext
from site_agent.db.models import JoinedRoundRow
from site_agent.session.machine import TERMINAL, SessionPhase

SUPERSEDED = "superseded"
"""A reveal whose round ended without a result, resolved by a later round with the same survivors."""

RELEASED = "released"
"""A reveal whose result never came, resolved by the steward's explicit word (``reveal_release``)."""

OVER = frozenset(phase.value for phase in TERMINAL) | {SUPERSEDED, RELEASED}
RESOLVED = frozenset({SessionPhase.SETTLED.value, SUPERSEDED, RELEASED})


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedRound:
    """A round that this site joined."""

    round: RoundContext
    manifest_sha256: str
    public_state_sha256: str
    state: str
    is_revealed: bool
    survivors_digest: str | None

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens in it."""
        return self.state in OVER

    @property
    def is_unresolved(self) -> bool:
        """Whether this site revealed shares and has not seen what became of the sum."""
        return self.is_revealed and self.state not in RESOLVED


def survivors_digest(sites: Collection[SiteId]) -> str:
    """A name for a set of survivors, the same in every exchange."""
    return hashlib.sha256(pack(*(site.encode() for site in sorted(sites)))).hexdigest()


def joined_from_row(row: JoinedRoundRow) -> JoinedRound:
    """As the database holds it."""
    return JoinedRound(
        round=RoundContext(run_id=RunId(row.run_id), round_index=row.round_index, round_attempt=row.round_attempt),
        manifest_sha256=row.manifest_digest,
        public_state_sha256=row.public_state_sha256,
        state=row.state,
        is_revealed=row.m9_sent,
        survivors_digest=row.u3_digest,
    )
