"""What a site does with what the coordinator holds under its name, and with answers that are none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from fl_protocol.audit.chain import TreeHead, verify_consistency
from fl_protocol.audit.events import AuditKind, event_from_bytes
from fl_protocol.clock import SystemClock
from fl_protocol.codec.merkle import root_from_leaf_hashes
from fl_protocol.ids import RunId, Sha256Hex, SiteId
from fl_protocol.secagg.messages import AuditHeads, KeyAdvertisement
from fl_protocol.signing.signed import sign_body
from fl_protocol.spec.round_spec import NO_DIGEST, RoundKind, RoundManifest
from fl_protocol.testing.entropy import seeded_signer
from site_agent.audit.own_tree import OwnTree
from site_agent.audit.store import AuditLog
from site_agent.db.models import AuditEventRow
from site_agent.db.tx import SiteDb, open_site_db
from site_agent.link.client import AuditConsistency
from site_agent.state.coordinator_log import CoordinatorLog
from site_agent.supervision.log_witness import LogWitness

SITE, COORDINATOR = seeded_signer("a"), seeded_signer("coordinator")


class Coordinator:
    """Holds a head of the site's log, and proves nothing since nothing was seen."""

    def __init__(self) -> None:
        self.held: TreeHead | None = None

    async def get_audit_consistency(self, ranges: tuple[tuple[int, int], ...]) -> AuditConsistency:
        assert ranges == ()
        return AuditConsistency(proofs=(), held=self.held)


class Site:
    """A site's log, and its witness."""

    def __init__(self, folder: Path, db: SiteDb) -> None:
        self.db, self.audit = db, AuditLog(SITE, SystemClock(), "site:a")
        self.known = CoordinatorLog(
            folder / "seen.json", coordinator_spki=COORDINATOR.spki_der, db=db, audit=self.audit
        )
        self.coordinator = Coordinator()
        self.witness = LogWitness(self.coordinator, self.known, OwnTree(db))

    def append(self, n_rows: int) -> None:
        for _ in range(n_rows):
            self.db.run_tx("append", lambda session: self.audit.append(session, AuditKind.POLICY_LOADED))

    def bodies(self) -> list[bytes]:
        return self.db.run_read(
            "bodies", lambda s: list(s.scalars(select(AuditEventRow.body).order_by(AuditEventRow.seq)))
        )

    def head(self, size: int) -> TreeHead:
        """By the definition, from the rows."""
        leaves = [hashlib.sha256(b"\x00" + body).digest() for body in self.bodies()[:size]]
        return TreeHead(size=size, root=Sha256Hex(root_from_leaf_hashes(leaves).hex()))

    async def join(self) -> None:
        manifest = RoundManifest(
            run_id=RunId("run-" + "b" * 26),
            round_index=0,
            round_attempt=0,
            kind=RoundKind.TRAIN,
            suite="SA1",
            run_spec_sha256=NO_DIGEST,
            public_state_sha256=NO_DIGEST,
            public_state_version=0,
            previous_result_sha256=NO_DIGEST,
            payload_layout_sha256=NO_DIGEST,
            min_cohort=3,
            audit_window_s=1,
            opened_at="2026-01-02T03:04:05+00:00",
            audit_size=0,
            audit_head=NO_DIGEST,
        )
        await self.witness.check(manifest, sign_body(COORDINATOR, "SA1/sig/M0", manifest.encode()))

    def m1(self, size: int) -> bytes:
        head = self.head(size)
        body: dict[str, Any] = dict.fromkeys(("h_manifest", "mask_key", "transport_key", "b_commitment"), bytes(32))
        heads = AuditHeads(size=head.size, head=bytes.fromhex(head.root))
        said = KeyAdvertisement(site=SiteId("a"), spki_der=SITE.spki_der, heads=heads, **body)
        return sign_body(SITE, "SA1/sig/M1", said.encode()).encode()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    db = open_site_db(tmp_path / "site.db")
    yield Site(tmp_path, db)
    db.close()


@pytest.mark.parametrize(("held", "stated"), [(3, 9), (9, 9), (9, 3)])
async def test_own_log_is_proven_between_what_is_held_and_what_m1_states(site: Site, held: int, stated: int) -> None:
    site.append(9)
    site.coordinator.held = site.head(held)
    await site.join()
    proof = await site.witness.prove_own(site.m1(stated))
    assert proof is not None
    assert proof.held_size == held
    older, newer = sorted((site.head(held), site.head(stated)), key=lambda head: head.size)
    verify_consistency(older, newer, [node.hex() for node in proof.proof])


async def test_nothing_is_proven_where_it_is_not_known_what_is_held(site: Site) -> None:
    site.append(4)
    assert await site.witness.prove_own(site.m1(4)) is None
    await site.join()
    assert await site.witness.prove_own(site.m1(4)) is None


@pytest.mark.parametrize("size", [3, 50])
async def test_head_under_this_site_s_name_that_is_not_in_its_log_is_recorded_once(site: Site, size: int) -> None:
    site.append(9)
    for number in range(3):
        site.coordinator.held = TreeHead(size=size, root=Sha256Hex(f"{number:064x}"))
        await site.join()
        assert await site.witness.prove_own(site.m1(9)) is None
    events = [event_from_bytes(body).event for body in site.bodies()]
    (fork,) = [event for event in events if event.kind is AuditKind.HISTORY_FORKED]
    assert fork.facts["log"] == "own"
    assert fork.facts["held_size"] == size
