"""The heads of the sites' own logs, as M1 brings them: held where they are proven, recorded where they are not."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.models import AuditRow, SiteLogHead
from coordinator.errors import AuditLogShorterError, InvalidMessageError
from coordinator.services.accept_advertisement import OwnLogProof, accept_advertisement
from coordinator.services.prove_audit import LogRange, prove_audit
from coordinator.services.site_instructions import OpenExchange
from fl_protocol.audit.chain import TreeHead, verify_consistency
from fl_protocol.audit.events import AuditEvent, AuditKind, event_from_bytes
from fl_protocol.codec.merkle import consistency_path, root_from_leaf_hashes
from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.secagg.messages import AuditHeads, KeyAdvertisement
from fl_protocol.signing.signed import SignedBody, verify_body
from fl_protocol.testing.entropy import seeded_signer

MakeLab = Callable[..., Any]
A = SiteId("a-site")
LEAVES = [hashlib.sha256(f"row {number}".encode()).digest() for number in range(40)]
OTHERS = [hashlib.sha256(f"other row {number}".encode()).digest() for number in range(40)]


def heads(leaves: list[bytes]) -> AuditHeads:
    return AuditHeads(size=len(leaves), head=root_from_leaf_hashes(leaves))


def proof(leaves: list[bytes], held_size: int) -> OwnLogProof:
    """As an honest site with these rows proves that it had ``held_size`` of them before."""
    older, newer = sorted((held_size, len(leaves)))
    return OwnLogProof(held_size=held_size, proof=consistency_path(LEAVES[:newer], older))


def events_of(lab: Any, kind: AuditKind) -> list[AuditEvent]:
    def read(session: Session) -> list[bytes]:
        return list(session.scalars(select(AuditRow.body).where(AuditRow.kind == kind.value).order_by(AuditRow.seq)))

    return [event_from_bytes(body).event for body in lab.ctx.db.read("events", read)]


def held(lab: Any) -> tuple[int, str] | None:
    row = lab.ctx.db.read("held", lambda session: session.get(SiteLogHead, A))
    return None if row is None else (row.size, row.head)


class Attempts:
    """One M1 of one site after another, each in an attempt at the exchange of its own."""

    def __init__(self, lab: Any) -> None:
        self.lab = lab
        self.n_said = 0

    async def say(self, leaves: list[bytes], own_log: OwnLogProof) -> str:
        lab = self.lab
        # Every M1 needs a round that asks for it.
        site = lab.sites[A]
        if self.n_said:
            lab.sites[A].silent.clear()
            await lab.settle(until=lambda: lab.run().next_round_index == self.n_said)
        asked = await lab.settle_until(OpenExchange)
        self.n_said += 1
        context = asked[A].exchange
        site.heads = heads(leaves)
        await accept_advertisement(
            lab.ctx, site_id=A, exchange=context, m1=site.role(context).advertise(), own_log=own_log
        )
        said = [event for event in events_of(lab, AuditKind.KEYS_ADVERTISED) if event.facts["site_id"] == A][-1]
        assert said.facts["log_size"] == len(leaves)
        assert said.facts["log_head"] == root_from_leaf_hashes(leaves).hex()
        signed = SignedBody.decode(base64.b64decode(str(said.facts["statement"])))
        m1 = KeyAdvertisement.decode(verify_body(seeded_signer(A).spki_der, "SA1/sig/M1", signed))
        assert m1.heads.size == len(leaves)
        return str(said.facts["log_standing"])


async def test_first_head_is_held_and_a_proven_one_takes_its_place(make_lab: MakeLab) -> None:
    lab = make_lab(rounds=2)
    attempts = Attempts(lab)
    assert await attempts.say(LEAVES[:5], OwnLogProof()) == "first"
    assert held(lab) == (5, root_from_leaf_hashes(LEAVES[:5]).hex())
    assert await attempts.say(LEAVES[:17], proof(LEAVES[:17], 5)) == "proven"
    assert held(lab) == (17, root_from_leaf_hashes(LEAVES[:17]).hex())
    assert events_of(lab, AuditKind.HISTORY_FORKED) == []


@pytest.mark.parametrize(
    ("leaves", "own_log", "standing"),
    [
        # An earlier M1 that comes late is no fork, if it is shown to be part of what is held.
        (LEAVES[:3], proof(LEAVES[:3], 5), "proven"),
        (LEAVES[:5], OwnLogProof(), "proven"),
        # A site of before 0.2, and one that proves from a head that is not held.
        (LEAVES[:17], OwnLogProof(), "unproven"),
        (LEAVES[:17], proof(LEAVES[:17], 4), "unproven"),
        (LEAVES[:17], OwnLogProof(held_size=5), "unproven"),
    ],
)
async def test_head_that_is_not_longer_or_not_proven_leaves_what_is_held(
    make_lab: MakeLab, leaves: list[bytes], own_log: OwnLogProof, standing: str
) -> None:
    lab = make_lab(rounds=2)
    attempts = Attempts(lab)
    await attempts.say(LEAVES[:5], OwnLogProof())
    assert await attempts.say(leaves, own_log) == standing
    assert held(lab) == (5, root_from_leaf_hashes(LEAVES[:5]).hex())
    assert events_of(lab, AuditKind.HISTORY_FORKED) == []


@pytest.mark.parametrize(
    ("leaves", "own_log"),
    [
        (OTHERS[:5], OwnLogProof()),
        (OTHERS[:17], proof(LEAVES[:17], 5)),
        ([*LEAVES[:4], *OTHERS[:13]], proof(LEAVES[:17], 5)),
        (OTHERS[:3], proof(LEAVES[:3], 5)),
    ],
)
async def test_head_of_another_history_is_recorded_with_both_statements_and_the_site_goes_on(
    make_lab: MakeLab, leaves: list[bytes], own_log: OwnLogProof
) -> None:
    lab = make_lab(rounds=2)
    attempts = Attempts(lab)
    await attempts.say(LEAVES[:5], OwnLogProof())
    assert await attempts.say(leaves, own_log) == "forked"
    assert held(lab) == (5, root_from_leaf_hashes(LEAVES[:5]).hex())
    (fork,) = events_of(lab, AuditKind.HISTORY_FORKED)
    said = {}
    for name in ("statement", "held_statement"):
        signed = SignedBody.decode(base64.b64decode(str(fork.facts[name])))
        m1 = KeyAdvertisement.decode(verify_body(seeded_signer(A).spki_der, "SA1/sig/M1", signed))
        said[name] = (m1.heads.size, m1.heads.head)
    # The site signed both, so that nobody has to believe the coordinator.
    assert said == {
        "held_statement": (5, root_from_leaf_hashes(LEAVES[:5])),
        "statement": (len(leaves), root_from_leaf_hashes(leaves)),
    }
    lab.sites[A].silent.clear()
    await lab.settle(until=lambda: lab.run().next_round_index == 2)


async def test_proof_of_the_coordinator_s_own_log_is_right_and_names_what_is_held(make_lab: MakeLab) -> None:
    lab = make_lab(rounds=2)
    await Attempts(lab).say(LEAVES[:5], OwnLogProof())
    rows = lab.ctx.db.read("rows", lambda session: list(session.scalars(select(AuditRow).order_by(AuditRow.seq))))
    leaves = [hashlib.sha256(b"\x00" + row.body).digest() for row in rows]
    assert len(leaves) > 8
    ranges = [LogRange(from_size=old, to_size=new) for old, new in ((1, 7), (3, len(leaves)), (4, 4))]
    found = await prove_audit(lab.ctx, A, ranges)
    assert (found.held_size, found.held_head) == (5, root_from_leaf_hashes(LEAVES[:5]))
    for asked, nodes in zip(ranges, found.proofs, strict=True):
        older, newer = (
            TreeHead(size=size, root=Sha256Hex(root_from_leaf_hashes(leaves[:size]).hex()))
            for size in (asked.from_size, asked.to_size)
        )
        verify_consistency(older, newer, [node.hex() for node in nodes])


async def test_proof_that_cannot_be_given_is_refused_by_name(make_lab: MakeLab) -> None:
    lab = make_lab()
    with pytest.raises(AuditLogShorterError):
        await prove_audit(lab.ctx, A, [LogRange(from_size=1, to_size=10_000)])
    with pytest.raises(InvalidMessageError):
        await prove_audit(lab.ctx, A, [LogRange(from_size=2, to_size=1)])
    with pytest.raises(InvalidMessageError):
        await prove_audit(lab.ctx, A, [LogRange(from_size=0, to_size=0)] * 5)
