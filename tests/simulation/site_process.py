"""A site of a simulation: the real agent's loop, books, journal, roles, links and folds, over one folder.

The trainer is the one party that is not real: another process in life, here a payload that appears when an operation
says that the training is done. What it leaves in the job folder is what a trainer leaves.
"""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.secagg.entropy import Entropy
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.round_spec import RoundManifest
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.tensors.safetensors_io import bytes_from_tensors
from fl_protocol.testing.entropy import SeededEntropy, seeded_signer
from site_agent.approvals.approve_run import decline_run
from site_agent.approvals.run_records import is_paused, mark_statement_sent, set_paused, unsent_statements
from site_agent.audit.own_tree import OwnTree
from site_agent.audit.store import AuditLog
from site_agent.datasets.registry import RegisteredDataset
from site_agent.db.errors import SiteDatabaseError
from site_agent.db.models import RunLedgerRow
from site_agent.db.tx import SiteDb, open_site_db
from site_agent.errors import JobFailedError, RoundRefusedError, TrainerDiedError
from site_agent.jobs.job_dir import (
    PAYLOAD_FILE,
    DeviceChoice,
    JobResult,
    JobSpec,
    ProgressLine,
    ProgressState,
    read_result,
    write_job,
    write_result,
)
from site_agent.link.backoff import Backoff
from site_agent.link.client import CoordinatorClient, OwnLogProof
from site_agent.link.downloader import Downloader
from site_agent.link.uploader import Uploader
from site_agent.policy.rules import SumCheckMode
from site_agent.state.coordinator_log import CoordinatorLog
from site_agent.state.journal import ExchangeRecord, Journal
from site_agent.state.private_files import BytesLike
from site_agent.state.public_state import PublicStateStore
from site_agent.state.round_book import RoundBook
from site_agent.supervision.approved_runs import ApprovedRun
from site_agent.supervision.assignments import AssignmentLoop
from site_agent.supervision.judgement import Permission
from site_agent.supervision.log_witness import LogWitness
from site_agent.supervision.seams import JobOptions, SiteSeams
from site_agent.supervision.status_board import StatusBoard
from tests.simulation.clockwork import ClockworkLoop, ManualClock
from tests.simulation.coordinator_process import SIGNER as COORDINATOR_SIGNER
from tests.simulation.processes import CURRENT, PowerCutError, Process, boundary, is_disk_full, refuse_on_full_disk
from tests.simulation.scenario import LAYOUT, RUN_ID, Scenario
from tests.simulation.wire import Channel

T = TypeVar("T")
DATA_SHA256 = Sha256Hex("cd" * 32)
_engines: dict[Path, Engine] = {}


class WatchedSiteDb(SiteDb):
    """The real one, with a boundary on either side of each commit."""

    n_commits = 0

    def run_tx(self, name: str, fn: Callable[[Session], T]) -> T:
        def watched(session: Session) -> T:
            outcome = fn(session)
            session.flush()
            if is_disk_full():
                raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
            boundary(f"tx {name}: before its commit")
            return outcome

        outcome = super().run_tx(name, watched)
        self.n_commits += 1
        boundary(f"tx {name}: after its commit")
        return outcome


class WatchedJournal(Journal):
    """The real one, with a boundary on either side of each step."""

    def write(self, record: ExchangeRecord) -> None:
        step = "complaint" if record.is_complaint else str(record.last_step)
        boundary(f"journal {step}: before")
        refuse_on_full_disk()
        super().write(record)
        boundary(f"journal {step}: after")

    def write_spool(self, context: ExchangeContext, parts: Iterable[BytesLike]) -> Path:
        boundary("journal spool: before")
        refuse_on_full_disk()
        path = super().write_spool(context, parts)
        boundary("journal spool: after")
        return path

    def close(self, context: ExchangeContext) -> None:
        boundary("journal close: before")
        super().close(context)
        boundary("journal close: after")


def engine_at(path: Path) -> Engine:
    """The engine of a site's file; the same one for every life of its agent."""
    if path not in _engines:
        database = open_site_db(path)
        engine = database._engine
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
        database.close()
        _engines[path] = engine
    return _engines[path]


