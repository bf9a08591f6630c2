"""Audit storage that fails stops the coordinator: nothing happens unrecorded, the probe says so, and it goes on after.

The storage fails as storage does: the database is opened read-only, the table is gone, its tip is damaged, or an insert
is refused by the database itself.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from coordinator_engine_lab import EngineLab
from sqlalchemy import event as engine_event
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit, write_checkpoint
from coordinator.db.models import AuditRow, ExchangeMessage
from coordinator.errors import DatabaseUnavailableError
from coordinator.gateway.status import refused_call_from_error
from coordinator.services.accept_advertisement import accept_advertisement
from coordinator.services.check_health import check_health
from coordinator.services.export_audit import iter_audit_export
from coordinator.services.site_instructions import OpenExchange
from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import SiteId
from wardround.errors import EvidenceFaultError
from wardround.evidence.audit_export import verify_export

MakeLab = Callable[..., EngineLab]
A = SiteId("a-site")


class ReadOnly:
    """The database as a read-only file system shows it: every connection may look and none may write."""

    def __init__(self, lab: EngineLab) -> None:
        self.engine = lab.db.engine
        self.is_on = False
        engine_event.listen(self.engine, "checkout", self._switch)

    def _switch(self, connection: Any, *_: object) -> None:
        connection.execute(f"PRAGMA query_only = {'ON' if self.is_on else 'OFF'}")

    def fail(self) -> None:
        self.is_on = True

    def mend(self) -> None:
        self.is_on = False


class Statements:
    """Storage that one statement breaks and another mends."""

    def __init__(self, lab: EngineLab, breaking: str, mending: str) -> None:
        self.engine, self.breaking, self.mending = lab.db.engine, breaking, mending

    def _run(self, statements: str) -> None:
        with self.engine.begin() as connection:
            for statement in statements.split(";"):
                connection.execute(text(statement))

    def fail(self) -> None:
        self._run(self.breaking)

    def mend(self) -> None:
        self._run(self.mending)


STORAGES: dict[str, Callable[[EngineLab], Any]] = {
    "read-only": ReadOnly,
    "table-gone": lambda lab: Statements(
        lab, "ALTER TABLE audit_events RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO audit_events"
    ),
    "tip-damaged": lambda lab: Statements(
        lab,
        "CREATE TABLE kept AS SELECT encoded FROM audit_tip; UPDATE audit_tip SET encoded = x'00'",
        "UPDATE audit_tip SET encoded = (SELECT encoded FROM kept); DROP TABLE kept",
    ),
}


def n_rows(lab: EngineLab) -> tuple[int, int]:
    def read(session: Session) -> tuple[int, int]:
        return (
            len(session.scalars(select(ExchangeMessage.kind)).all()),
            session.execute(text("SELECT count(*) FROM audit_events")).scalar_one(),
        )

    return lab.db.read("rows", read)


def health(lab: EngineLab) -> dict[str, bool]:
    # What a probe found is good for a moment, which is over at each question here.
    lab.clock.advance(10.0)
    resources: Any = SimpleNamespace(db=lab.db, is_driver_alive=None, now=lab.ctx.now)
    return dict(check_health(resources))


@pytest.mark.parametrize("storage", STORAGES)
async def test_message_that_cannot_be_recorded_is_not_taken_and_is_taken_once_it_can(
    make_lab: MakeLab, storage: str
) -> None:
    lab = make_lab()
    broken = STORAGES[storage](lab)
    asked = await lab.settle_until(OpenExchange)
    before = n_rows(lab)
    assert health(lab) == {"database": True, "audit": True}
    # The probe leaves no trace.
    assert n_rows(lab) == before
    context, m1 = asked[A].exchange, lab.sites[A].role(asked[A].exchange).advertise()
    broken.fail()
    with pytest.raises(DatabaseUnavailableError) as caught:
        await accept_advertisement(lab.ctx, site_id=A, exchange=context, m1=m1)
    refused = refused_call_from_error(caught.value)
    assert refused is not None
    # The site is asked to try again: it keeps its bytes.
    assert refused.code.name == "UNAVAILABLE"
    assert caught.value.code in {"database-unwritable", "audit-log-damaged"}
    assert health(lab) == {"database": True, "audit": False}
    broken.mend()
    resources: Any = SimpleNamespace(db=lab.db, is_driver_alive=None, now=lab.ctx.now)
    assert check_health(resources)["audit"] is False
    broken.fail()
    broken.mend()
    assert n_rows(lab) == before
    assert health(lab) == {"database": True, "audit": True}
    # The same bytes, as a site sends them again.
    await accept_advertisement(lab.ctx, site_id=A, exchange=context, m1=m1)
    await lab.settle(until=lambda: lab.run().next_round_index == 1)
    assert lab.round().state == "COMMITTED"
    rows = lab.db.read("rows", lambda session: list(session.scalars(select(AuditRow.seq).order_by(AuditRow.seq))))
    assert rows == list(range(len(rows)))


async def test_export_of_a_log_whose_end_was_cut_says_that_it_was_longer(make_lab: MakeLab) -> None:
    lab = make_lab()
    await lab.settle()
    lab.db.run_tx("sign", lambda s: write_checkpoint(s, signer=lab.ctx.signer, origin=lab.ctx.origin, now=lab.clock.at))
    lab.db.run_tx("cut", lambda session: session.execute(text("DELETE FROM audit_events WHERE seq >= 9")))
    with pytest.raises(EvidenceFaultError) as caught:
        verify_export([line.decode() for line in iter_audit_export(lab.ctx)])  # type: ignore[arg-type]
    assert (caught.value.facts["row"], caught.value.facts["reason"]) == (9, "truncated")
    # And when something was recorded behind the gap.
    event = {"kind": AuditKind.PROCESS_STARTED, "actor": "coordinator", "facts": {}, "now": lab.clock.at}
    lab.db.run_tx("append", lambda session: append_audit(session, **event))  # type: ignore[arg-type]
    with pytest.raises(EvidenceFaultError) as caught:
        verify_export([line.decode() for line in iter_audit_export(lab.ctx)])  # type: ignore[arg-type]
    assert (caught.value.facts["row"], caught.value.facts["reason"]) == (9, "dropped")
