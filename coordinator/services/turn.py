"""One transaction's work on one run, as its rooms share it: the rows, the rules, the trail, and the instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from sqlalchemy.orm import Session

from coordinator.db.models import Run, Site
from coordinator.db.sites import sites_by_name
from coordinator.db.states import SiteState
from coordinator.rounds.quorum import RoundRules
from coordinator.rounds.run_machine import RunEvent, RunState, step_run
from coordinator.services.audit_trail import AuditTrail
from coordinator.services.context import EngineContext
from coordinator.services.round_access import COORDINATOR
from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import Sha256Hex, SiteId

MILESTONES = frozenset(
    {AuditKind.ROUND_OPENED, AuditKind.ROUND_COMMITTED, AuditKind.ROUND_ABORTED, AuditKind.RUN_STATE}
)
"""Behind each of these a checkpoint is signed, and the next may follow at once."""


class TurnOutcome(StrEnum):
    """What came of a turn.

    Attributes:
        NOTHING: nothing was written.
        NOTED: what sites sent was counted, and nobody is asked for anything else than before.
        MOVED: what somebody should do may have changed.
        LEADS_ON: that, and there may be more to do at once: a round opened or ended, or the run's state changed.
    """

    NOTHING = "nothing"
    NOTED = "noted"
    MOVED = "moved"
    LEADS_ON = "leads-on"


@dataclass(slots=True, kw_only=True)
class Turn:
    """What one turn of a run's machines works with.

    Attributes:
        is_changed: something was written.
        has_moved: a state changed, of which sites or the driver hear.
    """

    ctx: EngineContext
    session: Session
    run: Run
    now: datetime
    trail: AuditTrail = field(default_factory=lambda: AuditTrail(actor=COORDINATOR))
    is_changed: bool = False
    has_moved: bool = False

    @property
    def outcome(self) -> TurnOutcome:
        """What came of it so far. Everything that is put on the trail is a state that changed."""
        if self.trail.holds_any(MILESTONES):
            return TurnOutcome.LEADS_ON
        if self.has_moved or self.trail:
            return TurnOutcome.MOVED
        return TurnOutcome.NOTED if self.is_changed else TurnOutcome.NOTHING

    @property
    def rules(self) -> RoundRules:
        """How many sites each step needs, and how long it waits."""
        return self.ctx.roles.run_facts(self.run).rules

    @property
    def pins(self) -> Mapping[SiteId, Sha256Hex]:
        """The roster: names and the keys that the sites approved."""
        return self.ctx.roles.run_facts(self.run).spec.cohort.pins

    def active_sites(self) -> dict[SiteId, Site]:
        """Those of the roster that are ENROLLED with the key that the run names."""
        pins = self.pins
        return {
            site: row
            for site, row in sites_by_name(self.session, pins).items()
            if row.state == SiteState.ENROLLED.value and row.signing_key_sha256 == pins[site]
        }

    def move_run(self, event: RunEvent, *, reason: str | None = None) -> None:
        """Step the run's machine."""
        state = step_run(RunState(self.run.state), event)
        self.run.state = state.value
        self.run.reason = reason
        if state.is_final:
            self.run.finished_at = self.now
        self.trail.add(AuditKind.RUN_STATE, {"run_id": self.run.run_id, "state": state.value, "reason": reason})
