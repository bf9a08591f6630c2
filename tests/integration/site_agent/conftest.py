"""Whole site agents around a coordinator in memory: real journals, books, roles and folds; no network, no trainer.

The coordinator speaks by byte strings as the real one does, and remembers everything it received. A site can be made
to die at any call, before the call arrives or after; it is then started again over the same files.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fl_protocol.clock import Clock, SystemClock
from fl_protocol.codec.chunks import CHUNK_BYTES, ChunkTreeBuilder
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.codec.sums import decode_sums
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import RunId, SiteId
from fl_protocol.packing import pack, u64
from fl_protocol.secagg import coordinator_role
from fl_protocol.secagg.coordinator_role import ExchangeOpen
from fl_protocol.secagg.masking import add_into, apply_masks
from fl_protocol.secagg.messages import StatementKind
from fl_protocol.secagg.reexecution import MaskedChunk
from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.spec.context import ExchangeContext, RoundContext
from fl_protocol.spec.round_spec import NO_DIGEST, RoundKind, RoundManifest
from fl_protocol.spec.run_spec import RunSpec, bind_adapter, parse_run_spec, resolve_run_spec
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.testing.run_specs import run_spec_document
from site_agent.audit.own_tree import OwnTree
from site_agent.audit.store import AuditLog
from site_agent.db.models import RunLedgerRow
from site_agent.db.tx import SiteDb, open_site_db
from site_agent.errors import CoordinatorUnavailableError
from site_agent.jobs.job_dir import (
    DeviceChoice,
)
from site_agent.link import instructions as asked
from site_agent.link.backoff import Backoff, BackoffPlan
from site_agent.link.client import AuditConsistency, OwnLogProof, ShownChunk, SumEvidenceAnswer
from site_agent.link.instructions import Instruction
from site_agent.link.uploader import Upload
from site_agent.session.events import DeclineKind, Step
from site_agent.state.coordinator_log import CoordinatorLog
from site_agent.state.journal import Journal
from site_agent.state.public_state import PublicStateStore
from site_agent.state.round_book import RoundBook
from site_agent.supervision.assignments import AssignmentLoop
from site_agent.supervision.log_witness import LogWitness
from site_agent.supervision.seams import JobOptions, SiteSeams, SystemEntropy
from site_agent.supervision.status_board import StatusBoard
from tests.support.agent_fakes import LAYOUT, FakeJudge, FakeRunner
from tests.support.leaf_log import LeafLog

RUN_ID = RunId("run-" + "b" * 26)


class SiteDiedError(BaseException):
    """The power went: nothing of the agent's memory is left."""


def make_run(
    site_ids: Sequence[SiteId], *, rounds: int, changes: Mapping[str, object] | None = None
) -> tuple[RunSpec, PublicState]:
    """A small run over these sites and its initial state."""
    state = PublicState(version=0, adapter=LAYOUT.unflatten(np.linspace(-1, 1, 12, dtype=np.float32)))
    keys = {"cohort.sites": list(site_ids), "cohort.quorum": 3, "rounds": rounds, "privacy.clip_norm": 1.0}
    keys |= {"adapter.rank": 2, "adapter.targets": ["m"], **(changes or {})}
    pins = {site: spki_fingerprint(seeded_signer(site).spki_der) for site in site_ids}
    spec = resolve_run_spec(parse_run_spec(run_spec_document(keys)), pins)
    return bind_adapter(spec, layout_sha256=LAYOUT.digest(), initial_sha256=state.digest()), state


