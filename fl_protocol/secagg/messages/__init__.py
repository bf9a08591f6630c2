"""M1 to M10: what each message says and its exact bytes. Knows no key and checks no claim; it only reads and writes.

Every body is ``pack`` of its fields. A statement is a SignedBody; M2, M6 and M8 are lists of the statements that the
coordinator received, byte for byte. Decoding raises PackedBytesInvalidError, IdentifierInvalidError or
MessageInvalidError, and never admits a second encoding of the same message.
"""

from __future__ import annotations

from fl_protocol.secagg.messages.keys import AuditHeads, KeyAdvertisement
from fl_protocol.secagg.messages.reveals import Confirmation, ExchangeResult, Reveal, RevealedShare, ShareKind
from fl_protocol.secagg.messages.shares import Complaint, DealtShare, DealtShares, ShareHeader, ShareKeys, ShareLeaf
from fl_protocol.secagg.messages.statements import MessageInvalidError, SignedList, StatementKind
from fl_protocol.secagg.messages.uploads import UploadHeader

__all__ = [
    "AuditHeads",
    "Complaint",
    "Confirmation",
    "DealtShare",
    "DealtShares",
    "ExchangeResult",
    "KeyAdvertisement",
    "MessageInvalidError",
    "Reveal",
    "RevealedShare",
    "ShareHeader",
    "ShareKeys",
    "ShareKind",
    "ShareLeaf",
    "SignedList",
    "StatementKind",
    "UploadHeader",
]
