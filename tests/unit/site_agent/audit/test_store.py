from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditEventInvalidError, AuditKind
from fl_protocol.audit.verify import AuditFault, AuditFaultReason, AuditVerified
from fl_protocol.packing import pack
from fl_protocol.pki.keys import generate_private_key
from fl_protocol.signing.keys import EcdsaSigner, verify_signature
from site_agent.audit.export import export_log
from site_agent.audit.store import AuditLog, AuditLogDamagedError, audit_head, read_log, verify_site_log
from site_agent.db.tx import SiteDb, open_site_db

ORIGIN = "site:st-mary"


def append(db: SiteDb, audit: AuditLog, n_events: int) -> None:
    for number in range(n_events):
        db.run_tx("event", lambda s, n=number: audit.append(s, AuditKind.PROCESS_STARTED, "agent", number=n))


def tamper(db: SiteDb, path: Path, statement: str) -> None:
    db.close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


def merkle_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, written down again."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + merkle_root(leaves[:split]) + merkle_root(leaves[split:])).digest()


@pytest.mark.parametrize("n_events", [0, 1, 2, 3, 70])
def test_append_gives_the_head_of_rfc_6962(n_events: int, site_db: SiteDb, audit_log: AuditLog) -> None:
    append(site_db, audit_log, n_events)
    head = site_db.run_read("head", audit_head)
    bodies = [row.body for row in site_db.run_read("read", read_log).rows]
    assert (head.size, head.root) == (n_events, merkle_root(bodies).hex())
    assert [json.loads(body)["facts"]["number"] for body in bodies] == list(range(n_events))


def test_verify_whole_log_tells_size_and_head(site_db: SiteDb, audit_log: AuditLog, signer: EcdsaSigner) -> None:
    append(site_db, audit_log, 5)
    head = site_db.run_read("head", audit_head)
    verdict = verify_site_log(site_db, signer.spki_der, origin=ORIGIN)
    assert verdict == AuditVerified(size=5, head=head.root, n_unsigned=0)


def test_append_keeps_every_64th_checkpoint_and_the_last(site_db: SiteDb, audit_log: AuditLog) -> None:
    append(site_db, audit_log, 130)
    checkpoints = site_db.run_read("read", read_log).checkpoints
    assert [json.loads(signed.body)["size"] for signed in checkpoints] == [64, 128, 130]


@pytest.mark.parametrize(
    ("statement", "seq", "reason"),
    [
        ("UPDATE audit_events SET body = replace(body, 'agent', 'nobody') WHERE seq = 2", 2, AuditFaultReason.ALTERED),
        ("UPDATE audit_events SET leaf_sha256 = 7 WHERE seq = 1", 1, AuditFaultReason.ALTERED),
        ("UPDATE audit_events SET body = 3.5 WHERE seq = 0", 0, AuditFaultReason.ALTERED),
        ("UPDATE audit_checkpoints SET body = 'text'", 0, AuditFaultReason.CHECKPOINT_SIGNATURE),
        ("DELETE FROM audit_events WHERE seq = 2", 2, AuditFaultReason.DROPPED),
        ("DELETE FROM audit_events WHERE seq = 4", 4, AuditFaultReason.TRUNCATED),
        (
            "UPDATE audit_checkpoints SET signature = x'3006020101020101' WHERE size = 5",
            0,
            AuditFaultReason.CHECKPOINT_SIGNATURE,
        ),
        ("DELETE FROM audit_checkpoints", 0, AuditFaultReason.INSERTED),
        ("DELETE FROM audit_tip", 0, AuditFaultReason.INSERTED),
    ],
)
def test_verify_tampered_log_names_the_row(
    statement: str,
    seq: int,
    reason: AuditFaultReason,
    site_db: SiteDb,
    audit_log: AuditLog,
    signer: EcdsaSigner,
    tmp_path: Path,
) -> None:
    append(site_db, audit_log, 5)
    tamper(site_db, tmp_path / "site.db", statement)
    assert verify_site_log(site_db, signer.spki_der, origin=ORIGIN) == AuditFault(seq=seq, reason=reason)


