"""What all messages are made of: kinds of signed statements, lists of them, fields of fixed size."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import SiteId, site_id_from_text
from fl_protocol.packing import pack, text_from_bytes, unpack
from fl_protocol.signing.signed import SignedBody


class MessageInvalidError(ProtocolError):
    """A field of a message has not the size or the value that its place demands."""

    code = "message-invalid"


class StatementKind(StrEnum):
    """What a signature says; it is signed with the body (``pack(kind, body)``)."""

    M0 = "SA1/sig/M0"
    M1 = "SA1/sig/M1"
    M3 = "SA1/sig/M3"
    M5 = "SA1/sig/M5"
    M7 = "SA1/sig/M7"
    M9 = "SA1/sig/M9"
    M10 = "SA1/sig/M10"
    COMPLAINT = "SA1/sig/complaint"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedList:
    """M2, M6 and M8: statements of several sites, exactly as they were received."""

    entries: tuple[SignedBody, ...]

    def encode(self) -> bytes:
        """``pack(pack(body, signature), ...)``."""
        return pack(*(entry.encode() for entry in self.entries))

    @classmethod
    def decode(cls, data: bytes) -> SignedList:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError."""
        return cls(entries=tuple(SignedBody.decode(entry) for entry in unpack(data)))


def site_field(field: bytes) -> SiteId:
    """A field that is a site's name. Raises PackedBytesInvalidError, IdentifierInvalidError."""
    return site_id_from_text(text_from_bytes(field))


def sized_field(field: bytes, n_bytes: int) -> bytes:
    """A field of exactly so many bytes.

    Raises:
        MessageInvalidError: it has another length.
    """
    if len(field) != n_bytes:
        raise MessageInvalidError("a field has another length", expected=n_bytes, found=len(field))
    return field
