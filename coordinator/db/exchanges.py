"""Queries about exchanges, the sites' messages in them, and their uploads."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from datetime import datetime

from sqlalchemy import and_, bindparam, func, insert, select
from sqlalchemy.orm import Session

from coordinator.db.models import Exchange, ExchangeMessage, Participation, Round, Upload
from coordinator.db.tables import table_of
from coordinator.errors import ConflictError
from fl_protocol.ids import RunId, SiteId
from fl_protocol.spec.context import ExchangeContext

_KEY = ("run_id", "round_index", "round_attempt", "exchange_index", "exchange_attempt")
_MESSAGES_TABLE = table_of(ExchangeMessage)
_T = _MESSAGES_TABLE.c
_IN_EXCHANGE = and_(*(_T[name] == bindparam(name) for name in _KEY))
_MESSAGES = select(_T.site_id, _T.encoded).where(_IN_EXCHANGE, _T.kind == bindparam("kind"))
_KINDS_SENT = select(_T.site_id, _T.kind).where(_IN_EXCHANGE, _T.site_id.in_(bindparam("names", expanding=True)))
_N_SENT = select(func.count()).select_from(_MESSAGES_TABLE).where(_IN_EXCHANGE, _T.kind == bindparam("kind"))
_SENT_SHA256 = select(_T.sha256).where(_IN_EXCHANGE, _T.kind == bindparam("kind"), _T.site_id == bindparam("site_id"))
_ADD_MESSAGE = insert(_MESSAGES_TABLE)
"""Statements and no mapped rows where a round asks them for each message of each site."""


def _named(context: ExchangeContext) -> dict[str, object]:
    return dict(zip(_KEY, exchange_key(context), strict=True))


def exchange_key(context: ExchangeContext) -> tuple[str, int, int, int, int]:
    """The primary key of an exchange."""
    return (
        context.run_id,
        context.round_index,
        context.round_attempt,
        context.exchange_index,
        context.exchange_attempt,
    )


def context_of(row: Exchange) -> ExchangeContext:
    """The names that every statement of this exchange is bound to."""
    return ExchangeContext(
        run_id=RunId(row.run_id),
        round_index=row.round_index,
        round_attempt=row.round_attempt,
        exchange_index=row.exchange_index,
        exchange_attempt=row.exchange_attempt,
    )


def find_exchange(session: Session, context: ExchangeContext) -> Exchange | None:
    """The exchange of that name."""
    return session.get(Exchange, exchange_key(context))


def latest_exchange(session: Session, round_row: Round) -> Exchange | None:
    """The latest attempt at the round's exchange."""
    return latest_exchange_in(session, (round_row.run_id, round_row.round_index, round_row.round_attempt))


_LATEST_EXCHANGE = (
    select(Exchange)
    .where(
        Exchange.run_id == bindparam("run_id"),
        Exchange.round_index == bindparam("round_index"),
        Exchange.round_attempt == bindparam("round_attempt"),
    )
    .order_by(Exchange.exchange_index.desc(), Exchange.exchange_attempt.desc())
    .limit(1)
)


def latest_exchange_in(session: Session, round_key: tuple[str, int, int]) -> Exchange | None:
    """As ``latest_exchange``, of the round of that primary key."""
    named = dict(zip(("run_id", "round_index", "round_attempt"), round_key, strict=True))
    return session.scalars(_LATEST_EXCHANGE, named).one_or_none()


def participation_in(session: Session, context: ExchangeContext, site_id: SiteId) -> Participation | None:
    """The site's row in the round of this exchange."""
    return session.get(Participation, (context.run_id, context.round_index, context.round_attempt, site_id))


def messages_of(
    session: Session, context: ExchangeContext, *, kind: str, sites: Collection[str] | None = None
) -> dict[SiteId, bytes]:
    """The messages of one kind, by sender; of ``sites`` only, where given."""
    rows = session.execute(_MESSAGES, {**_named(context), "kind": kind})
    return {SiteId(site_id): encoded for site_id, encoded in rows if sites is None or site_id in sites}


def kinds_sent_by_sites(
    session: Session, context: ExchangeContext, names: Collection[SiteId]
) -> dict[SiteId, frozenset[str]]:
    """Which messages each of these sites has sent; a site that sent none is not among the keys."""
    kinds: dict[SiteId, set[str]] = {}
    for site_id, kind in session.execute(_KINDS_SENT, {**_named(context), "names": list(names)}):
        kinds.setdefault(SiteId(site_id), set()).add(kind)
    return {site_id: frozenset(sent) for site_id, sent in kinds.items()}


def n_sent(session: Session, context: ExchangeContext, *, kind: str) -> int:
    """How many sites have sent a message of that kind."""
    return session.execute(_N_SENT, {**_named(context), "kind": kind}).scalar_one()


def find_message(session: Session, context: ExchangeContext, *, kind: str, site_id: SiteId) -> bytes | None:
    """The site's message of that kind."""
    row = session.get(ExchangeMessage, (*exchange_key(context), kind, site_id))
    return None if row is None else row.encoded


def is_repeated(session: Session, context: ExchangeContext, *, kind: str, site_id: SiteId, encoded: bytes) -> bool:
    """Whether the site sent exactly this before.

    Raises:
        ConflictError: it sent something else at this step.
    """
    held = session.execute(_SENT_SHA256, {**_named(context), "kind": kind, "site_id": site_id}).scalar_one_or_none()
    # By the digest: the bytes of a message whose round was scrubbed are gone, and a late repetition is still one.
    if held is not None and held != hashlib.sha256(encoded).hexdigest():
        raise ConflictError("this step was taken with other content", site_id=site_id, kind=kind)
    return held is not None


def add_message(
    session: Session, context: ExchangeContext, *, kind: str, site_id: SiteId, encoded: bytes, now: datetime
) -> None:
    """Keep a message; the primary key admits one a site and step."""
    session.execute(
        _ADD_MESSAGE,
        {
            **_named(context),
            "kind": kind,
            "site_id": site_id,
            "encoded": encoded,
            "sha256": hashlib.sha256(encoded).hexdigest(),
            "received_at": now,
        },
    )


def find_upload(session: Session, context: ExchangeContext, site_id: SiteId) -> Upload | None:
    """The site's upload."""
    return session.get(Upload, (*exchange_key(context), site_id))
