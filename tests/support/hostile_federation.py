"""Real site agents over a real link to a hostile coordinator, and what a test asks of them afterwards.

A site's journal, book, audit log, client, uploader and downloader are the real ones, over mutual TLS on loopback; only
its trainer computes nothing. A test waits for what the site recorded: a coordinator that is refused offers its lie
again for ever, and a defence that fails is found by the time-out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import grpc.aio
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.ca.authority import GATEWAY_SERVER_NAME
from fl_protocol.audit.events import event_from_bytes
from fl_protocol.ids import RunId, Sha256Hex, SiteId
from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.testing.entropy import seeded_signer
from site_agent.db.models import AuditEventRow, DatasetRow, PublicStateRow, RunLedgerRow
from site_agent.db.tx import open_site_db
from site_agent.enrolment.identity_file import SiteIdentity
from site_agent.link.backoff import Backoff, BackoffPlan
from site_agent.link.channel import open_channel
from site_agent.link.client import CoordinatorClient
from site_agent.link.downloader import Downloader
from site_agent.link.uploader import Uploader
from site_agent.supervision.approval_loop import ApprovalLoop
from site_agent.supervision.assignments import AssignmentLoop
from site_agent.supervision.judgement import Judge, PolicyJudge
from site_agent.supervision.policy_desk import PolicyDesk
from site_agent.supervision.seams import SiteSeams
from tests.integration.site_agent.conftest import AgentFederation, Site, make_run
from tests.support.agent_fakes import DATA_SHA256, FakeJudge
from tests.support.gateway import Gateway
from tests.support.hostile_coordinator import HostileCoordinator, RoundWire, RunWire

LONGEST_S = 20.0
"""As long as an attack may go on before its test fails; each takes a second or two."""

SITES = ("alpha", "beta", "gamma", "delta", "epsilon", "eta")
AuditEntry = tuple[str, Mapping[str, object]]


class WireSite(Site):
    """One agent's files and, while it is up, its loop and its connection."""

    def __init__(
        self, folder: Path, coordinator: HostileCoordinator, site_id: SiteId, *, gateway: Gateway[RoundWire]
    ) -> None:
        super().__init__(folder, coordinator, site_id)
        self.judge: Judge = FakeJudge(self.folder)
        self._gateway = gateway
        self._channel: grpc.aio.Channel | None = None

    def _ledger(self) -> None:
        self.approve(self.coordinator)  # type: ignore[arg-type]  # it is one

    def approve(self, coordinator: HostileCoordinator) -> None:
        """As if the steward had: a row of the ledger. (``test_approvals`` goes the whole way.)"""
        spec = coordinator.spec
        row = RunLedgerRow(
            run_id=coordinator.run_id,
            name="run",
            state="approved",
            reason=None,
            run_spec_sha256=spec.digest(),
            run_spec_json=spec.canonical_bytes(),
            layout_json=coordinator.layout_json,
            initial_state_sha256=spec.adapter.initial_sha256,
            first_seen_at="2026-01-02T03:04:05.000000Z",
        )
        db = open_site_db(self.folder / "site.db")
        db.run_tx("approve", lambda session: session.merge(row))
        db.close()

    def seams(self) -> SiteSeams:
        self._channel = open_channel(self._gateway.grpc_address, self._gateway.pki.site(self.site_id))
        client = CoordinatorClient(self._channel, agent_version="test")
        self.client = client  # type: ignore[assignment]  # what the site of the memory has in its place
        backoff = Backoff(lambda: 0.0, BackoffPlan(first_s=0.01, longest_s=0.05))
        spki = seeded_signer("coordinator").spki_der
        return replace(
            super().seams(),
            judge=self.judge,
            uploader=Uploader(client, coordinator_spki=spki, backoff=backoff),
            downloader=Downloader(client, backoff=backoff, folder=self.folder / "downloads"),
        )

    async def live(self) -> None:
        try:
            await super().live()
        finally:
            if self._channel is not None:
                await self._channel.close()

    def audit(self) -> list[AuditEntry]:
        """Kind and facts of everything that the site recorded, in order."""

        def read(session: Session) -> list[AuditEntry]:
            rows = session.scalars(select(AuditEventRow.body).order_by(AuditEventRow.seq))
            recorded = [event_from_bytes(bytes(row)).event for row in rows]
            return [(event.kind.value, dict(event.facts)) for event in recorded]

        db = open_site_db(self.folder / "site.db")
        try:
            return db.run_read("audit", read)
        finally:
            db.close()

    def has_recorded(self, kind: str, **facts: object) -> bool:
        return any(found == kind and facts.items() <= said.items() for found, said in self.audit())

    def newest_version(self, run_id: RunId) -> int:
        """The last public state of the run that the site computed itself; -1 where there is none."""

        def read(session: Session) -> int:
            versions = session.scalars(select(PublicStateRow.version).where(PublicStateRow.run_id == run_id))
            return max(versions, default=-1)

        db = open_site_db(self.folder / "site.db")
        try:
            return db.run_read("newest", read)
        finally:
            db.close()


