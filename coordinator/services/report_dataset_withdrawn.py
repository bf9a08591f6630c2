"""A site says that it took a dataset out of use: its signed word is kept, and every release that used it is marked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import rfc8785
from sqlalchemy.orm import Session

from coordinator.db.audit import append_audit
from coordinator.db.models import DatasetWithdrawal, Site
from coordinator.db.states import SiteState
from coordinator.errors import SiteNotActiveError
from coordinator.services.refusals import StatementInvalidError
from coordinator.services.release_marks import mark_users_of_dataset
from coordinator.services.resources import Resources
from fl_protocol.audit.events import AuditKind
from fl_protocol.errors import ProtocolError
from fl_protocol.ids import IdentifierInvalidError, SiteId, sha256_hex_from_text
from fl_protocol.signing.signed import SignedBody, verify_body

STATEMENT_KIND = "WR/sig/dataset-withdrawn"
_MAX_STATEMENT_BYTES = 4096
_MAX_NAME_LENGTH = 128
_MAX_AHEAD = timedelta(minutes=10)
_KEYS = frozenset({"site_id", "dataset", "dataset_sha256", "reason", "at"})


class WithdrawalReason(StrEnum):
    """Why, in one word: what stands behind it is the site's own."""

    UNSPECIFIED = "unspecified"
    CONSENT_WITHDRAWN = "consent-withdrawn"
    DATA_FAULTY = "data-faulty"
    LEGAL_BASIS_ENDED = "legal-basis-ended"
    RETENTION_ENDED = "retention-ended"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawalStatement:
    """What a site says. ``dataset_sha256`` is None where the site keeps the digest to itself."""

    site_id: str
    dataset: str
    dataset_sha256: str | None
    reason: WithdrawalReason
    at: datetime


def withdrawal_from_bytes(body: bytes) -> WithdrawalStatement:
    """Read a statement.

    Raises:
        StatementInvalidError: the bytes are no canonical JSON (RFC 8785) with exactly the keys of a statement.
    """
    try:
        document = json.loads(body) if len(body) <= _MAX_STATEMENT_BYTES else None
        is_canonical = isinstance(document, dict) and rfc8785.dumps(document) == body
    except (ValueError, RecursionError, rfc8785.CanonicalizationError) as error:
        raise StatementInvalidError("the statement is no JSON") from error
    if not isinstance(document, dict) or not is_canonical or set(document) != _KEYS:
        raise StatementInvalidError(f"a statement is canonical JSON with the keys {', '.join(sorted(_KEYS))}")
    digest = document["dataset_sha256"]
    texts = [value for key, value in document.items() if key != "dataset_sha256"]
    if not all(isinstance(value, str) for value in texts) or not isinstance(digest, str | None):
        raise StatementInvalidError("a value of the statement is not text")
    name = document["dataset"]
    if not 1 <= len(name) <= _MAX_NAME_LENGTH or not name.isprintable():
        raise StatementInvalidError(f"a dataset's name is 1 to {_MAX_NAME_LENGTH} printable characters")
    try:
        at = datetime.fromisoformat(document["at"])
        said = WithdrawalStatement(
            site_id=document["site_id"],
            dataset=name,
            dataset_sha256=None if digest is None else sha256_hex_from_text(digest),
            reason=WithdrawalReason(document["reason"]),
            at=at,
        )
    except (ValueError, IdentifierInvalidError) as error:
        raise StatementInvalidError("the statement's digest, reason or instant is not one") from error
    if at.tzinfo is None:
        raise StatementInvalidError("the statement's instant has no time zone")
    return said


def report_dataset_withdrawn(resources: Resources, *, site_id: SiteId, statement: SignedBody) -> int:
    """Keep a site's word and mark what used the dataset; the same statement again is the same.

    Returns:
        How many releases were marked by this call.

    Raises:
        StatementInvalidError: malformed, another site's, of the future, or not signed by the site's enrolled key.
        SiteNotActiveError: the site is not ENROLLED.
    """
    said = withdrawal_from_bytes(statement.body)
    now = resources.now()
    if said.site_id != site_id:
        raise StatementInvalidError("the statement is another site's", site_id=site_id)
    if said.at > now + _MAX_AHEAD:
        raise StatementInvalidError("the statement is dated in the future; compare the clocks", at=said.at.isoformat())
    sha256 = hashlib.sha256(statement.body).hexdigest()

    def record(session: Session) -> int:
        _check_speaker(session, site_id=site_id, statement=statement)
        if session.get(DatasetWithdrawal, (site_id, sha256)) is not None:
            return 0
        row = DatasetWithdrawal(
            site_id=site_id,
            statement_sha256=sha256,
            dataset=said.dataset,
            dataset_sha256=said.dataset_sha256,
            reason=said.reason.value,
            withdrawn_at=said.at.astimezone(UTC),
            statement_body=statement.body,
            statement_signature=statement.signature,
            reported_at=now,
        )
        session.add(row)
        session.flush()
        facts = {
            "site_id": site_id,
            "dataset": said.dataset,
            "sha256": said.dataset_sha256,
            "reason": said.reason.value,
            "statement_sha256": sha256,
        }
        append_audit(session, AuditKind.DATASET_WITHDRAWN, actor=f"site:{site_id}", facts=facts, now=now)
        return mark_users_of_dataset(session, row, now=now)

    return resources.db.run_tx("report_dataset_withdrawn", record)


def _check_speaker(session: Session, *, site_id: SiteId, statement: SignedBody) -> None:
    site = session.get(Site, site_id)
    if site is None or site.state != SiteState.ENROLLED.value or site.signing_spki is None:
        raise SiteNotActiveError("the site is not enrolled", site_id=site_id)
    try:
        verify_body(site.signing_spki, STATEMENT_KIND, statement)
    except ProtocolError as error:
        raise StatementInvalidError("the statement is not signed by the site's key", site_id=site_id) from error
