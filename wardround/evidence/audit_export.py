"""An exported audit log, verified: every row's hash and link, every checkpoint's signature and head.

A log that its own party exports is worth as much as the comparison of its signing key with what the sites pinned when
they enrolled; so the fingerprint is always told, and may be demanded.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from fl_protocol.audit.chain import AuditRow
from fl_protocol.audit.events import AuditKind, event_from_bytes
from fl_protocol.audit.verify import AuditFault, AuditFaultReason, verify_log
from fl_protocol.codec.merkle import leaf_hash
from fl_protocol.errors import ProtocolError
from fl_protocol.ids import Sha256Hex
from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.signing.signed import SignedBody
from wardround.documents import Document, as_document, document_from_text, integer_of, optional_text_of, text_of
from wardround.errors import EvidenceFaultError

LOG_KIND = "wardround-audit"
_ADVICE = "Keep this export: it is evidence. Ask each site for its own log, which holds the heads that it saw."
_CHECKPOINT_FAULTS = frozenset({AuditFaultReason.CHECKPOINT_SIGNATURE, AuditFaultReason.CHECKPOINT_ORIGIN})


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRestore:
    """The coordinator was restored from a backup: what it said between that row and this one is lost to it.

    A head that a site holds and that is longer than ``restored_size`` may differ from this log, and is no fork.
    """

    row: int
    at: str
    epoch: int
    restored_size: int
    restored_head: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedLog:
    """A log that is whole, as far as its checkpoints reach."""

    origin: str
    size: int
    head: str
    n_unsigned: int
    key_sha256: str
    restores: tuple[LogRestore, ...] = ()

    def to_document(self) -> dict[str, object]:
        """The answer of ``audit verify``."""
        return {
            "verified": True,
            "origin": self.origin,
            "size": self.size,
            "head": self.head,
            "n_unsigned": self.n_unsigned,
            "key_sha256": self.key_sha256,
            "restores": [asdict(restore) for restore in self.restores],
        }


def verify_export(lines: Iterable[str], *, expected_key_sha256: str | None = None) -> VerifiedLog:
    """Verify an export: a header line, a line an event, a line a checkpoint.

    Raises:
        EvidenceFaultError: the log is not what was recorded; fact ``row`` names the first row that is wrong.
        ResponseUnreadableError: this is no export.
    """
    documents = [document_from_text(line, source="the export") for line in lines if line.strip()]
    if not documents or documents[0].get("log") != LOG_KIND:
        raise EvidenceFaultError("this is no export of an audit log", advice="Make one: wardround audit export FILE")
    header = documents[0]
    spki = _bytes_of(header, "signing_spki")
    key_sha256 = spki_fingerprint(spki)
    if expected_key_sha256 is not None and key_sha256 != expected_key_sha256.lower().replace(":", ""):
        raise EvidenceFaultError(
            "the log is signed by another key than expected", advice=_ADVICE, key_sha256=key_sha256
        )
    rows = [_row(document) for document in documents[1:] if "checkpoint" not in document]
    checkpoints = [_checkpoint(document) for document in documents[1:] if "checkpoint" in document]
    if not checkpoints:
        raise EvidenceFaultError("the log has no signed checkpoint, so nothing vouches for it", advice=_ADVICE)
    try:
        outcome = verify_log(rows, checkpoints, spki)
    except ProtocolError as error:
        raise EvidenceFaultError(f"the log names a key that is none: {error}", advice=_ADVICE) from error
    if isinstance(outcome, AuditFault):
        place = "checkpoint" if outcome.reason in _CHECKPOINT_FAULTS else "row"
        message = f"the audit log does not verify: {place} {outcome.seq} is {outcome.reason.value}"
        raise EvidenceFaultError(message, advice=_ADVICE, row=outcome.seq, reason=outcome.reason.value)
    return VerifiedLog(
        origin=text_of(header, "origin"),
        size=outcome.size,
        head=outcome.head,
        n_unsigned=outcome.n_unsigned,
        key_sha256=key_sha256,
        restores=tuple(_restores(rows)),
    )


def _restores(rows: Iterable[AuditRow]) -> Iterator[LogRestore]:
    for row in rows:
        event = event_from_bytes(row.body).event
        if event.kind is AuditKind.COORDINATOR_RESTORED:
            yield LogRestore(
                row=row.seq,
                at=event.at.isoformat(),
                epoch=int(event.facts.get("epoch") or 0),
                restored_size=int(event.facts.get("restored_size") or 0),
                restored_head=str(event.facts.get("restored_head")),
            )


def _row(document: Document) -> AuditRow:
    # verify_log compares the stored leaf hash with the bytes, so taking it from the export names an altered last row
    # exactly; an export without it is judged by its links and checkpoints.
    body = _bytes_of(document, "body")
    stored = optional_text_of(document, "leaf_sha256") or leaf_hash(body).hex()
    return AuditRow(seq=integer_of(document, "seq"), body=body, leaf_sha256=Sha256Hex(stored))


def _checkpoint(document: Document) -> SignedBody:
    checkpoint = as_document(document["checkpoint"], source="a checkpoint of the export")
    return SignedBody(body=_bytes_of(checkpoint, "body"), signature=_bytes_of(checkpoint, "signature"))


def _bytes_of(document: Document, key: str) -> bytes:
    try:
        return base64.b64decode(text_of(document, key), validate=True)
    except binascii.Error as error:
        raise EvidenceFaultError(f"{key!r} of the export is no base 64", advice=_ADVICE) from error