class ApprovingSite(WireSite):
    """Sees runs, judges them by a policy and sends its word, as the daemon does. At first nothing is approved."""

    policy: ClassVar[Mapping[str, object]] = {
        "tasks": ["instruction-tuning"],
        "base_models": ["sha256:" + "ab" * 32],
        "adapters": {"kinds": ["lora"], "max_rank": 8},
        "datasets": {"medical-qa": {"purposes": ["any"]}},
        "secure_aggregation": {"min_cohort": 3},
        "privacy": {"without_dp": "allowed"},
        "egress": {"max_bytes_per_round": 1_000_000},
        "approval": "automatic",
    }

    def _ledger(self) -> None:
        """A register with the dataset, a policy, the keys of the peers; and an empty ledger."""
        self.write_policy()
        self.peers: dict[str, str] = {
            name: spki_fingerprint(seeded_signer(name).spki_der) for name in SITES if name != self.site_id
        }
        (self.folder / "data.jsonl").touch()
        row = DatasetRow(
            name="medical-qa",
            path=str(self.folder / "data.jsonl"),
            format="jsonl",
            purposes_json='["any"]',
            description=None,
            sha256=DATA_SHA256,
            n_records=200,
            n_patients=200,
            registered_at="2026-01-02T03:04:05.000000Z",
            registered_by="steward",
            withdrawn_at=None,
        )
        db = open_site_db(self.folder / "site.db")
        db.run_tx("register", lambda session: session.add(row))
        db.close()

    def write_policy(self, **changes: object) -> None:
        (self.folder / "policy.yaml").write_text(json.dumps({**self.policy, **changes}))

    def identity(self) -> SiteIdentity:
        signer = seeded_signer(self.site_id)
        return SiteIdentity(
            site_id=self.site_id,
            gateway_address=self._gateway.grpc_address,
            gateway_server_name=GATEWAY_SERVER_NAME,
            signing_key_sha256=spki_fingerprint(signer.spki_der),
            coordinator_signing_spki=seeded_signer("coordinator").spki_der,
            certificate_pem=b"",
            root_pem=self._gateway.pki.root_pem,
            root_sha256=Sha256Hex("ab" * 32),
            enrolled_at=datetime(2026, 1, 2, tzinfo=UTC),
        )

    def seams(self) -> SiteSeams:
        seams = super().seams()
        policies = PolicyDesk(self.folder / "policy.yaml", db=seams.db, audit=seams.audit)
        judge = PolicyJudge(
            seams.db,
            seams.audit,
            policies=policies,
            identity=self.identity(),
            peers=lambda: self.peers,
            clock=seams.clock,
        )
        self._approvals = ApprovalLoop(seams, policies=policies, identity=self.identity(), peers=lambda: self.peers)
        return replace(seams, judge=judge)

    def loop(self) -> AssignmentLoop:
        loop = super().loop()
        self._spawn(self._approvals.run())
        return loop

    def state_of(self, run_id: RunId) -> str | None:
        """What the site's ledger says of a run; None where it knows of none."""
        db = open_site_db(self.folder / "site.db")
        try:
            return db.run_read(
                "run", lambda session: session.scalar(select(RunLedgerRow.state).where(RunLedgerRow.run_id == run_id))
            )
        finally:
            db.close()


class HostileFederation(AgentFederation):
    """A hostile coordinator behind a gateway, and its sites."""

    def __init__(
        self,
        folder: Path,
        gateway: Gateway[RoundWire],
        runs: RunWire,
        *,
        n_sites: int = 3,
        in_run: int | None = None,
        rounds: int = 1,
        site_of: type[WireSite] = WireSite,
    ) -> None:
        """``in_run`` of the sites are in the run; by default all."""
        self.folder = folder
        self.gateway = gateway
        self.runs = runs
        self.coordinators: list[HostileCoordinator] = []
        site_ids = tuple(SiteId(name) for name in SITES[:n_sites])
        roster = site_ids[:in_run]
        spec, state = make_run(roster, rounds=rounds)
        self.attack_with(HostileCoordinator(spec=spec, state=state, site_ids=roster))
        self.sites = {site: site_of(folder / site, self.coordinator, site, gateway=gateway) for site in site_ids}

    def attack_with(self, coordinator: HostileCoordinator) -> None:
        """This one answers from now on; what the ones before it heard is held against the sites as well."""
        self.coordinator = coordinator
        self.coordinators.append(coordinator)
        self.gateway.servicer.coordinator = coordinator

    def leave(self, *names: str) -> None:
        """These sites are up no more."""
        for name in names:
            del self.sites[SiteId(name)]

    async def run(self, until: Callable[[], bool], *, timeout_s: float = LONGEST_S) -> None:
        await super().run(until, timeout_s=timeout_s)

    async def run_until_recorded(self, kind: str, *, by: Collection[str] = (), **facts: object) -> None:
        """Until each of these sites, or every one, has an audit entry of the kind with these facts."""
        sites = [self.sites[SiteId(name)] for name in by] or list(self.sites.values())
        await self.run(lambda: all(site.has_recorded(kind, **facts) for site in sites))

    async def run_until_declined(self, reason: str, *, by: Collection[str] = ()) -> None:
        """Until these sites told the coordinator the reason and recorded that they are out of the round for it."""
        names = set(by or self.sites)

        def has_declined() -> bool:
            said = {site for site, _, found in self.coordinator.declined if found == reason}
            sites = [self.sites[SiteId(name)] for name in names]
            return names <= said and all(site.has_recorded("participation.state", reason=reason) for site in sites)

        # In one life of the agents: the word goes to the coordinator before it is recorded.
        await self.run(has_declined)

    async def run_on(self, *, n_polls: int = 8) -> None:
        """Let every site ask that many times more: what it does not do by then, it does not do."""
        before = {site: len(self.shown_to(site)) for site in self.sites}
        await self.run(lambda: all(len(self.shown_to(site)) >= before[site] + n_polls for site in self.sites))

    def shown_to(self, site: SiteId) -> list[object]:
        return [instruction for to, instruction in self.coordinator.shown if to == site]

    def leaks(self) -> list[str]:
        return [leak for coordinator in self.coordinators for leak in coordinator.leaks()]


HostileFederationOf = Callable[..., HostileFederation]
"""Makes one: ``federation_of(n_sites=3, rounds=1)``."""
