"""The flags of steps that are taken once in a context. Invariant: the table's primary key makes a second one fail."""

from __future__ import annotations

from sqlalchemy import bindparam, func, insert, select
from sqlalchemy.orm import Session

from site_agent.db.models import OneShotFlagRow
from site_agent.db.tables import table_of
from site_agent.errors import OneShotSpentError
from site_agent.session.events import Step

PAYLOAD_FLAG = "M9/payload"
"""The kind of the flag by a payload's digest; the others are the steps' own names."""

_FLAGS = table_of(OneShotFlagRow)
_FIND = select(_FLAGS.c.kind).where(_FLAGS.c.kind == bindparam("kind"), _FLAGS.c.context == bindparam("context"))
_CONTEXTS = select(_FLAGS.c.context).where(_FLAGS.c.kind == bindparam("kind"))
_SET = insert(_FLAGS)


def has_flag(session: Session, kind: str, context: bytes) -> bool:
    """Whether the step was taken in that context."""
    return session.execute(_FIND, {"kind": kind, "context": context}).first() is not None


def contexts_flagged(session: Session, kind: str) -> list[bytes]:
    """Every context in which a step of that kind was taken."""
    return list(session.execute(_CONTEXTS, {"kind": kind}).scalars())


def last_flag_at(session: Session, context_prefix: bytes) -> str | None:
    """When the latest step was taken in a context that begins so; None where none was."""
    begins_so = func.substr(_FLAGS.c.context, 1, len(context_prefix)) == context_prefix
    is_step = _FLAGS.c.kind.in_([step.value for step in Step])
    last: str | None = session.execute(select(func.max(_FLAGS.c.at)).where(is_step, begins_so)).scalar_one()
    return last


def set_flag(session: Session, kind: str, context: bytes, *, payload_sha256: str | None, at: str) -> None:
    """Take the step.

    Raises:
        OneShotSpentError: it was taken before.
    """
    if has_flag(session, kind, context):
        raise OneShotSpentError("this step was taken before", step=kind)
    session.execute(_SET, {"kind": kind, "context": context, "payload_sha256": payload_sha256, "at": at})


def is_payload_spent(session: Session, digest: str) -> bool:
    """Whether shares were revealed for a sum that holds this payload."""
    return has_flag(session, PAYLOAD_FLAG, bytes.fromhex(digest))
