"""A whole federation on one clock: what operations do to it. Judges nothing; ``invariants`` does."""

from __future__ import annotations

import gc
import json
import shutil
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from shutil import copytree
from typing import Any, TypeVar
from unittest import mock

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.ca.authority import UNRENEWED_SITE_LIFETIME, CertificateAuthority, create_root
from coordinator.db.models import Approval, Certificate, Run, Site
from coordinator.db.tx import Database
from coordinator.driver import effects_performer
from coordinator.errors import DatabaseBusyError, DatabaseUnavailableError
from coordinator.services import aggregate_round, poll_instruction
from coordinator.services.change_run_state import RunChange, change_run_state
from coordinator.services.change_site_state import SiteChange, change_site_state
from coordinator.services.describe_run import waiting_for
from coordinator.services.refusals import StateConflictError
from fl_protocol.errors import WardroundError
from fl_protocol.ids import SiteId
from fl_protocol.pki.csr import make_csr
from fl_protocol.pki.keys import generate_private_key
from fl_protocol.secagg.site_role import role as site_role
from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.testing.entropy import SeededSealer, seeded_signer
from site_agent.link import uploader
from site_agent.supervision import assignments, exchange_desk
from site_agent.supervision.job_desk import JobDesk
from tests.simulation import coordinator_process, site_process
from tests.simulation.clockwork import START, ClockworkLoop, InlineExecutor, ManualClock
from tests.simulation.coordinator_process import CoordinatorProcess
from tests.simulation.evidence import Evidence, watched
from tests.simulation.processes import PowerCutError, Process, around, living_as, watched_disk
from tests.simulation.scenario import AUDIT_WINDOW_S, LAYOUT, RUN_ID, Scenario
from tests.simulation.site_process import SiteFolder, SiteProcess
from tests.simulation.wire import Network

T = TypeVar("T")
CHUNK_BYTES = 48
_TERMINAL = frozenset({"COMPLETED", "CANCELLED", "FAILED"})
_REST_TICKS = 400
_current: list[World] = []
_templates: dict[tuple[Path, Scenario], Path] = {}


@dataclass(frozen=True)
class _Authority:
    """The consortium's root and the sites' certificates: made once, since making keys takes longer than a round."""

    authority: CertificateAuthority
    certificates: dict[str, Any]


_authorities: list[_Authority] = []


def _authority() -> _Authority:
    if not _authorities:
        root, key = create_root(consortium="simulated", now=START)
        authority = CertificateAuthority(certificate=root, key=key)
        made = {}
        for name in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta"):
            csr = make_csr(generate_private_key())
            made[name] = authority.issue_site_certificate(
                site_id=SiteId(name), csr_der=csr, now=START, lifetime=UNRENEWED_SITE_LIFETIME
            )
        _authorities.append(_Authority(authority, made))
    return _authorities[0]


@contextmanager
def instrumented() -> Iterator[None]:
    """Everything that the simulation puts in the place of threads, disks and time; and its eyes."""
    prepare, delete = JobDesk.prepare, JobDesk.delete
    # What is imported by now stays: looking through it again and again is a tenth of the time.
    gc.freeze()
    with ExitStack() as stack:
        stack.enter_context(watched_disk())
        stack.enter_context(watched(lambda: _current[-1].evidence))
        for place, name, instead in (
            (exchange_desk, "ThreadPoolExecutor", InlineExecutor),
            (aggregate_round, "ThreadPoolExecutor", InlineExecutor),
            # HPKE draws its own ephemeral keys; a replay needs the same ones.
            (site_role, "HpkeSealer", SeededSealer),
            (uploader, "CHUNK_BYTES", CHUNK_BYTES),
            (assignments, "_POLL_WAIT_S", 0.0),
            (effects_performer, "aggregate_round", around("effect compute-sum", effects_performer.aggregate_round)),
            (effects_performer, "fold_round", around("effect fold-round", effects_performer.fold_round)),
            (JobDesk, "prepare", around("job folder filled", prepare)),
            (JobDesk, "delete", around("job folder deleted", delete)),
        ):
            stack.enter_context(mock.patch.object(place, name, instead))
        yield


