"""Rows that the suite's tests begin with."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.models import AuditCheckpoint, AuditRow, Run
from coordinator.db.tx import Database
from fl_protocol.audit.chain import AuditRow as Leaf
from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import RunId
from fl_protocol.signing.signed import SignedBody
from fl_protocol.testing.entropy import seeded_signer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SIGNER = seeded_signer("coordinator")
RUN = RunId("run-" + "c" * 26)


def add_run(session: Session, run_id: RunId = RUN) -> None:
    session.add(
        Run(
            run_id=run_id,
            name="n",
            state="ACTIVE",
            run_spec_json=b"",
            run_spec_sha256="",
            layout_json=b"",
            layout_blob_sha256="",
            initial_blob_sha256="",
            public_state_sha256="",
            public_state_blob_sha256="",
            created_by="user:x",
            created_at=NOW,
        )
    )


def append(db: Database, count: int, *, writer: int = 0) -> None:
    """Append so many events, each in a transaction of its own."""
    for number in range(count):
        db.run_tx(
            "append",
            lambda session, number=number: append_audit(
                session, AuditKind.RUN_STATE, actor="coordinator", facts={"number": number, "writer": writer}, now=NOW
            ),
        )


def log_of(db: Database) -> tuple[list[Leaf], list[SignedBody]]:
    """The audit log and its checkpoints."""

    def read(session: Session) -> tuple[list[Leaf], list[SignedBody]]:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.seq))
        checkpoints = session.scalars(select(AuditCheckpoint).order_by(AuditCheckpoint.size))
        return (
            [Leaf(seq=row.seq, body=row.body, leaf_sha256=row.leaf_sha256) for row in rows],
            [SignedBody(body=row.body, signature=row.signature) for row in checkpoints],
        )

    return db.read("log", read)
