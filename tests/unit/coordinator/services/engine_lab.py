"""A coordinator's engine and its sites in one process: real database, blobs and roles; no network and no sleep."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from sqlalchemy import event
from sqlalchemy.orm import Session

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.db.models import Approval, Base, Exchange, Participation, Round, Run, Site
from coordinator.db.rounds import participations_of
from coordinator.db.tx import Database
from coordinator.driver.round_driver import DriverSettings, RoundDriver
from coordinator.rounds.instructions import RoundRef
from coordinator.services.accept_advertisement import accept_advertisement
from coordinator.services.accept_complaint import accept_complaint
from coordinator.services.accept_confirmation import accept_confirmation
from coordinator.services.accept_reveal import accept_reveal
from coordinator.services.accept_round import DeclineKind, accept_round, decline_round
from coordinator.services.accept_shares import accept_shares
from coordinator.services.accept_upload import accept_upload, query_upload
from coordinator.services.acknowledge_result import ACKNOWLEDGEMENT_KIND, acknowledge_result
from coordinator.services.context import EngineContext
from coordinator.services.describe_run import waiting_for
from coordinator.services.get_result import download_blob, get_result
from coordinator.services.poll_instruction import poll_instruction
from coordinator.services.receive_upload import BlobPart
from coordinator.services.report_progress import SiteActivity, report_progress, report_ready
from coordinator.services.site_instructions import (
    AbandonRound,
    Idle,
    Instruction,
    OpenExchange,
    PublishedResult,
    RelayConfirmations,
    RelayKeys,
    RelayShares,
    RelaySurvivors,
    TrainRound,
)
from coordinator.services.wakeups import Wakeups
from fl_protocol.codec.fixed_point import encode_payload
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.codec.sums import decode_sums
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import RunId, SiteId
from fl_protocol.packing import pack, u32
from fl_protocol.secagg.messages import AuditHeads
from fl_protocol.secagg.reading import PeerVerifier
from fl_protocol.secagg.reasons import SecAggRefusedError
from fl_protocol.secagg.site_role import SiteRole
from fl_protocol.secagg.site_role.phases import SitePhase
from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.round_spec import RoundKind, RoundManifest
from fl_protocol.spec.run_spec import RunSpec, bind_adapter, parse_run_spec, resolve_run_spec
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.testing.entropy import SeededEntropy, SeededSealer, seeded_signer
from fl_protocol.testing.run_specs import run_spec_document

RUN_ID = RunId("run-" + "b" * 26)
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
EXCHANGE_PHASES = (OpenExchange, RelayKeys, RelayShares, RelaySurvivors, RelayConfirmations)
"""What a site is asked for in an exchange, in order: a phase is that of what is asked."""
ADAPTER = AdapterLayout(
    kind="lora",
    tensors=(
        TensorSpec(name="base_model.model.q_proj.lora_A.weight", shape=(2, 5)),
        TensorSpec(name="base_model.model.q_proj.lora_B.weight", shape=(5, 2)),
    ),
    peft_config={"peft_type": "LORA", "r": 2},
)
COORDINATOR = seeded_signer("coordinator")


class SetClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = START

    def now(self) -> datetime:
        return self.at

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


def initial_state() -> PublicState:
    rng = np.random.default_rng(5)
    return PublicState(
        version=0,
        adapter={spec.name: rng.normal(size=spec.shape).astype(np.float32) for spec in ADAPTER.tensors},
    )


def run_spec(
    names: Sequence[str],
    *,
    quorum: int = 3,
    rounds: int = 1,
    enough: int | None = None,
    phase_deadline_s: float = 600,
    changes: Mapping[str, object] | None = None,
) -> RunSpec:
    document = run_spec_document(
        {
            "cohort.sites": list(names),
            "cohort.quorum": quorum,
            "cohort.enough": enough,
            "cohort.phase_deadline_s": phase_deadline_s,
            "rounds": rounds,
            "local.steps": 2,
            "local.max_length": 32,
            "privacy.clip_norm": 1.0,
            **(changes or {}),
        }
    )
    resolved = resolve_run_spec(
        parse_run_spec(document), {SiteId(n): spki_fingerprint(seeded_signer(n).spki_der) for n in names}
    )
    return bind_adapter(resolved, layout_sha256=ADAPTER.digest(), initial_sha256=initial_state().digest())


async def parts_of(data: bytes, *, offset: int = 0, size: int = 64) -> AsyncIterator[BlobPart]:
    for start in range(offset, len(data), size):
        yield BlobPart(offset=start, data=data[start : start + size])


@dataclass(slots=True, kw_only=True)
class LabSite:
    """An honest site, that keeps its promises and its secrets; a test makes it silent or worse."""

    site_id: SiteId
    lab: EngineLab
    state: PublicState = field(default_factory=initial_state)
    silent: set[type[Instruction]] = field(default_factory=set)
    holding: set[RoundRef] = field(default_factory=set)
    manifests: dict[RoundRef, SignedBody] = field(default_factory=dict)
    roles: dict[ExchangeContext, SiteRole] = field(default_factory=dict)
    uploads: dict[ExchangeContext, bytes] = field(default_factory=dict)
    last: Instruction | None = None
    heads: AuditHeads = field(default_factory=AuditHeads)
    is_lost: bool = False
    """Whether its network is down: it says nothing and hears nothing."""
    told: list[AbandonRound] = field(default_factory=list)
    adds: Callable[[dict[str, np.ndarray], PublicState], None] = field(default=lambda _raw, _state: None)
    """What the run's algorithm asks for besides, of a training round that starts from this state."""
    evaluates: Callable[[dict[str, np.ndarray], RoundRef], None] = field(default=lambda _raw, _ref: None)
    """What the run's metrics ask for besides, and other losses, of a round."""

    @property
    def n_records(self) -> int:
        return 10 + 7 * self.lab.names.index(self.site_id)

    def raw(self, ref: RoundRef, kind: RoundKind) -> dict[str, np.ndarray]:
        seed = int.from_bytes(hashlib.sha256(f"{self.site_id}/{ref}".encode()).digest()[:8], "big")
        rng = np.random.default_rng(seed)
        evaluated = {
            "eval_loss_sum": rng.uniform(10, 20, 1),
            "eval_tokens": np.array([11], np.int64),
            "eval_records": np.array([3], np.int64),
        }
        self.evaluates(evaluated, ref)
        if kind is RoundKind.EVALUATE:
            return evaluated
        raw = {
            "adapter_update": (rng.normal(size=ADAPTER.n_parameters) * 0.05).astype(np.float32),
            "train_loss_sum": rng.uniform(10, 20, 1),
            "train_tokens": np.array([40], np.int64),
            **evaluated,
        }
        self.adds(raw, self.state)
        return raw

    def payload(self, ref: RoundRef) -> tuple[dict[str, np.ndarray], PayloadLayout]:
        kind = RoundManifest.decode(self.manifests[ref].body).kind
        algorithm = ALGORITHMS[self.lab.spec.aggregation.algorithm]
        layout = algorithm.segments(self.lab.spec, ADAPTER, kind)
        raw = self.raw(ref, kind)
        return algorithm.weigh(raw, n_records=self.n_records, spec=self.lab.spec, layout=ADAPTER, kind=kind), layout

    async def turn(self) -> bool:
        """Ask what to do and do it; whether anything was done."""
        if self.is_lost:
            return False
        found = await poll_instruction(self.lab.ctx, site_id=self.site_id, holding=sorted(self.holding), wait_s=0.0)
        self.last = found
        if isinstance(found, Idle) or type(found) in self.silent:
            return False
        await self.follow(found)
        return True

    async def follow(self, found: Instruction) -> None:
        ctx, me = self.lab.ctx, self.site_id
        match found:
            case TrainRound(round=ref, manifest=manifest):
                self.manifests[ref] = manifest
                self.holding.add(ref)
                await self.catch_up(RoundManifest.decode(manifest.body).public_state_version)
                assert RoundManifest.decode(manifest.body).public_state_sha256 == self.state.digest()
                await accept_round(ctx, site_id=me, round=ref)
                await report_progress(ctx, site_id=me, round=ref, activity=SiteActivity.TRAINING, step=1, steps=2)
                await report_ready(ctx, site_id=me, round=ref)
            case OpenExchange(exchange=context) if self.ref(context) not in self.holding:
                # What was abandoned was deleted, as a site does.
                await decline_round(
                    ctx, site_id=me, round=self.ref(context), kind=DeclineKind.FAILED, reason="payload-lost"
                )
            case OpenExchange(exchange=context):
                await accept_advertisement(ctx, site_id=me, exchange=context, m1=self.role(context).advertise())
            case RelayKeys(exchange=context, m2=m2):
                await accept_shares(ctx, site_id=me, exchange=context, m3=self.role(context).share(m2))
            case RelayShares(exchange=context, m4=m4):
                await self.upload(context, m4)
            case RelaySurvivors(exchange=context, m6=m6):
                await accept_confirmation(ctx, site_id=me, exchange=context, m7=self.role(context).confirm(m6))
            case RelayConfirmations(exchange=context, m8=m8):
                await accept_reveal(ctx, site_id=me, exchange=context, m9=self.role(context).reveal(m8))
            case PublishedResult():
                await self.take_result(found)
            case AbandonRound(round=ref):
                self.told.append(found)
                self.holding.discard(ref)

    async def upload(self, context: ExchangeContext, m4: bytes) -> None:
        if self.mask(context, m4):
            message = self.role(context).last_message
            assert message is not None
            await self.send_upload(context, m5=message)
        else:
            complaint = self.role(context).last_message
            assert complaint is not None
            await accept_complaint(self.lab.ctx, site_id=self.site_id, exchange=context, complaint=complaint)

    def mask(self, context: ExchangeContext, m4: bytes) -> bool:
        """Open the shares and mask the payload; False where a dealer was bad."""
        role = self.role(context)
        if context in self.uploads:
            return True
        try:
            role.accept_shares(m4)
        except SecAggRefusedError:
            assert role.phase is SitePhase.COMPLAINED
            return False
        values, layout = self.payload(self.ref(context))
        masked = role.mask(encode_payload(values, layout))
        self.uploads[context] = masked.vector.to_bytes()
        return True

    async def send_upload(self, context: ExchangeContext, *, m5: bytes) -> SignedBody:
        status = await query_upload(self.lab.ctx, site_id=self.site_id, exchange=context)
        return await accept_upload(
            self.lab.ctx,
            site_id=self.site_id,
            exchange=context,
            m5=m5,
            offset=status.received_bytes,
            parts=parts_of(self.uploads[context], offset=status.received_bytes),
        )

    async def take_result(self, result: PublishedResult) -> None:
        context = result.exchange
        if self.role(context).phase in {SitePhase.CONFIRMED, SitePhase.REVEALED}:
            said = self.role(context).finish(result.m10)
            assert said.result_sha256.hex() == result.sum_blob_sha256
            assert len(self.role(context).survivors) == self.lab.n_counted(context)
        self.fold(await self.fetch_sum(result), context)
        body = pack(
            context.run_id.encode(),
            u32(context.round_index),
            hashlib.sha256(result.m10).digest(),
            bytes.fromhex(self.state.digest()),
        )
        signed = sign_body(seeded_signer(self.site_id), ACKNOWLEDGEMENT_KIND, body)
        await acknowledge_result(self.lab.ctx, site_id=self.site_id, exchange=context, acknowledgement=signed)
        self.holding.discard(self.ref(context))

    async def fetch_sum(self, result: PublishedResult) -> bytes:
        stream = download_blob(
            self.lab.ctx, site_id=self.site_id, run_id=RUN_ID, sha256=result.sum_blob_sha256, offset=0
        )
        data = b"".join([part.data async for part in stream])
        assert hashlib.sha256(data).hexdigest() == result.sum_blob_sha256
        return data

    async def catch_up(self, version: int) -> None:
        """Fetch and fold the results of rounds that this site was not in."""
        while self.state.version < version:
            found = await get_result(self.lab.ctx, site_id=self.site_id, run_id=RUN_ID, round_index=self.state.version)
            context = found.result.exchange
            self.manifests[self.ref(context)] = found.manifest
            self.fold(await self.fetch_sum(found.result), context)

    def fold(self, data: bytes, context: ExchangeContext) -> None:
        n_sites = self.lab.n_counted(context)
        _, layout = self.payload(self.ref(context))
        kind = RoundManifest.decode(self.manifests[self.ref(context)].body).kind
        vector = RingVector.from_bytes(data, n32=layout.n_ring32, n64=layout.n_ring64)
        sums = decode_sums(vector, layout, n_sites=n_sites)
        algorithm = ALGORITHMS[self.lab.spec.aggregation.algorithm]
        self.state = algorithm.fold(
            sums, self.state, spec=self.lab.spec, layout=ADAPTER, kind=kind, n_sites=n_sites
        ).state

    def role(self, context: ExchangeContext) -> SiteRole:
        if context not in self.roles:
            _, layout = self.payload(self.ref(context))
            self.roles[context] = SiteRole.open(
                site_id=self.site_id,
                context=context,
                manifest=self.manifests[self.ref(context)],
                coordinator_spki=COORDINATOR.spki_der,
                layout=layout,
                params=SecAggParams(),
                peers=PeerVerifier(approved=self.lab.spec.cohort.pins),
                signer=seeded_signer(self.site_id),
                entropy=SeededEntropy(f"{self.site_id}/{context}"),
                sealer=SeededSealer(),
                heads=self.heads,
            )
        return self.roles[context]

    @staticmethod
    def ref(context: ExchangeContext) -> RoundRef:
        return RoundRef(run_id=context.run_id, round_index=context.round_index, round_attempt=context.round_attempt)


