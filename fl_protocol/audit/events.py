"""What is recorded, of both parties: a closed list of kinds, and one byte form of a recorded event.

An event is recorded in the transaction that makes it true. Its bytes are RFC 8785 JSON

    {"actor": ..., "at": ..., "facts": {...}, "kind": ..., "prev": ..., "seq": ...}

where ``seq`` is its place in the log, from 0, and ``prev`` the leaf hash of the event before it (zeros for the first).
Facts are identifiers, digests and figures about the federation; never a record, a tensor, a key or a data path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import chain

import rfc8785

from fl_protocol.errors import ProtocolError

AuditFact = str | int | bool | None
"""A value in an event's facts; a fraction is written as text, so that it has one form."""

NO_EVENT = "0" * 64
"""``prev`` of the first event."""

_KEYS = frozenset({"seq", "prev", "at", "kind", "actor", "facts"})
_MAX_INTEGER = 2**53 - 1
_WRITE = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode


class AuditEventInvalidError(ProtocolError):
    """An event, or the bytes of one, is not well formed."""

    code = "audit-event-invalid"


class AuditKind(StrEnum):
    """Everything that is recorded; the part before the dot is the thing that it happened to."""

    SITE_INVITED = "site.invited"
    SITE_ENROLLED = "site.enrolled"
    SITE_SUSPENDED = "site.suspended"
    SITE_RESUMED = "site.resumed"
    SITE_REVOKED = "site.revoked"
    SITE_CLONED = "site.cloned"

    ENROLMENT_REFUSED = "enrolment.refused"
    ENROLMENT_COMPLETED = "enrolment.completed"
    CERTIFICATE_ISSUED = "certificate.issued"
    CERTIFICATE_RENEWED = "certificate.renewed"
    RENEWAL_REFUSED = "renewal.refused"
    ROOT_PREPARED = "root.prepared"
    ROOT_ISSUING = "root.issuing"
    ROOT_RETIRED = "root.retired"
    ROOTS_CHANGED = "roots.changed"

    RUN_CREATED = "run.created"
    RUN_STARTED = "run.started"
    RUN_APPROVED = "run.approved"
    RUN_DECLINED = "run.declined"
    RUN_WITHDRAWN = "run.withdrawn"
    RUN_PAUSED = "run.paused"
    RUN_RESUMED = "run.resumed"
    RUN_CANCELLED = "run.cancelled"
    RUN_STATE = "run.state"

    ROUND_OPENED = "round.opened"
    ROUND_JOINED = "round.joined"
    ROUND_COMMITTED = "round.committed"
    ROUND_ABORTED = "round.aborted"
    ROUND_SCRUBBED = "round.scrubbed"
    PARTICIPATION_STATE = "participation.state"

    EXCHANGE_OPENED = "exchange.opened"
    EXCHANGE_JOINED = "exchange.joined"
    EXCHANGE_FAILED = "exchange.failed"
    EXCHANGE_SCRUBBED = "exchange.scrubbed"
    KEYS_ADVERTISED = "keys.advertised"
    SHARES_DEALT = "shares.dealt"
    SHARES_REVEALED = "shares.revealed"
    REVEAL_RELEASED = "reveal.released"
    SURVIVORS_CONFIRMED = "survivors.confirmed"
    PAYLOAD_MASKED = "payload.masked"
    PAYLOAD_SENT = "payload.sent"
    UPLOAD_ACCEPTED = "upload.accepted"
    UPLOAD_REFUSED = "upload.refused"
    SUM_PUBLISHED = "sum.published"
    SUM_CHECKED = "sum.checked"
    SUM_REFUSED = "sum.refused"
    RESULT_VERIFIED = "result.verified"
    RESULT_REFUSED = "result.refused"

    RELEASE_CREATED = "release.created"
    RELEASE_APPROVED = "release.approved"
    RELEASE_PUBLISHED = "release.published"
    RELEASE_WITHDRAWN = "release.withdrawn"
    RELEASE_MARKED = "release.marked"

    DATASET_REGISTERED = "dataset.registered"
    DATASET_CHECKED = "dataset.checked"
    DATASET_WITHDRAWN = "dataset.withdrawn"
    POLICY_LOADED = "policy.loaded"
    POLICY_EVALUATED = "policy.evaluated"
    PEER_ADDED = "peer.added"
    PEER_REMOVED = "peer.removed"
    TRAINING_STARTED = "training.started"
    TRAINING_FINISHED = "training.finished"
    TRAINING_FAILED = "training.failed"

    USER_ADDED = "user.added"
    USER_REMOVED = "user.removed"
    USER_DISABLED = "user.disabled"
    USER_ENABLED = "user.enabled"
    ROLE_GRANTED = "role.granted"
    ROLE_REVOKED = "role.revoked"
    PASSPHRASE_SET = "passphrase.set"  # noqa: S105  # the name of an event, no secret
    PASSPHRASE_RESET = "passphrase.reset"  # noqa: S105  # the name of an event, no secret
    TOKEN_CREATED = "token.created"  # noqa: S105  # the name of an event, no secret
    TOKEN_REVOKED = "token.revoked"  # noqa: S105  # the name of an event, no secret
    CALL_REFUSED = "call.refused"

    COORDINATOR_RESTORED = "coordinator.restored"
    HEAD_REPORTED = "head.reported"
    RESTORE_ACKNOWLEDGED = "restore.acknowledged"

    PROCESS_STARTED = "process.started"
    PROCESS_STOPPED = "process.stopped"
    CHECKPOINT_SIGNED = "checkpoint.signed"
    CHECKPOINT_WITNESSED = "checkpoint.witnessed"
    HISTORY_FORKED = "history.forked"