class World:
    """One coordinator, its drivers, and the sites of one run."""

    def __init__(self, root: Path, scenario: Scenario) -> None:
        self.scenario = scenario
        self.folder = root / f"world-{scenario.n_sites}"
        self.clock = ManualClock()
        self.loop = ClockworkLoop(self.clock)
        self.evidence = Evidence()
        _current.append(self)
        # Zero: a site acts when an operation says so. Else it waits at the coordinator, and acts as soon as that rings.
        assignments._POLL_WAIT_S = scenario.poll_wait_s
        # Waiting for company before a look would be taken for rest: it is waited for by the clock that stands still.
        poll_instruction._GATHER_S = 0.0
        self._fill(root)
        known = _authority()
        self.network = Network(
            loop=self.loop,
            server=lambda: self.coordinator,
            certificates={name: known.certificates[name].pem for name in scenario.names},
            heard=self.evidence.note_sent,
        )
        self.coordinator: CoordinatorProcess | None = None
        self.second: CoordinatorProcess | None = None
        self.n_coordinators = 0
        self.sites: dict[str, SiteProcess | None] = {}
        self.folders = {name: SiteFolder(site_id=name, path=self.folder / "sites" / name) for name in scenario.names}
        self.full_disks: set[str] = set()
        self.is_mended = False
        self.was_set_back = False
        self.n_judged = 0
        self.eyes = sqlite3.connect(self.folder / "coordinator" / "coordinator.db", isolation_level=None)
        self.start_coordinator()
        for name in scenario.names:
            self.start_site(name)

    def close(self) -> None:
        """Let go of everything."""
        for site in list(self.sites.values()):
            if site is not None:
                site.kill()
        self.kill_coordinator()
        self.kill_second()
        self.eyes.close()
        self.loop.run_ready()
        self.loop.close()
        _current.remove(self)

    # The folders

    def _fill(self, root: Path) -> None:
        key = (root, self.scenario)
        for engine in (*coordinator_process._engines.values(), *site_process._engines.values()):
            engine.dispose()
        shutil.rmtree(self.folder, ignore_errors=True)
        if key not in _templates:
            self._make_folders()
            kept = root / f"template-{len(_templates)}"
            for engine in (*coordinator_process._engines.values(), *site_process._engines.values()):
                engine.dispose()
            copytree(self.folder, kept)
            _templates[key] = kept
            return
        copytree(_templates[key], self.folder)

    def _make_folders(self) -> None:
        place = self.folder / "coordinator"
        place.mkdir(parents=True)
        coordinator_process._engines.pop(place / "coordinator.db", None)
        coordinator_process.create_tables(place / "coordinator.db")
        blobs = FilesystemBlobStore(place / "blobs")
        initial = blobs.put_bytes(self.scenario.initial.to_bytes())
        Database(coordinator_process.engine_at(place / "coordinator.db")).run_tx(
            "set-up", lambda session: self._fill_coordinator(session, initial.sha256)
        )
        for name in self.scenario.names:
            site = self.folder / "sites" / name
            (site / "base").mkdir(parents=True)
            site_process._engines.pop(site / "site.db", None)
            site_process.create_ledger(site / "site.db", self.scenario)

    def _fill_coordinator(self, session: Any, initial_sha256: str) -> None:
        spec = self.scenario.spec
        known = _authority()
        for name in self.scenario.names:
            spki = seeded_signer(name).spki_der
            session.add(
                Site(
                    site_id=name,
                    state="ENROLLED",
                    signing_spki=spki,
                    signing_key_sha256=spki_fingerprint(spki),
                    created_at=START,
                    enrolled_at=START,
                )
            )
        session.add(
            Run(
                run_id=RUN_ID,
                name=spec.name,
                state="AWAITING_SITES",
                run_spec_json=spec.canonical_bytes(),
                run_spec_sha256=spec.digest(),
                layout_json=json.dumps(LAYOUT.to_document()).encode(),
                layout_blob_sha256=LAYOUT.digest(),
                initial_blob_sha256=initial_sha256,
                public_state_version=0,
                public_state_sha256=self.scenario.initial.digest(),
                public_state_blob_sha256=initial_sha256,
                next_round_index=0,
                next_round_attempt=0,
                created_by="user:lead",
                created_at=START,
            )
        )
        session.flush()
        for name in self.scenario.names:
            issued = known.certificates[name]
            session.add(
                Certificate(
                    fingerprint_sha256=issued.sha256,
                    site_id=name,
                    serial=issued.serial,
                    not_before=issued.not_before,
                    not_after=issued.not_after,
                )
            )
            session.add(
                Approval(
                    run_id=RUN_ID,
                    site_id=name,
                    decision="approved",
                    statement_body=b"yes",
                    statement_signature=b"",
                    at=START - timedelta(days=1),
                )
            )

    # The coordinator

    def start_coordinator(self) -> None:
        if self.coordinator is not None:
            return
        self.coordinator = self._new_coordinator("coordinator")

    def _new_coordinator(self, name: str) -> CoordinatorProcess:
        self.n_coordinators += 1
        process = Process(name, is_disk_full="coordinator" in self.full_disks)
        with living_as(process):
            return CoordinatorProcess(
                self.folder / "coordinator",
                process,
                clock=self.clock,
                loop=self.loop,
                authority=_authority().authority,
                holder=f"{name}-{self.n_coordinators}",
            )

    def kill_coordinator(self) -> None:
        self.coordinator = self._killed(self.coordinator)

    def kill_second(self) -> None:
        self.second = self._killed(self.second)

    def _killed(self, dying: CoordinatorProcess | None) -> None:
        if dying is None:
            return
        dying.process.is_dead = True
        for call in tuple(dying.calls):
            call.cancel()
        self.loop.run_ready()
        # A process's own connections close with it; the other driver opens new ones.
        coordinator_process.engine_at(self.folder / "coordinator" / "coordinator.db").dispose()

    def as_coordinator(self, work: Callable[[CoordinatorProcess], T], *, second: bool = False) -> T | None:
        """Let the coordinator do something; None where it is down, or dies of it."""
        if second and self.second is None:
            self.second = self._new_coordinator("driver-2")
        acting = self.second if second else self.coordinator
        if acting is None:
            return None
        try:
            with living_as(acting.process):
                return work(acting)
        except PowerCutError:
            if second:
                self.kill_second()
            else:
                self.kill_coordinator()
            return None

    def bury(self) -> None:
        """Whoever died meanwhile is gone."""
        if self.coordinator is not None and self.coordinator.process.is_dead:
            self.kill_coordinator()
        if self.second is not None and self.second.process.is_dead:
            self.kill_second()
        for name, site in self.sites.items():
            if site is not None and site.process.is_dead:
                site.kill()
                self.sites[name] = None

    def drive(self, *, second: bool = False) -> bool:
        """One step of a driver; whether there was anything to do."""

        def step(acting: CoordinatorProcess) -> bool:
            try:
                return self.loop.finish(acting.driver.step(RUN_ID))
            except (DatabaseBusyError, DatabaseUnavailableError):
                return False
            except Exception as error:  # noqa: BLE001 # whatever it is, it is a finding
                if not acting.process.is_disk_full:
                    self.evidence.complain(f"the driver's step failed: {type(error).__name__}: {error}")
                return False

        moved = bool(self.as_coordinator(step, second=second))
        self.bury()
        return moved

    def sweep(self) -> None:
        self.as_coordinator(lambda acting: self.loop.finish(acting.janitor.sweep()))

    def change_site(self, name: str, change: SiteChange) -> None:
        self._as_admin(
            lambda acting: change_site_state(
                acting.resources, site_id=name, change=change, reason="simulated", actor="user:admin"
            )
        )

    def change_run(self, change: RunChange) -> None:
        self._as_admin(
            lambda acting: change_run_state(acting.resources, run_id=RUN_ID, change=change, actor="user:lead")
        )

    def _as_admin(self, work: Callable[[CoordinatorProcess], object]) -> None:
        def tried(acting: CoordinatorProcess) -> None:
            try:
                work(acting)
            except StateConflictError:
                return
            except Exception:
                if not acting.process.is_disk_full:
                    raise

        self.as_coordinator(tried)
        self.loop.run_ready()
        self.bury()

    def copy_coordinator(self) -> None:
        """Somebody copies the coordinator's folder while it is down for a moment."""
        self._without_coordinator(lambda place, copy: (shutil.rmtree(copy, ignore_errors=True), copytree(place, copy)))

    def set_back_coordinator(self) -> None:
        """The copy is put in place, without a word to anybody: what happened since, the coordinator forgets."""
        if not self._copy.exists():
            return
        self.was_set_back = self.evidence.was_set_back = True
        self.n_judged = 0
        self.eyes.close()
        self._without_coordinator(lambda place, copy: (shutil.rmtree(place), copytree(copy, place)))
        self.eyes = sqlite3.connect(self.folder / "coordinator" / "coordinator.db", isolation_level=None)

    @property
    def _copy(self) -> Path:
        return self.folder / "coordinator-copy"

    def _without_coordinator(self, act: Callable[[Path, Path], object]) -> None:
        self.kill_coordinator()
        self.kill_second()
        act(self.folder / "coordinator", self._copy)
        self.start_coordinator()

    # The sites

    def start_site(self, name: str) -> None:
        if self.sites.get(name) is not None:
            return
        site = SiteProcess(
            folder=self.folders[SiteId(name)],
            process=Process(name, is_disk_full=name in self.full_disks),
            scenario=self.scenario,
            clock=self.clock,
            loop=self.loop,
            channel=self.network.channel(name),
            complain=self.evidence.complain,
        )
        self.sites[name] = site
        site.start()
        self.settle()

    def kill_site(self, name: str) -> None:
        site = self.sites.get(name)
        if site is not None:
            site.kill()
            self.sites[name] = None

    def turn(self, name: str) -> None:
        """One turn of a site's agent, as far as it goes without time passing."""
        site = self.sites.get(name)
        if site is not None:
            site.step()
        self.settle()

    def as_site(self, name: str, work: Callable[[SiteProcess], Coroutine[Any, Any, object]]) -> None:
        """Let somebody at a site do something in its agent's process."""
        site = self.sites.get(name)
        if site is None:
            return

        async def tried() -> None:
            with suppress(WardroundError):
                await work(site)

        site.spawn(tried())
        self.settle()

    def settle(self) -> None:
        self.loop.run_ready()
        self.bury()

    # Time

    def advance(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        end = self.clock.elapsed_s + seconds
        while True:
            due = self.loop.next_timer_s()
            if due is None or due > end:
                break
            self.clock.elapsed_s = max(self.clock.elapsed_s, due)
            self.settle()
        self.clock.elapsed_s = end
        self.settle()

    def live(self, *, trains: bool = True) -> bool:
        """One go of ordinary life: the drivers as far as they get, each site once; whether anything happened."""
        before = self.fingerprint()
        for second in (False, True):
            if second and self.second is None:
                continue
            for _ in range(50):
                if not self.drive(second=second):
                    break
        for name in self.scenario.names:
            site = self.sites.get(name)
            if site is None:
                continue
            if trains:
                site.trainer.finish()
                self.settle()
            self.turn(name)
        return self.fingerprint() != before

    def rest(self, *, for_s: float) -> None:
        """Let everybody live until the run is over, or so much time has passed."""
        end = self.clock.elapsed_s + for_s
        step_s, n_idle = 1.0, 0
        for _ in range(_REST_TICKS):
            if self.live():
                step_s, n_idle = 1.0, 0
                continue
            n_idle += 1
            # Whoever waits before it tries again has its time to hear that the run is over.
            if self.clock.elapsed_s >= end or (self.is_over() and n_idle > 5 and not self.is_anybody_at_work()):
                return
            self.advance(step_s)
            step_s = min(step_s * 2, 30.0)

    def is_anybody_at_work(self) -> bool:
        """Whether a site's turn is not over: it waits to try something again."""
        at_work = {name for name, site in self.sites.items() if site is not None and site.is_at_work}
        return bool(at_work - self.network.polling)

    def heal(self) -> None:
        """Everything that can be mended is: lines, disks, processes, switches. Nobody's word is taken back."""
        self.is_mended = True
        self.full_disks.clear()
        for faults in self.network.faults.values():
            faults.clear()
        for events in self.network.stalled.values():
            for event in events:
                event.set()
        self.network.stalled.clear()
        for alive in (self.coordinator, self.second, *self.sites.values()):
            if alive is not None:
                alive.process.is_disk_full = False
                alive.process.dies_in = None
        self.settle()
        self.start_coordinator()
        for name in self.scenario.names:
            self.start_site(name)
            self.as_site(name, lambda site: site.pause(is_on=False))
            self.as_site(name, lambda site: site.tell_statements())
            self.change_site(name, SiteChange.RESUME)
        self.change_run(RunChange.RESUME)

    def pass_audit_window(self) -> None:
        self.advance(AUDIT_WINDOW_S + 60)
        self.sweep()

    # What is seen from outside

    def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self.eyes.execute(query, values).fetchall()

    def ask_site(self, name: str, query: str) -> list[tuple[Any, ...]]:
        """What a site has written down."""
        with closing(sqlite3.connect(self.folder / "sites" / name / "site.db", isolation_level=None)) as eyes:
            return eyes.execute(query).fetchall()

    def run_state(self) -> str:
        return str(self.ask("SELECT state FROM runs")[0][0])

    def is_over(self) -> bool:
        return self.run_state() in _TERMINAL and not self.ask("SELECT 1 FROM outbox WHERE done_at IS NULL")

    def says(self) -> str:
        """What the run says that it waits for."""
        db = Database(coordinator_process.engine_at(self.folder / "coordinator" / "coordinator.db"))
        return db.read("say", lambda session: waiting_for(session, session.get_one(Run, RUN_ID), self.clock.now()))

    def phase(self) -> str:
        """Where the newest round is: its state, or its exchange's while that is open."""
        rounds = self.ask("SELECT round_index, round_attempt, state FROM rounds ORDER BY 1 DESC, 2 DESC LIMIT 1")
        if not rounds:
            return "NONE"
        index, attempt, state = rounds[0]
        if state != "EXCHANGING":
            return str(state)
        query = (
            "SELECT state FROM exchanges WHERE round_index = ? AND round_attempt = ?"
            " ORDER BY exchange_attempt DESC LIMIT 1"
        )
        found = self.ask(query, index, attempt)
        return str(found[0][0]) if found else "EXCHANGING"

    def fingerprint(self) -> tuple[object, ...]:
        """Whether anything moved: what everybody has written down."""
        coordinator = self.ask(
            "SELECT (SELECT max(id) FROM events), (SELECT count(*) FROM audit_events), (SELECT state FROM runs),"
            " (SELECT count(*) FROM outbox WHERE done_at IS NOT NULL), (SELECT count(*) FROM exchange_messages),"
            " (SELECT group_concat(state) FROM participations)"
        )
        return (coordinator[0], tuple(self._written(name) for name in self.scenario.names))

    def _written(self, name: str) -> object:
        site = self.sites.get(name)
        return None if site is None else site.db.n_commits
