"""An event as a line for a SIEM: RFC 5424 syslog around ArcSight's Common Event Format (CEF 0.1). Pure.

    <PRI>1 TIME HOST wardround - KIND - CEF:0|Wardround|Wardround|VERSION|KIND|NAME|SEVERITY|EXTENSION

A line is for looking and alarming, and no evidence: signed statements are left out and what no line can carry is
replaced. The export as JSON lines is what can be verified; ``cs3`` of a line names the row's leaf hash in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from fl_protocol.audit.events import AuditFact, AuditKind, text_from_instant

_FACILITY_AUDIT = 13
_NOTICE, _WARNING, _ALERT = 5, 4, 1
_STATEMENTS = frozenset({"statement", "held_statement", "manifest"})
_LONGEST_MSG = 1000
_LONGEST_HOST = 255

# What ends a line or a field for one reader or another, and what no terminal should be sent.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NOT_IN_A_HOST = re.compile(r"[^A-Za-z0-9._:/-]")

_SEVERITIES: Mapping[str, int] = {
    AuditKind.HISTORY_FORKED: 10,
    AuditKind.COORDINATOR_RESTORED: 8,
    AuditKind.CALL_REFUSED: 7,
    AuditKind.ENROLMENT_REFUSED: 7,
    AuditKind.UPLOAD_REFUSED: 7,
    AuditKind.RESULT_REFUSED: 7,
    AuditKind.SITE_REVOKED: 6,
    AuditKind.SITE_SUSPENDED: 6,
    AuditKind.EXCHANGE_FAILED: 5,
    AuditKind.ROUND_ABORTED: 5,
    AuditKind.TRAINING_FAILED: 5,
    AuditKind.USER_ADDED: 5,
    AuditKind.USER_REMOVED: 5,
    AuditKind.USER_DISABLED: 5,
    AuditKind.USER_ENABLED: 5,
    AuditKind.ROLE_GRANTED: 5,
    AuditKind.ROLE_REVOKED: 5,
    AuditKind.TOKEN_CREATED: 5,
    AuditKind.POLICY_LOADED: 5,
}
_USUAL_SEVERITY = 3
_ALERT_FROM, _WARNING_FROM = 8, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedEvent:
    """What a line is made of.

    Attributes:
        origin: whose log.
        seq: the event's place in it.
        leaf_sha256: its leaf hash.
        kind: what happened; one that this version does not know is shown all the same.
    """

    origin: str
    seq: int
    leaf_sha256: str
    at: datetime
    kind: str
    actor: str
    facts: Mapping[str, AuditFact]


def severity_of(kind: str) -> int:
    """0 to 10, as CEF counts."""
    return _SEVERITIES.get(kind, _USUAL_SEVERITY)


def syslog_line(event: LoggedEvent, *, version: str) -> str:
    """The whole line, without an end of line; it holds none inside."""
    severity = severity_of(event.kind)
    level = _ALERT if severity >= _ALERT_FROM else _WARNING if severity >= _WARNING_FROM else _NOTICE
    # No pipe: who looks for the first 'CEF:0|' of a line must find the right one.
    host = _NOT_IN_A_HOST.sub("-", event.origin)[:_LONGEST_HOST] or "-"
    message_id = _NOT_IN_A_HOST.sub("-", event.kind)[:32] or "-"
    priority = 8 * _FACILITY_AUDIT + level
    head = f"<{priority}>1 {text_from_instant(event.at)} {host} wardround - {message_id} - "
    return head + cef_text(event, version=version)


def cef_text(event: LoggedEvent, *, version: str) -> str:
    """The CEF message."""
    name = event.kind.replace(".", " ").replace("-", " ")
    header = ("Wardround", "Wardround", version, event.kind, name)
    parts = "|".join(_header_field(field) for field in header)
    fields = " ".join(f"{key}={_extension_field(value)}" for key, value in _fields(event).items())
    return f"CEF:0|{parts}|{severity_of(event.kind)}|{fields}"


def _fields(event: LoggedEvent) -> dict[str, str]:
    role, _, name = event.actor.partition(":")
    fields = {
        "rt": str(int(event.at.timestamp() * 1000)),
        "externalId": str(event.seq),
        "deviceExternalId": event.origin,
        "cs3Label": "leafSha256",
        "cs3": event.leaf_sha256,
    }
    fields |= {"shost": name} if role == "site" and name else {"suser": name or event.actor}
    facts = {key: value for key, value in event.facts.items() if key not in _STATEMENTS and value is not None}
    for key, label in (("run_id", "cs1"), ("site_id", "cs2")):
        if key in facts:
            fields |= {f"{label}Label": key, label: str(facts.pop(key))}
    for key, label in (("round_index", "cn1"), ("round_attempt", "cn2")):
        if isinstance(facts.get(key), int):
            fields |= {f"{label}Label": key, label: str(facts.pop(key))}
    reason = facts.get("reason") or facts.get("code") or facts.get("finding")
    if isinstance(reason, str):
        fields["reason"] = reason
    if facts:
        fields["msg"] = json.dumps(facts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))[:_LONGEST_MSG]
    return fields


def _header_field(text: str) -> str:
    """Backslash and pipe are escaped; a header has no line ends."""
    flat = _CONTROL.sub("\ufffd", text).replace("\r", " ").replace("\n", " ").replace("\t", " ")
    return flat.replace("\\", "\\\\").replace("|", "\\|")


def _extension_field(text: str) -> str:
    """Backslash and equals sign are escaped; line ends are spelled."""
    flat = _CONTROL.sub("\ufffd", text).replace("\t", " ")
    return flat.replace("\\", "\\\\").replace("=", "\\=").replace("\r", "\\r").replace("\n", "\\n")
