"""One log, whoever writes it: threads and processes append, and the chain holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit, audit_head, write_checkpoint
from coordinator.db.models import AuditRow
from coordinator.db.tx import Database
from fl_protocol.audit.events import AuditKind
from fl_protocol.audit.verify import AuditFault, AuditVerified, verify_log
from tests.contract.database.conftest import DatabasesOfTest
from tests.contract.database.rows import NOW, SIGNER, append, log_of
from tests.contract.database.test_transactions import in_threads

_APPENDER = """
import sys
from coordinator.db.engines import engine_from_url
from coordinator.db.tx import Database
from tests.contract.database.rows import append
database = Database(engine_from_url(sys.argv[1]))
append(database, int(sys.argv[2]), writer=int(sys.argv[3]))
database.dispose()
"""
_ROOT = Path(__file__).parents[3]


def test_audit_log_verifies_against_its_checkpoints_and_an_altered_row_is_named(db: Database) -> None:
    append(db, 5)
    for _ in range(2):
        db.run_tx("checkpoint", lambda session: write_checkpoint(session, signer=SIGNER, origin="o", now=NOW))
    append(db, 3)
    rows, checkpoints = log_of(db)
    assert len(checkpoints) == 1
    verified = verify_log(rows, checkpoints, SIGNER.spki_der)
    assert isinstance(verified, AuditVerified)
    assert (verified.size, verified.head) == db.read("head", audit_head)

    def alter(session: Session) -> None:
        row = session.get(AuditRow, 2)
        assert row is not None
        row.body = row.body.replace(b'"number":2', b'"number":9')

    db.run_tx("alter", alter)
    rows, checkpoints = log_of(db)
    fault = verify_log(rows, checkpoints, SIGNER.spki_der)
    assert isinstance(fault, AuditFault)
    assert fault.seq == 2


def test_audit_of_a_transaction_that_fails_is_not_recorded(db: Database) -> None:
    append(db, 1)

    def write(session: Session) -> None:
        append_audit(session, AuditKind.RUN_STATE, actor="coordinator", facts={}, now=NOW)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        db.run_tx("fails", write)
    append(db, 1)
    rows, _ = log_of(db)
    assert [row.seq for row in rows] == [0, 1]
    assert isinstance(verify_log(rows, [], SIGNER.spki_der), AuditVerified)


def test_log_that_many_threads_append_to_is_one_valid_chain(databases: DatabasesOfTest, url: str) -> None:
    replicas = [databases.open(url), databases.open(url)]
    in_threads(
        *(lambda number=number: append(replicas[number % 2], 10, writer=number) for number in range(8)),
        lambda: [
            replicas[0].run_tx("checkpoint", lambda s: write_checkpoint(s, signer=SIGNER, origin="o", now=NOW))
            for _ in range(5)
        ],
    )
    rows, checkpoints = log_of(replicas[1])
    assert [row.seq for row in rows] == list(range(80))
    assert isinstance(verify_log(rows, checkpoints, SIGNER.spki_der), AuditVerified)


def test_log_that_three_processes_append_to_is_one_valid_chain(db: Database, url: str) -> None:
    appenders = [
        subprocess.Popen([sys.executable, "-c", _APPENDER, url, "20", str(number)], cwd=_ROOT) for number in range(3)
    ]
    append(db, 20, writer=3)
    assert [appender.wait(timeout=120) for appender in appenders] == [0, 0, 0]
    rows, _ = log_of(db)
    assert [row.seq for row in rows] == list(range(80))
    for writer in range(4):
        assert sum(f'"writer":{writer}'.encode() in row.body for row in rows) == 20
    assert isinstance(verify_log(rows, [], SIGNER.spki_der), AuditVerified)
