"""The coordinator's log beside those of sites: whether what it showed them, and what they told it, are in the logs.

Every site writes down which head of the coordinator's log it was shown, with the signed manifest that showed it; the
coordinator writes down which head of its own log each site stated, with the signed message that stated it. Where such
a head is not in the exported log of that size, its party has shown two histories, and signed both.

What a restore took back is none: a head of an earlier epoch that is longer than the restored log.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from fl_protocol.audit.events import AuditKind, RecordedEvent
from fl_protocol.audit.subtrees import LogSubtrees
from fl_protocol.errors import ProtocolError
from fl_protocol.secagg.messages import KeyAdvertisement, StatementKind
from fl_protocol.signing.signed import SignedBody, verify_body
from fl_protocol.spec.round_spec import RoundManifest
from wardround.errors import EvidenceFaultError
from wardround.evidence.audit_export import LogRestore, VerifiedLog, verify_export

_SITE = "site:"
_LEAF_BYTES = 32


class LogConflict(StrEnum):
    """Why two logs do not fit together."""

    TWO_HISTORIES = "two-histories"
    """A party signed two heads of one size."""
    SHORTER = "shorter-than-stated"
    """The export ends before the head that its party signed. Make a fresh export; if it stays so, rows are gone."""
    UNSIGNED = "not-signed-by-the-party"
    """A log says that another party stated a head, and the statement is not that party's. It accuses nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedHead:
    """A head that one log says another party stated.

    Attributes:
        row: of the log that says so.
        size: rows that the other party's log had.
        head: its head.
        epoch: the coordinator's epoch, as the site knew it; 0 for a site's own log.
        statement: the signed message in which it was stated; None where the row holds none.
    """

    row: int
    size: int
    head: str
    epoch: int
    statement: SignedBody | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """One head that does not fit."""

    kind: LogConflict
    culprit: str
    witness: str
    stated: StatedHead
    found_head: str | None

    def sentence(self) -> str:
        """For people."""
        stated, place = self.stated, f"row {self.stated.row} of the log of {self.witness}"
        match self.kind:
            case LogConflict.TWO_HISTORIES:
                return (
                    f"{self.culprit} has two histories: {place} holds its signed word that its log of {stated.size}"
                    f" rows had the head {stated.head}; here it has {self.found_head}"
                )
            case LogConflict.SHORTER:
                return (
                    f"the export of {self.culprit} ends before row {stated.size}, and {place} holds its signed word"
                    " that there were so many; make a fresh export"
                )
            case LogConflict.UNSIGNED:
                return f"{place} states a head of {self.culprit} that {self.culprit} did not sign"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedSite:
    """One site's log beside the coordinator's.

    Attributes:
        n_shown: heads of the coordinator's log that the site was shown.
        n_lost: those of them that a restore took back.
        n_told: heads of its own log that the site stated.
    """

    origin: str
    size: int
    n_shown: int
    n_lost: int
    n_told: int


@dataclass(slots=True)
class _Listener:
    """What is kept of a log while it is verified: 32 bytes a row, and the heads that others stated."""

    leaves: bytearray = field(default_factory=bytearray)
    shown: list[StatedHead] = field(default_factory=list)
    told: dict[str, list[StatedHead]] = field(default_factory=dict)
    subtrees: LogSubtrees = field(default_factory=LogSubtrees)

    def hear(self, recorded: RecordedEvent, leaf: bytes) -> None:
        self.leaves += leaf
        event, facts = recorded.event, recorded.event.facts
        if event.kind is AuditKind.KEYS_ADVERTISED and "statement" in facts:
            self.told.setdefault(str(facts.get("site_id")), []).append(_stated(recorded, "statement"))
        elif event.kind is AuditKind.CHECKPOINT_WITNESSED or (
            event.kind is AuditKind.HISTORY_FORKED and facts.get("log") == "coordinator"
        ):
            self.shown.append(_stated(recorded, "manifest"))

    @property
    def size(self) -> int:
        return len(self.leaves) // _LEAF_BYTES

    def head(self, size: int) -> str:
        return str(self.subtrees.head(size, self._read).root)

    def _read(self, start: int, stop: int) -> list[bytes]:
        places = range(start * _LEAF_BYTES, stop * _LEAF_BYTES, _LEAF_BYTES)
        return [bytes(self.leaves[place : place + _LEAF_BYTES]) for place in places]