def create_ledger(path: Path, scenario: Scenario) -> None:
    """A site's database in which the steward has approved the run."""
    row = RunLedgerRow(
        run_id=RUN_ID,
        name="run",
        state="approved",
        reason=None,
        run_spec_sha256=scenario.spec.digest(),
        run_spec_json=scenario.spec.canonical_bytes(),
        layout_json=LAYOUT.canonical_bytes(),
        initial_state_sha256=scenario.spec.adapter.initial_sha256,
        first_seen_at="2026-01-02T03:04:05.000000Z",
        approved_at="2026-01-02T03:04:05.000000Z",
        approved_by="steward",
        dataset="medical-qa",
        purpose="research",
    )
    database = SiteDb(engine_at(path))
    database.run_tx("approve", lambda session: session.add(row))
    database.close()


class Trainer:
    """Another process: trains until an operation says that it is done, or dead."""

    def __init__(self, scenario: Scenario, site: SiteId) -> None:
        self._scenario, self._site = scenario, site
        self._turn = asyncio.Event()
        self._fate: str | None = None
        self.is_eager = False
        """Whether it trains in no time."""
        self.n_at_work = 0

    def finish(self, fate: str = "done") -> bool:
        """Let the training at hand end; False where there is none."""
        if not self.n_at_work:
            return False
        self._fate = fate
        self._turn.set()
        return True

    async def run_training_job(
        self, job_dir: Path, job: JobSpec, *, on_progress: Callable[[ProgressLine], None]
    ) -> JobResult:
        closed = read_result(job_dir)
        write_job(job_dir, job)
        if isinstance(closed, JobResult) and (job_dir / PAYLOAD_FILE).exists():
            return closed
        on_progress(ProgressLine(state=ProgressState.TRAINING, step=1, steps=8, at="now", loss=3.25))
        self.n_at_work += 1
        try:
            if not self.is_eager:
                self._turn.clear()
                await self._turn.wait()
        finally:
            self.n_at_work -= 1
        fate, self._fate = self._fate, None
        if fate == "died":
            raise TrainerDiedError("the trainer ended without closing its job", advice="Look at its log.")
        if fate == "failed":
            raise JobFailedError("the data is malformed", failure_code="data-malformed")
        raw = self._scenario.raw_payload(self._site, job.round_index, job.round_attempt)
        (job_dir / PAYLOAD_FILE).write_bytes(bytes_from_tensors(raw))
        digit = self._scenario.digit(self._site)
        result = JobResult(
            records=digit,
            patients=digit,
            held_out_records=1,
            seconds=0.1,
            peak_memory_bytes=1,
            device="cpu",
            precision="float32",
            versions={},
            sha256=DATA_SHA256,
        )
        write_result(job_dir, result)
        return result

    async def stop_run(self, run_folder: Path) -> None:
        del run_folder

    async def stop(self) -> None:
        pass


@dataclass(frozen=True)
class Judge:
    """The steward's switch is asked as the real judge asks it; the policy file, whose reading is slow, permits."""

    db: SiteDb
    data: Path

    def sum_check_mode(self) -> SumCheckMode:
        return SumCheckMode.SAMPLED

    def assumed_colluders(self) -> int:
        return 0

    def permit(self, run: ApprovedRun, *, is_training_ahead: bool) -> Permission:
        if is_training_ahead and self.db.run_read("judge", is_paused):
            raise RoundRefusedError("the steward paused this site", reason="site-paused", run_id=run.run_id)
        dataset = RegisteredDataset(
            name="medical-qa",
            path=self.data,
            format="jsonl",
            purposes=("research",),
            description=None,
            sha256=DATA_SHA256,
            n_records=1,
            n_patients=1,
            registered_at=datetime.fromisoformat("2026-01-02T00:00:00+00:00"),
            registered_by="steward",
            withdrawn_at=None,
        )
        return Permission(params=SecAggParams(), dataset=dataset)


class Unwitnessed(LogWitness):
    """Looks at nothing, as a site of before 0.2."""

    def __init__(self) -> None:
        pass

    async def check(self, manifest: RoundManifest, signed: SignedBody) -> None:
        pass

    async def prove_own(self, m1: bytes) -> OwnLogProof | None:
        return None


@dataclass
class SiteFolder:
    """What of a site outlives its agent."""

    site_id: SiteId
    path: Path
    n_lives: int = 0