@dataclass
class FakeCoordinator:
    """Rounds and exchanges as the real one runs them, when everybody is there."""

    spec: RunSpec
    state: PublicState
    site_ids: tuple[SiteId, ...]
    signer: object = field(default_factory=lambda: seeded_signer("coordinator"))
    round_index: int = 0
    round_attempt: int = 0
    exchange_attempt: int = 0
    previous_result: str = NO_DIGEST
    manifest: SignedBody | None = None
    accepted: set[SiteId] = field(default_factory=set)
    ready: set[SiteId] = field(default_factory=set)
    declined: list[tuple[SiteId, DeclineKind, str]] = field(default_factory=list)
    progress: list[tuple[SiteId, str, int, int]] = field(default_factory=list)
    said: dict[tuple[Step, bytes, SiteId], set[bytes]] = field(default_factory=dict)
    uploads: dict[SiteId, RingVector] = field(default_factory=dict)
    frozen: dict[str, object] = field(default_factory=dict)
    acknowledged: dict[int, dict[SiteId, bytes]] = field(default_factory=dict)
    results: dict[int, tuple[SignedBody, asked.PublishedResult]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    abandons: list[RoundContext] = field(default_factory=list)
    complaints: list[tuple[SiteId, bytes]] = field(default_factory=list)
    holds_back: type[object] | None = None
    evidence: dict[int, bytes] = field(default_factory=dict)
    masked: dict[int, dict[SiteId, RingVector]] = field(default_factory=dict)
    falsifies: Callable[[RingVector], None] = field(default=lambda _: None)
    chunks_asked: list[tuple[SiteId, int, SiteId, int]] = field(default_factory=list)
    log: LeafLog = field(default_factory=LeafLog)

    def __post_init__(self) -> None:
        self.blobs[self.state.digest()] = self.state.to_bytes()
        self.open_round()

    @property
    def kind(self) -> RoundKind:
        return RoundKind.EVALUATE if self.round_index == self.spec.rounds else RoundKind.TRAIN

    @property
    def round(self) -> RoundContext:
        return RoundContext(run_id=RUN_ID, round_index=self.round_index, round_attempt=self.round_attempt)

    @property
    def context(self) -> ExchangeContext:
        return ExchangeContext(
            run_id=RUN_ID,
            round_index=self.round_index,
            round_attempt=self.round_attempt,
            exchange_index=0,
            exchange_attempt=self.exchange_attempt,
        )

    def make_manifest(self, **changes: object) -> SignedBody:
        layout = ALGORITHMS["fedavg-lora"].segments(self.spec, LAYOUT, self.kind)
        fields: dict[str, object] = {
            "run_id": RUN_ID,
            "round_index": self.round_index,
            "round_attempt": self.round_attempt,
            "kind": self.kind,
            "suite": "SA1",
            "run_spec_sha256": self.spec.digest(),
            "public_state_sha256": self.state.digest(),
            "public_state_version": self.state.version,
            "previous_result_sha256": self.previous_result,
            "payload_layout_sha256": layout.digest(),
            "min_cohort": 3,
            "audit_window_s": self.spec.secure_aggregation.audit_window_s,
            "opened_at": "2026-01-02T03:04:05+00:00",
            "audit_size": len(self.log.leaves),
            "audit_head": self.log.head(),
        }
        body = RoundManifest(**{**fields, **changes})  # type: ignore[arg-type]
        return sign_body(self.signer, StatementKind.M0.value, body.encode())  # type: ignore[arg-type]

    def open_round(self) -> None:
        self.log.grow()
        self.manifest = self.make_manifest()
        self.accepted, self.ready, self.exchange_attempt = set(), set(), 0
        self.open_exchange(0)

    def open_exchange(self, attempt: int) -> None:
        assert self.manifest is not None
        self.exchange_attempt, self.frozen, self.uploads = attempt, {}, {}
        self.opened = ExchangeOpen(
            manifest=self.manifest,
            exchange_index=0,
            exchange_attempt=attempt,
            layout=ALGORITHMS["fedavg-lora"].segments(self.spec, LAYOUT, self.kind),
            params=SecAggParams(),
            roster=self.spec.cohort.pins,
        )

    opened: ExchangeOpen = field(init=False)

    def messages(self, step: Step) -> dict[SiteId, bytes]:
        found = {}
        for site in self.site_ids:
            said = self.said.get((step, self.context.encode(), site), set())
            assert len(said) <= 1, f"{site} said two different {step.value} in one exchange"
            if said and (step is not Step.MASK or site in self.uploads):
                found[site] = next(iter(said))
        return found

    def hear(self, step: Step, context: ExchangeContext, site: SiteId, message: bytes) -> None:
        self.said.setdefault((step, context.encode(), site), set()).add(message)
        assert len(self.said[step, context.encode(), site]) == 1, f"{site} said two different {step.value}"

    def instruction(self, site: SiteId, holding: Sequence[RoundContext]) -> Instruction:
        for held in holding:
            if held in self.abandons:
                return asked.AbandonRound(round=held, reason="aborted")
        for index, (_, published) in self.results.items():
            if site not in self.acknowledged.setdefault(index, {}):
                return published
        if self.done.is_set():
            return asked.Idle(retry_after_s=0.0)
        if len(self.ready) < len(self.site_ids):
            if site in self.ready or self.round in holding:
                return asked.Idle(retry_after_s=0.0)
            assert self.manifest is not None
            return asked.TrainRound(round=self.round, manifest=self.manifest)
        instruction = self.exchange_instruction(site)
        return asked.Idle(retry_after_s=0.0) if type(instruction) is self.holds_back else instruction

    def exchange_instruction(self, site: SiteId) -> Instruction:  # noqa: PLR0911 - one a phase
        everybody = set(self.site_ids)
        if site not in self.messages(Step.ADVERTISE):
            return asked.OpenExchange(exchange=self.context)
        if set(self.messages(Step.ADVERTISE)) != everybody:
            return asked.Idle(retry_after_s=0.0)
        if "cohort" not in self.frozen:
            self.frozen["cohort"] = coordinator_role.freeze_cohort(self.opened, self.messages(Step.ADVERTISE))
        cohort = self.frozen["cohort"]
        if site not in self.messages(Step.SHARE):
            return asked.RelayKeys(exchange=self.context, message=coordinator_role.make_m2(cohort))  # type: ignore[arg-type]
        if set(self.messages(Step.SHARE)) != everybody:
            return asked.Idle(retry_after_s=0.0)
        if "sharers" not in self.frozen:
            self.frozen["sharers"] = coordinator_role.freeze_sharers(cohort, self.messages(Step.SHARE))  # type: ignore[arg-type]
        sharers = self.frozen["sharers"]
        if site not in self.uploads:
            return asked.RelayShares(exchange=self.context, message=coordinator_role.make_m4(sharers, site))  # type: ignore[arg-type]
        if set(self.uploads) != everybody:
            return asked.Idle(retry_after_s=0.0)
        if "survivors" not in self.frozen:
            self.frozen["survivors"] = coordinator_role.freeze_survivors(sharers, self.messages(Step.MASK))  # type: ignore[arg-type]
        survivors = self.frozen["survivors"]
        if site not in self.messages(Step.CONFIRM):
            return asked.RelaySurvivors(exchange=self.context, message=coordinator_role.make_m6(survivors))  # type: ignore[arg-type]
        if set(self.messages(Step.CONFIRM)) != everybody:
            return asked.Idle(retry_after_s=0.0)
        if site not in self.messages(Step.REVEAL):
            m8 = coordinator_role.make_m8(survivors, self.messages(Step.CONFIRM))  # type: ignore[arg-type]
            return asked.RelayConfirmations(exchange=self.context, message=m8)
        if set(self.messages(Step.REVEAL)) == everybody:
            self.commit()
        return asked.Idle(retry_after_s=0.0)

    def commit(self) -> None:
        survivors = self.frozen["survivors"]
        reveals, confirmations = self.messages(Step.REVEAL), self.messages(Step.CONFIRM)
        layout = self.opened.layout
        total = RingVector.zeros(layout.n_ring32, layout.n_ring64)
        for upload in self.uploads.values():
            add_into(total, upload)
        apply_masks(total, coordinator_role.recover_mask_terms(survivors, reveals))  # type: ignore[arg-type]
        self.falsifies(total)
        data = total.to_bytes()
        digest = hashlib.sha256(data)
        self.blobs[digest.hexdigest()] = data
        m10 = coordinator_role.make_m10(
            survivors,  # type: ignore[arg-type]
            self.signer,  # type: ignore[arg-type]
            result_sha256=digest.digest(),
            transcript_root=coordinator_role.transcript_root(survivors, confirmations, reveals),  # type: ignore[arg-type]
        )
        self.evidence[self.round_index] = coordinator_role.make_sum_evidence(survivors, reveals)  # type: ignore[arg-type]
        self.masked[self.round_index] = {site: upload.copy() for site, upload in self.uploads.items()}
        assert self.manifest is not None
        published = asked.PublishedResult(
            exchange=self.context, message=m10, sum_blob_sha256=digest.hexdigest(), sum_bytes=len(data)
        )
        self.results[self.round_index] = (self.manifest, published)
        sums = decode_sums(total, layout)
        fold = ALGORITHMS["fedavg-lora"].fold(sums, self.state, spec=self.spec, layout=LAYOUT, kind=self.kind)
        self.state = fold.state
        self.previous_result = hashlib.sha256(m10).hexdigest()
        if self.kind is RoundKind.EVALUATE:
            self.done.set()
            return
        self.round_index += 1
        self.round_attempt = 0
        self.open_round()

    def sum_evidence(self, site: SiteId, round_index: int) -> SumEvidenceAnswer:
        return SumEvidenceAnswer(evidence=self.evidence[round_index])

    def masked_chunk(self, site: SiteId, round_index: int, of_site: SiteId, chunk_index: int) -> MaskedChunk:
        self.chunks_asked.append((site, round_index, of_site, chunk_index))
        tree, chunks = ChunkTreeBuilder(), []
        for chunk in self.masked[round_index][of_site].iter_chunks(CHUNK_BYTES):
            tree.add(chunk)
            chunks.append(bytes(chunk))
        return MaskedChunk(data=chunks[chunk_index], path=tree.path(chunk_index))

    def masked_window(self, site: SiteId, round_index: int, chunks: range) -> Iterator[ShownChunk]:
        for of_site in sorted(self.masked[round_index]):
            for index in chunks:
                chunk = self.masked_chunk(site, round_index, of_site, index)
                yield ShownChunk(site_id=of_site, chunk_index=index, chunk=chunk)


class FakeClient:
    """One site's calls. Dies, or hears nothing, where it is told: at a call of a name, before or after it arrives."""

    def __init__(self, coordinator: FakeCoordinator, site: SiteId) -> None:
        self.coordinator = coordinator
        self.site = site
        self.dies_at: tuple[str, bool] | None = None
        self.hears_nothing_at: tuple[str, bool] | None = None

    def _call(self, name: str, arrive: Callable[[], None]) -> None:
        if self.hears_nothing_at is not None and self.hears_nothing_at[0] == name:
            (_, has_arrived), self.hears_nothing_at = self.hears_nothing_at, None
            if has_arrived:
                arrive()
            raise CoordinatorUnavailableError("no answer in time", call=name)
        dies = self.dies_at is not None and self.dies_at[0] == name
        if dies and self.dies_at is not None and not self.dies_at[1]:
            self.dies_at = None
            raise SiteDiedError
        arrive()
        if dies:
            self.dies_at = None
            raise SiteDiedError

    async def poll_assignment(self, *, holding: Sequence[RoundContext], wait_s: float) -> Instruction:
        return self.coordinator.instruction(self.site, holding)

    async def accept_round(self, round_context: RoundContext) -> None:
        self._call("accept", lambda: self.coordinator.accepted.add(self.site))

    async def decline_round(self, round_context: RoundContext, kind: DeclineKind, *, reason: str) -> None:
        self._call("decline", lambda: self.coordinator.declined.append((self.site, kind, reason)))

    async def report_progress(self, round_context: RoundContext, activity: str, *, step: int, steps: int) -> None:
        self.coordinator.progress.append((self.site, activity, step, steps))

    async def report_ready(self, round_context: RoundContext) -> None:
        def arrive() -> None:
            if round_context == self.coordinator.round:
                self.coordinator.ready.add(self.site)

        self._call("ready", arrive)

    async def get_audit_consistency(self, ranges: tuple[tuple[int, int], ...]) -> AuditConsistency:
        return self.coordinator.log.prove(ranges)

    async def send_statement(
        self, step: Step, context: ExchangeContext, *, message: bytes, own_log: OwnLogProof | None = None
    ) -> None:
        self._call(step.value, lambda: self.coordinator.hear(step, context, self.site, message))

    async def complain(self, context: ExchangeContext, *, complaint: bytes) -> None:
        self._call("complain", lambda: self.coordinator.complaints.append((self.site, complaint)))

    async def acknowledge_result(self, context: ExchangeContext, *, acknowledgement: SignedBody) -> None:
        def arrive() -> None:
            self.coordinator.acknowledged[context.round_index][self.site] = acknowledgement.body

        self._call("acknowledge", arrive)

    async def get_result(self, run_id: RunId, round_index: int) -> tuple[SignedBody, asked.PublishedResult]:
        return self.coordinator.results[round_index]

    async def get_sum_evidence(self, run_id: RunId, round_index: int) -> SumEvidenceAnswer:
        return self.coordinator.sum_evidence(self.site, round_index)

    async def get_masked_window(
        self, run_id: RunId, round_index: int, *, of_sites: Sequence[SiteId], chunks: range
    ) -> AsyncGenerator[ShownChunk, None]:
        for shown in self.coordinator.masked_window(self.site, round_index, chunks):
            yield shown

    # The uploader's and the downloader's part.

    async def upload(self, upload: Upload) -> SignedBody:
        def arrive() -> None:
            self.coordinator.hear(Step.MASK, upload.context, self.site, upload.header)
            layout = self.coordinator.opened.layout
            data = upload.path.read_bytes()[: upload.n_bytes]
            vector = RingVector.from_bytes(data, n32=layout.n_ring32, n64=layout.n_ring64)
            known = self.coordinator.uploads.setdefault(self.site, vector)
            assert known.equals(vector), f"{self.site} sent two masked inputs in one exchange"

        self._call("M5", arrive)
        return SignedBody(body=pack(u64(0)), signature=b"x")

    async def download(self, run_id: RunId, sha256: str, *, max_bytes: int) -> bytes:
        data = self.coordinator.blobs[sha256]
        assert len(data) <= max_bytes
        return data


class Site:
    """One agent's files and, while it is up, its loop."""

    def __init__(self, folder: Path, coordinator: FakeCoordinator, site_id: SiteId) -> None:
        folder.mkdir()
        self.folder = folder
        self.site_id = site_id
        self.coordinator = coordinator
        self.client = FakeClient(coordinator, site_id)
        self.runner = FakeRunner()
        self.clock: Clock = SystemClock()
        self.n_deaths = 0
        self.db: SiteDb | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self._ledger()

    def _ledger(self) -> None:
        spec = self.coordinator.spec
        row = RunLedgerRow(
            run_id=RUN_ID,
            name="run",
            state="approved",
            reason=None,
            run_spec_sha256=spec.digest(),
            run_spec_json=spec.canonical_bytes(),
            layout_json=LAYOUT.canonical_bytes(),
            initial_state_sha256=spec.adapter.initial_sha256,
            first_seen_at="2026-01-02T03:04:05.000000Z",
        )
        db = open_site_db(self.folder / "site.db")
        db.run_tx("approve", lambda session: session.add(row))
        db.close()

    def _known(self, db: SiteDb, audit: AuditLog) -> CoordinatorLog:
        spki = seeded_signer("coordinator").spki_der
        return CoordinatorLog(self.folder / "coordinator_log.json", coordinator_spki=spki, db=db, audit=audit)

    def note_restored(self, statement: SignedBody) -> None:
        db = open_site_db(self.folder / "site.db")
        audit = AuditLog(seeded_signer(self.site_id), SystemClock(), f"site:{self.site_id}")
        self._known(db, audit).note_restored(statement)
        db.close()

    def seams(self) -> SiteSeams:
        clock, entropy = self.clock, SystemEntropy()
        signer = seeded_signer(self.site_id)
        self.db = open_site_db(self.folder / "site.db")
        audit = AuditLog(signer, clock, f"site:{self.site_id}")
        self.board = StatusBoard(self.folder / "status.json", self.site_id, clock)
        (self.folder / "base").mkdir(exist_ok=True)
        return SiteSeams(
            site_id=self.site_id,
            signer=signer,
            coordinator_spki=seeded_signer("coordinator").spki_der,
            clock=clock,
            entropy=entropy,
            db=self.db,
            audit=audit,
            journal=Journal(self.folder / "journal", entropy=entropy),
            book=RoundBook(self.db, audit, clock),
            states=PublicStateStore(self.folder / "states", self.db, clock),
            client=self.client,  # type: ignore[arg-type]
            witness=LogWitness(
                self.client,
                self._known(self.db, audit),
                OwnTree(self.db),
            ),
            uploader=self.client,  # type: ignore[arg-type]
            downloader=self.client,  # type: ignore[arg-type]
            runner=self.runner,
            judge=FakeJudge(self.folder),
            jobs=JobOptions(
                jobs_dir=self.folder / "jobs",
                private_states_dir=self.folder / "private",
                base_models={"smollm2-135m-instruct": self.folder / "base"},
                threads=2,
                device=DeviceChoice.AUTO,
                timeout_s=60.0,
            ),
            board=self.board,
            spawn=self._spawn,
        )

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await work
            except SiteDiedError as died:
                self.died.set_exception(died)

        task = asyncio.create_task(guarded())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        # As the daemon's: what was cancelled before it began is no forgotten coroutine.
        task.add_done_callback(lambda _: work.close())
        return task

    def loop(self) -> AssignmentLoop:
        return AssignmentLoop(self.seams(), backoff=Backoff(lambda: 0.0, BackoffPlan(first_s=0.01, longest_s=0.05)))

    async def live(self) -> None:
        """Run until cancelled; after each death, start again over the same files."""
        while True:
            self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            loop = self.loop()
            running = asyncio.create_task(self._run(loop))
            try:
                await asyncio.wait({running, self.died}, return_when=asyncio.FIRST_COMPLETED)
                if self.died.done():
                    self.died.exception()
                    self.n_deaths += 1
                    continue
                await running
            finally:
                for task in (running, *self.tasks):
                    task.cancel()
                await asyncio.gather(running, *self.tasks, return_exceptions=True)
                self.died.cancel()
                if self.db is not None:
                    self.db.close()

    async def _run(self, loop: AssignmentLoop) -> None:
        try:
            await loop.restore()
            self._spawn(loop.watch())
            await loop.run()
        except SiteDiedError as died:
            if not self.died.done():
                self.died.set_exception(died)


class AgentFederation:
    """A coordinator and its sites."""

    def __init__(
        self, folder: Path, *, n_sites: int = 3, rounds: int = 1, changes: Mapping[str, object] | None = None
    ) -> None:
        site_ids = tuple(SiteId(name) for name in ("alpha", "beta", "gamma", "delta", "epsilon")[:n_sites])
        spec, state = make_run(site_ids, rounds=rounds, changes=changes)
        self.coordinator = FakeCoordinator(spec=spec, state=state, site_ids=site_ids)
        self.sites = {site: Site(folder / site, self.coordinator, site) for site in site_ids}

    async def run(self, until: Callable[[], bool], *, timeout_s: float = 40.0) -> None:
        """Let all sites live until something is true."""
        tasks = [asyncio.create_task(site.live()) for site in self.sites.values()]
        try:
            async with asyncio.timeout(timeout_s):
                while not until():
                    for task in tasks:
                        if task.done():
                            task.result()
                    await asyncio.sleep(0.02)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def run_to_the_end(self) -> None:
        """Until every site acknowledged every result."""
        coordinator = self.coordinator

        def is_over() -> bool:
            n_rounds = coordinator.spec.rounds + 1
            everybody = len(coordinator.site_ids)
            acknowledged = coordinator.acknowledged
            return len(acknowledged) == n_rounds and all(len(sites) == everybody for sites in acknowledged.values())

        await self.run(is_over)


@pytest.fixture
def federation_of(tmp_path: Path) -> Callable[..., AgentFederation]:
    """Makes a federation: ``federation_of(n_sites=3, rounds=1)``."""
    return lambda **options: AgentFederation(tmp_path, **options)
