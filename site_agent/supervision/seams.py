"""What the shell works with: everything that the daemon composed, as one value. Holds no state of a round."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fl_protocol.clock import Clock
from fl_protocol.ids import SiteId
from fl_protocol.secagg.entropy import Entropy
from fl_protocol.signing.keys import Signer
from fl_protocol.telemetry.meter import Meter
from fl_protocol.telemetry.site_metrics import SITE_METRICS
from fl_protocol.telemetry.tracing import NO_TRACING, Tracing
from site_agent.audit.store import AuditLog
from site_agent.db.tx import SiteDb
from site_agent.jobs.job_dir import DeviceChoice
from site_agent.jobs.runner import JobRunner
from site_agent.link.client import CoordinatorClient
from site_agent.link.downloader import Downloader
from site_agent.link.uploader import Uploader
from site_agent.state.journal import Journal
from site_agent.state.public_state import PublicStateStore
from site_agent.state.round_book import RoundBook
from site_agent.supervision.judgement import Judge
from site_agent.supervision.log_witness import LogWitness
from site_agent.supervision.status_board import StatusBoard

Spawn = Callable[[Coroutine[None, None, None]], "asyncio.Task[None]"]
"""Starts a task in the process's one task group; what it raises unexpectedly is logged there, not lost."""


class SystemEntropy:
    """The operating system's generator."""

    def draw(self, n_bytes: int) -> bytes:
        """``n_bytes`` fresh bytes."""
        return os.urandom(n_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How this site runs jobs: plain values out of its settings.

    Attributes:
        private_states_dir: where what local rules keep between rounds lies. Safety: outside ``jobs_dir``, where a
            trainer may write: what lies here is carried into the next job's folder.
        is_trainer_elsewhere: data and base models are seen by the trainer only; what is missing, the trainer says.
    """

    jobs_dir: Path
    private_states_dir: Path
    base_models: Mapping[str, Path]
    threads: int | None
    device: DeviceChoice
    timeout_s: float
    is_trainer_elsewhere: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSeams:
    """One site's identity, stores and connections."""

    site_id: SiteId
    signer: Signer
    coordinator_spki: bytes
    clock: Clock
    entropy: Entropy
    db: SiteDb
    audit: AuditLog
    journal: Journal
    book: RoundBook
    states: PublicStateStore
    client: CoordinatorClient
    witness: LogWitness
    uploader: Uploader
    downloader: Downloader
    runner: JobRunner
    judge: Judge
    jobs: JobOptions
    board: StatusBoard
    spawn: Spawn
    meter: Meter = field(default_factory=lambda: Meter(SITE_METRICS))
    tracing: Tracing = NO_TRACING