_KINDS = frozenset(kind.value for kind in AuditKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One thing that happened.

    Attributes:
        kind: what.
        at: when, aware, in UTC; recorded to the microsecond.
        actor: who: ``site:<name>``, ``user:<name>``, ``coordinator`` or ``agent``.
        facts: what identifies it.
    """

    kind: AuditKind
    at: datetime
    actor: str
    facts: Mapping[str, AuditFact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.at.utcoffset() != timedelta(0):
            raise AuditEventInvalidError("an event's instant is aware and in UTC", kind=self.kind)
        if not self.actor or not self.actor.isprintable():
            raise AuditEventInvalidError("an event has a printable actor", kind=self.kind)
        if not _is_unicode(self.actor):
            raise AuditEventInvalidError("an event's texts are Unicode; half a surrogate pair is none", kind=self.kind)
        for key, value in self.facts.items():
            if not isinstance(key, str) or not (value is None or isinstance(value, str | int)):
                raise AuditEventInvalidError("a fact is text, a whole number, true, false or null", key=str(key))
            if isinstance(value, int) and abs(value) > _MAX_INTEGER:
                raise AuditEventInvalidError("a number is too large for JSON; write it as text", key=key)
            if not (_is_unicode(key) and _is_unicode(value)):
                message = "an event's texts are Unicode; half a surrogate pair is none"
                raise AuditEventInvalidError(message, kind=self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEvent:
    """An event and its place in a log."""

    seq: int
    prev: str
    event: AuditEvent


def text_from_instant(at: datetime) -> str:
    """``2026-01-31T12:00:00.000000Z``: always UTC, always microseconds, so that one instant has one form."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def instant_from_text(text: str) -> datetime:
    """What ``text_from_instant`` wrote, and nothing else.

    Raises:
        AuditEventInvalidError: it is not of that form.
    """
    try:
        at = datetime.fromisoformat(text)
        is_canonical = at.tzinfo is not None and text_from_instant(at) == text
    except (ValueError, OverflowError) as error:
        raise AuditEventInvalidError("an instant is written as 2026-01-31T12:00:00.000000Z") from error
    if not is_canonical:
        raise AuditEventInvalidError("an instant is written as 2026-01-31T12:00:00.000000Z")
    return at


def event_bytes(recorded: RecordedEvent) -> bytes:
    """The bytes that are a leaf of the log."""
    event = recorded.event
    document: dict[str, object] = {
        "seq": recorded.seq,
        "prev": recorded.prev,
        "at": text_from_instant(event.at),
        "kind": event.kind.value,
        "actor": event.actor,
        "facts": dict(event.facts),
    }
    if recorded.prev.isascii() and event.actor.isascii() and all(map(_is_ascii, chain(*event.facts.items()))):
        # Of ASCII texts and whole numbers the canonical form is what the standard library writes, ten times as fast:
        # keys sort alike, and the same characters are escaped alike. A property test holds the two against each other.
        return _WRITE(document).encode("ascii")
    return rfc8785.dumps(document)  # type: ignore[arg-type]  # JSON values, typed as object


def _is_ascii(value: AuditFact) -> bool:
    return value.isascii() if isinstance(value, str) else value is None or abs(value) <= _MAX_INTEGER


def event_from_bytes(data: bytes) -> RecordedEvent:
    """Read what ``event_bytes`` wrote, and nothing else.

    Raises:
        AuditEventInvalidError: the bytes are no event, or not the canonical form of one.
    """
    # Bytes that are ASCII throughout are canonical exactly if the standard library writes them again (see event_bytes).
    text = data.decode("ascii") if data.isascii() else None
    try:
        document = json.loads(data if text is None else text)
    except (ValueError, RecursionError) as error:
        raise AuditEventInvalidError("an event is JSON") from error
    if not isinstance(document, dict) or document.keys() != _KEYS:
        raise AuditEventInvalidError("an event has exactly the keys seq, prev, at, kind, actor and facts")
    seq, prev, at, kind, actor, facts = (document[key] for key in ("seq", "prev", "at", "kind", "actor", "facts"))
    if type(seq) is not int or not 0 <= seq <= _MAX_INTEGER:
        raise AuditEventInvalidError("an event's seq is a whole number from 0")
    if not all(isinstance(value, str) for value in (prev, at, kind, actor)) or not isinstance(facts, dict):
        raise AuditEventInvalidError("prev, at, kind and actor are texts, facts a mapping", seq=seq)
    if not _is_unicode(prev):
        raise AuditEventInvalidError("prev is no Unicode text", seq=seq)
    if kind not in _KINDS:
        raise AuditEventInvalidError("this version knows no event of this kind", seq=seq, kind=kind[:80])
    event = AuditEvent(kind=AuditKind(kind), at=instant_from_text(at), actor=actor, facts=facts)
    recorded = RecordedEvent(seq=seq, prev=prev, event=event)
    is_canonical = event_bytes(recorded) == data if text is None else _WRITE(document) == text
    if not is_canonical:
        raise AuditEventInvalidError("the bytes are not the canonical form of the event", seq=seq)
    return recorded


def _is_unicode(value: AuditFact) -> bool:
    """Whether a text can be written as UTF-8: JSON can spell half a surrogate pair, canonical JSON cannot."""
    if not isinstance(value, str) or value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
