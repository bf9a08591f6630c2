"""Proofs that this coordinator's audit log only grew, for the sites, which do not take its word for it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from coordinator.db.audit import audit_head
from coordinator.db.models import AuditRow, SiteLogHead
from coordinator.db.tables import table_of
from coordinator.errors import AuditLogShorterError, InvalidMessageError
from fl_protocol.audit.subtrees import LogSubtrees
from fl_protocol.ids import SiteId

if TYPE_CHECKING:
    from coordinator.services.context import EngineContext

_MAX_RANGES = 4
_ROWS = table_of(AuditRow)
_LEAVES = (
    select(_ROWS.c.leaf_sha256)
    .where(_ROWS.c.seq >= bindparam("start"), _ROWS.c.seq < bindparam("stop"))
    .order_by(_ROWS.c.seq)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRange:
    """From one size of the log to a larger one."""

    from_size: int
    to_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConsistency:
    """A proof a range, and what this coordinator holds of the asking site's own log (size 0: nothing)."""

    proofs: tuple[tuple[bytes, ...], ...]
    held_size: int
    held_head: bytes


class AuditProver:
    """The subtree heads of this process. Safe in many threads; the first proof reads the log once."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._subtrees = LogSubtrees()
        self._lock = threading.Lock()

    def prove(self, session: Session, ranges: Sequence[LogRange]) -> tuple[tuple[bytes, ...], ...]:
        """A proof a range, out of one view of the log.

        Raises:
            AuditLogShorterError: the log is shorter than a range.
        """
        size, _ = audit_head(session)
        longest = max((asked.to_size for asked in ranges), default=0)
        if longest > size:
            message = "this coordinator's audit log is shorter than what the site saw; was it restored from a backup?"
            raise AuditLogShorterError(message, size=size, asked_size=longest)

        def read(start: int, stop: int) -> list[bytes]:
            rows = session.execute(_LEAVES, {"start": start, "stop": stop})
            return [bytes.fromhex(leaf) for (leaf,) in rows]

        with self._lock:
            return tuple(self._subtrees.prove_consistency(asked.from_size, asked.to_size, read) for asked in ranges)


async def prove_audit(ctx: EngineContext, site_id: SiteId, ranges: Sequence[LogRange]) -> AuditConsistency:
    """Prove what a site asks for, and say what is held of its own log.

    Raises:
        InvalidMessageError: too many ranges, or one that runs backwards.
        AuditLogShorterError: the log is shorter than a range.
    """
    if len(ranges) > _MAX_RANGES:
        raise InvalidMessageError("a site asks for fewer proofs at once", n_ranges=len(ranges))
    if any(asked.from_size > asked.to_size for asked in ranges):
        raise InvalidMessageError("a log is proven from a size to a larger one")

    def read(session: Session) -> AuditConsistency:
        held = session.get(SiteLogHead, site_id)
        return AuditConsistency(
            proofs=ctx.prover.prove(session, ranges),
            held_size=0 if held is None else held.size,
            held_head=b"" if held is None else bytes.fromhex(held.head),
        )

    return await ctx.db.read_async("prove-audit", read)
