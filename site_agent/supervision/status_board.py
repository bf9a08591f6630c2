"""What the running agent says of itself, in ``status.json``: for its own steward, so the loss may stand there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from fl_protocol.clock import Clock
from fl_protocol.errors import Fact
from fl_protocol.ids import SiteId
from fl_protocol.spec.context import RoundContext
from site_agent.db.instants import instant_text
from site_agent.durable_files import write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFailure:
    """Why a job failed, as ``wardround-site status`` shows it to whoever may read this site's data.

    Safety: places and figures such as a dataset, a line and a batch size stand here, and in no log; a record's content
    does not, for the trainer's errors hold none.
    """

    run_id: str
    round_index: int
    code: str
    message: str
    advice: str
    facts: Mapping[str, Fact]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatus:
    """One look at the agent."""

    site_id: SiteId
    state: str = "idle"
    connected: bool = False
    transport: str = "grpc"
    run_id: str | None = None
    round_index: int | None = None
    activity: str | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    problem: str | None = None
    cannot_record: str | None = None
    refused_because: str | None = None
    training_failure: TrainingFailure | None = None
    certificate_until: str | None = None
    certificate_renews_at: str | None = None


class StatusBoard:
    """The latest status. Changing it costs nothing; ``write`` brings it to the disk, and the daemon calls that."""

    def __init__(self, path: Path, site_id: SiteId, clock: Clock) -> None:
        """Start idle and not connected."""
        self._path = path
        self._clock = clock
        self._status = AgentStatus(site_id=site_id)
        self._written: AgentStatus | None = None

    @property
    def status(self) -> AgentStatus:
        """The latest."""
        return self._status

    def change(self, change: Callable[[AgentStatus], AgentStatus]) -> None:
        """Put another status in place."""
        self._status = change(self._status)

    def connected(self, *, is_connected: bool, problem: str | None = None) -> None:
        """Whether the coordinator answers, and with which code it does not."""
        self._status = replace(self._status, connected=is_connected, problem=problem)

    def recording(self, code: str | None) -> None:
        """Why the last thing could not be recorded, so that nothing is done; None where it could."""
        if self._status.cannot_record != code:
            self._status = replace(self._status, cannot_record=code)

    def refused(self, reason: str | None) -> None:
        """Why the last round was refused by this site; None where it was joined."""
        self._status = replace(self._status, refused_because=reason)

    def trained(self, failure: TrainingFailure | None) -> None:
        """How the last job ended: why it failed, or None where it did not."""
        self._status = replace(self._status, training_failure=failure)

    def transport(self, name: str) -> None:
        """How the coordinator is reached."""
        self._status = replace(self._status, transport=name)

    def certificate(self, *, until: datetime, renews_at: datetime) -> None:
        """When the certificate ends, and when the agent renews it."""
        self._status = replace(
            self._status, certificate_until=instant_text(until), certificate_renews_at=instant_text(renews_at)
        )

    def at_round(self, round_context: RoundContext, phase: str) -> None:
        """Which round the agent works on, and how far it is; what its trainer is at is told while it trains."""
        self._status = replace(
            self._status,
            state=phase,
            run_id=round_context.run_id,
            round_index=round_context.round_index,
            activity=self._status.activity if phase == "training" else None,
        )

    def change_state(self, state: str) -> None:
        """What the agent is at."""
        self._status = replace(self._status, state=state)

    def write(self, *, even_if_same: bool = False) -> None:
        """Write the file, unless nothing changed. A look, not a record: it is whole at any moment, and may be late."""
        if self._status == self._written and not even_if_same:
            return
        status = self._status
        document = {**asdict(status), "updated_at": instant_text(self._clock.now())}
        write_whole(self._path, (json.dumps(document) + "\n").encode())
        self._written = status
