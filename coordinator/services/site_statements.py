"""Two copies of one state folder are told apart from one site: what a site says is a chain, and a copy forks it.

A crash, a lost answer, an answer that came late, and a coordinator that was restored from a backup never look like a
fork: see ``judge_statement``. docs/decisions/0032 says why, and what a thief who knows this can still do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.models import Site, SiteStatementRow
from coordinator.db.states import SiteState
from coordinator.services.refusals import StatementInvalidError
from fl_protocol.audit.events import AuditFact, AuditKind
from fl_protocol.errors import ProtocolError
from fl_protocol.signing.signed import SignedBody
from fl_protocol.signing.site_statement import SiteStatement, verify_site_statement

KEPT = 64
"""How many of a site's statements are remembered: with one an hour, two days and a half."""
CLONED_REASON = "two copies of this site's state folder are in use"


class Standing(StrEnum):
    """What a statement is to those before it."""

    NEW = "new"
    KNOWN = "known"
    """It was said before, word for word: its answer was lost."""
    LATE = "late"
    """It was said before, and the one after it arrived first."""
    FORKED = "forked"
    """It contradicts what was said: there are two who say it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """An earlier statement."""

    counter: int
    sha256: str
    previous_sha256: str


def judge_statement(said: Sequence[Said], statement: SiteStatement) -> Standing:
    """What ``statement`` is to what was said before, of one site and one signing key.

    Numbers may be left out: what a site said while its coordinator was away, or before a backup was restored, was not
    heard. A number that was passed, or a next one that names another predecessor, is a fork.

    Args:
        said: what is remembered, in any order.
        statement: verified.
    """
    digest = statement.sha256
    if any(one.sha256 == digest for one in said):
        return Standing.KNOWN
    if any(one.previous_sha256 == digest for one in said):
        return Standing.LATE
    last = max(said, key=lambda one: one.counter, default=None)
    if last is None or statement.counter > last.counter + 1:
        return Standing.NEW
    if statement.counter == last.counter + 1 and statement.previous_sha256 == last.sha256:
        return Standing.NEW
    return Standing.FORKED


def verified_statement(spki_der: bytes | None, signed: SignedBody, *, site_id: str) -> SiteStatement:
    """The statement of this site.

    Raises:
        StatementInvalidError: it is not signed by the site's key, is none, or is of another site.
    """
    try:
        statement = verify_site_statement(spki_der or b"", signed)
    except ProtocolError as error:
        raise StatementInvalidError("the site's statement is not signed by its key", cause=error.code) from error
    if statement.site_id != site_id:
        raise StatementInvalidError("the statement is of another site", site_id=site_id)
    return statement


def note_statement(session: Session, site: Site, statement: SiteStatement, *, now: datetime) -> Standing:
    """Judge a statement and remember it; a fork suspends the site, in this transaction.

    Returns:
        FORKED where the caller has to refuse, after the commit.
    """
    query = select(SiteStatementRow).where(SiteStatementRow.site_id == site.site_id)
    rows = session.scalars(query.order_by(SiteStatementRow.counter)).all()
    said = [Said(counter=row.counter, sha256=row.sha256, previous_sha256=row.previous_sha256) for row in rows]
    standing = judge_statement(said, statement)
    if standing is Standing.NEW:
        floor = max(statement.counter, site.statement_floor or 0)
        site.statement_floor = floor
        session.add(
            SiteStatementRow(
                site_id=site.site_id,
                # After an admin let a site go on that was behind, its next statement stands above all of before.
                counter=floor if not said else statement.counter,
                sha256=statement.sha256,
                previous_sha256=statement.previous_sha256,
                at=now,
            )
        )
        for row in rows[: max(0, len(rows) + 1 - KEPT)]:
            session.delete(row)
        session.flush()
    elif standing is Standing.FORKED:
        _suspend(session, site, statement, now=now)
    return standing


def forget_statements(session: Session, site_id: str) -> None:
    """Begin anew: the next statement is believed whatever its number. The floor stays, and the site is told it."""
    session.execute(delete(SiteStatementRow).where(SiteStatementRow.site_id == site_id))


def _suspend(session: Session, site: Site, statement: SiteStatement, *, now: datetime) -> None:
    if site.state != SiteState.ENROLLED.value:
        return
    site.state, site.reason = SiteState.SUSPENDED.value, CLONED_REASON
    session.flush()
    facts: dict[str, AuditFact] = {
        "site_id": site.site_id,
        "kind": statement.kind.value,
        "counter": statement.counter,
        "statement_sha256": statement.sha256,
        "floor": site.statement_floor,
    }
    append_audit(session, AuditKind.SITE_CLONED, actor="coordinator", facts=facts, now=now)
    suspended: dict[str, AuditFact] = {"site_id": site.site_id, "reason": CLONED_REASON}
    append_audit(session, AuditKind.SITE_SUSPENDED, actor="coordinator", facts=suspended, now=now)