def _file_database(path: Path) -> Database:
    database = Database.from_path(path)
    # No power is cut here, and the migrations have tests of their own.
    event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    Base.metadata.create_all(database.engine)
    return database


class EngineLab:
    """One coordinator, its sites, one run that all of them have approved and that is ACTIVE's next."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        quorum: int = 3,
        rounds: int = 1,
        database: Database | None = None,
        enough: int | None = None,
        phase_deadline_s: float = 600,
        changes: Mapping[str, object] | None = None,
    ) -> None:
        self.names = tuple(names)
        self.spec = run_spec(
            names, quorum=quorum, rounds=rounds, enough=enough, phase_deadline_s=phase_deadline_s, changes=changes
        )
        self.clock = SetClock()
        self.db = database or _file_database(folder / "coordinator.db")
        self.ctx = EngineContext(
            db=self.db,
            blobs=FilesystemBlobStore(folder / "blobs"),
            clock=self.clock,
            signer=COORDINATOR,
            wakeups=Wakeups(),
            origin="wardround://coordinator/lab",
            n_threads=2,
        )
        self.sites = {SiteId(name): LabSite(site_id=SiteId(name), lab=self) for name in names}
        self.released: list[RunId] = []
        self.driver = self.new_driver()
        blob = self.ctx.blobs.put_bytes(initial_state().to_bytes())
        self.db.run_tx("set-up", lambda session: self._fill(session, blob.sha256))

    def _fill(self, session: object, blob_sha256: str) -> None:
        add = session.add  # type: ignore[attr-defined]
        for name in self.names:
            spki = seeded_signer(name).spki_der
            add(
                Site(
                    site_id=name,
                    state="ENROLLED",
                    signing_spki=spki,
                    signing_key_sha256=spki_fingerprint(spki),
                    created_at=START,
                    enrolled_at=START,
                )
            )
        add(
            Run(
                run_id=RUN_ID,
                name=self.spec.name,
                state="AWAITING_SITES",
                run_spec_json=self.spec.canonical_bytes(),
                run_spec_sha256=self.spec.digest(),
                layout_json=json.dumps(ADAPTER.to_document()).encode(),
                layout_blob_sha256=ADAPTER.digest(),
                initial_blob_sha256=blob_sha256,
                public_state_version=0,
                public_state_sha256=initial_state().digest(),
                public_state_blob_sha256=blob_sha256,
                next_round_index=0,
                next_round_attempt=0,
                created_by="user:lead",
                created_at=START,
            )
        )
        session.flush()  # type: ignore[attr-defined]
        for name in self.names:
            add(
                Approval(
                    run_id=RUN_ID,
                    site_id=name,
                    decision="approved",
                    statement_body=b"yes",
                    statement_signature=b"",
                    at=START,
                )
            )

    def new_driver(self) -> RoundDriver:
        """Another driver, as after a restart."""
        return RoundDriver(self.ctx, create_release=self._release, settings=DriverSettings())

    async def _release(self, run_id: RunId) -> None:
        self.released.append(run_id)

    def restart_driver(self) -> None:
        """Kill the driver: the next one waits for the lease to run out, and knows nothing but the database."""
        self.clock.advance(5.1)
        self.ctx = EngineContext(
            db=self.db,
            blobs=self.ctx.blobs,
            clock=self.clock,
            signer=COORDINATOR,
            wakeups=Wakeups(),
            origin=self.ctx.origin,
            n_threads=1,
        )
        self.driver = self.new_driver()

    async def settle(self, *, until: Callable[[], bool] | None = None, restart_each_step: bool = False) -> None:
        """Let driver and sites act until nobody has anything to do, or ``until`` holds."""
        for _ in range(400):
            moved = False
            while await self.driver.step(RUN_ID):
                moved = True
                if restart_each_step:
                    self.restart_driver()
                if until is not None and until():
                    return
            for site in self.sites.values():
                moved |= await site.turn()
                if until is not None and until():
                    return
            # That a site asked may be what the run waited for.
            if not moved and not await self.driver.step(RUN_ID):
                return
        raise AssertionError("the engine does not come to rest")

    async def live(self, seconds: float, *, step_s: float = 20, until: Callable[[], bool] | None = None) -> None:
        """Let time pass as it does: everybody acts, again and again."""
        end = self.clock.at + timedelta(seconds=seconds)
        while self.clock.at < end:
            await self.settle(until=until)
            if until is not None and until():
                return
            self.clock.advance(step_s)
        await self.settle(until=until)

    async def settle_until(self, kind: type[Instruction]) -> dict[SiteId, Instruction]:
        """Let everybody act, but nobody follow an instruction of this kind; returns what they were asked."""
        for site in self.sites.values():
            site.silent.add(kind)
        await self.settle()
        for site in self.sites.values():
            site.silent.discard(kind)
        return {name: site.last for name, site in self.sites.items() if isinstance(site.last, kind)}

    # What people do

    def set_site(self, name: str, state: str) -> None:
        """Suspend, resume or revoke a site."""
        self.db.run_tx("set-site", lambda session: setattr(session.get(Site, name), "state", state))

    def set_run(self, state: str) -> None:
        """Pause, resume or cancel the run."""
        self.db.run_tx("set-run", lambda session: setattr(session.get(Run, RUN_ID), "state", state))

    def set_approval(self, name: str, decision: str) -> None:
        """Let a site say something else of the run."""
        self.db.run_tx(
            "set-approval", lambda session: setattr(session.get(Approval, (RUN_ID, name)), "decision", decision)
        )

    # What the database says

    def says(self) -> str:
        """What the run waits for."""
        return self.db.read("say", lambda session: waiting_for(session, self.run(), self.clock.at))

    def exchange(self, index: int = 0, attempt: int = 0, exchange_attempt: int = 0) -> Exchange | None:
        key = (RUN_ID, index, attempt, 0, exchange_attempt)
        return self.db.read("exchange", lambda session: session.get(Exchange, key))

    def invited(self, index: int = 0, attempt: int = 0) -> tuple[str, ...]:
        def read(session: Session) -> tuple[str, ...]:
            row = session.get(Round, (RUN_ID, index, attempt))
            return () if row is None else tuple(participations_of(session, row))

        return self.db.read("invited", read)

    def run(self) -> Run:
        return self.db.read("run", lambda session: session.get(Run, RUN_ID))  # type: ignore[return-value]

    def round(self, index: int = 0, attempt: int = 0) -> Round:
        return self.db.read("round", lambda session: session.get(Round, (RUN_ID, index, attempt)))  # type: ignore[return-value]

    def participation(self, name: str, index: int = 0, attempt: int = 0) -> Participation:
        key = (RUN_ID, index, attempt, name)
        return self.db.read("part", lambda session: session.get(Participation, key))  # type: ignore[return-value]

    def n_counted(self, context: ExchangeContext) -> int:
        """How many sites the sum of an exchange holds."""
        exchange = self.exchange(context.round_index, context.round_attempt, context.exchange_attempt)
        assert exchange is not None
        return len(exchange.u3 or ())

    def states(self, index: int = 0, attempt: int = 0) -> dict[str, str]:
        return {name: self.participation(name, index, attempt).state for name in self.names}