def test_verify_last_rows_and_their_checkpoint_deleted_is_truncated(
    site_db: SiteDb, audit_log: AuditLog, signer: EcdsaSigner, tmp_path: Path
) -> None:
    append(site_db, audit_log, 66)
    tamper(site_db, tmp_path / "site.db", "DELETE FROM audit_events WHERE seq >= 64")
    tamper(site_db, tmp_path / "site.db", "DELETE FROM audit_checkpoints WHERE size > 64")
    verdict = verify_site_log(site_db, signer.spki_der, origin=ORIGIN)
    assert verdict == AuditFault(seq=64, reason=AuditFaultReason.TRUNCATED)


def test_verify_with_another_sites_key_is_a_fault(site_db: SiteDb, audit_log: AuditLog) -> None:
    append(site_db, audit_log, 2)
    other = EcdsaSigner(generate_private_key())
    verdict = verify_site_log(site_db, other.spki_der, origin=ORIGIN)
    assert verdict == AuditFault(seq=0, reason=AuditFaultReason.CHECKPOINT_SIGNATURE)


def test_append_in_a_failed_transaction_leaves_no_gap(
    site_db: SiteDb, audit_log: AuditLog, signer: EcdsaSigner
) -> None:
    append(site_db, audit_log, 1)

    def fail(session: Session) -> None:
        audit_log.append(session, AuditKind.PROCESS_STARTED)
        message = "after the record"
        raise RuntimeError(message)

    with pytest.raises(RuntimeError):
        site_db.run_tx("fail", fail)
    append(site_db, audit_log, 1)
    assert isinstance(verify_site_log(site_db, signer.spki_der, origin=ORIGIN), AuditVerified)
    assert site_db.run_read("head", audit_head).size == 2


def test_append_twice_in_one_transaction_and_from_two_handles_stays_one_chain(
    site_db: SiteDb, audit_log: AuditLog, signer: EcdsaSigner, tmp_path: Path
) -> None:
    def write(session: Session) -> tuple[int, int]:
        first = audit_log.append(session, AuditKind.PROCESS_STARTED)
        return first, audit_log.append(session, AuditKind.PROCESS_STOPPED)

    other = open_site_db(tmp_path / "site.db")
    assert [site_db.run_tx("a", write), other.run_tx("b", write), site_db.run_tx("c", write)] == [
        (0, 1),
        (2, 3),
        (4, 5),
    ]
    other.close()
    verdict = verify_site_log(site_db, signer.spki_der, origin=ORIGIN)
    assert isinstance(verdict, AuditVerified)
    assert (verdict.size, verdict.n_unsigned) == (6, 0)


@pytest.mark.parametrize("make_bad", [lambda: {"actor": ""}, lambda: {"share": 0.5}])
def test_append_of_what_cannot_be_recorded_stops_the_action(
    make_bad: Callable[[], dict[str, object]], site_db: SiteDb, audit_log: AuditLog
) -> None:
    bad = make_bad()
    with pytest.raises(AuditEventInvalidError):
        site_db.run_tx("bad", lambda session: audit_log.append(session, AuditKind.PROCESS_STARTED, **bad))  # type: ignore[arg-type]
    assert site_db.run_read("head", audit_head).size == 0


def test_append_on_a_damaged_tip_raises(site_db: SiteDb, audit_log: AuditLog, tmp_path: Path) -> None:
    append(site_db, audit_log, 3)
    tamper(site_db, tmp_path / "site.db", "UPDATE audit_tip SET tip = x'00'")
    with pytest.raises(AuditLogDamagedError):
        append(site_db, audit_log, 1)


def test_export_holds_exact_bytes_that_verify_alone(
    site_db: SiteDb, audit_log: AuditLog, signer: EcdsaSigner, tmp_path: Path
) -> None:
    append(site_db, audit_log, 3)
    log = site_db.run_read("read", read_log)
    n_lines = export_log(log, signer.spki_der, origin=ORIGIN, to=tmp_path / "audit.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert n_lines == len(lines) == 5
    assert (lines[0]["log"], lines[0]["origin"]) == ("wardround-audit", ORIGIN)
    bodies = [base64.b64decode(line["body"]) for line in lines[1:4]]
    checkpoint = lines[4]["checkpoint"]
    assert checkpoint["head"] == merkle_root(bodies).hex()
    body = base64.b64decode(checkpoint["body"])
    verify_signature(
        base64.b64decode(lines[0]["signing_spki"]),
        pack(b"WR/sig/checkpoint", body),
        base64.b64decode(checkpoint["signature"]),
    )
    assert json.loads(body)["head"] == checkpoint["head"]
