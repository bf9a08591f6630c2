"""An exported audit log, verified: every row's hash and link, every checkpoint's signature and head.

An export is read twice, line by line: once for its checkpoints, which stand at its end, and once for its rows. So a log
of any length takes little memory.

A log that its own party exports is worth as much as the comparison of its signing key with what the sites pinned when
they enrolled; so the fingerprint is always told, and may be demanded.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fl_protocol.audit.chain import AuditRow
from fl_protocol.audit.events import AuditKind, RecordedEvent
from fl_protocol.audit.verify import AuditFault, AuditFaultReason, OnRow, verify_log
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
    signing_spki: bytes = b""
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


@dataclass(frozen=True, slots=True)
class ExportFile:
    """The lines of an export that lies in a file; may be read again and again."""

    path: Path

    def __iter__(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8", errors="replace") as file:
            yield from file


def verify_export(
    lines: Iterable[str], *, expected_key_sha256: str | None = None, on_row: OnRow | None = None
) -> VerifiedLog:
    """Verify an export: a header line, a line an event, a line a checkpoint.

    Args:
        lines: of the export; read twice, so an iterator is copied first.
        expected_key_sha256: of the signing key that it must be signed with.
        on_row: is told each row; see ``verify_log``.

    Raises:
        EvidenceFaultError: the log is not what was recorded; fact ``row`` names the first row that is wrong.
        ResponseUnreadableError: this is no export.
    """
    if iter(lines) is lines:
        lines = list(lines)
    header, checkpoints = _frame(lines)
    spki = _bytes_of(header, "signing_spki")
    key_sha256 = spki_fingerprint(spki)
    if expected_key_sha256 is not None and key_sha256 != expected_key_sha256.lower().replace(":", ""):
        raise EvidenceFaultError(
            "the log is signed by another key than expected", advice=_ADVICE, key_sha256=key_sha256
        )
    if not checkpoints:
        raise EvidenceFaultError("the log has no signed checkpoint, so nothing vouches for it", advice=_ADVICE)
    restores: list[LogRestore] = []

    def note(event: RecordedEvent, leaf: bytes) -> None:
        if event.event.kind is AuditKind.COORDINATOR_RESTORED:
            restores.append(_restore(event))
        if on_row is not None:
            on_row(event, leaf)

    try:
        outcome = verify_log(_rows(lines), checkpoints, spki, on_row=note)
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
        signing_spki=spki,
        restores=tuple(restores),
    )


def _frame(lines: Iterable[str]) -> tuple[Document, list[SignedBody]]:
    """The first pass: the header and the checkpoints."""
    header: Document | None = None
    checkpoints: list[SignedBody] = []
    for line in lines:
        # What begins like this is a row, in every export that these programs write.
        if not line.strip() or (header is not None and line.startswith('{"body":')):
            continue
        document = document_from_text(line, source="the export")
        if header is None:
            if document.get("log") != LOG_KIND:
                break
            header = document
        elif "checkpoint" in document:
            checkpoints.append(_checkpoint(document))
    if header is None:
        raise EvidenceFaultError("this is no export of an audit log", advice="Make one: wardround audit export FILE")
    return header, checkpoints


def _rows(lines: Iterable[str]) -> Iterator[AuditRow]:
    """The second pass."""
    is_header = True
    for line in lines:
        if not line.strip():
            continue
        if is_header:
            is_header = False
            continue
        document = document_from_text(line, source="the export")
        if "body" in document:
            yield _row(document)
        elif "checkpoint" not in document:
            raise EvidenceFaultError("a line of the export is neither a row nor a checkpoint", advice=_ADVICE)


def _restore(recorded: RecordedEvent) -> LogRestore:
    event = recorded.event
    return LogRestore(
        row=recorded.seq,
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
