"""The running agent: composition root and supervisor. The only module of the shell that knows settings.

One process, one task group: the poll loop, the watch over withdrawals, the approvals loop, the status writer, and a
task for each job that runs. A loop that fails unexpectedly is logged and started again after a wait; SIGTERM and SIGINT
end all of them, and leave rounds as they are, to be taken up by the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import structlog

from fl_protocol.audit.events import AuditKind
from fl_protocol.clock import SystemClock
from fl_protocol.free_memory import keep_room_for_chunks
from fl_protocol.telemetry.meter import Meter
from fl_protocol.telemetry.site_metrics import SITE_METRICS
from site_agent.audit.own_tree import OwnTree
from site_agent.audit.store import AuditLog, origin_of_site
from site_agent.db.tx import SiteDb, open_site_db
from site_agent.enrolment.identity_file import SiteIdentity, load_identity
from site_agent.enrolment.keystore import KeyStore
from site_agent.identity_keeping import identity_keeper, recorder
from site_agent.jobs.job_dir import DeviceChoice
from site_agent.link.backoff import Backoff
from site_agent.link.client import CoordinatorClient
from site_agent.link.downloader import Downloader
from site_agent.link.link_channel import LinkChannel
from site_agent.link.uploader import Uploader
from site_agent.listed_peers import ListedPeers
from site_agent.observation import observed, traced
from site_agent.runners import runner_of
from site_agent.settings import SiteSettings
from site_agent.state.coordinator_log import CoordinatorLog
from site_agent.state.directory_lock import DirectoryLock
from site_agent.state.journal import Journal
from site_agent.state.public_state import PublicStateStore
from site_agent.state.round_book import RoundBook
from site_agent.supervision.approval_loop import ApprovalLoop
from site_agent.supervision.assignments import AssignmentLoop
from site_agent.supervision.dataset_notices import DatasetNotices
from site_agent.supervision.identity_loop import IdentityLoop
from site_agent.supervision.judgement import PolicyJudge
from site_agent.supervision.log_witness import LogWitness
from site_agent.supervision.policy_desk import PolicyDesk
from site_agent.supervision.seams import JobOptions, SiteSeams, Spawn, SystemEntropy
from site_agent.supervision.status_board import StatusBoard
from site_agent.way_out import find_way_out

log = structlog.get_logger(__name__)

_STATUS_EVERY_S = 0.25
_HEARTBEAT_TURNS = 20


def run_site_agent(settings: SiteSettings) -> None:
    """Run the agent until it is told to stop.

    Raises:
        StateDirectoryLockedError: another agent works on the state directory.
        NotEnrolledError, KeyMissingError, KeyPermissionsError: the site cannot say who it is.
        SiteDatabaseError: the database cannot be opened.
    """
    keep_room_for_chunks(os.environ)
    lock = DirectoryLock(settings.state_dir)
    lock.acquire()
    try:
        identity = load_identity(settings.folder)
        db = open_site_db(settings.folder.database)
        try:
            asyncio.run(_serve(settings, identity, db))
        except ExceptionGroup as group:
            # What ended the task group is what the operator has to read, not that there was a group.
            if len(group.exceptions) > 1:
                raise
            raise group.exceptions[0] from group
        finally:
            db.close()
    finally:
        lock.release()


async def _serve(settings: SiteSettings, identity: SiteIdentity, db: SiteDb) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    board = StatusBoard(settings.folder.status_json, identity.site_id, SystemClock())
    meter = Meter(SITE_METRICS)
    channel = LinkChannel(
        find_way_out(settings, identity, environment=os.environ).link_options(),
        clock_s=time.monotonic,
        announce=lambda transport: board.transport(transport.value),
    )
    audit = AuditLog(KeyStore(settings.folder).load_signer(), SystemClock(), origin_of_site(identity.site_id))
    policies = PolicyDesk(settings.policy_path, db=db, audit=audit)
    known = _coordinator_log(settings, identity, db, audit=audit)
    client = CoordinatorClient(channel, agent_version=agent_version(), coordinator_log=known)
    shown = contextlib.ExitStack()
    try:
        tracing = shown.enter_context(traced(settings, version=agent_version()))
        shown.enter_context(observed(settings, meter, board=board, db=db, version=agent_version()))
        async with asyncio.TaskGroup() as group:
            spawn = _guarded_spawn(group)
            composed = _compose(
                settings, identity, db, client, policies=policies, board=board, meter=meter, spawn=spawn
            )
            seams = replace(composed, tracing=tracing)
            kept = _identity_loop(seams, settings, identity, channel)
            beside = [
                group.create_task(_keep_running("transport", channel.keep)),
                group.create_task(_keep_running("identity", kept.run)),
            ]
            try:
                approvals = ApprovalLoop(
                    seams, policies=policies, identity=identity, peers=ListedPeers(settings.state_dir)
                )
                await _run_until(stopping, seams, approvals, group)
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)
    finally:
        shown.close()
        await channel.close()


def _identity_loop(
    seams: SiteSeams, settings: SiteSettings, identity: SiteIdentity, channel: LinkChannel
) -> IdentityLoop:
    record = recorder(seams.db, seams.audit, actor="agent")
    keeper = identity_keeper(
        settings, identity, channel=channel, clock=seams.clock, record=record, agent_version=agent_version()
    )
    return IdentityLoop(
        keeper,
        folder=settings.folder,
        clock=seams.clock,
        # It spreads load and protects nothing, so the ordinary generator does.
        draw=random.random,
        backoff=_backoff(),
        board=seams.board,
        record=record,
    )


async def _run_until(
    stopping: asyncio.Event,
    seams: SiteSeams,
    approvals: ApprovalLoop,
    group: asyncio.TaskGroup,
) -> None:
    assignments = AssignmentLoop(seams, backoff=_backoff())
    _record(seams, AuditKind.PROCESS_STARTED)
    await approvals.read_policy()
    await seams.runner.end_orphans()
    await assignments.restore()
    loops = [
        group.create_task(_keep_running("assignments", assignments.run)),
        group.create_task(_keep_running("withdrawals", assignments.watch)),
        group.create_task(_keep_running("approvals", approvals.run)),
        group.create_task(_keep_running("dataset-notices", DatasetNotices(seams, clock_s=time.monotonic).run)),
        group.create_task(_keep_running("status", lambda: _write_status(seams.board))),
    ]
    log.info("agent_started", site_id=seams.site_id, version=agent_version())
    try:
        await stopping.wait()
    finally:
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await assignments.stop()
        await seams.runner.stop()
        seams.board.connected(is_connected=False)
        seams.board.change_state("stopped")
        seams.board.write(even_if_same=True)
        _record(seams, AuditKind.PROCESS_STOPPED)
        log.info("agent_stopped", site_id=seams.site_id)


def _coordinator_log(settings: SiteSettings, identity: SiteIdentity, db: SiteDb, *, audit: AuditLog) -> CoordinatorLog:
    spki = identity.coordinator_signing_spki
    return CoordinatorLog(settings.folder.coordinator_log, coordinator_spki=spki, db=db, audit=audit)


def _compose(
    settings: SiteSettings,
    identity: SiteIdentity,
    db: SiteDb,
    client: CoordinatorClient,
    *,
    policies: PolicyDesk,
    board: StatusBoard,
    meter: Meter,
    spawn: Spawn,
) -> SiteSeams:
    folder, clock, entropy = settings.folder, SystemClock(), SystemEntropy()
    signer = KeyStore(folder).load_signer()
    audit = AuditLog(signer, clock, origin_of_site(identity.site_id))
    spki = identity.coordinator_signing_spki
    return SiteSeams(
        site_id=identity.site_id,
        signer=signer,
        coordinator_spki=spki,
        clock=clock,
        entropy=entropy,
        db=db,
        audit=audit,
        journal=Journal(folder.journal_dir, entropy=entropy),
        book=RoundBook(db, audit, clock),
        states=PublicStateStore(folder.states_dir, db, clock),
        client=client,
        witness=LogWitness(
            client, client.coordinator_log or _coordinator_log(settings, identity, db, audit=audit), OwnTree(db)
        ),
        uploader=Uploader(client, coordinator_spki=spki, backoff=_backoff(), meter=meter),
        downloader=Downloader(client, backoff=_backoff(), folder=folder.downloads_dir),
        runner=runner_of(settings),
        judge=PolicyJudge(
            db,
            audit,
            policies=policies,
            identity=identity,
            peers=ListedPeers(settings.state_dir),
            clock=clock,
            is_data_elsewhere=settings.runner.is_trainer_elsewhere,
            meter=meter,
        ),
        jobs=JobOptions(
            jobs_dir=settings.jobs_dir,
            private_states_dir=folder.private_states_dir,
            base_models={
                name: path for name in settings.base_models if (path := settings.base_model_path(name)) is not None
            },
            threads=settings.runner.threads,
            device=DeviceChoice(settings.runner.device),
            timeout_s=settings.runner.timeout_s,
            is_trainer_elsewhere=settings.runner.is_trainer_elsewhere,
        ),
        board=board,
        spawn=spawn,
        meter=meter,
    )


async def _keep_running(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run a loop for ever: what it did not expect is logged, and it starts again after a wait."""
    backoff = _backoff()
    while True:
        try:
            await run()
        except Exception:
            log.exception("loop_failed", loop=name)
            await asyncio.sleep(backoff.next_wait_s())


def _guarded_spawn(group: asyncio.TaskGroup) -> Spawn:
    """Tasks whose unexpected failure is logged and ends them, not the agent."""

    async def guarded(work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("task_failed", task=getattr(work, "__qualname__", "unknown"))

    def spawn(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = group.create_task(guarded(work))
        # One that is cancelled before its first step has not begun the work either; Python complains of that.
        task.add_done_callback(lambda _: work.close())
        return task

    return spawn


async def _write_status(board: StatusBoard) -> None:
    turn = 0
    while True:
        # A look at it now and then even when nothing changed says that the agent is alive.
        board.write(even_if_same=turn % _HEARTBEAT_TURNS == 0)
        turn += 1
        await asyncio.sleep(_STATUS_EVERY_S)


def _record(seams: SiteSeams, kind: AuditKind) -> None:
    seams.db.run_tx(
        "record-process", lambda session: seams.audit.append(session, kind, "agent", version=agent_version())
    )


def _backoff() -> Backoff:
    # It spreads load and protects nothing, so the ordinary generator does.
    return Backoff(random.random)


def agent_version() -> str:
    """The installed version of this program."""
    try:
        return version("wardround")
    except PackageNotFoundError:
        return "0+unknown"
