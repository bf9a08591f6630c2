"""What the round services work with: one of these a process, made by the composition root."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from coordinator.blobs.store import BlobStore
from coordinator.db.tx import Database
from coordinator.services.look_desk import LookDesk
from coordinator.services.prefix_digests import DigestsOfBlobs
from coordinator.services.prove_audit import AuditProver
from coordinator.services.role_cache import RoleCache
from coordinator.services.traffic import TrafficMeter
from coordinator.services.upload_desk import UploadDesk
from coordinator.services.upload_leaves import UploadLeaves
from coordinator.services.wakeups import Wakeups
from fl_protocol.clock import Clock
from fl_protocol.signing.keys import Signer
from fl_protocol.telemetry.coordinator_metrics import COORDINATOR_METRICS
from fl_protocol.telemetry.meter import Meter
from fl_protocol.telemetry.tracing import NO_TRACING, Tracing

if TYPE_CHECKING:
    # They are asked and answered by what works with this context.
    from coordinator.services.look_for_sites import SiteAnswer, SiteQuestion


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineContext:
    """Memory, time, the coordinator's key, and who to wake.

    Attributes:
        db: every write goes through its ``run_tx``.
        blobs: written before a transaction that names them.
        clock: the present instant.
        signer: the coordinator's signing key, pinned by the sites at enrolment.
        wakeups: rung after commits.
        origin: the name of the audit log.
        n_threads: for the removal of masks.
        roles: parsed and verified messages, so that a phase's list is verified once and not at each arrival.
        uploads: the streams that bring masked vectors to this process.
        traffic: what is sent to the sites.
        looks: where sites that ask at once are answered at once.
        digests: what goes with the chunks that are sent, computed once a blob.
        upload_leaves: the trees of masked uploads of which sites fetch chunks.
        prover: proofs about the audit log, for the sites.
        meter: counts what is done, for those who run the coordinator.
        tracing: tells what is done as spans, where that is set.
    """

    db: Database
    blobs: BlobStore
    clock: Clock
    signer: Signer
    wakeups: Wakeups
    origin: str
    n_threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    roles: RoleCache = field(default_factory=RoleCache)
    uploads: UploadDesk = field(default_factory=UploadDesk)
    traffic: TrafficMeter = field(init=False)
    looks: LookDesk[SiteQuestion, SiteAnswer] = field(init=False)
    digests: DigestsOfBlobs = field(default_factory=DigestsOfBlobs)
    upload_leaves: UploadLeaves = field(default_factory=UploadLeaves)
    prover: AuditProver = field(default_factory=AuditProver)
    meter: Meter = field(default_factory=lambda: Meter(COORDINATOR_METRICS))
    tracing: Tracing = NO_TRACING

    def __post_init__(self) -> None:
        """Count, and look, over this database."""
        object.__setattr__(self, "traffic", TrafficMeter(self.db))
        object.__setattr__(self, "looks", LookDesk(self.db, "poll-instruction"))

    def now(self) -> datetime:
        """The present instant, aware, in UTC."""
        return self.clock.now().astimezone(UTC)