@dataclass
class SiteProcess:
    """One life of a site's agent."""

    folder: SiteFolder
    process: Process
    scenario: Scenario
    clock: ManualClock
    loop: ClockworkLoop
    channel: Channel
    complain: Callable[[str], None]
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    turn: asyncio.Task[float] | None = None
    not_before_s: float = 0.0

    def __post_init__(self) -> None:
        site, path = self.folder.site_id, self.folder.path
        self.folder.n_lives += 1
        self.db = WatchedSiteDb(engine_at(path / "site.db"))
        entropy: Entropy = SeededEntropy(f"{site}/{self.folder.n_lives}")
        self.trainer = Trainer(self.scenario, site)
        self.signer = seeded_signer(site)
        self.audit = AuditLog(self.signer, self.clock, f"site:{site}")
        known = CoordinatorLog(
            path / "coordinator_log.json", coordinator_spki=COORDINATOR_SIGNER.spki_der, db=self.db, audit=self.audit
        )
        self.client = CoordinatorClient(
            self.channel,  # type: ignore[arg-type]
            agent_version="simulated",
            coordinator_log=known,
        )
        self.journal = WatchedJournal(path / "journal", entropy=entropy)
        self.book = RoundBook(self.db, self.audit, self.clock)
        self.seams = SiteSeams(
            site_id=site,
            signer=self.signer,
            coordinator_spki=COORDINATOR_SIGNER.spki_der,
            clock=self.clock,
            entropy=entropy,
            db=self.db,
            audit=self.audit,
            journal=self.journal,
            book=self.book,
            states=PublicStateStore(path / "states", self.db, self.clock),
            client=self.client,
            witness=LogWitness(self.client, known, OwnTree(self.db)) if self.scenario.is_witnessed else Unwitnessed(),
            uploader=Uploader(self.client, coordinator_spki=COORDINATOR_SIGNER.spki_der, backoff=_backoff()),
            downloader=Downloader(self.client, backoff=_backoff(), folder=path / "downloads"),
            runner=self.trainer,
            judge=Judge(self.db, path),
            jobs=JobOptions(
                jobs_dir=path / "jobs",
                private_states_dir=path / "private",
                base_models={"smollm2-135m-instruct": path / "base"},
                threads=1,
                device=DeviceChoice.AUTO,
                timeout_s=1e9,
            ),
            board=StatusBoard(path / "status.json", site, self.clock),
            spawn=self.spawn,
        )
        self.agent = AssignmentLoop(self.seams, backoff=_backoff())

    def spawn(self, work: Coroutine[None, None, T]) -> asyncio.Task[T]:
        """A task of this process: what it raises unexpectedly is a failure of the simulation."""

        context = contextvars.copy_context()
        context.run(CURRENT.set, self.process)
        task = self.loop.create_task(work, context=context)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def start(self) -> None:
        self.turn = self.spawn(self._restore())

    async def _restore(self) -> float:
        await self.agent.restore()
        return 0.0

    def step(self) -> bool:
        """Begin one turn of the agent's loop, or let the one that waits go on; whether one began."""
        if self.process.is_dead or (self.turn is not None and not self.turn.done()):
            return False
        self.turn = self.spawn(self.agent._turn())
        return True

    @property
    def is_at_work(self) -> bool:
        return self.turn is not None and not self.turn.done()

    def kill(self) -> None:
        """Nothing of it acts any more, and nothing of its memory is left."""
        self.process.is_dead = True
        for task in tuple(self.tasks):
            task.cancel()
        self.loop.run_ready()
        self.db.close()

    async def stop(self) -> None:
        """What SIGTERM does."""
        if self.turn is not None:
            self.turn.cancel()
        await self.agent.stop()

    async def withdraw(self) -> None:
        now = self.clock.now()
        decline_run(self.db, self.audit, signer=self.signer, run_id=RUN_ID, local_user="steward", reason="no", now=now)

    async def tell_statements(self) -> None:
        """What the approval loop does with statements that were not sent."""
        for unsent in self.db.run_read("unsent-statements", unsent_statements):
            await self.client.withdraw(unsent.run_id, statement=unsent.statement)
            mark_statement_sent(self.db, approval_id=unsent.approval_id, now=self.clock.now())

    async def pause(self, *, is_on: bool) -> None:
        set_paused(self.db, self.audit, is_paused=is_on, actor="user:steward", now=self.clock.now())

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None or isinstance(error, PowerCutError) or self.process.is_dead:
            return
        if isinstance(error, OSError | SiteDatabaseError) and self.process.is_disk_full:
            # The daemon logs it, and starts the loop again.
            return
        self.complain(f"{self.folder.site_id}: {type(error).__name__}: {error}")


def _backoff() -> Backoff:
    return Backoff(lambda: 0.5)