def compare_exports(
    coordinator: Iterable[str], sites: Sequence[Iterable[str]], *, expected_key_sha256: str | None = None
) -> tuple[VerifiedLog, tuple[ComparedSite, ...]]:
    """Verify all logs, and that none of their parties has shown two histories.

    Args:
        coordinator: the lines of the coordinator's export.
        sites: the lines of each site's.
        expected_key_sha256: of the coordinator's signing key.

    Raises:
        EvidenceFaultError: a log does not verify, or two do not fit; facts ``kind``, ``party``, ``witness``, ``row``.
        ResponseUnreadableError: something is no export.
    """
    own = _Listener()
    verified = verify_export(coordinator, expected_key_sha256=expected_key_sha256, on_row=own.hear)
    if verified.origin.startswith(_SITE):
        raise EvidenceFaultError("the first export must be the coordinator's; this is a site's", advice=_ADVICE_ORDER)
    compared = tuple(_compare_site(verified, own, lines) for lines in sites)
    return verified, compared


_ADVICE_ORDER = "wardround audit verify COORDINATOR.jsonl --with SITE.jsonl --with SITE.jsonl"


def _compare_site(coordinator: VerifiedLog, own: _Listener, lines: Iterable[str]) -> ComparedSite:
    theirs = _Listener()
    site = verify_export(lines, on_row=theirs.hear)
    if not site.origin.startswith(_SITE):
        raise EvidenceFaultError("this export is not a site's", advice=_ADVICE_ORDER, origin=site.origin)
    n_lost = 0
    for stated in theirs.shown:
        if _is_lost(stated, coordinator.restores):
            n_lost += 1
            continue
        is_signed = _is_manifest_of(stated, coordinator.signing_spki)
        _require_fit(stated, own, culprit=coordinator.origin, witness=site.origin, is_signed=is_signed)
    told = own.told.get(site.origin.removeprefix(_SITE), [])
    for stated in told:
        is_signed = _is_advertisement_of(stated, site.signing_spki)
        _require_fit(stated, theirs, culprit=site.origin, witness=coordinator.origin, is_signed=is_signed)
    return ComparedSite(origin=site.origin, size=site.size, n_shown=len(theirs.shown), n_lost=n_lost, n_told=len(told))


def _require_fit(stated: StatedHead, log: _Listener, *, culprit: str, witness: str, is_signed: bool) -> None:
    if stated.size == 0:
        return
    found = log.head(stated.size) if stated.size <= log.size else None
    if is_signed and found == stated.head:
        return
    if not is_signed:
        kind = LogConflict.UNSIGNED
    elif found is None:
        kind = LogConflict.SHORTER
    else:
        kind = LogConflict.TWO_HISTORIES
    conflict = Conflict(kind=kind, culprit=culprit, witness=witness, stated=stated, found_head=found)
    raise EvidenceFaultError(
        conflict.sentence(),
        advice="Keep both exports: they are evidence.",
        kind=kind.value,
        party=culprit,
        witness=witness,
        row=stated.row,
        size=stated.size,
    )


def _is_lost(stated: StatedHead, restores: Iterable[LogRestore]) -> bool:
    return any(restore.epoch > stated.epoch and restore.restored_size < stated.size for restore in restores)


def _is_manifest_of(stated: StatedHead, spki: bytes) -> bool:
    if stated.statement is None:
        return False
    try:
        manifest = RoundManifest.decode(verify_body(spki, StatementKind.M0.value, stated.statement))
    except ProtocolError:
        return False
    return (manifest.audit_size, str(manifest.audit_head)) == (stated.size, stated.head)


def _is_advertisement_of(stated: StatedHead, spki: bytes) -> bool:
    if stated.statement is None:
        return False
    try:
        heads = KeyAdvertisement.decode(verify_body(spki, StatementKind.M1.value, stated.statement)).heads
    except ProtocolError:
        return False
    return (heads.size, heads.head.hex()) == (stated.size, stated.head)


def _stated(recorded: RecordedEvent, statement: str) -> StatedHead:
    facts: Mapping[str, object] = recorded.event.facts
    size, epoch = facts.get("log_size"), facts.get("epoch")
    return StatedHead(
        row=recorded.seq,
        size=size if isinstance(size, int) else 0,
        head=str(facts.get("log_head")),
        epoch=epoch if isinstance(epoch, int) else 0,
        statement=_signed(facts.get(statement)),
    )


def _signed(text: object) -> SignedBody | None:
    try:
        return SignedBody.decode(base64.b64decode(str(text), validate=True))
    except (binascii.Error, ValueError, ProtocolError):
        return None
